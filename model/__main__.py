"""One training job, or the readings of a trained model, without the orchestrator."""

from __future__ import annotations

import argparse
import difflib
import json
import math
import platform
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch

from model.backbone import CheckpointError
from model.checkpoint import Progress, load_weights, read_checked, saved_config
from model.conclude import final_readings
from model.config import TrainConfig, settings_of
from model.data import DataError, check_scenes, make_splits
from model.features import FeatureError
from model.lanelm import LaneLM
from model.loss import YWeight
from model.material import load_material
from model.outcome import Diverged, Interrupted
from model.presets import SettingError, build
from model.train import train

TRAIN = """\
Train one job and read it at the end.

CONFIG.json holds settings by their dotted paths, over presets if you like:

  {"preset": "strategy1", "model.preset": "lanelm_128", "optim.steps": 200, "seed": 1}

Without "data.roots" the images are rendered road scenes. DIR gets
  config.json   all settings of the run, presets resolved
  events.jsonl  the readings as they came
  checkpoint.pt after a kill or a crash the same command goes on from here
  result.json   the state (done, failed, diverged) and all readings
  pictures/     decoded lanes over the images, and where the decoder looks
  features/     the images' frozen features; kept for the next run

Exit status: 0 done; 1 failed or diverged; 2 the request was wrong (one line says how); 130 stopped
by Ctrl-C, with a checkpoint.
"""
PROBE = """\
Take every reading of a trained model, without training it.

CHECKPOINT is a checkpoint.pt of a run, which holds its settings, or a bare state dict of the
model with its config.json beside it. Readings named final/ are of the last weights on the training
images, val/ on the validation images, best/ of the weights chosen by validation px error.
"""


class BadRequest(ValueError):  # noqa: N818 - a category of ends, not of bugs
    """The request was wrong: one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["probe"]:
            return _probe(arguments[1:])
        return _train(arguments)
    except (BadRequest, SettingError, DataError, CheckpointError, FeatureError) as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return 2


# --- python -m model CONFIG.json ----------------------------------------------------------------


def _train(argv: Sequence[str]) -> int:
    parser = _Parser("python -m model", TRAIN)
    parser.add_argument("config", metavar="CONFIG.json", type=Path, help="settings, or: probe")
    parser.add_argument("--out", metavar="DIR", type=Path, help="default: runs/model/CONFIG")
    options = parser.parse_args(argv)
    config = build(_read_settings(options.config))
    if config.runtime.device != "cpu" and not torch.cuda.is_available():
        raise BadRequest(f"runtime.device: given {config.runtime.device!r}, no CUDA device is here")
    splits = make_splits(config.data)
    check_scenes([*splits.train, *splits.val, *splits.test], config.data)
    out: Path = options.out or Path("runs/model") / options.config.stem
    _prepare(out, config)
    show = Display(config.optim.steps)
    result: dict[str, Any] = {
        "job_id": "",  # only a study gives jobs ids and levels
        "levels": {},
        "seed": config.seed,
        "state": "done",
        "metrics": {},
        "error": None,
        "attempts": 1,
        "code": {},
    }
    with _stop_asked() as stop, (out / "events.jsonl").open("a") as events:

        def log(step: int, metrics: Mapping[str, float], event: str | None = None) -> None:
            line = {"time": round(time.time(), 3), "step": step, "metrics": _finite(metrics)}
            events.write(json.dumps(line | ({"event": event} if event else {})) + "\n")
            events.flush()
            show(step, metrics, event)

        try:
            result["metrics"] = train(config, log, out, out / "features", stop)
        except Interrupted as error:
            show.end()
            sys.stderr.write(f"{error}; the same command goes on from there\n")
            return 130
        except Diverged as error:
            result |= {"state": "diverged", "metrics": error.metrics, "error": str(error)}
        except (DataError, CheckpointError, FeatureError):
            raise
        except Exception as error:  # noqa: BLE001 - how it failed is its result
            trace = traceback.format_exc()
            result |= {"state": "failed", "error": f"{type(error).__name__}: {error}"}
            result["traceback"] = trace
    show.end()
    result["metrics"] = _finite(result["metrics"])
    result["environment"] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": config.runtime.threads,
    }
    _write(out / "result.json", json.dumps(result, indent=1) + "\n")
    if result["error"]:
        sys.stderr.write(" ".join(str(result["error"]).split()) + "\n")
        return 1
    sys.stdout.write(_table(result["metrics"]) + f"{out / 'result.json'}\n")
    return 0


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_bytes())
    except OSError as error:
        raise BadRequest(f"{path}: {error.strerror}; give a JSON file of settings") from None
    except ValueError as error:
        raise BadRequest(f"{path}: not JSON ({error})") from None
    if not isinstance(settings, dict):
        kind = type(settings).__name__
        raise BadRequest(f"{path}: given a {kind}, must be an object of settings by dotted path")
    return settings


def _prepare(out: Path, config: TrainConfig) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "result.json").unlink(missing_ok=True)
        _write(out / "config.json", json.dumps(settings_of(config), indent=1) + "\n")
    except OSError as error:
        raise BadRequest(f"--out {out}: cannot be written to ({error.strerror})") from None


@contextmanager
def _stop_asked() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a question that `train` asks; the second ends it at once."""
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


