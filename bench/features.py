"""What the feature cache saves, and how near its making comes to the backbone's own speed.

    python -m bench.features [--images 24] [--jobs 20] [--repeats 5] [--data ROOT]

Medians over repeats that take turns, so that a busy moment hits all of them: drawing or decoding
the images, the bare backbone (images ready in memory, nothing written), `prepare_features` (all
of it, files flushed), and reading back from the bank as a job does (from the page cache). From
them: the seconds of a study whose jobs share one bank, and of one whose jobs each compute theirs.
The processor time beside the wall time tells how much of it other programs took.

Then the resident memory of a worker that reads every image of a bank, of 250 and of 1,000 images
(empty files of the right size: what they hold makes no difference to the mapping). At most 64 MB of
each level stay mapped, which 210 images reach.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench.rows import Row, hand_in
from model.allocator import keep_freed_memory
from model.backbone import Pyramid, make_pyramid
from model.config import BackboneConfig, DataConfig, TrainConfig
from model.data import make_splits
from model.feature_bank import FILES, MANIFEST, Layout
from model.features import FeatureBank, cores, prepare_features

LOAD = "drawing or decoding, one thread"
BARE = "the backbone alone"
MADE = "prepare_features, all of it"
READ = "read back, P3 + P4 + P5"
READ_P5 = "read back, P5"


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmark of the feature cache")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--jobs", type=int, default=20, help="jobs of the imagined study")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", action="append", default=[], help="real data; none: rendered")
    parser.add_argument("--checkpoint", help="CLRerNet weights; none: EfficientNet-Lite0")
    args = parser.parse_args()
    name = "clrernet_dla34" if args.checkpoint else "efficientnet_lite0"
    config = TrainConfig(
        data=DataConfig(train_images=args.images, val_images=0, roots=tuple(args.data)),
        backbone=BackboneConfig(name=name, checkpoint=args.checkpoint),
    )
    refs = make_splits(config.data).train
    images = [torch.tensor(ref.load(config.data).image)[None] for ref in refs]
    pyramid = make_pyramid(config.backbone)
    times: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for _ in range(args.repeats):
        times[LOAD].append(timed(lambda: [ref.load(config.data) for ref in refs]))
        times[BARE].append(timed(lambda: run_bare(pyramid, images)))
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder)
            times[MADE].append(timed(lambda at=cache: prepare_features(config, refs, at)))
            bank = FeatureBank.open(prepare_features(config, refs, cache))
            times[READ].append(timed(lambda bank=bank: read_back(bank, (0, 1, 2))))
            times[READ_P5].append(timed(lambda bank=bank: read_back(bank, (2,))))
    show(config.backbone.name, len(refs), args.jobs, times)
    hand_in([throughput(times), memory()])


def throughput(times: Mapping[str, list[tuple[float, float]]]) -> Row:
    """The making of the bank against the bare backbone, in processor time."""
    bare, load, made = (
        statistics.median(spent for _, spent in times[name]) for name in (BARE, LOAD, MADE)
    )
    share = bare / (made - load)
    whole = f"{bare:.1f} s (backbone alone)"
    what = "frozen features, computed once, images loaded, processor time"
    return Row(what, f"{made - load:.1f} s", whole, share, ">= 0.8", share >= 0.8, "share")


def memory() -> Row:
    """How much more memory a worker takes that reads 1,000 images instead of 250."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as temporary, context.Pool(1, maxtasksperchild=1) as pool:
        peaks = {}
        for n in (250, 1000):
            folder = Path(temporary) / str(n)
            layout = Layout(
                tuple(map(str, range(n))), (40, 112, 320), ((40, 100), (20, 50), (10, 25))
            )
            folder.mkdir()
            (folder / MANIFEST).write_text(layout.to_json())
            for name, size in zip(FILES, layout.file_bytes(), strict=True):
                with (folder / name).open("wb") as file:
                    file.truncate(size)
            peaks[n] = pool.apply(peak_memory, (folder,))
    more = peaks[1000] / peaks[250]
    what = "memory of a worker, 1,000 images for 250"
    sizes = f"{peaks[1000]:.0f} MB", f"{peaks[250]:.0f} MB"
    return Row(what, *sizes, more, "<= 1.3x", more <= 1.3)


def peak_memory(folder: Path) -> float:
    """Peak resident MB of this process after reading a whole bank (Linux)."""
    read_back(FeatureBank.open(folder), (0, 1, 2))
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1]) * 1024 / 1e6


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds that `work` takes on the wall, and of processors of this program."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def run_bare(pyramid: Pyramid, images: Sequence[Tensor]) -> None:
    """Every image through the backbone, one thread each, as many at a time as there are cores."""
    keep_freed_memory()
    before = torch.get_num_threads()
    with ThreadPoolExecutor(cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for _ in pool.map(pyramid, images):
            pass
    torch.set_num_threads(before)


def read_back(bank: FeatureBank, levels: tuple[int, ...]) -> None:
    """Every image of the bank once, one at a time."""
    for row in range(len(bank)):
        bank.batch([row], levels)


def show(backbone: str, n: int, jobs: int, times: Mapping[str, list[tuple[float, float]]]) -> None:
    """Print both sides."""
    table = Table(title=f"{backbone}, {n} images, {cores()} cores, medians")
    table.add_column("what")
    for heading in ("images/s", "wall ms an image", "processor ms an image"):
        table.add_column(heading, justify="right")
    wall: dict[str, float] = {}
    cpu: dict[str, float] = {}
    for name, runs in times.items():
        wall[name], cpu[name] = (statistics.median(column) for column in zip(*runs, strict=True))
        row = (f"{n / wall[name]:.1f}", f"{1e3 * wall[name] / n:.2f}", f"{1e3 * cpu[name] / n:.2f}")
        table.add_row(name, *row)
    console = Console()
    console.print(table)
    console.print(
        f"making the bank runs at {wall[BARE] / wall[MADE]:.0%} of the backbone's own throughput; "
        f"backbone and images are {(cpu[BARE] + cpu[LOAD]) / cpu[MADE]:.0%} of its processor time"
    )
    shared, apart = wall[MADE] + jobs * wall[READ], jobs * wall[MADE]
    console.print(
        f"{jobs} jobs on these images: {shared:.2f} s computed once and read back by each, "
        f"{apart:.2f} s computed in every job: {apart / shared:.1f}x"
    )


if __name__ == "__main__":
    main()
