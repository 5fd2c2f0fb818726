"""The feature cache: right bits, computed once, and never a half-written bank."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model import feature_bank, features
from model.backbone import make_pyramid
from model.config import BackboneConfig, DataConfig, TrainConfig
from model.features import FeatureBank, FeatureError, compute, prepare_features
from model.scene import NO_PIXELS, Frame, Kind, Scene, SceneRef

ROOT = Path(__file__).parents[2]
SMALL = DataConfig(width=96, height=64)


def config(data: DataConfig = SMALL, **backbone: object) -> TrainConfig:
    settings = backbone or {"name": "random", "random_channels": 6}
    return TrainConfig(data=data, backbone=BackboneConfig.model_validate(settings))


@dataclass(frozen=True)
class FakeRef(SceneRef):
    """An image drawn from a seed; notes every load as a line of a file, if it has one."""

    seed: int = 0
    noted: Path | None = None
    seconds: float = 0.0
    fails: bool = False

    @property
    def kind(self) -> Kind:
        return "rendered"

    @property
    def recipe(self) -> str:
        return str(self.seed)

    def check(self, config: DataConfig) -> None:
        """Nothing to open."""

    def labels(self, config: DataConfig) -> Scene:
        w, h = config.width, config.height
        return Scene(self.key, self.kind, NO_PIXELS, (), Frame(w, h, 0, w, h), ())

    def load(self, config: DataConfig) -> Scene:
        if self.noted:
            with self.noted.open("a") as file:
                file.write(f"{self.key}\n")
        time.sleep(self.seconds)
        if self.fails:
            raise OSError("the image is gone")
        w, h = config.width, config.height
        rng = np.random.default_rng(self.seed)
        image = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
        image.flags.writeable = False
        return replace(self.labels(config), image=image)


def fakes(n: int, first: int = 0, **more: object) -> list[FakeRef]:
    return [FakeRef(f"scene {i}", seed=i, **more) for i in range(first, first + n)]  # pyright: ignore[reportArgumentType]


def loads(noted: Path) -> int:
    return len(noted.read_text().splitlines()) if noted.exists() else 0


def everything(bank: FeatureBank) -> list[torch.Tensor]:
    return bank.batch(range(len(bank)), (0, 1, 2))


def test_bank_holds_each_scenes_pyramid_in_the_order_given(tmp_path: Path) -> None:
    refs = fakes(5)[::-1]
    folder = prepare_features(config(), refs, tmp_path)
    bank = FeatureBank.open(folder)
    assert len(bank) == 5
    assert bank.channels == (6, 6, 6)
    assert bank.sizes == ((8, 12), (4, 6), (2, 3))
    assert list(bank.keys) == [ref.key for ref in refs]
    pyramid = make_pyramid(config().backbone)
    for i, ref in enumerate(refs):
        assert bank.index(ref.key) == i
        expected = pyramid(torch.tensor(ref.load(SMALL).image)[None])
        for given, wanted in zip(bank.batch([i], (0, 1, 2)), expected, strict=True):
            assert torch.equal(given, wanted)
    with pytest.raises(KeyError):
        bank.index("scene 5")


def test_batch_takes_rows_and_levels_as_asked_and_copies(tmp_path: Path) -> None:
    bank = FeatureBank.open(prepare_features(config(), fakes(4), tmp_path))
    p3, p4, p5 = everything(bank)
    five, three = bank.batch([3, 0, 3], (2, 0))
    assert torch.equal(five, p5[[3, 0, 3]])
    assert torch.equal(three, p3[[3, 0, 3]])
    five.zero_()
    assert torch.equal(bank.batch([3], [2])[0], p5[[3]])
    assert p4.dtype == torch.float32
    with pytest.raises(IndexError):
        bank.batch([4], [0])


def test_the_same_image_has_the_same_bits_in_any_set_and_on_any_cores(tmp_path: Path) -> None:
    lite0 = config(name="efficientnet_lite0")
    bank = FeatureBank.open(prepare_features(lite0, fakes(5), tmp_path))
    alone = FeatureBank.open(prepare_features(lite0, fakes(1, first=3), tmp_path))
    for one, among in zip(everything(alone), bank.batch([3], (0, 1, 2)), strict=True):
        assert torch.equal(one, among)
    pyramid = make_pyramid(lite0.backbone)
    before = torch.get_num_threads()
    for workers in (1, 3):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            rows = list(compute(pyramid, fakes(5), SMALL, workers))
            assert torch.get_num_threads() == threads
            for level in range(3):
                stacked = np.stack([row[level] for row in rows])
                assert np.array_equal(stacked, everything(bank)[level].numpy())
    torch.set_num_threads(before)


def test_what_is_cached_is_not_computed_again(tmp_path: Path) -> None:
    noted = tmp_path / "noted"
    seen: list[tuple[int, int]] = []
    refs = fakes(3, noted=noted)
    first = prepare_features(config(), refs, tmp_path, lambda *at: seen.append(at))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    again = prepare_features(config(), fakes(3, noted=noted), tmp_path, lambda *at: seen.append(at))
    assert again == first
    assert loads(noted) == 3
    assert len(seen) == 3
    assert {path.name for path in tmp_path.iterdir()} == {
        first.name,
        f"{first.name}.lock",
        "noted",
    }


def test_whatever_changes_features_has_its_own_folder(tmp_path: Path) -> None:
    refs = fakes(2)
    changed = [refs[0], FakeRef("scene 1", seed=9)]
    folders = {
        prepare_features(config(), refs, tmp_path),
        prepare_features(config(), changed, tmp_path),
        prepare_features(config(), refs[:1], tmp_path),
        prepare_features(config(), refs[::-1], tmp_path),
        prepare_features(config(name="random", random_seed=1), refs, tmp_path),
        prepare_features(config(DataConfig(width=64, height=64)), refs, tmp_path),
        prepare_features(config(DataConfig(width=64, height=96)), refs, tmp_path),
    }
    assert len(folders) == 7
    # settings that leave the images alone share the bank
    data = DataConfig(width=96, height=64, train_images=2, lane_order="label", max_lanes=2)
    assert prepare_features(config(data), refs, tmp_path) in folders


def test_repeated_scenes_are_stored_once_and_mistaken_keys_refused(tmp_path: Path) -> None:
    a, b = fakes(2)
    bank = FeatureBank.open(prepare_features(config(), [a, b, a], tmp_path))
    assert list(bank.keys) == ["scene 0", "scene 1"]
    with pytest.raises(FeatureError, match="two different scenes have the key 'scene 0'"):
        prepare_features(config(), [a, FakeRef("scene 0", seed=5)], tmp_path)
    with pytest.raises(FeatureError, match="no images"):
        prepare_features(config(), [], tmp_path)


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    class Tall(FakeRef):
        def load(self, config: DataConfig) -> Scene:
            return super().load(DataConfig(width=64, height=96))

    with pytest.raises(FeatureError, match=r"scene x: image of \(96, 64, 3\), expected \(64, 96"):
        prepare_features(config(), [Tall("x")], tmp_path)


def damage_cut(folder: Path) -> None:
    with (folder / "p4.f32").open("r+b") as file:
        file.truncate(100)


def damage_longer(folder: Path) -> None:
    with (folder / "moments.f64").open("ab") as file:
        file.write(b"more")


def damage_gone(folder: Path) -> None:
    (folder / "p5.f32").unlink()


def damage_manifest(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text[: len(text) // 2])


def damage_emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    "damage", [damage_cut, damage_longer, damage_gone, damage_manifest, damage_emptied]
)
def test_a_damaged_bank_is_noticed_and_made_again(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = prepare_features(config(), fakes(3), tmp_path)
    before = everything(FeatureBank.open(folder))
    damage(folder)
    with pytest.raises(FeatureError, match=str(folder)):
        FeatureBank.open(folder)
    assert prepare_features(config(), fakes(3), tmp_path) == folder
    after = everything(FeatureBank.open(folder))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not list(tmp_path.glob("*.part-*"))


def test_a_failed_computation_leaves_nothing(tmp_path: Path) -> None:
    broken = [*fakes(2), FakeRef("scene 2", seed=2, fails=True)]
    with pytest.raises(OSError, match="the image is gone"):
        prepare_features(config(), broken, tmp_path)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_features(config(), fakes(3), tmp_path, stop)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    FeatureBank.open(prepare_features(config(), fakes(3), tmp_path))


def test_a_full_disk_is_said_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = tmp_path / "noted"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(FeatureError, match="features of 3 images need"):
        prepare_features(config(), fakes(3, noted=noted), tmp_path)
    assert loads(noted) == 0


def test_few_images_are_in_memory_at_a_time(tmp_path: Path) -> None:
    noted = tmp_path / "noted"
    stream = compute(make_pyramid(config().backbone), fakes(50, noted=noted), SMALL, workers=2)
    next(stream)
    time.sleep(0.3)  # a slow disk
    assert loads(noted) <= 5
    stream.close()
    assert loads(noted) <= 5


def file_backed_memory() -> int:
    """Resident bytes of mapped files of this process."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssFile:")[1].split()[0])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_resident_memory_does_not_grow_with_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = config(DataConfig(width=320, height=160), name="random", random_channels=32)
    bank = FeatureBank.open(prepare_features(wide, fakes(300), tmp_path))
    image = sum(level.nbytes for level in bank.batch([0], (0, 1, 2)))
    assert 300 * image > 40e6
    monkeypatch.setattr(feature_bank, "_MAPPED_BYTES", 2_000_000)
    before = file_backed_memory()
    for i in range(300):
        bank.batch([i], (0, 1, 2))
    assert file_backed_memory() - before < 10e6
    # the measure itself sees mapped pages
    monkeypatch.setattr(feature_bank, "_MAPPED_BYTES", 1 << 40)
    for i in range(300):
        bank.batch([i], (0, 1, 2))
    assert file_backed_memory() - before > 30e6


