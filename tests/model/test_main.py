import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from model import __main__ as command
from model.checkpoint import load_checkpoint
from model.console import Display
from model.device import missing
from model.presets import build
from tests.model.fake_roots import make_culane_root
from tests.model.tiny import settings


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `python -m model` trained a tiny job into."""
    folder = tmp_path_factory.mktemp("trained")
    config = write(
        folder / "job.json",
        settings(visual__norm="standardize", runtime__pictures=True, data__test_images=1),
    )
    assert command.main([str(config), "--out", str(folder / "out")]) == 0
    return folder / "out"


def test_a_job_leaves_its_config_events_result_and_pictures(trained: Path) -> None:
    given = settings(visual__norm="standardize", runtime__pictures=True, data__test_images=1)
    assert build(json.loads((trained / "config.json").read_text())) == build(given)
    result = json.loads((trained / "result.json").read_text())
    assert (result["state"], result["seed"], result["error"]) == ("done", 0, None)
    assert {"final/loss", "val/coverage", "best/coverage", "test/coverage"} <= set(
        result["metrics"]
    )
    lines = [json.loads(line) for line in (trained / "events.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} == set(range(9))
    assert lines[-1]["metrics"]["final/loss"] == result["metrics"]["final/loss"]
    pictures = {path.name: cv2.imread(str(path)) for path in (trained / "pictures").iterdir()}
    last = {f"{name}_step000008.webp" for name in ("train_0", "train_1", "val_0", "attention")}
    during = {f"{n}_step{step:06d}.webp" for n in ("train_0", "attention") for step in (0, 4)}
    during.add("val_0_step000004.webp")
    assert set(pictures) == last | during
    for name, picture in pictures.items():
        assert picture is not None
        assert "attention" in name or picture.shape == (64, 160, 3)


def test_the_same_command_again_reads_the_same(trained: Path) -> None:
    result = trained / "result.json"
    before = json.loads(result.read_text())["metrics"]
    result.unlink()
    assert command.main([str(trained / "config.json"), "--out", str(trained)]) == 0
    after = json.loads(result.read_text())["metrics"]
    differ = {name for name in before if before[name] != after[name]}
    assert all(name.startswith("cost/") for name in differ)


def test_probe_gives_the_readings_of_the_run(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["probe", str(trained / "checkpoint.pt"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    metrics = json.loads((trained / "result.json").read_text())["metrics"]
    compared = [
        name for name in metrics if name.startswith(("final/", "val/", "best/", "test/", "floor/"))
    ]
    assert len(compared) > 40
    for name in compared:
        if name != "best/step":
            assert found[name] == pytest.approx(metrics[name], rel=1e-6), name


def test_probe_reads_a_bare_state_dict_with_its_config_beside_it(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_checkpoint(trained / "checkpoint.pt")["model"]
    torch.save(weights, tmp_path / "weights.pt")
    assert command.main(["probe", str(tmp_path / "weights.pt")]) == 2
    assert "config.json" in one_line(capsys)
    (tmp_path / "config.json").write_text((trained / "config.json").read_text())
    assert command.main(["probe", str(tmp_path / "weights.pt")]) == 0
    metrics = json.loads((trained / "result.json").read_text())["metrics"]
    found = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert float(found["final/loss"]) == pytest.approx(metrics["final/loss"], rel=1e-4)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("true",))


def test_bad_checkpoints_get_one_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(name: str) -> str:
        assert command.main(["probe", str(tmp_path / name)]) == 2
        return one_line(capsys)

    assert "No such file" in refused("missing.pt")
    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    assert "posix.system" in refused("evil.pt").replace("nt.system", "posix.system")
    (tmp_path / "text.pt").write_text("hello")
    assert "no torch checkpoint" in refused("text.pt")
    weights = load_checkpoint(trained / "checkpoint.pt")["model"]
    weights.pop("head_y.bias")
    torch.save(weights, tmp_path / "weights.pt")
    (tmp_path / "config.json").write_text((trained / "config.json").read_text())
    assert "no head_y.bias" in refused("weights.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    assert "list" in refused("list.pt")


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("\n")
    assert captured.err.count("\n") == 1
    return captured.err


def test_without_a_config_the_best_preset_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = settings(optim__warmup=0, visual__fold=False)  # that preset folds a full pyramid
    sets = [f"{path}={json.dumps(value)}" for path, value in given.items()]
    assert command.main([word for pair in sets for word in ("--set", pair)]) == 0
    out = tmp_path / "runs/model/best"
    config = build(json.loads((out / "config.json").read_text()))
    assert config == build({"preset": "best"} | given)
    assert config != build(given)
    assert json.loads((out / "result.json").read_text())["state"] == "done"


def test_set_lies_over_the_config(tmp_path: Path) -> None:
    config = write(tmp_path / "job.json", settings())
    more = ["--set", "seed=3", "--set", "visual.norm=none"]  # a bare word is a word
    assert command.main([str(config), "--out", str(tmp_path / "out"), *more]) == 0
    trained = build(json.loads((tmp_path / "out/config.json").read_text()))
    assert trained == build(settings(seed=3, visual__norm="none"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"optim.lrr": 1.0}, "did you mean 'optim.lr'?"),
        ({"preset": "strategy9"}, "strategy"),
        ({"optim.lr": "fast"}, "optim.lr"),
        ({"optim.lr": -1.0}, "optim.lr"),
        ({"tokenizer.max_abs_dx": 8}, "has no effect"),
        ({"data.roots": ["/no/such/root"]}, "/no/such/root"),
        ({"runtime.device": "tpu"}, "runtime.device"),
        ([1], "must be an object"),
    ],
)
def test_bad_settings_get_one_line_and_touch_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, says: str
) -> None:
    config = write(tmp_path / "job.json", content)
    assert command.main([str(config), "--out", str(tmp_path / "out")]) == 2
    assert says in one_line(capsys)
    assert not (tmp_path / "out").exists()


def test_bad_requests_get_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path / "job.json", settings())
    (tmp_path / "broken.json").write_text('{"seed": ')
    (tmp_path / "file").write_text("")
    for arguments, says in (
        (["--set", "optim.lr"], "path=value"),
        (["--set", "seed=1", "--set", "seed=2"], "given twice"),
        (["--set", "optim.lrr=1"], "did you mean 'optim.lr'?"),
        (["--data", str(tmp_path / "none")], str(tmp_path / "none")),
        ([str(tmp_path / "missing.json")], "No such file"),
        ([str(tmp_path / "broken.json")], "not JSON"),
        ([str(config), "--uot", "x"], "did you mean --out?"),
        ([str(config), "--out", str(tmp_path / "file" / "deeper")], "cannot be written to"),
        (["probe"], "CHECKPOINT"),
        (["probe", "x.pt", "--dta", "x"], "did you mean --data?"),
    ):
        assert command.main(arguments) == 2, arguments
        assert says in one_line(capsys), arguments


def test_without_a_gpu_cuda_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = write(tmp_path / "job.json", settings(runtime__device="cuda"))
    assert command.main([str(config), "--out", str(tmp_path / "out")]) == 2
    assert "no CUDA device" in one_line(capsys)


@pytest.mark.parametrize(("device", "fits"), [("cuda:2", False), ("cuda:1", True), ("cuda", True)])
def test_a_gpu_that_is_not_there_is_refused(
    device: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    said = missing(device)
    assert (said == "") == fits
    if not fits:
        assert "given 'cuda:2'" in said
        assert "allowed: cpu, cuda, cuda:0, cuda:1" in said


def test_a_diverged_job_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = settings(optim__lr=30.0, optim__clip=None, optim__steps=200)
    config = write(tmp_path / "job.json", given)
    assert command.main([str(config), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("diverged at step")
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["state"] == "diverged"
    assert result["metrics"]["train/objective"] > 30


def test_a_failed_job_keeps_its_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> dict[str, float]:
        raise ZeroDivisionError("of all things\nhere")

    monkeypatch.setattr(command, "train", fail)
    config = write(tmp_path / "job.json", settings())
    assert command.main([str(config), "--out", str(tmp_path / "out")]) == 1
    assert one_line_of(capsys.readouterr().err) == "ZeroDivisionError: of all things here"
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["state"] == "failed"
    assert "in fail" in result["traceback"]


def one_line_of(text: str) -> str:
    assert text.count("\n") == 1
    return text.strip()


def test_ctrl_c_keeps_a_checkpoint_to_go_on_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(tmp_path / "job.json", settings(runtime__checkpoint_every=100))
    shown = Display.__call__

    def interrupt(self: Display, step: int, *rest: Any) -> None:
        shown(self, step, *rest)
        if step == 5:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Display, "__call__", interrupt)
    assert command.main([str(config), "--out", str(tmp_path / "out")]) == 130
    assert "stopped after step 5 of 8; the same command" in capsys.readouterr().err
    monkeypatch.setattr(Display, "__call__", shown)
    assert command.main([str(config), "--out", str(tmp_path / "out")]) == 0
    assert "resumed after step 5" in capsys.readouterr().out


def test_a_line_that_a_kill_tore_takes_no_other_with_it(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    config = str(write(tmp_path / "job.json", settings()))
    assert command.main([config, *out]) == 0
    path = tmp_path / "out" / "events.jsonl"
    whole = path.read_text().splitlines()
    path.write_text("\n".join([*whole, whole[-1][:20]]))
    assert command.main([config, *out]) == 0
    after = path.read_text().splitlines()
    assert after[: len(whole) + 1] == [*whole, whole[-1][:20]]
    assert len(after) > len(whole) + 1
    assert all(json.loads(line) for line in after[len(whole) + 1 :])


def test_another_run_is_never_written_over(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    arguments = [str(trained / "config.json"), "--out", str(trained), "--set", "seed=7"]
    assert command.main(arguments) == 2
    line = one_line(capsys)
    assert "holds the checkpoint of another run (seed is 0 there, 7 here); give another --o" in line
    assert {path: path.read_bytes() for path in kept} == kept


def test_what_changes_no_number_goes_on(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(trained, out)
    before = (out / "events.jsonl").read_text()
    arguments = [str(out / "config.json"), "--out", str(out), "--set", "runtime.log_every=3"]
    assert command.main(arguments) == 0
    assert (out / "events.jsonl").read_text().startswith(before)


def test_fewer_validation_images_than_asked_for_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_culane_root(tmp_path / "root", n_train=3, n_test=1)
    config = write(tmp_path / "job.json", settings(data__train_images=3, data__val_images=2))
    arguments = [str(config), "--data", str(root), "--out", str(tmp_path / "out")]
    assert command.main(arguments) == 0
    assert "data.val_images=2, but only 0 are left" in capsys.readouterr().err


def test_probe_reads_with_other_settings_of_reading_alone(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(trained / "checkpoint.pt")
    arguments = ["probe", checkpoint, "--json", "--set", "decode.nms=50", "--set"]
    assert command.main([*arguments, "data.val_images=1"]) == 0
    assert "val/px_error_processed" in json.loads(capsys.readouterr().out)
    assert command.main([*arguments, "optim.lr=1"]) == 2
    assert "--set optim.lr: says what was trained" in one_line(capsys)


def test_weights_that_nothing_chose_have_no_best_readings(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(load_checkpoint(trained / "checkpoint.pt")["model"], tmp_path / "weights.pt")
    (tmp_path / "config.json").write_text((trained / "config.json").read_text())
    assert command.main(["probe", str(tmp_path / "weights.pt"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert any(name.startswith("val/") for name in found)
    assert not any(name.startswith("best/") for name in found)


def test_events_of_other_settings_do_not_stay(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    for lr in (0.001, 0.002):
        (tmp_path / "out" / "checkpoint.pt").unlink(missing_ok=True)
        assert command.main([str(write(tmp_path / "job.json", settings(optim__lr=lr))), *out]) == 0
    lines = (tmp_path / "out" / "events.jsonl").read_text().splitlines()
    rates = {json.loads(line)["metrics"].get("train/lr") for line in lines}
    assert rates == {None, 0.002}


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, says in (
        (["--help"], ["CONFIG.json", "--out", "result.json", "Exit status", "strategy1"]),
        (["probe", "--help"], ["CHECKPOINT", "--data", "config.json"]),
    ):
        with pytest.raises(SystemExit) as ended:
            command.main(arguments)
        assert ended.value.code == 0
        text = capsys.readouterr().out
        assert all(word in text for word in says)


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    write(tmp_path / "job.json", {"optim.lrr": 1.0})
    done = subprocess.run(
        [sys.executable, "-m", "model", str(tmp_path / "job.json")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_the_progress_line_tells_what_a_person_asks(capsys: pytest.CaptureFixture[str]) -> None:
    show = Display(100)
    show.PATIENCE = 0.0
    show(0, {"train/px_error": 120.0}, None)
    show(1, {"train/loss": 5.0}, None)
    show(50, {"train/loss": 0.25}, None)
    show(50, {"val/px_error": 9.5}, None)
    show(60, {}, "y stage 2: weight 0.1")
    show(100, {"train/loss": 0.125}, None)
    show(100, {"train/loss": 0.125, "final/loss": 0.1}, None)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("step 1/100  loss 5.0000  train px 120.0")
    assert "steps/s" in lines[1]
    assert "left" in lines[1]
    assert lines[2] == "step 60: y stage 2: weight 0.1"
    assert "loss 0.1250  train px 120.0  val px 9.5" in lines[3]
