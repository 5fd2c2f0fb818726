"""Pictures: lanes over their image, and where attention goes in it. Pure; images are BGR uint8."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from model.scene import Polyline

Image = UInt8[np.ndarray, "H W 3"]
Sheet = UInt8[np.ndarray, "h w 3"]
"""Several images on one"""
Colour = tuple[int, int, int]

TRUTH: Colour = (233, 180, 86)
"""BGR; sky blue and vermilion stay apart for every kind of colour vision, and from road paint"""
DECODED: Colour = (0, 94, 255)
_EDGE: Colour = (20, 20, 20)
_TEXT: Colour = (255, 255, 255)
_SHIFT = 3  # binary digits of a px that OpenCV draws with
_MOST = 32.0  # times the even share; attention from here on is drawn alike
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_overlay(
    image: Image, truth: Sequence[Polyline], predicted: Sequence[Polyline], caption: str = ""
) -> Image:
    """Draw labelled lanes broad and decoded lanes thin on top, with a dot per decoded point.

    Lanes are polylines (P, 2) of x, y in px of the image; a lane of one point is a dot.
    """
    canvas = image.copy()
    for lane in truth:
        _line(canvas, lane, TRUTH, 7)
    canvas = cv2.addWeighted(canvas, 0.75, image, 0.25, 0)
    for lane in predicted:
        _line(canvas, lane, _EDGE, 4)
        _line(canvas, lane, DECODED, 2)
        for point in lane:
            _dot(canvas, point, 3, DECODED)
    _legend(canvas, [("truth", TRUTH, 7), ("decoded", DECODED, 2)], caption)
    return canvas


def draw_attention(
    image: Image,
    weights: Float[np.ndarray, "h w"],
    query: tuple[float, float] | None = None,
    caption: str = "",
) -> Image:
    """Tint the image by attention, on a scale that is the same for every picture.

    Untinted is no attention, dark violet the even share, yellow 32 times as much or more.

    Args:
        image: the scene.
        weights: attention of each cell of an even grid over the image.
        query: x, y px of the point that looks; marked.
        caption: a line of text.
    """
    height, width = image.shape[:2]
    share = (weights / max(float(weights.mean()), 1e-12)).astype(np.float32)
    heat = np.log1p(np.minimum(share, _MOST)) / np.log1p(_MOST)  # 0 .. 1
    heat = cv2.resize(heat, (width, height), interpolation=cv2.INTER_NEAREST)
    colour = cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO)
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    alpha = np.clip(2 * heat, 0, 0.8)[..., None]
    canvas = (colour * alpha + grey * (1 - alpha)).astype(np.uint8)
    if query is not None:
        _dot(canvas, np.array(query), 7, _EDGE)
        _dot(canvas, np.array(query), 5, TRUTH)
    if caption:
        _legend(canvas, [], caption)
    return canvas


def merge_levels(
    maps: Sequence[Float[np.ndarray, "_h _w"]], height: int, width: int
) -> Float[np.ndarray, "height width"]:
    """Lay the levels of a pyramid over each other: attention per px; the sum stays what it was."""
    merged = np.zeros((height, width))
    for level in maps:
        rows = np.arange(height) * level.shape[0] // height
        columns = np.arange(width) * level.shape[1] // width
        cells = np.bincount(rows)[:, None] * np.bincount(columns)  # px in each cell
        merged += (level / cells)[rows][:, columns]
    return merged


def tile(rows: Sequence[Sequence[Image]], gap: int = 4) -> Sheet:
    """Lay pictures of one size out in rows, on black."""
    height, width, _ = rows[0][0].shape
    columns = max(len(row) for row in rows)
    sheet = np.zeros((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3), np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            sheet[top : top + height, left : left + width] = picture
    return sheet


def _line(canvas: np.ndarray, lane: Polyline, colour: Colour, thickness: int) -> None:
    points = np.rint(np.asarray(lane, float) * (1 << _SHIFT)).astype(np.int32).reshape(-1, 1, 2)
    cv2.polylines(canvas, [points], False, colour, thickness, cv2.LINE_AA, _SHIFT)


def _dot(canvas: np.ndarray, point: np.ndarray, radius: int, colour: Colour) -> None:
    x, y = np.rint(np.asarray(point, float) * (1 << _SHIFT)).astype(int).tolist()
    cv2.circle(canvas, (x, y), radius << _SHIFT, colour, -1, cv2.LINE_AA, _SHIFT)


def _legend(canvas: np.ndarray, entries: Sequence[tuple[str, Colour, int]], caption: str) -> None:
    """Write in the upper left corner: colours with their names, then the caption."""
    scale, thickness = 0.45, 1
    sizes = [cv2.getTextSize(text, _FONT, scale, thickness)[0][0] for text, *_ in entries]
    caption_width = cv2.getTextSize(caption, _FONT, scale, thickness)[0][0] if caption else 0
    width = sum(size + 42 for size in sizes) + caption_width + 10 * bool(caption) + 8
    strip = canvas[:22, :width]
    strip[:] = (strip * 0.25).astype(np.uint8)
    x = 8
    for (text, colour, breadth), size in zip(entries, sizes, strict=True):
        cv2.line(canvas, (x, 11), (x + 22, 11), colour, breadth, cv2.LINE_AA)
        cv2.putText(canvas, text, (x + 28, 15), _FONT, scale, _TEXT, thickness, cv2.LINE_AA)
        x += size + 42
    if caption:
        cv2.putText(canvas, caption, (x, 15), _FONT, scale, _TEXT, thickness, cv2.LINE_AA)