def test_statistics_are_those_of_the_rows_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = FeatureBank.open(prepare_features(config(), fakes(9), tmp_path))
    rows = [8, 1, 2, 5, 7]
    for pooled in (1024, 2, 1):
        monkeypatch.setattr(feature_bank, "_POOLED_ROWS", pooled)
        for (mean, std), level in zip(
            bank.statistics(rows), bank.batch(rows, (0, 1, 2)), strict=True
        ):
            values = level.transpose(0, 1).flatten(1).double()  # (C, B * h * w)
            torch.testing.assert_close(mean.double(), values.mean(1), atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(
                std.double(), values.std(1, correction=0), atol=1e-6, rtol=1e-5
            )


# --- several processes


def run_alone(cache: str, noted: str, seconds: str) -> None:
    """What the processes below do."""
    torch.set_num_threads(1)
    refs = fakes(12, noted=Path(noted), seconds=float(seconds))
    FeatureBank.open(prepare_features(config(), refs, Path(cache)))


def start(cache: Path, noted: Path, seconds: float) -> subprocess.Popen[bytes]:
    code = "import sys; from tests.model.test_features import run_alone; run_alone(*sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", code, str(cache), str(noted), str(seconds)], cwd=ROOT
    )


def test_kill_and_race(tmp_path: Path) -> None:
    cache, noted = tmp_path / "cache", tmp_path / "noted"
    killed = start(cache, noted, seconds=0.5)
    deadline = time.monotonic() + 60
    while loads(noted) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert loads(noted) >= 4
    half = [path for path in cache.iterdir() if path.is_dir()]
    assert len(half) == 1
    assert ".part-" in half[0].name  # never under a bank's name

    noted.unlink()
    racing = [start(cache, noted, seconds=0.1) for _ in range(2)]
    assert [process.wait(timeout=60) for process in racing] == [0, 0]
    assert loads(noted) == 12  # one computed, the other waited
    folders = [path for path in cache.iterdir() if path.is_dir()]
    assert [path.name for path in folders] == [half[0].name.split(".part-")[0]]
    bank = FeatureBank.open(folders[0])
    direct = FeatureBank.open(prepare_features(config(), fakes(12), tmp_path / "other"))
    for ours, theirs in zip(everything(direct), everything(bank), strict=True):
        assert torch.equal(ours, theirs)


def test_race_where_the_file_system_has_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_try_lock", lambda _: False)
    noted = tmp_path / "noted"
    folders: list[Path] = []

    def one() -> None:
        refs = fakes(6, noted=noted, seconds=0.05)
        folders.append(prepare_features(config(), refs, tmp_path))

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads(noted) == 18  # they did race
    assert len(folders) == 3
    assert len(set(folders)) == 1
    assert len(FeatureBank.open(folders[0])) == 6
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [folders[0]]
