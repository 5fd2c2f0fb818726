"""Every setting, as a study reaches it: a dotted path, `build`, a training run that it changes.

The table names each path of TrainConfig with another value than its neutral one, what must lie
under it for the setting to be alive, and what of the run has to show it. A new field without an
entry fails. What is only about where a job runs (runtime.*, paths) is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from model.checkpoint import load_checkpoint
from model.config import TrainConfig, settings_of
from model.lanelm import LaneLM
from model.material import Material, load_material
from model.presets import build, known_paths
from tests.model.fake_roots import make_culane_root
from tests.model.tiny import SETTINGS, Events, run

PATHS = {"data.roots", "data.geometry", "backbone.checkpoint"}
COMMON = SETTINGS | {"evaluation.every": 8, "runtime.checkpoint_every": 100}

Settings = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A trained job and what it was made of."""

    config: TrainConfig
    metrics: dict[str, float]
    events: Events
    material: Material
    weights: dict[str, torch.Tensor]

    def logged(self, name: str) -> list[float]:
        return list(self.events.of(f"train/{name}").values())

    def tokens(self) -> int:
        """Visual tokens of an image."""
        model, bank = LaneLM(self.config, self.material.bank.channels), self.material.bank
        model.load_state_dict(self.weights)
        return model.encode(bank.batch([0], model.levels)).tokens.shape[1]

    def parameters(self) -> int:
        return sum(weight.numel() for weight in self.weights.values())

    def features(self) -> torch.Tensor:
        return self.material.bank.batch([0], [2])[0]


Shows = Callable[[Run, Run], bool]
"""the run as it is without the setting, and with it"""


# --- what may show it -----------------------------------------------------------------------------


def trained(was: Run, now: Run) -> bool:
    """It learned something else."""
    return was.metrics["final/loss"] != now.metrics["final/loss"]


def decoded(was: Run, now: Run) -> bool:
    """It learned the same and writes something else."""
    names = ("px_error", "coverage", "points_ratio")
    writes = [[r.metrics.get(f"final/{name}") for name in names] for r in (was, now)]
    return not trained(was, now) and writes[0] != writes[1]


def mismatched(was: Run, now: Run) -> bool:
    """Decoding reads another input than training, which is what it was."""
    gap = "final/step_logit_gap"
    return not trained(was, now) and was.metrics[gap] < 0.01 < now.metrics[gap]


def processed(was: Run, now: Run) -> bool:
    """The raw readings stay, and there are others beside them."""
    names = [name for name in was.metrics if name.startswith("final/")]
    stay = all(was.metrics[name] == now.metrics[name] for name in names)
    beside = {name.removesuffix("_processed") for name in now.metrics if "_processed" in name}
    other = any(now.metrics[f"{name}_processed"] != now.metrics[name] for name in beside)
    return stay and {"final/zigzag", "val/px_error", "val/f1"} <= beside and other


def of(what: Callable[[Run], Any], expected: Any) -> Shows:
    """`what` of the run becomes `expected`, which it was not."""
    return lambda was, now: what(was) != expected and what(now) == pytest.approx(expected)


def log(name: str, *expected: float) -> Shows:
    """The training logs these values, step by step."""
    return of(lambda r: r.logged(name), list(expected))


def grown(was: Run, now: Run) -> bool:
    return now.parameters() > was.parameters() and trained(was, now)


def smaller(was: Run, now: Run) -> bool:
    return now.parameters() < was.parameters() and trained(was, now)


def other_targets(was: Run, now: Run) -> bool:
    ids = [r.material.train.targets.ids for r in (was, now)]
    return not torch.equal(*ids) and trained(was, now)


def vocabulary(run: Run) -> int:
    return run.weights["head_x.weight"].shape[0]


# --- the table ------------------------------------------------------------------------------------

STAGED = {
    "loss.y_schedule": "staged",
    "loss.y_threshold": 50.0,
    "loss.y_patience": 2,
    "loss.y_hold": 2,
    "loss.y_ramp": 4,
}  # y weights: 0, 0, .1, .1, .15, .2, .25, .3
SAMPLING = {
    "exposure.mode": "scheduled_sampling",
    "exposure.ramp": 0.0,
    "exposure.maximum": 1.0,
}
ROLLOUT = {"exposure.mode": "rollout", "exposure.maximum": 1.0}
RELATIVE = {"tokenizer.mode": "relative_disjoint"}
TWO_LEVELS = {"visual.levels": "p4p5"}
POOL = {"visual.select": "pool"}
COSINE = {"optim.schedule": "cosine"}
REAL = {"data.roots": ["a CULane root"]}  # unsorted lanes that begin above the crop
TALL = {"tokenizer.n_rows": 24}  # lanes of more than 10 points


@dataclass(frozen=True)
class Case:
    value: Any
    shows: Shows = trained
    over: Settings = field(default_factory=dict)


def own(steps: slice, shown: Callable[[float, float], bool]) -> Shows:
    """The share of own tokens in these steps, before and now."""

    def total(run: Run) -> float:
        return sum(run.logged("own_tokens")[steps])

    return lambda was, now: shown(total(was), total(now)) and trained(was, now)


