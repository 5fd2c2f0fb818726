"""LaneLM whole: what it reads and writes, decoding as training, and every setting at work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import TrainConfig
from model.lanelm import LaneLM, Memory, count_parameters, visual_tokens
from model.presets import SIZES, build
from tests.model.network import features_of, network, small, targets_for

SOUND: list[dict[str, Any]] = [
    {},
    {"visual__levels": "p5"},
    {"visual__levels": "p4p5", "visual__stride": 2},
    {"visual__select": "pool", "visual__select_tokens": 12},
    {"visual__select": "topk", "visual__select_tokens": 12},
    {"visual__norm": "standardize"},
    {"visual__norm": "none"},
    {"visual__scale": 0.1},
    {"visual__residual": True},
    {"visual__position": "none"},
    {"visual__position": "learned"},
    {"visual__position": "weak"},
    {"visual__position": "aligned"},
    {"visual__position": "aligned", "tokenizer__mode": "relative_disjoint"},
    {"visual__position": "aligned", "visual__select": "pool", "visual__select_tokens": 12},
    {"visual__position": "aligned", "model__memory": "per_level", "model__n_layers": 4},
    {"visual__level_embedding": False},
    {"model__attention": "qk_norm"},
    {"model__attention": "qk_norm", "model__temperature": 4.0},
    {"model__cross_heads": 4},
    {"model__n_heads": 4},
    {"model__memory": "per_level", "model__n_layers": 3},
    {"model__order": "cross_first"},
    {"model__norm": "post"},
    {"model__x_scale": 0.3},
    {"model__lane_scale": 15.0},
    {"model__n_layers": 3},
    {"model__d_ff": 40},
    {"model__d_model": 32},
    {"tokenizer__mode": "relative_disjoint", "tokenizer__max_abs_dx": 4},
    {"tokenizer__row_order": "top_down", "visual__position": "aligned"},
]
LEGACY: list[dict[str, Any]] = [
    {"model__start": "leak"},
    {"model__decode_shift": True},
    {"model__decode_y_offset": 1},
    {"model__decode_shift": True, "visual__position": "aligned"},
    {"model__start": "leak", "model__decode_shift": True, "model__decode_y_offset": 1},
]


def name_of(settings: dict[str, Any]) -> str:
    return ",".join(f"{key.split('__')[1]}={value}" for key, value in settings.items()) or "base"


def decode_without_cache(model: LaneLM, memory: Memory) -> tuple[Tensor, Tensor]:
    """Decode by running the whole prefix again for every step, and nothing shared with generate."""
    settings, T = model.config.model, model.config.tokenizer.n_rows
    B, L = memory.tokens.shape[0], model.config.data.max_lanes
    start = 0 if settings.start == "leak" else model.tokenizer.bos
    ids: list[Tensor] = []  # (B, L) each
    points: list[Tensor] = []
    logits: list[Tensor] = []
    for t in range(T):
        x_in = [torch.full((B, L), start), *ids]
        if settings.decode_shift:
            x_in = x_in[:1] + x_in
        y_in = [torch.full((B, L), T)]
        for step, point in enumerate(points):
            y_in.append(torch.where(point, step + settings.decode_y_offset, T))
        with torch.no_grad():
            out, _ = model(memory, torch.stack(x_in[: t + 1], -1), torch.stack(y_in, -1))
        logits.append(out[:, :, -1])
        chosen = logits[-1].argmax(-1)
        if points:
            chosen[torch.stack(points).any(0) & ~points[-1]] = 0
        points.append(~model.tokenizer.decode(torch.stack([*ids, chosen], -1))[..., -1].isnan())
        ids.append(chosen * points[-1])
    return torch.stack(ids, -1), torch.stack(logits, 2)


def lively(config: TrainConfig) -> LaneLM:
    """Make a model that writes blanks now and then, but not only."""
    model = network(config, sharpen=5.0)
    with torch.no_grad():
        model.head_x.bias[0] = 1.0
    return model


@pytest.mark.parametrize("settings", SOUND + LEGACY, ids=name_of)
def test_decoding_is_the_uncached_path_and_the_trained_one(settings: dict[str, Any]):
    model = lively(small(**settings))
    with torch.no_grad():
        memory = model.encode(features_of(model))
        ids, logits = model.generate(memory, return_logits=True)
        expected, expected_logits = decode_without_cache(model, memory)
        forced, _ = model(memory, *model.shift(ids))
    assert bool((ids > 0).any())
    assert torch.equal(ids, expected)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-3, atol=1e-4)
    if settings in SOUND:
        torch.testing.assert_close(logits, forced, rtol=1e-3, atol=1e-4)
    else:
        assert float((logits - forced).abs().max()) > 0.05


@pytest.mark.parametrize("settings", LEGACY[1:4], ids=name_of)
def test_legacy_decoding_leaves_training_alone(settings: dict[str, Any]):
    config = small(**settings)
    sound = {key: value for key, value in settings.items() if key.startswith("visual")}
    with torch.no_grad():
        forced = []
        for model in (network(config), network(small(**sound))):
            inputs = model.shift(targets_for(config).ids)
            forced.append(model(model.encode(features_of(model)), *inputs)[0])
    assert torch.equal(*forced)


def test_the_leak_hands_the_first_target_to_the_first_step():
    model = network(small(model__start="leak"))
    ids = targets_for(model.config).ids
    assert torch.equal(model.shift(ids)[0][..., 0], ids[..., 0])
    sound = network(small())
    assert bool((sound.shift(ids)[0][..., 0] == sound.tokenizer.bos).all())


@pytest.mark.parametrize("settings", SOUND, ids=name_of)
def test_a_later_token_never_changes_an_earlier_logit(settings: dict[str, Any]):
    model = network(small(**settings))
    memory = model.encode(features_of(model))
    ids_in, y_in = model.shift(targets_for(model.config).ids)
    changed, changed_y = ids_in.clone(), y_in.clone()
    changed[..., 3:] = (changed[..., 3:] + 3) % model.tokenizer.vocab
    changed_y[..., 3:] = (changed_y[..., 3:] + 1) % 9
    with torch.no_grad():
        x, y = model(memory, ids_in, y_in)
        other_x, other_y = model(memory, changed, changed_y)
    assert torch.equal(x[..., :3, :], other_x[..., :3, :])
    assert torch.equal(y[..., :3, :], other_y[..., :3, :])
    assert not torch.allclose(x[..., 3:, :], other_x[..., 3:, :])


@pytest.mark.parametrize("settings", SOUND[:18:3] + SOUND[-1:], ids=name_of)
def test_an_image_alone_is_the_image_in_a_batch(settings: dict[str, Any]):
    model = lively(small(**settings))
    features = features_of(model, images=2)
    together, logits = model.generate(model.encode(features), return_logits=True)
    for i in range(2):
        alone = model.encode([f[i : i + 1] for f in features])
        ids, its_logits = model.generate(alone, return_logits=True)
        assert torch.equal(ids[0], together[i])
        torch.testing.assert_close(its_logits[0], logits[i], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("settings", SOUND[1:], ids=name_of)
def test_every_setting_is_at_work(settings: dict[str, Any]):
    """Told apart by what the model says of the same lanes in the same images."""
    said = []
    for config in (small(**settings), small()):
        model = network(config)
        memory = model.encode(features_of(model))
        logits, _ = model(memory, *model.shift(targets_for(config).ids))
        said.append(logits.detach())
    ours, base = said
    assert ours.shape != base.shape or float((ours - base).abs().max()) > 1e-3


@pytest.mark.parametrize(
    "settings", [{"model__attention": "qk_norm"}, {"visual__position": "aligned"}], ids=name_of
)
def test_padded_cells_have_no_influence(settings: dict[str, Any]):
    """Images of unequal token counts in one batch: what lies under the padding does not matter."""
    model = network(small(visual__levels="p5", **settings))
    (f,) = features_of(model)
    padding = torch.zeros(2, 8, dtype=torch.bool)
    padding[1, 4:] = True  # the second image's lower row
    other = f.clone()
    other[1, :, 1] = 30.0
    inputs = model.shift(targets_for(model.config).ids)
    a, b = (model(model.encode([x], padding), *inputs)[0] for x in (f, other))
    assert torch.equal(a, b)
    unpadded = model(model.encode([f]), *inputs)[0]
    torch.testing.assert_close(a[0], unpadded[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(a[1], unpadded[1], atol=1e-3)


@pytest.mark.parametrize("settings", SOUND, ids=name_of)
def test_every_parameter_learns(settings: dict[str, Any]):
    model = network(small(**settings))
    memory = model.encode(features_of(model))
    logits_x, logits_y = model(memory, *model.shift(targets_for(model.config).ids))
    (logits_x.square().sum() + logits_y.square().sum()).backward()
    still = {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or float(parameter.grad.abs().max()) == 0
    }
    assert not still


def test_attention_gives_each_block_s_weights():
    model = network(small(model__memory="per_level", model__cross_heads=4, model__n_layers=3))
    memory = model.encode(features_of(model))
    weights = model.attention(memory, *model.shift(targets_for(model.config).ids))
    assert [tuple(w.shape) for w in weights] == [(2, 4, 3, 8, n) for n in (128, 32, 8)]
    for block, w in enumerate(weights):
        torch.testing.assert_close(w.sum(-1), torch.ones(2, 4, 3, 8))
        assert w.requires_grad
        assert [m.shape[-2:] for m in memory.maps(block, w)] == [
            (grid.height, grid.width) for grid in memory.grids[block]
        ]


def test_block_i_reads_level_i():
    model = network(small(model__memory="per_level", model__n_layers=3))
    features = features_of(model)
    inputs = model.shift(targets_for(model.config).ids)
    before = model.attention(model.encode(features), *inputs)
    features[2] = features[2] + torch.randn_like(features[2])
    after = model.attention(model.encode(features), *inputs)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[2], after[2])


def test_lane_ids_name_the_lanes():
    model = network(small())
    memory = model.encode(features_of(model))
    ids = targets_for(model.config).ids[:, :1].expand(-1, 3, -1)  # one lane, three ids
    inputs = model.shift(ids)
    plain, _ = model(memory, *inputs)
    turned, _ = model(memory, *inputs, lane_ids=torch.tensor([[2, 0, 1], [0, 1, 2]]))
    torch.testing.assert_close(turned[0], plain[0, [2, 0, 1]])
    torch.testing.assert_close(turned[1], plain[1])
    assert not torch.allclose(plain[:, 0], plain[:, 1])


def test_a_prompt_is_taken_as_written():
    model = lively(small(tokenizer__mode="relative_disjoint"))
    memory = model.encode(features_of(model))
    prompt = targets_for(model.config).ids[..., :3]
    ids, logits = model.generate(memory, prompt=prompt, return_logits=True)
    assert torch.equal(ids[..., :3], prompt)
    forced, _ = model(memory, *model.shift(ids))
    torch.testing.assert_close(logits, forced, rtol=1e-3, atol=1e-4)
    assert not torch.equal(ids, model.generate(memory))


def test_nothing_follows_the_end_of_a_lane():
    model = lively(small())
    with torch.no_grad():
        model.head_x.bias[0] = 4.0
    ids = model.generate(model.encode(features_of(model, images=8)))
    point = ids > 0
    runs = (point[..., 1:] & ~point[..., :-1]).sum(-1) + point[..., 0]
    assert int(runs.max()) == 1  # one run of points per lane
    assert bool((point.any(-1) & ~point[..., -1]).any())  # some lane did end


def test_the_y_head_may_end_a_lane():
    models = [lively(small(decode__ends=ends)) for ends in ("x", "x_or_y")]
    for model in models:
        with torch.no_grad():
            model.head_y.bias[8] = 100.0  # y always says: no point
    ids = [model.generate(model.encode(features_of(model))) for model in models]
    assert bool((ids[0] > 0).any())
    assert not bool((ids[1] > 0).any())


def test_sizes_and_counts():
    config = build({"preset": "v4_fixed", "model.preset": "lanelm_128"})
    assert visual_tokens(config) == 5250
    model = LaneLM(config, (40, 112, 320))
    assert count_parameters(config, (40, 112, 320)) == sum(p.numel() for p in model.parameters())
    counts = [
        count_parameters(build({"model.preset": size, "tokenizer.n_bins": 800}), (64, 64, 64))
        for size in SIZES
    ]
    # The paper's sizes in float32: 3.54, (a size of its own), 39.65 MB.
    assert counts[0] * 4 / 1e6 == pytest.approx(3.54, rel=0.1)
    assert counts[2] * 4 / 1e6 == pytest.approx(39.65, rel=0.15)


def test_one_image_is_learned():
    config = small(tokenizer__n_bins=100, tokenizer__mode="relative_disjoint", visual__levels="p5")
    model = network(config).train()
    features, targets = features_of(model, images=1), targets_for(config, images=1)
    counted = targets.point | targets.first_end | targets.lead
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    losses = []
    for _ in range(100):
        logits, _ = model(model.encode(features), *model.shift(targets.ids))
        loss = F.cross_entropy(logits[counted], targets.ids[counted])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05
    ids = model.eval().generate(model.encode(features))
    assert torch.equal(ids, targets.ids)


@pytest.mark.parametrize(
    "settings",
    [
        {"visual__position": "aligned", "model__attention": "qk_norm"},
        {"visual__select": "topk", "visual__select_tokens": 12, "visual__norm": "standardize"},
        {"visual__select": "pool", "visual__select_tokens": 12, "visual__position": "learned"},
        {"tokenizer__mode": "relative_disjoint", "model__memory": "per_level"}
        | {"model__n_layers": 3},
    ],
    ids=name_of,
)
def test_nothing_stays_behind_on_the_cpu(settings: dict[str, Any]):
    """On another device every tensor must be there: `meta` refuses to mix with the CPU."""
    model = network(small(**settings)).to("meta")
    memory = model.encode([f.to("meta") for f in features_of(model)])
    ids = targets_for(model.config).ids.to("meta")
    inputs = model.shift(ids)
    assert model(memory, *inputs)[0].device.type == "meta"
    assert {w.device.type for w in model.attention(memory, *inputs)} == {"meta"}
    assert model.generate(memory, prompt=ids[..., :2]).device.type == "meta"
