"""What a result says of its code and its machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ablate import engines, origin
from ablate.engines import available_cores

CORE = "tests.ablate.toy_core"


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of someone's with a copy of this package in it, not kept by git."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "theirs.txt").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "theirs")
    (tmp_path / "ablate").mkdir()
    (tmp_path / "ablate" / "origin.py").write_text("")
    monkeypatch.setattr(origin, "__file__", str(tmp_path / "ablate" / "origin.py"))
    return tmp_path


def test_the_commit_and_whether_files_differ_from_it(repository: Path) -> None:
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", "ours")
    head = git(repository, "rev-parse", "--short=12", "HEAD")
    described = origin.describe_code(CORE)
    assert described["commit"] == head
    assert len(described["core"]) == 12
    (repository / "new.txt").write_text("kept by nobody: no difference")
    assert origin.describe_code(CORE)["commit"] == head
    (repository / "ablate" / "origin.py").write_text("changed")
    assert origin.describe_code(CORE)["commit"] == f"{head}+"


def test_another_repository_around_an_installed_package_is_not_its_own(repository: Path) -> None:
    assert origin.describe_code(CORE)["commit"] == ""


def test_without_git_there_is_no_commit(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))
    assert origin.describe_code(CORE)["commit"] == ""


def test_cores_where_the_system_has_no_affinities(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    monkeypatch.setattr(engines, "CPU_QUOTA", Path("/nowhere/cpu.max"))
    assert available_cores() == 10
    assert origin.describe_environment()["cores"] == 10


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8), ("", 8)],
)
def test_cores_that_a_control_group_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr(engines, "affine_cores", lambda: 8)
    monkeypatch.setattr(engines, "CPU_QUOTA", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert available_cores() == cores