CASES: dict[str, Case] = {
    "seed": Case(1),
    "data.train_images": Case(3, of(lambda r: len(r.material.train), 3)),
    "data.val_images": Case(2, of(lambda r: len(r.material.val), 2)),
    "data.test_images": Case(1, of(lambda r: "test/coverage" in r.metrics, True)),
    "data.mirror": Case(True, of(lambda r: len(r.material.train), 4)),
    "data.seed": Case(1, other_targets),
    "data.width": Case(192, of(Run.tokens, 12)),
    "data.height": Case(96, of(Run.tokens, 15)),
    "data.max_lanes": Case(1, of(lambda r: r.material.train.targets.ids.shape[1], 1)),
    "data.lane_order": Case("label", other_targets, REAL),
    "data.above_crop": Case(
        "clip",
        lambda was, now: (
            other_targets(was, now)
            and was.metrics["floor/beyond_bound"] == 0 < now.metrics["floor/beyond_bound"]
        ),
        REAL,
    ),
    "backbone.name": Case(
        "efficientnet_lite0",
        of(lambda r: r.material.bank.channels, (40, 112, 320)),
        {"backbone.random_channels": 32},
    ),
    "backbone.random_seed": Case(
        1, lambda was, now: not torch.equal(was.features(), now.features()) and trained(was, now)
    ),
    "backbone.random_channels": Case(4, of(lambda r: r.features().shape[1], 4)),
    "tokenizer.mode": Case("relative_disjoint", of(vocabulary, 40 + 65)),
    "tokenizer.n_bins": Case(30, of(vocabulary, 30)),
    "tokenizer.max_abs_dx": Case(5, of(vocabulary, 40 + 11), RELATIVE),
    "tokenizer.n_rows": Case(12, of(lambda r: r.material.train.targets.ids.shape[-1], 12)),
    "tokenizer.row_order": Case("top_down", other_targets),
    "visual.levels": Case("p4p5", of(Run.tokens, 50)),
    "visual.stride": Case(2, of(Run.tokens, 20), TWO_LEVELS),
    "visual.fold": Case(True, of(Run.tokens, 10), TWO_LEVELS),
    "visual.neck": Case(1, grown),
    "visual.select": Case("topk", lambda was, now: grown(was, now)),
    "visual.select_tokens": Case(6, of(Run.tokens, 6), POOL),
    "visual.norm": Case("standardize"),
    "visual.scale": Case(0.1, of(lambda r: r.metrics["visual/std"] < 0.7, True)),
    "visual.residual": Case(True, grown),
    "visual.position": Case("learned", grown),
    "visual.level_embedding": Case(False, smaller),
    "model.d_model": Case(24, grown),
    "model.n_layers": Case(2, grown),
    "model.n_heads": Case(4),
    "model.cross_heads": Case(4),
    "model.d_ff": Case(24, grown),
    "model.dropout": Case(0.2),
    "model.attention": Case("qk_norm", grown),
    "model.temperature": Case(4.0, trained, {"model.attention": "qk_norm"}),
    "model.memory": Case("per_level", trained, TWO_LEVELS | {"model.n_layers": 2}),
    "model.order": Case("cross_first"),
    "model.norm": Case("post"),
    "model.x_scale": Case(0.3),
    "model.lane_scale": Case(15.0),
    "model.start": Case(
        "leak",
        lambda was, now: trained(was, now) and now.metrics["final/step_logit_gap_first"] > 0.01,
    ),
    "model.decode_shift": Case(True, mismatched),
    "model.decode_y_offset": Case(1, mismatched),
    "loss.y_weight": Case(0.5, log("y_weight", *[0.5] * 8)),
    "loss.y_schedule": Case("staged", log("y_weight", *[0.0] * 8)),
    "loss.y_threshold": Case(1e-6, log("y_weight", *[0.0] * 8), STAGED),
    "loss.y_patience": Case(3, log("y_weight", 0, 0, 0, 0.1, 0.1, 0.15, 0.2, 0.25), STAGED),
    "loss.y_first": Case(0.2, log("y_weight", 0, 0, 0.2, 0.2, 0.225, 0.25, 0.275, 0.3), STAGED),
    "loss.y_hold": Case(1, log("y_weight", 0, 0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.3), STAGED),
    "loss.y_ramp": Case(2, log("y_weight", 0, 0, 0.1, 0.1, 0.2, 0.3, 0.3, 0.3), STAGED),
    "loss.ends": Case("ignored"),
    "loss.ends_weight": Case(0.1),
    "loss.start_weight": Case(5.0),
    "loss.lane_map": Case(5.0, grown),
    "loss.label_smoothing": Case(0.1),
    "loss.soft_bins": Case(1.0),
    "loss.entropy_penalty": Case(
        5.0, lambda was, now: now.logged("objective")[0] > was.logged("objective")[0] + 3
    ),
    "optim.steps": Case(5, of(lambda r: list(r.events.of("train/loss")), [1, 2, 3, 4, 5])),
    "optim.optimizer": Case("adam"),
    "optim.lr": Case(0.01, log("lr", *[0.01] * 8)),
    "optim.schedule": Case(
        "cosine", lambda was, now: max(was.logged("lr")[1:]) > now.logged("lr")[-1] * 5
    ),
    "optim.lr_min": Case(2e-4, of(lambda r: min(r.logged("lr")) >= 2e-4, True), COSINE),
    "optim.warmup": Case(
        4, lambda was, now: now.logged("lr")[0] < now.logged("lr")[3] == was.logged("lr")[0]
    ),
    "optim.clip": Case(None, log("clipped_share", *[0.0] * 8)),
    "optim.weight_decay": Case(0.5),
    "optim.beta1": Case(0.5),
    "optim.beta2": Case(0.9),
    "optim.precision": Case("bf16"),
    "exposure.mode": Case(
        "scheduled_sampling", of(lambda r: len(r.logged("own_tokens")), 8), {"optim.lr": 0.01}
    ),
    "exposure.start": Case(0.5, own(slice(4), lambda was, now: now == 0 < was), SAMPLING),
    "exposure.ramp": Case(1.0, own(slice(8), lambda was, now: 0 < now < was), SAMPLING),
    "exposure.maximum": Case(0.3, own(slice(8), lambda was, now: 0 < now < was), SAMPLING),
    "exposure.passes": Case(3, trained, SAMPLING),
    "exposure.rollout_rows": Case(2, own(slice(8), lambda was, now: 0 < now < was), ROLLOUT),
    "exposure.input_noise": Case(2.0),
    "exposure.hidden": Case(0.5),
    "batch.images": Case(2),
    "batch.lanes": Case(3),
    "batch.accumulate": Case(2),
    "batch.shift": Case(2.0),
    "batch.shear": Case(2.0),
    "decode.ends": Case("x_or_y", decoded, {"loss.y_weight": 0.9, "optim.lr": 0.003}),
    "decode.choice": Case("point", decoded, {"optim.lr": 0.003}),
    "decode.hallucination_removal": Case(True, processed, TALL),
    "decode.smooth": Case(5, processed, TALL),
    "decode.nms": Case(800.0, processed, TALL),  # one lane an image stays
    "evaluation.every": Case(2, of(lambda r: list(r.events.of("visual/std")), [0, 2, 4, 6, 8])),
    "evaluation.val_every": Case(
        4, of(lambda r: list(r.events.of("val/px_error")), [4, 8]), {"evaluation.every": 2}
    ),
    "evaluation.train_images": Case(
        1,
        lambda was, now: trained(was, now) and was.metrics["train/loss"] == now.logged("loss")[-1],
    ),
}


