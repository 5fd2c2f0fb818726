"""Ray over several nodes of this machine: nodes that die, and nodes that do not see OUT."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from ablate.engines import EngineError, Outcome, Place, StopAsked, Task, make_engine
from ablate.engines.far import FarWorker
from ablate.engines.mirror import Parcel, Sender, lay_in, lay_out
from ablate.nouns import Resources, StudyError
from tests.ablate import clusters
from tests.ablate.toys import Heard, Waits, drain, numbers, run_toys, toy_plan, toy_study

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

needs_ray = pytest.mark.skipif(bool(clusters.missing("ray")), reason=clusters.missing("ray"))
Storage = Literal["shared", "local"]


def when(condition: Any, action: Any) -> threading.Thread:
    def wait() -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.long
@needs_ray
@pytest.mark.parametrize("storage", ["shared", "local"])
def test_a_node_dies_in_the_middle_and_the_results_are_the_pools(
    tmp_path: Path, storage: Storage
) -> None:
    plan = toy_plan(24, steps=30, step_seconds=0.1)
    out, heard = tmp_path / "ray", Heard()
    study = toy_study(resources=Resources(storage=storage), attempts=3)
    with clusters.ray_nodes(3, cpus=1) as cluster:
        victim = sorted(cluster.worker_nodes, key=lambda node: node.node_id)[0]
        thread = when(
            lambda: len(list(out.glob("jobs/*/result.json"))) >= 8,
            lambda: cluster.remove_node(victim, allow_graceful=False),  # SIGKILL to all of it
        )
        summary = run_toys(out, plan, study=study, engine="ray", heard=heard)
        thread.join()
    assert summary.count("done") == 24
    assert any("trying again" in line for line in heard.said)
    assert {result.attempts for result in summary.results.values()} == {1, 2}
    run_toys(tmp_path / "pool", plan, engine="pool", workers=2)
    assert numbers(out, plan.jobs) == numbers(tmp_path / "pool", plan.jobs)


@contextmanager
def blind_node(address: str, out: Path) -> Iterator[None]:
    """A Ray node that sees another, empty folder where OUT is."""
    out.mkdir(parents=True, exist_ok=True)
    script = (
        "import sys, time, types\n"
        "from ray.cluster_utils import Cluster\n"
        "cluster = Cluster()\n"
        "cluster.head_node = types.SimpleNamespace(gcs_address=sys.argv[1])\n"
        "cluster.add_node(wait=False, num_cpus=2, object_store_memory=100 * 2**20)\n"
        "time.sleep(3600)\n"
    )
    start = f"mount -t tmpfs none '{out}' && exec '{sys.executable}' -c \"$1\" '{address}'"
    command = ["unshare", "--mount", "bash", "-c", start, "bash", script]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "RAY_ADDRESS": ""},
        start_new_session=True,
    )
    try:
        yield
    finally:
        os.killpg(process.pid, 15)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait(20)


@pytest.mark.long
@needs_ray
@pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("unshare") is None, reason="mounts need root and unshare"
)
def test_a_node_that_does_not_see_the_folder(tmp_path: Path) -> None:
    plan, out = toy_plan(6, step_seconds=0.02), tmp_path / "out"
    run_toys(tmp_path / "inline", plan)
    with clusters.ray_nodes(1, cpus=0) as cluster, blind_node(cluster.address, out):
        _wait_for_cpus(2)
        with pytest.raises(StudyError, match=r"does not see --out .*storage=local"):
            run_toys(out, plan, engine="ray")
        assert not list(out.glob("jobs/*"))
        assert not list(out.glob(".probe*"))
        study = toy_study(resources=Resources(storage="local"))
        summary = run_toys(out, plan, study=study, engine="ray")
    assert summary.count("done") == 6
    assert numbers(out, plan.jobs) == numbers(tmp_path / "inline", plan.jobs)


def _wait_for_cpus(n: int) -> None:
    """Until the cluster has them, seen by a driver of its own."""
    script = (
        "import ray, time\n"
        "ray.init(log_to_driver=False, logging_level='ERROR')\n"
        f"while ray.cluster_resources().get('CPU', 0) < {n}: time.sleep(0.2)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120, capture_output=True)


@pytest.mark.long
@needs_ray
def test_what_no_node_has_is_said_in_one_line(tmp_path: Path) -> None:
    study = toy_study(resources=Resources(gpus=1))
    with clusters.ray_nodes(1, cpus=1), pytest.raises(StudyError, match=r"gpus 1.*no Ray node has"):
        run_toys(tmp_path, toy_plan(1), study=study, engine="ray")


@pytest.mark.long
@needs_ray
def test_workers_that_cannot_start_end_the_run(tmp_path: Path) -> None:
    said: list[str] = []
    place = Place(tmp_path, tmp_path / "cache", say=said.append)
    with clusters.ray_nodes(1):
        engine = make_engine("ray", Waits(), 1, preload=("no_such_module",), place=place)
        try:
            engine.submit(Task("quick", 1, {}, 0))
            with pytest.raises(EngineError, match=r"no Ray node is left.*no_such_module"):
                drain(engine)
        finally:
            engine.close()
    assert any("its workers cannot start" in line for line in said)


@dataclass(frozen=True)
class Ponders(Waits):
    """A node that is asked for it answers only when there is a file for it to see."""

    folder: Path = Path()

    def misfit(self) -> str:
        while (self.folder / "think").exists():
            time.sleep(0.05)
        return ""


@pytest.mark.long
@needs_ray
def test_jobs_go_on_while_a_new_node_thinks(tmp_path: Path) -> None:
    place = Place(tmp_path, tmp_path / "cache")
    with clusters.ray_nodes(1, cpus=1) as cluster:
        engine = make_engine("ray", Ponders(folder=tmp_path), place=place)
        try:
            assert engine.workers == 1
            (tmp_path / "think").touch()
            cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
            for i in range(4):
                time.sleep(1)  # until the engine has seen it
                engine.submit(Task(f"quick-{i}", 1, {}, 0))
                assert drain(engine, 200)[f"quick-{i}"].kind == "ended"
                assert engine.workers == 1
            (tmp_path / "think").unlink()
            deadline = time.monotonic() + 60
            while engine.workers == 1:
                assert time.monotonic() < deadline
                engine.wait(0.1)
        finally:
            engine.close()


@pytest.mark.long
@needs_ray
def test_a_node_gets_what_its_jobs_read_and_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ablate.engines.ray.PIECE", 1000)
    cache = tmp_path / "cache"
    for name in ("first/a", "second/b", "other/c"):
        (cache / name).parent.mkdir(parents=True)
        (cache / name).write_bytes(bytes(range(250)) * 10)
    homes = Path(tempfile.gettempdir()).glob
    before = set(homes(f"ablate-{os.getuid()}-*"))
    place = Place(tmp_path / "out", cache, resources=Resources(storage="local"))
    with clusters.ray_nodes(1):
        engine = make_engine("ray", Waits(), 1, place=place)
        try:
            read = []
            for name in ("first", "second"):  # the second is prepared when a worker is there
                engine.share([cache / name])
                engine.submit(Task(f"quick-{name}", 1, {}, 0))
                read.append(drain(engine)[f"quick-{name}"].error)
            (home,) = set(homes(f"ablate-{os.getuid()}-*")) - before
            assert (home / "cache/first/a").read_bytes() == (cache / "first/a").read_bytes()
        finally:
            engine.close()
    assert read == ["a first", "a b first second"]
    assert set(homes(f"ablate-{os.getuid()}-*")) == before


@pytest.mark.long
@needs_ray
def test_fused_jobs_are_refused_where_folders_travel(tmp_path: Path) -> None:
    study = toy_study(resources=Resources(storage="local"))
    with clusters.ray_nodes(1), pytest.raises(StudyError, match="--fuse: given 2, --engine ray"):
        run_toys(tmp_path, toy_plan(2), study=study, engine="ray", fuse=2)


def test_a_mirror_follows_a_folder(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (here / "config.json").write_text("{}")
    (here / "events.jsonl").write_text("one\n")
    (here / "lock").write_text("mine")
    sender = lay_out(there, Sender(here).changes(final=True))
    assert sorted(path.name for path in there.iterdir()) == ["config.json", "events.jsonl"]
    assert not sender.grown()
    with (there / "events.jsonl").open("a") as file:
        file.write("two\nthr")
    (there / "checkpoint.pt").write_bytes(b"1")
    first = sender.changes(files=False)
    assert (first.whole, first.grown) == ({}, {"events.jsonl": (4, b"two\n")})
    (there / "pictures").mkdir()
    (there / "pictures" / "a.png").write_bytes(b"p")
    (there / "result.json").write_text("{}")
    (there / "config.json").unlink()
    last = first.then(sender.changes(final=True))
    for _ in range(2):  # laid in twice, it is the same
        lay_in(here, last)
        assert (here / "events.jsonl").read_text() == "one\ntwo\nthr"
        assert (here / "checkpoint.pt").read_bytes() == b"1"
        assert (here / "pictures" / "a.png").read_bytes() == b"p"
        assert not (here / "config.json").exists()
        assert (here / "lock").read_text() == "mine"


def test_a_question_left_over_from_one_job_takes_nothing_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ablate.engines.far.NEWS_EVERY", 0.01)
    written, heard = threading.Event(), threading.Event()

    class Writes:
        """Work that writes two lines, and in between waits until somebody asked."""

        def moved(self, home: Path, cache: Path) -> Any:
            def work(task: Task, stop: StopAsked) -> Outcome:
                with (home / "jobs" / task.job_id / "events.jsonl").open("a", buffering=1) as file:
                    file.write(f"{task.job_id} one\n")
                    written.set()
                    assert heard.wait(60)
                    file.write(f"{task.job_id} two\n")
                return Outcome("ended")

            return work

    def empty(folder: Path) -> Parcel:
        folder.mkdir()
        return Sender(folder).changes(final=True)

    worker = FarWorker(Writes(), (), tmp_path / "home", (), lambda where: b"")
    heard.set()
    worker.run(Task("first", 1, {}, 0), empty(tmp_path / "first"), ())
    written.clear()
    heard.clear()
    ended: list[Any] = []
    mirror = tmp_path / "second"
    parcel = empty(mirror)
    thread = threading.Thread(
        target=lambda: ended.append(worker.run(Task("second", 1, {}, 0), parcel, ()))
    )
    thread.start()
    assert written.wait(60)
    assert not worker.news("first", 1)  # nobody hears this answer
    lay_in(mirror, worker.news("second", 1))
    assert (mirror / "events.jsonl").read_text() == "second one\n"
    heard.set()
    thread.join()
    lay_in(mirror, ended[0][1])
    assert (mirror / "events.jsonl").read_text() == "second one\nsecond two\n"


def test_what_is_sent_to_a_machine_replaces_what_an_earlier_attempt_left(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "checkpoint.pt").write_bytes(b"of a lost attempt")
    lay_out(folder, Parcel({"config.json": b"{}"}, {}, frozenset({"config.json"})))
    assert [path.name for path in folder.iterdir()] == ["config.json"]
