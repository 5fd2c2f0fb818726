import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from model.backbone import CheckpointError
from model.checkpoint import (
    Progress,
    load_checkpoint,
    load_weights,
    read_checked,
    resume,
    save_checkpoint,
    saved_config,
    weights_of,
)
from model.config import OptimConfig, TrainConfig
from model.lanelm import LaneLM
from model.optim import make_optimizer
from tests.model.tiny import tiny

CHANNELS = (8, 8, 8)


def parts(config: TrainConfig) -> tuple[LaneLM, torch.optim.Optimizer]:
    model = LaneLM(config, CHANNELS)
    return model, make_optimizer(model, config.optim)


def step(model: LaneLM, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, TrainConfig, LaneLM, torch.optim.Optimizer, Progress]:
    config = tiny(optim__lr=0.01)
    model, optimizer = parts(config)
    for seed in range(3):
        step(model, optimizer, seed)
    progress = Progress(
        step=3,
        y_weight={"stage": 2, "running": 0.25},
        stepped={"train/loss": 1.5},
        best_step=2,
        best_score=4.5,
        best_weights=weights_of(model),
        seconds=1.25,
    )
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, config, "features-1", progress, model, optimizer)
    return path, config, model, optimizer, progress


def test_everything_comes_back_bit_for_bit(saved: Any) -> None:
    path, config, model, optimizer, progress = saved
    again, again_optimizer = parts(config)
    back = resume(path, config, "features-1", again, again_optimizer)
    for field in dataclasses.fields(Progress):
        if field.name != "best_weights":
            assert getattr(back, field.name) == getattr(progress, field.name), field.name
    assert back.best_weights is not None
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
        assert torch.equal(back.best_weights[name], value)
    for seed in range(3, 6):  # the moments came along too
        step(model, optimizer, seed)
        step(again, again_optimizer, seed)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_it_holds_its_config(saved: Any) -> None:
    path, config, *_ = saved
    assert saved_config(load_checkpoint(path), path) == config


def test_no_temporary_file_is_left(saved: Any) -> None:
    path = saved[0]
    assert [entry.name for entry in path.parent.iterdir()] == ["checkpoint.pt"]


def test_a_save_that_fails_leaves_the_old_one(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path, config, model, optimizer, progress = saved
    before = path.read_bytes()

    def full_disk(payload: object, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, config, "features-1", progress, model, optimizer)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["checkpoint.pt"]


def test_any_torn_or_flipped_byte_is_noticed(saved: Any) -> None:
    path, config, *_ = saved
    whole = path.read_bytes()
    model, optimizer = parts(config)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    for end in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(CheckpointError, match="checkpoint"):
            resume(path, config, "features-1", model, optimizer)
    harmless = 0
    for place in range(40, len(whole), len(whole) // 60):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        try:
            back = resume(path, config, "features-1", *parts(config))
        except CheckpointError:
            continue
        assert back.stepped == {"train/loss": 1.5}  # padding between the parts holds nothing
        harmless += 1
    assert harmless < 20
    assert all(torch.equal(value, first[name]) for name, value in model.state_dict().items())


def test_a_checkpoint_of_another_run_is_refused_by_name(saved: Any) -> None:
    path, config, *_ = saved
    for changes, name in (
        ({"optim__lr": 0.02}, "optim.lr was 0.01, now 0.02"),
        ({"optim__lr": 0.01, "seed": 7}, "seed was 0, now 7"),
        ({"optim__lr": 0.01, "optim__clip": None}, "optim.clip was 1.0, now None"),
        ({"optim__lr": 0.01, "model__d_model": 32}, "model.d_model was 16, now 32"),
    ):
        other = tiny(**changes)
        with pytest.raises(CheckpointError, match=name):
            resume(path, other, "features-1", *parts(other))
    with pytest.raises(CheckpointError, match="images, labels or backbone"):
        resume(path, config, "features-2", *parts(config))


def test_a_checkpoint_of_other_numerics_is_refused(
    saved: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same settings give other numbers now: going on would mix the two."""
    path, config, *_ = saved
    assert resume(path, config, "features-1", *parts(config)).step == 3
    monkeypatch.setattr("model.checkpoint.NUMERICS_VERSION", 10**6)
    with pytest.raises(CheckpointError, match="of a version with other numerics"):
        resume(path, config, "features-1", *parts(config))


def test_where_it_runs_is_no_other_run(saved: Any) -> None:
    path = saved[0]
    moved = tiny(optim__lr=0.01, runtime__log_every=7, runtime__checkpoint_every=2)
    assert resume(path, moved, "features-1", *parts(moved)).step == 3


def test_after_the_last_step_no_moments_are_kept(saved: Any) -> None:
    path, config, model, optimizer, progress = saved
    size = path.stat().st_size
    save_checkpoint(path, config, "features-1", progress, model, None)
    assert path.stat().st_size < 0.7 * size
    again, again_optimizer = parts(config)
    resume(path, config, "features-1", again, again_optimizer)
    assert torch.equal(again.head_x.weight, model.head_x.weight)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.home, ())


def test_code_in_a_checkpoint_is_named_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"model": {}, "note": Evil()}, path)
    with pytest.raises(CheckpointError, match=r"holds .*(getattr|home)"):
        read_checked(path)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"missing\.pt: No such file"):
        read_checked(tmp_path / "missing.pt")
    torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="none that this program"):
        load_checkpoint(path)


def test_weights_of_another_model_are_refused_by_name(tmp_path: Path) -> None:
    config = tiny()
    model, _ = parts(config)
    whole = weights_of(model)
    path = tmp_path / "x.pt"
    load_weights(model, whole, path)
    for change, message in (
        ({"head_x.weight": None}, r"no head_x\.weight"),
        ({"extra.bias": torch.zeros(3)}, r"extra\.bias unexpected"),
        ({"head_x.bias": torch.zeros(7)}, r"head_x\.bias is \(7,\), this model has \(40,\)"),
        ({"head_x.bias": 3}, r"head_x\.bias is int"),
    ):
        given = {name: value for name, value in (whole | change).items() if value is not None}
        with pytest.raises(CheckpointError, match=message):
            load_weights(model, given, path)


def test_another_optimizer_s_state_is_refused(saved: Any) -> None:
    path, config, model, *_ = saved
    with pytest.raises(CheckpointError, match="another version"):
        resume(
            path, config, "features-1", model,
            make_optimizer(torch.nn.Linear(2, 2), OptimConfig()),
        )  # fmt: skip
