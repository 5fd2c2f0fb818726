"""One training job, or the readings of a trained model, without the orchestrator."""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from model.backbone import CheckpointError, make_pyramid
from model.checkpoint import Progress, load_weights, read_checked, saved_config
from model.conclude import final_readings, held_out_readings, other_weights, renamed
from model.config import TrainConfig, identity, settings_of
from model.console import (
    Display,
    Parser,
    RequestError,
    close_torn_line,
    finite,
    read_sets,
    read_settings,
    stop_asked,
    table,
    write_whole,
)
from model.data import DataError, check_scenes, make_splits, shortage
from model.device import missing
from model.features import FeatureError
from model.job import CHECKPOINT
from model.lanelm import LaneLM
from model.loss import YWeight
from model.material import load_material
from model.outcome import Diverged, Interrupted
from model.passes import Known
from model.presets import SettingError, build
from model.train import train

TRAIN = """\
Train one job and read it at the end.

CONFIG.json holds settings by their dotted paths, over presets if you like:

  {"preset": "strategy1", "model.preset": "lanelm_128", "optim.steps": 200, "seed": 1}

Without a CONFIG.json it is {"preset": "best"}: the LaneLM that was found to generalise best.
Without "data.roots" (or --data) the images are rendered road scenes. DIR gets
  config.json    all settings of the run, presets resolved
  events.jsonl   the readings as they came
  checkpoint.pt  after a kill or a crash the same command goes on from here
  result.json    the state (done, failed, diverged) and all readings
  pictures/      decoded lanes over the images, and where the decoder looks
  features/      the images' frozen features; kept for the next run
A DIR that holds another run's checkpoint is refused.

Exit status: 0 done; 1 failed or diverged; 2 the request was wrong (one line says how);
130 stopped by Ctrl-C, with a checkpoint.

To read a trained model without training: python -m model probe --help
"""
PROBE = """\
Take every reading of a trained model, without training it.

CHECKPOINT is a checkpoint.pt of a run, which holds its settings, or a bare state dict of the
model with its config.json beside it. Readings named final/ are of the last weights on the training
images, val/ of the same on the validation images, best/ of the weights chosen by validation px.
On other images (--data) say how many, too: --set data.train_images=all. Other decoding:
--set decode.choice=token.
"""
PROBED = ("data.", "decode.", "evaluation.", "runtime.")
"""Settings that say how a trained model is read, not what it is."""


