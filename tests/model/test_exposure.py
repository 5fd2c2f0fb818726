from typing import Any

import numpy as np
import pytest
import torch

from model.config import TrainConfig
from model.exposure import Exposure, Prefix, retarget
from model.lanelm import LaneLM
from model.presets import build
from model.targets import Targets, make_targets
from model.tokenizer import make_tokenizer

T = 10


def small(**settings: Any) -> TrainConfig:
    return build(
        {
            "visual.levels": "p5",
            "data.width": 96,
            "data.height": 64,
            "data.max_lanes": 2,
            "tokenizer.n_rows": T,
            "tokenizer.n_bins": 48,
            "model.d_model": 16,
            "model.n_layers": 1,
            "model.n_heads": 2,
            "model.d_ff": 16,
            **{name.replace("__", "."): value for name, value in settings.items()},
        }
    )


def lanes(config: TrainConfig) -> Targets:
    rows = config.data.height / T * np.arange(T)
    first = np.stack([20 + 3.0 * np.arange(T - 2), rows[1:-1]], axis=1)
    second = np.stack([80 - 2.0 * np.arange(T - 5), rows[5:]], axis=1)
    return make_targets([[first, second], [second]], config)


def prefix_of(config: TrainConfig, step: int, part: int = 0) -> tuple[Prefix, LaneLM, Any]:
    model = LaneLM(config, (4, 4, 4))
    with torch.no_grad():
        model.head_x.weight.mul_(8)  # opinions of its own
        model.head_x.bias[0] = -100.0  # decoding never ends a lane
    memory = model.encode([torch.randn(2, 4, 2, 3, generator=torch.Generator().manual_seed(0))])
    return Exposure(config).prefix(model, memory, lanes(config), step, part), model, memory


def test_teacher_forcing_reads_the_labels() -> None:
    config = small()
    prefix, model, _ = prefix_of(config, 1)
    ids_in, y_in = model.shift(lanes(config).ids)
    assert torch.equal(prefix.ids_in, ids_in)
    assert torch.equal(prefix.y_in, y_in)
    assert torch.equal(prefix.targets.ids, lanes(config).ids)
    assert prefix.own == 0


@pytest.mark.parametrize("mode", ["absolute", "relative_disjoint"])
def test_a_hidden_lane_reads_blanks_and_is_asked_where_it_is(mode: str) -> None:
    config = small(tokenizer__mode=mode, exposure__hidden=1.0)
    prefix, model, _ = prefix_of(config, 1)
    nothing = torch.zeros_like(lanes(config).ids)
    assert torch.equal(prefix.ids_in, model.shift(nothing)[0])
    assert torch.equal(prefix.y_in, model.shift(nothing)[1])
    absolute = make_tokenizer(config.tokenizer, config.data.width).bins(lanes(config).x)
    assert torch.equal(prefix.targets.ids, absolute)


def test_a_share_of_the_lanes_is_hidden_others_read_the_labels() -> None:
    config = small(exposure__hidden=0.5)
    hidden = []
    for step in range(1, 21):
        prefix, model, _ = prefix_of(config, step)
        truth = model.shift(lanes(config).ids)[0]
        own = (prefix.ids_in == truth).all(-1)
        hidden += (~own)[lanes(config).present].tolist()
        assert torch.equal(prefix.ids_in[own], truth[own])
    assert 0.3 < np.mean(hidden) < 0.7


def test_probability_waits_grows_and_stays() -> None:
    exposure = Exposure(
        small(
            optim__steps=101,
            exposure__mode="scheduled_sampling",
            exposure__start=0.2,
            exposure__ramp=0.4,
            exposure__maximum=0.8,
        )
    )
    exposure.steps = 100
    got = [exposure.probability(step) for step in (1, 20, 21, 41, 61, 100)]
    assert got == pytest.approx([0, 0, 0, 0.4, 0.8, 0.8])


@pytest.mark.parametrize("mode", ["absolute", "relative_disjoint"])
def test_enough_passes_are_free_running_decoding(mode: str) -> None:
    config = small(
        tokenizer__mode=mode,
        exposure__mode="scheduled_sampling",
        exposure__ramp=0.0,
        exposure__maximum=1.0,
        exposure__passes=T,
    )
    targets = lanes(config)
    tokenizer = make_tokenizer(config.tokenizer, config.data.width)
    prefix, model, memory = prefix_of(config, 1)
    # decode step by step, told by the labels where lanes begin and end
    written = torch.zeros_like(targets.ids)
    for t in range(T):
        logits, _ = model(memory, *model.shift(written))
        guess = logits[:, :, t].argmax(-1)
        before = tokenizer.walk(written)[..., t - 1] if t else torch.zeros_like(guess)
        step = (guess - 48 - 32 + before).clamp(1, 47) * (before > 0)
        bins = torch.where(guess >= 48, step, guess)
        bins = torch.where(bins > 0, bins, tokenizer.bins(targets.x)[..., t])
        x = tokenizer.decode(written)
        x[..., t] = torch.where(targets.point[..., t], tokenizer.centres(bins), torch.nan)
        written = tokenizer.encode(x)
    assert torch.equal(prefix.ids_in, model.shift(written)[0])
    assert not torch.equal(written, targets.ids)


