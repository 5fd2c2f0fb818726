"""The command line: what it prints, where, and its exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ablate.cli import main
from ablate.ledger import Ledger
from tests.ablate.test_run import interrupt

STUDY = """
question: Does it run?
core: tests.ablate.toy_core
base: {steps: 15}
factors:
  lr: {small: {lr: 0.1}, large: {lr: 1.0}}
  noise: {low: {noise: 0.2}, high: {noise: 1.5}}
design: factorial
"""


@pytest.fixture
def study(tmp_path: Path) -> str:
    path = tmp_path / "toy.yaml"
    path.write_text(STUDY)
    return str(path)


@pytest.fixture
def recorded_out(tmp_path: Path) -> str:
    return str(tmp_path / "runs")


@pytest.fixture
def out(recorded_out: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run folder without MLflow, which takes seconds to set up."""
    monkeypatch.setattr("ablate.commands._recorder", lambda asked: Silent())
    return recorded_out


class Silent:
    def __getattr__(self, what: str) -> Any:
        return lambda *arguments: None


def run(study: str, out: str, *options: str) -> int:
    return main(["run", study, "--out", out, "--engine", "inline", *options])


def ids(out: str) -> list[str]:
    return sorted(path.name for path in (Path(out) / "jobs").iterdir())


def read_json(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_help_imports_nothing_heavy_and_teaches() -> None:
    code = "import sys; from ablate.cli import main; status = main(['--help']); "
    code += "heavy = {'torch', 'mlflow', 'pandas', 'optuna', 'model', 'numpy'} & set(sys.modules); "
    code += "sys.exit(f'imported {heavy}' if heavy else status)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ablate run strategy1" in done.stdout
    assert "Exit status" in done.stdout


def test_help_names_every_design(capsys: pytest.CaptureFixture[str]) -> None:
    from ablate.designs import DESIGNS
    from ablate.planner import ADAPTIVE

    assert main(["--help"]) == 0
    words = capsys.readouterr().out.replace(",", " ").replace(";", " ").split()
    assert {*DESIGNS, *ADAPTIVE, "`pruning:`", "`stop_when_passed:`", "docs/designs.md."} <= {
        *words
    }


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Commands:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["rnu"], "did you mean run?"),
        (["frobnicate"], "allowed: plan, run"),
        (["run", "x", "--sedes", "3"], "did you mean --seeds?"),
        (["run", "x", "--zzz"], "--retry-failed"),
        (["run"], "STUDY"),
        (["run", "x", "--seeds", "0"], "given '0'"),
        (["run", "x", "--seeds", "many"], "given 'many'"),
        (["run", "x", "--workers", "0"], "--workers"),
        (["run", "x", "--engine", "ry"], "must be one of pool, inline"),
        (["plan", "no_such_study"], "no_such_study"),
        (["plan", "x", "y"], "y"),
        (["show", "abc"], "abc"),
        (["diff", "abc"], "JOB_ID"),
    ],
)
def test_a_wrong_request_is_one_line_and_status_2(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith("ablate: ")
    assert expected in captured.err


@pytest.mark.parametrize("command", ["plan", "run", "rank", "status"])
def test_a_wrong_setting_is_one_line_before_any_training(
    command: str, study: str, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, study, "--out", out, "--set", "stepz=3"]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert "steps" in captured.err
    assert not list(Path(out).glob("jobs/*"))


def test_an_out_that_is_no_folder(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run(study, str(tmp_path / "file")) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_plan_lists_jobs_and_their_state(
    study: str, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", study, "--out", out, "--seeds", "2"]) == 0
    text = capsys.readouterr().out
    assert "8 jobs (8 missing)" in text
    assert "lr=large noise=high" in text
    assert run(study, out) == 0
    capsys.readouterr()
    assert main(["plan", study, "--out", out, "--seeds", "2", "--json"]) == 0
    value = read_json(capsys)
    assert [job["state"] for job in value["jobs"]] == ["done", "missing"] * 4
    assert set(value["jobs"][0]) >= {
        "job_id", "levels", "seed", "visual_tokens", "parameters", "state"
    }  # fmt: skip
    assert value["estimate"]["to_run"] == 4
    assert value["estimate"]["seconds"] > 0


def test_run_ranks_and_says_where_everything_is(
    study: str, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(study, out) == 0
    captured = capsys.readouterr()
    assert "small/low" in captured.out
    assert "toy/report.html" in captured.out
    assert "ablate ui" in captured.out
    assert "4 to run" in captured.err  # progress is for stderr
    folder = Path(out) / "toy"
    assert {path.name for path in folder.iterdir()} == {
        "study.yaml", "ranking.json", "report.html", "report.md"
    }  # fmt: skip
    assert main(["rank", study, "--out", out, "--json"]) == 0
    value = read_json(capsys)
    assert value["study"] == "toy"
    assert len(value["ranking"]) == 4
    assert json.loads((folder / "ranking.json").read_text()) == value
    assert run(study, out) == 0
    assert "4 ended, 0 to run" in capsys.readouterr().err


def test_the_kept_study_is_a_study(
    study: str, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(study, out) == 0
    kept = str(Path(out) / "toy" / "study.yaml")
    capsys.readouterr()
    assert main(["plan", kept, "--out", out, "--json"]) == 0
    assert {job["state"] for job in read_json(capsys)["jobs"]} == {"done"}


def test_a_failed_job_is_status_1_now_and_later(
    tmp_path: Path, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fault.yaml"
    path.write_text(STUDY + "attempts: 1\n")
    arguments = (str(path), out, "--set", "fault=raise")
    assert run(*arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.count("(ablate logs ") == 4
    assert "--retry-failed" in captured.out
    assert run(*arguments) == 1
    assert main(["status", str(path), "--out", out, "--set", "fault=raise"]) == 0
    assert "4 failed" in capsys.readouterr().out
    assert main(["status", str(path), "--out", out, "--set", "fault=raise", "--json"]) == 0
    value = read_json(capsys)
    assert value["states"] == {"failed": 4}
    assert value["not_done"][0]["error"] == "OSError: broken as asked"


def test_a_diverged_job_is_no_failure(study: str, out: str) -> None:
    assert run(study, out, "--set", "fault=diverge") == 0


def test_show_diff_and_logs(study: str, out: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(study, out) == 0
    one, two = ids(out)[:2]
    capsys.readouterr()
    assert main(["show", one[:5], "--out", out]) == 0
    text = capsys.readouterr().out
    assert "final/loss" in text
    assert "state        done" in text
    assert main(["show", one, "--out", out, "--json"]) == 0
    assert read_json(capsys)["result"]["state"] == "done"
    assert main(["diff", one, two, "--out", out]) == 0
    text = capsys.readouterr().out
    assert one in text
    assert "lr" in text or "noise" in text
    assert "steps" not in text
    assert main(["logs", one, "--out", out]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "started" in lines[0]
    assert "step 15" in lines[-2]
    assert lines[-1].endswith("done")
    assert main(["show", "zz", "--out", out]) == 2


def test_logs_follow_a_running_job_to_its_end(study: str, out: str) -> None:
    options = ["--set", "step_seconds=0.05", "--out", out]
    command = [sys.executable, "-c", "import sys; from ablate.cli import main; sys.exit(main())"]
    process = subprocess.Popen(
        [*command, "run", study, "--engine", "inline", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while not (found := list(Path(out).glob("jobs/*/events.jsonl"))):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        job_id = found[0].parent.name
        assert Ledger(Path(out)).result(job_id) is None
        done = subprocess.run(
            [*command, "logs", job_id, "-f", "--out", out], capture_output=True, text=True
        )
    finally:
        process.kill()
        process.wait()
    assert "step 15" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("done")


def test_ctrl_c_is_130_and_says_how_to_go_on(
    study: str, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = Path(out) / "jobs"

    def training() -> bool:
        return any(path.stat().st_size > 500 for path in jobs.glob("*/events.jsonl"))

    thread = interrupt(training, signal.SIGINT)
    assert run(study, out, "--set", "step_seconds=0.02") == 130
    thread.join()
    assert "to go: ablate run" in capsys.readouterr().out
    assert not (Path(out) / "toy" / "ranking.json").exists()


def test_a_second_coordinator_is_refused_in_one_line(
    study: str, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Ledger(Path(out)).lock():
        assert run(study, out) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert f"pid {os.getpid()}" in lines[0]


def test_a_closed_pipe_is_no_error(study: str, out: str) -> None:
    code = "import sys; from ablate.cli import main; sys.exit(main())"
    command = f"{sys.executable} -c '{code}' plan {study} --out {out} --json --seeds 400 | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout == "{\n"
    assert done.stderr == ""


def test_a_plan_of_ten_thousand_jobs_is_listed_in_part(
    study: str, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", study, "--out", out, "--seeds", "2500"]) == 0
    assert "9,800 more" in capsys.readouterr().out


def test_everything_is_in_mlflow(
    study: str, recorded_out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = recorded_out
    assert run(study, out) == 0
    assert "MLflow cannot" not in capsys.readouterr().err
    from ablate.tracking import connect

    client = connect(Path(out))
    experiment = client.get_experiment_by_name("toy")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'job'")
    assert len(runs) == 4
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert main(["record", study, "--out", out]) == 0
    again = client.search_runs([experiment.experiment_id], "tags.kind = 'job'")
    assert {run.info.run_id for run in again} == {run.info.run_id for run in runs}


def full(*arguments: Any, **options: Any) -> None:
    raise OSError(28, "No space left on device", "/somewhere/report.html")


def test_a_report_that_finds_no_room_is_said_and_the_ranking_stands(
    study: str, out: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("ablate.conclude.write_report", full)
        assert run(study, out) == 0
        captured = capsys.readouterr()
        assert "the report cannot be written (No space left on device)" in captured.err
        assert "small/low" in captured.out
        assert main(["report", study, "--out", out]) == 1
        assert (
            capsys.readouterr().err == "ablate: /somewhere/report.html: No space left on device\n"
        )
    assert main(["report", study, "--out", out]) == 0


def test_a_record_without_mlflow_is_one_line(
    study: str, out: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*arguments: Any) -> None:
        raise ConnectionError("no such\nserver")

    assert run(study, out) == 0
    capsys.readouterr()
    monkeypatch.setattr("ablate.record.rebuild", unreachable)
    assert main(["record", study, "--out", out]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "MLflow cannot be written: ConnectionError: no such server" in line


def test_a_run_folder_without_jobs_is_said_not_read(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("rank", "status", "report", "record"):
        assert main([command, study, "--out", str(tmp_path / "misspelt")]) == 2
        assert f"--out {tmp_path / 'misspelt'}: no job in" in capsys.readouterr().err
    assert not (tmp_path / "misspelt").exists()


def test_the_answer_of_other_options_is_replaced_whole_and_said_so(
    study: str, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(out) / "toy"
    run(study, out)
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    main(["rank", study, "--out", out])
    assert "another" not in capsys.readouterr().err
    run(study, out, "--seeds", "2")
    assert "the answer there is of another seeds and is replaced" in capsys.readouterr().err
    new = {path: path.read_bytes() for path in folder.iterdir()}
    assert all(new[path] != content for path, content in kept.items())
    main(["rank", study, "--out", out])
    assert "of another seeds and stays; to replace it: ablate report" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.iterdir()} == new
    main(["report", study, "--out", out])
    ranking = json.loads((folder / "ranking.json").read_text())
    assert [arm["seeds"] for arm in ranking["ranking"]] == [[0]] * 4
    assert "seeds:\n- 0\n" in (folder / "study.yaml").read_text() + "\n"


def test_a_damaged_result_is_said_by_every_command_that_counts_it_missing(
    study: str, out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(study, out)
    (Path(out) / "jobs" / ids(out)[0] / "result.json").write_text("{")
    table = ["export", "table", study, str(tmp_path / "t.csv")]
    for command in (["rank", study], ["report", study], ["plan", study], table):
        capsys.readouterr()
        assert main([*command, "--out", out]) == 0
        assert "result.json: damaged, treated as absent" in capsys.readouterr().err


def test_a_log_with_lines_of_a_wrong_type_is_shown(
    study: str, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(study, out)
    job = ids(out)[0]
    with (Path(out) / "jobs" / job / "events.jsonl").open("a") as file:
        file.write('{"time": "noon", "step": 77, "metrics": 7}\n')
    capsys.readouterr()
    assert main(["logs", job, "--out", out]) == 0
    assert "step 77" in capsys.readouterr().out