class Display:
    """One line that tells how far a run is: rewritten on a terminal, now and then on a pipe."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.live = sys.stdout.isatty()
        self.first: tuple[int, float] | None = None
        self.seen: dict[str, float] = {}
        self.wrote = 0.0

    def __call__(self, step: int, metrics: Mapping[str, float], event: str | None) -> None:
        self.seen |= metrics
        if event:
            self._write(f"step {step}: {event}", True)
        if "train/loss" not in metrics and "train/px_error" not in metrics:
            return
        now = time.monotonic()
        self.first = self.first or (step, now)
        if not self.live and now - self.wrote < 10 and step < self.steps:
            return
        self.wrote = now
        parts = [f"step {step}/{self.steps}", f"loss {self.seen['train/loss']:.4f}"]
        known = [split for split in ("val", "train") if f"{split}/px_error" in self.seen]
        parts += [f"{split} px {self.seen[f'{split}/px_error']:.1f}" for split in known]
        done, spent = step - self.first[0], now - self.first[1]
        if done and spent:
            left = (self.steps - step) * spent / done
            parts.append(f"{done / spent:.1f} steps/s, {left // 60:.0f}:{left % 60:02.0f} left")
        self._write("  ".join(parts), not self.live)

    def end(self) -> None:
        """Leave the live line."""
        if self.live:
            sys.stdout.write("\n")

    def _write(self, line: str, whole: bool) -> None:
        sys.stdout.write(("\r\x1b[K" if self.live else "") + line + ("\n" if whole else ""))
        sys.stdout.flush()


# --- python -m model probe CHECKPOINT -----------------------------------------------------------


def _probe(argv: Sequence[str]) -> int:
    parser = _Parser("python -m model probe", PROBE)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="trained weights")
    parser.add_argument(
        "--data",
        metavar="PATH",
        type=Path,
        action="append",
        help="CULane or TuSimple root to read it on; again for more; default: that of its config",
    )
    parser.add_argument("--cache", metavar="DIR", type=Path, help="where frozen features are kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    path: Path = options.checkpoint
    payload = read_checked(path)
    run = payload if isinstance(payload, Mapping) and "settings" in payload else None
    config = saved_config(run, path) if run else build(_beside(path))
    if options.data:
        roots = tuple(str(root) for root in options.data)
        config = build(settings_of(config) | {"data.roots": roots, "data.geometry": None})
    config = build(settings_of(config) | {"runtime.device": "cpu"})
    torch.set_num_threads(config.runtime.threads)
    weights = _state_dict(payload, path)
    best, y_weight, extra = None, None, {}
    if run:
        progress = Progress(**run["progress"])
        best = progress.best_weights if progress.best_step != progress.step else None
        schedule = YWeight(config.loss)
        schedule.load(progress.y_weight)
        y_weight = schedule.at(progress.step)
        extra = {"final/uniformity_init": progress.start["attention/uniformity"]}
    splits = make_splits(config.data)
    check_scenes([*splits.train, *splits.val, *splits.test], config.data)
    with tempfile.TemporaryDirectory() as temporary:
        kept = path.parent / "features"
        cache = options.cache or (kept if kept.is_dir() else Path(temporary))
        material = load_material(config, cache)
        model = LaneLM(config, material.bank.channels)
        load_weights(model, weights, path)
        found = final_readings(model, material, y_weight=y_weight, best=best) | extra
    text = json.dumps(_finite(found), indent=1) + "\n" if options.json else _table(_finite(found))
    sys.stdout.write(text)
    return 0


def _beside(path: Path) -> dict[str, Any]:
    config = path.with_name("config.json")
    if not config.is_file():
        raise BadRequest(f"{path}: holds no settings, and there is no {config} with them either")
    return _read_settings(config)


def _state_dict(payload: Any, path: Path) -> Mapping[str, Any]:
    for key in ("model", "state_dict"):
        if isinstance(payload, Mapping) and isinstance(payload.get(key), Mapping):
            return payload[key]
    if not isinstance(payload, Mapping):
        raise BadRequest(f"{path}: given a {type(payload).__name__}, must hold a state dict")
    return payload


# --- help ---------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with the nearest option there is."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        given = next((word for word in message.split() if word.startswith("--")), "")
        near = difflib.get_close_matches(given, self._option_string_actions, n=1)
        hint = f"; did you mean {near[0]}?" if near and near[0] != given else ""
        raise BadRequest(f"{self.prog}: {message}{hint} (see {self.prog} --help)")


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """JSON knows no NaN: null stands for it."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _table(metrics: Mapping[str, float | None]) -> str:
    width = max(map(len, metrics), default=0)
    return "".join(f"{name:{width}}  {_number(metrics[name])}\n" for name in sorted(metrics))


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.6g}"


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
