"""Reading an image file without believing it: a damaged one is refused, and silently.

OpenCV may return a half-decoded image and let libjpeg complain on the process's stderr. So a JPEG's
markers are walked first (a truncated file lacks its end), and `check_image` decodes with stderr
caught, where a complaint means damage.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from model.scene import DataError

_SIZE_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # a marker that is neither stuffing nor RSTn
# a few bytes of padding after a scan, as some cameras write, harm nothing
_COMPLAINT = re.compile(rb"Corrupt JPEG data(?!: \d extraneous)|Premature end|libpng|Invalid SOS")
_PIXELS_AS_STORED = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION  # labels know no rotation
_stderr_lock = threading.Lock()


def read_image(path: Path, size: tuple[int, int]) -> np.ndarray:
    """BGR (H, W, 3) uint8 of `size` = (width, height).

    Raises:
        DataError: missing, damaged, no image, or of another size.
    """
    data, _ = _read_whole(path)
    image = _decoded(path, data, _PIXELS_AS_STORED)
    _require_size(path, (image.shape[1], image.shape[0]), size)
    return image


def check_image(path: Path, size: tuple[int, int]) -> None:
    """Find what `read_image` would refuse, and damage inside the file too, at a third of its time.

    Raises:
        DataError: missing, damaged, no image, or of another size.
    """
    data, found = _read_whole(path)
    if found is not None:
        _require_size(path, found, size)
        # reads every coefficient but skips most of the arithmetic
        complaint = _stderr_of(lambda: _decoded(path, data, cv2.IMREAD_REDUCED_GRAYSCALE_8))
    else:
        complaint = _stderr_of(lambda: read_image(path, size))
    said = _COMPLAINT.search(complaint)
    if said:
        line = complaint[said.start() :].split(b"\n", 1)[0].decode(errors="replace")
        raise DataError(f"{path}: the image is damaged ({line.strip()})")


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG whose markers lead to its end marker, else None."""
    size = None
    at = 2
    while at + 1 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker == 0xD9:
            return size
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a segment
            at += 2
        else:
            segment = data[at + 4 : at + 9]
            if marker in _SIZE_MARKERS and len(segment) == 5:
                size = int.from_bytes(segment[3:5], "big"), int.from_bytes(segment[1:3], "big")
                # height and width stand in this order behind one byte of precision
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            if marker == 0xDA:
                scan_end = _AFTER_SCAN.search(data, at)
                if not scan_end:
                    return None
                at = scan_end.start()
    return None


def _read_whole(path: Path) -> tuple[bytes, tuple[int, int] | None]:
    """The file's bytes, and its (width, height) if it is a JPEG."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if not data:
        raise DataError(f"{path}: the file is empty, not an image")
    if not data.startswith(b"\xff\xd8"):
        return data, None
    size = jpeg_size(data)
    if size is None:
        raise DataError(f"{path}: the image is damaged (truncated JPEG, its end is missing)")
    return data, size


def _decoded(path: Path, data: bytes, flag: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:
        image = None
    if image is None:
        raise DataError(f"{path}: not a readable image")
    return image


def _require_size(path: Path, given: tuple[int, int], expected: tuple[int, int]) -> None:
    if given != expected:
        raise DataError(
            f"{path}: the image is {given[0]}x{given[1]}, expected {expected[0]}x{expected[1]}"
        )


def _stderr_of(work: Callable[[], object]) -> bytes:
    """What `work` makes libraries write to file descriptor 2; what is not theirs is passed on."""
    with _stderr_lock, tempfile.TemporaryFile() as caught:
        try:
            saved = os.dup(2)
        except OSError:  # the process has no stderr: nothing to catch
            work()
            return b""
        os.dup2(caught.fileno(), 2)
        try:
            work()
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            caught.seek(0)
            text = caught.read()
            for line in text.splitlines(keepends=True):
                if b"JPEG" not in line and b"libpng" not in line:
                    os.write(2, line)
    return text