@pytest.mark.parametrize("choice", ["token", "point", "median"])
def test_free_running_prefix_is_what_generate_writes(choice: str) -> None:
    config = small(
        decode__choice=choice,
        exposure__mode="scheduled_sampling",
        exposure__ramp=0.0,
        exposure__maximum=1.0,
        exposure__passes=T,
    )
    prefix, model, memory = prefix_of(config, 1)
    full = make_targets([[np.array([[20.0, 0], [60, 63]])] * 2] * 2, config)
    assert full.point.all()  # the lanes fill all rows, so that supports agree
    prefix = Exposure(config).prefix(model, memory, full, 1, 0)
    assert torch.equal(prefix.ids_in[..., 1:], model.generate(memory)[..., :-1])


def test_rollout_moves_one_stretch_of_k_rows() -> None:
    config = small(exposure__mode="rollout", exposure__rollout_rows=3, exposure__maximum=1.0)
    targets = lanes(config)
    longest, starts = 0, set()
    for step in range(1, 9):
        prefix, model, memory = prefix_of(config, step)
        teacher = model.shift(targets.ids)[0]
        own = (prefix.ids_in != teacher)[..., 1:]
        for lane, point in zip(own.flatten(0, 1), targets.point.flatten(0, 1), strict=True):
            where = lane.nonzero().flatten().tolist()
            if where:
                assert where[-1] - where[0] < 3
                assert point[where].all()
                longest = max(longest, len(where))
                starts.add(where[0])
        # the first own token of the stretch follows a true prefix: it is the model's guess there
        guess = model(memory, *model.shift(targets.ids))[0].argmax(-1)
        n, lane, t = own.nonzero()[0].tolist()
        assert prefix.ids_in[n, lane, t + 1] == guess[n, lane, t]
    assert longest == 3
    assert len(starts) > 2


def test_no_token_is_added_or_removed() -> None:
    for mode in ("scheduled_sampling", "rollout"):
        config = small(exposure__mode=mode, exposure__maximum=1.0, exposure__input_noise=3.0)
        prefix, model, _ = prefix_of(config, 400)
        teacher = model.shift(lanes(config).ids)
        assert torch.equal(prefix.ids_in == 0, teacher[0] == 0)
        assert torch.equal(prefix.y_in, teacher[1])
        assert not torch.equal(prefix.ids_in, teacher[0])


def test_maximum_is_the_share_of_own_points() -> None:
    config = small(exposure__mode="scheduled_sampling", exposure__ramp=0.0, exposure__maximum=0.25)
    shares = [prefix_of(config, step)[0].own.item() for step in range(1, 60)]
    assert np.mean(shares) == pytest.approx(0.25, abs=0.06)


def test_target_after_a_moved_point_leads_back_to_the_lane() -> None:
    config = small(tokenizer__mode="relative_disjoint", exposure__input_noise=2.0)
    prefix, model, _ = prefix_of(config, 1)
    targets, tokenizer = lanes(config), make_tokenizer(config.tokenizer, config.data.width)
    assert not torch.equal(prefix.targets.ids, targets.ids)
    for t in range(1, T):
        written = prefix.ids_in[..., 1 : t + 1]  # what was read before step t
        reached = tokenizer.walk(torch.cat([written, prefix.targets.ids[..., t : t + 1]], -1))
        assert torch.equal(reached[..., -1], tokenizer.bins(targets.x)[..., t])


def test_targets_stay_where_nothing_moved_and_in_absolute_mode() -> None:
    for mode in ("absolute", "relative_disjoint", "relative_open_loop", "relative_clamped"):
        config = small(tokenizer__mode=mode)
        targets, tokenizer = lanes(config), make_tokenizer(config.tokenizer, config.data.width)
        assert torch.equal(retarget(tokenizer, targets.ids, targets), targets.ids)
    noisy = prefix_of(small(exposure__input_noise=2.0), 1)[0]
    assert torch.equal(noisy.targets.ids, lanes(small()).ids)


def test_noise_has_the_std_asked_for() -> None:
    config = small(exposure__input_noise=2.0, tokenizer__n_bins=900)
    differences = []
    for step in range(1, 40):
        prefix, model, _ = prefix_of(config, step)
        clean = model.shift(lanes(config).ids)[0]
        moved = (prefix.ids_in - clean)[..., 1:][clean[..., 1:] > 0]
        differences.append(moved.float())
    assert torch.cat(differences).std().item() == pytest.approx(2.0, rel=0.1)


def test_draws_depend_on_step_and_pass_alone() -> None:
    config = small(exposure__mode="scheduled_sampling", exposure__ramp=0.0)
    ids = [
        prefix_of(config, step, part)[0].ids_in for step, part in ((5, 0), (5, 0), (6, 0), (5, 1))
    ]
    assert torch.equal(ids[0], ids[1])
    assert not torch.equal(ids[0], ids[2])
    assert not torch.equal(ids[0], ids[3])


def test_own_tokens_are_decoded_without_dropout() -> None:
    config = small(
        model__dropout=0.5,
        exposure__mode="scheduled_sampling",
        exposure__ramp=0.0,
        exposure__maximum=1.0,
    )
    (first, model, _), (second, *_) = prefix_of(config, 3), prefix_of(config, 3)
    assert torch.equal(first.ids_in, second.ids_in)
    assert model.training