def test_no_setting_is_left_out() -> None:
    table = set(CASES) | PATHS | {path for path in known_paths() if path.startswith("runtime.")}
    assert table == known_paths()


@pytest.mark.parametrize("path", CASES)
def test_the_value_is_another_and_nothing_else_changes(path: str) -> None:
    case = CASES[path]
    was, now = settings_of(build(COMMON | case.over)), settings_of(_build(case.over, path))
    assert {name for name in was if was[name] != now[name]} == {path}


# --- the runs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TrainConfig], Run]:
    """Trains a job; one that was trained already is not trained again."""
    cache = tmp_path_factory.mktemp("features")
    done: dict[TrainConfig, Run] = {}

    def train(config: TrainConfig) -> Run:
        if config not in done:
            folder = tmp_path_factory.mktemp("run")
            metrics, events = run(config, folder, cache)
            weights = load_checkpoint(folder / "checkpoint.pt")["model"]
            material = load_material(config, cache)
            done[config] = Run(config, metrics, events, material, weights)
        return done[config]

    return train


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CULane root whose labels list their lanes right to left, from above the crop on."""
    path = make_culane_root(tmp_path_factory.mktemp("data") / "culane", 4, 1)
    for label in path.rglob("*.lines.txt"):
        lanes = [_prolonged(line.split()) for line in label.read_text().splitlines()]
        label.write_text("".join(f"{' '.join(lane)}\n" for lane in lanes[::-1]))
    return str(path)


def _prolonged(numbers: list[str]) -> list[str]:
    """Add a point 150 px above the top end (the last in a label), in the lane's direction."""
    x, y = (list(map(float, numbers[i::2])) for i in (0, 1))
    slope = (x[-1] - x[-20]) / (y[-1] - y[-20])
    return [*numbers, f"{x[-1] - 150 * slope:.3f}", f"{y[-1] - 150:.3f}"]


def _build(over: Settings, path: str) -> TrainConfig:
    return build(COMMON | over | {path: CASES[path].value})


@pytest.mark.long
@pytest.mark.parametrize("path", CASES)
def test_a_setting_does_what_it_says(
    path: str, trainer: Callable[[TrainConfig], Run], root: str
) -> None:
    case = CASES[path]
    over = dict(case.over)
    if over == REAL:
        over["data.roots"] = [root]
    was, now = trainer(build(COMMON | over)), trainer(_build(over, path))
    assert all(math.isfinite(value) for value in now.metrics.values())
    assert case.shows(was, now)