DEFAULT = "best"
"""The preset of a run that is given no settings."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["probe"]:
            return _probe(arguments[1:])
        return _train(arguments)
    except (RequestError, SettingError, DataError, CheckpointError, FeatureError) as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return 2


# --- python -m model CONFIG.json ----------------------------------------------------------------


def _train(argv: Sequence[str]) -> int:
    parser = Parser("python -m model", TRAIN)
    parser.add_argument(
        "config", metavar="CONFIG.json", type=Path, nargs="?", help="settings; default: best"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="default: runs/model/CONFIG")
    _add_data(parser, "CULane or TuSimple root to train on, again for more")
    parser.add_argument(
        "--set",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        help="a setting over those of CONFIG.json, its value JSON or a bare word; again for more",
    )
    options = parser.parse_args(argv)
    given = read_settings(options.config) if options.config else {"preset": DEFAULT}
    config = build(given | _on(options.data) | read_sets(options.set))
    _check(config)
    out: Path = options.out or Path("runs/model") / (
        options.config.stem if options.config else DEFAULT
    )
    _prepare(out, config)
    state, metrics, error, trace = "done", {}, None, None
    show = Display(config.optim.steps)
    close_torn_line(out / "events.jsonl")
    with stop_asked() as stop, (out / "events.jsonl").open("a") as events:

        def log(step: int, metrics: Mapping[str, float], event: str | None = None) -> None:
            line = {"time": round(time.time(), 3), "step": step, "metrics": finite(metrics)}
            events.write(json.dumps(line | ({"event": event} if event else {})) + "\n")
            events.flush()
            show(step, metrics, event)

        try:
            metrics = train(config, log, out, out / "features", stop)
        except Interrupted as stopped:
            show.end()
            sys.stderr.write(f"{stopped}; the same command goes on from there\n")
            return 130
        except Diverged as lost:
            state, metrics, error = "diverged", lost.metrics, str(lost)
        except Exception as failure:  # noqa: BLE001 - how it failed is its result
            state, error = "failed", " ".join(f"{type(failure).__name__}: {failure}".split())
            trace = traceback.format_exc()
    show.end()
    result = {
        "job_id": "",  # only a study gives jobs ids and levels
        "levels": {},
        "seed": config.seed,
        "state": state,
        "metrics": finite(metrics),
        "error": error,
        "attempts": 1,
        "code": {},
        "environment": _environment(config),
        "traceback": trace,
    }
    write_whole(out / "result.json", json.dumps(result, indent=1) + "\n")
    sys.stdout.write(table(finite(metrics)))
    sys.stdout.write(f"{state}: {out / 'result.json'}\n")
    if error:
        sys.stderr.write(f"{error}\n")
    return int(state != "done")


def _add_data(parser: Parser, help: str) -> None:
    parser.add_argument("--data", metavar="PATH", type=Path, action="append", default=[], help=help)


def _on(roots: Sequence[Path]) -> dict[str, Any]:
    """The settings that put a run on other images."""
    if not roots:
        return {}
    return {"data.roots": tuple(str(root) for root in roots), "data.geometry": None}


def _check(config: TrainConfig) -> None:
    """Look at device, images, labels and weights before anything is written."""
    if lacking := missing(config.runtime.device):
        raise RequestError(lacking)
    splits = make_splits(config.data)
    check_scenes([*splits.train, *splits.val, *splits.test], config.data)
    if lacking := shortage(splits, config.data):
        sys.stderr.write(f"{lacking}\n")
    if config.backbone.checkpoint:
        make_pyramid(config.backbone)


def _prepare(out: Path, config: TrainConfig) -> None:
    """Make the folder ready: what another run trained there stays, its events alone do not.

    Raises:
        RequestError: another run's checkpoint is there, or the folder cannot be written to.
    """
    text = json.dumps(settings_of(config), indent=1) + "\n"
    path = out / "config.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if changed := _changed(path, config):
            if (out / CHECKPOINT).exists():
                raise RequestError(
                    f"--out {out}: holds the checkpoint of another run ({changed}); give another "
                    "--out, or remove it"
                )
            (out / "events.jsonl").unlink(missing_ok=True)
        (out / "result.json").unlink(missing_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise RequestError(f"--out {out}: cannot be written to ({error.strerror})") from None


def _changed(path: Path, config: TrainConfig) -> str:
    """Say what makes the run whose settings lie at `path` another than this one, "" if nothing."""
    if not path.exists():
        return ""
    try:
        there = build(read_settings(path))
    except (RequestError, SettingError):
        return "of another version"
    was, now = settings_of(there), settings_of(config)
    images = ("data.roots", "data.geometry")  # identity has their content, not their place
    for name in sorted({*identity(there), *identity(config), "seed", *images}):
        if was[name] != now[name]:
            return f"{name} is {was[name]!r} there, {now[name]!r} here"
    return ""


def _environment(config: TrainConfig) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "device": config.runtime.device,
        "threads": config.runtime.threads,
    }


# --- python -m model probe CHECKPOINT -----------------------------------------------------------


def _probe(argv: Sequence[str]) -> int:
    parser = Parser("python -m model probe", PROBE)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="trained weights")
    _add_data(parser, "CULane or TuSimple root to read it on, again for more; default: as trained")
    parser.add_argument(
        "--set",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        help=f"a setting of {', '.join(PROBED)} over those it was trained with; again for more",
    )
    parser.add_argument("--cache", metavar="DIR", type=Path, help="where frozen features are kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    path: Path = options.checkpoint
    payload = read_checked(path)
    run = payload if isinstance(payload, Mapping) and "settings" in payload else None
    config = saved_config(run, path) if run else build(_settings_beside(path))
    sets = read_sets(options.set)
    if fixed := [name for name in sets if not name.startswith(PROBED)]:
        raise RequestError(
            f"--set {fixed[0]}: says what was trained, not how it is read; allowed: settings of "
            f"{', '.join(PROBED)}"
        )
    config = build(settings_of(config) | {"runtime.device": "cpu"} | _on(options.data) | sets)
    _check(config)
    torch.set_num_threads(config.runtime.threads)
    with tempfile.TemporaryDirectory() as temporary:
        kept = path.parent / "features"  # of a run of `python -m model`
        cache = options.cache or (kept if kept.is_dir() else Path(temporary))
        found = finite(_read(config, path, _state_dict(payload, path), run, cache))
    sys.stdout.write(json.dumps(found, indent=1) + "\n" if options.json else table(found))
    return 0


def _read(
    config: TrainConfig,
    path: Path,
    weights: Mapping[str, Any],
    run: Mapping[str, Any] | None,
    cache: Path,
) -> dict[str, float]:
    """Take the readings; those of `best/` and the y weight at the end need the run's progress."""
    material = load_material(config, cache)
    model = LaneLM(config, material.bank.channels)
    load_weights(model, weights, path)
    progress = Progress(**run["progress"]) if run else Progress()
    y_weight = YWeight(config.loss)
    y_weight.load(progress.y_weight)
    last = y_weight.at(progress.step) if run else None
    known = Known()
    found = final_readings(model, material, last, known)
    if "attention/uniformity" in progress.start:
        found["final/uniformity_init"] = progress.start["attention/uniformity"]
    found |= held_out_readings(model, material, "val", known=known)
    best = progress.best_weights if progress.best_step != progress.step else None
    with other_weights(model, best):
        if best is not None:
            found |= held_out_readings(model, material, "best")
        elif progress.best_step:  # the last weights are those that validation chose
            found |= renamed(found, "val", "best")
        return found | held_out_readings(model, material, "test")


def _settings_beside(path: Path) -> dict[str, Any]:
    config = path.with_name("config.json")
    if not config.is_file():
        raise RequestError(f"{path}: holds no settings, and there is no {config} beside it")
    return read_settings(config)


def _state_dict(payload: Any, path: Path) -> Mapping[str, Any]:
    for key in ("model", "state_dict"):
        if isinstance(payload, Mapping) and isinstance(payload.get(key), Mapping):
            return payload[key]
    if not isinstance(payload, Mapping):
        raise RequestError(f"{path}: given a {type(payload).__name__}, must hold a state dict")
    return payload


if __name__ == "__main__":
    sys.exit(main())
