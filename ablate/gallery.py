"""The pictures of a report: best, base and worst arm over the same images, ready to embed."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablate import runs
from ablate.nouns import Job
from ablate.rank import Ranking

OVERLAYS_SHOWN, SHEETS_SHOWN = 4, 2
PICTURE_WIDTH, SHEET_WIDTH = 800, 1400
QUALITY = 80
"""Of the embedded JPEG pictures."""


def gallery(
    ranking: Ranking, by_arm: Mapping[str, Sequence[Job]], pictures: Mapping[str, Sequence[Path]]
) -> dict[str, list[dict[str, Any]]]:
    """The last pictures of the best, the base and the worst arm: a row per image."""
    last: dict[str, dict[str, runs.Picture]] = {}  # arm -> key
    for arm in ranking.arms:
        for job in by_arm.get(arm.arm, ())[:1]:
            own = sorted(map(runs.picture, pictures.get(job.id, ())), key=lambda p: p.step)
            if own:
                last[arm.arm] = {picture.key: picture for picture in own}
    order = list(last)  # as ranked
    roles = [("best", order[:1]), ("base", [ranking.base]), ("worst", order[-1:])]
    named = {arm: " and ".join(role for role, arms in roles if arm in arms) for arm in order}
    named = {arm: role for arm, role in named.items() if role}
    keys = sorted({key for arm in named for key in last[arm]})
    sheets = [key for key in keys if "attention" in key][:SHEETS_SHOWN]
    overlays = [key for key in keys if "attention" not in key][:OVERLAYS_SHOWN]
    rows: dict[str, list[dict[str, Any]]] = {}
    for key in (*overlays, *sheets):
        width = SHEET_WIDTH if key in sheets else PICTURE_WIDTH
        for arm in (arm for arm in order if arm in named and key in last[arm]):
            found, seed = last[arm][key], by_arm[arm][0].seed
            role = named[arm] if named[arm] == arm else f"{named[arm]}: {arm}"
            caption = f"{role}, seed {seed}" + (f", step {found.step}" if found.step else "")
            if data := embed(found.path, width):
                rows.setdefault(_heading(key), []).append({"caption": caption, "data": data})
    return rows


def over_steps(
    ranking: Ranking, by_arm: Mapping[str, Sequence[Job]], pictures: Mapping[str, Sequence[Path]]
) -> dict[str, list[dict[str, Any]]]:
    """The best arm's pictures at its first, a middle and its last step: a row per image."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for arm in ranking.arms[:1]:
        by_key: dict[str, dict[int, Path]] = {}
        for job in by_arm.get(arm.arm, ())[:1]:
            for one in map(runs.picture, pictures.get(job.id, ())):
                by_key.setdefault(one.key, {})[one.step] = one.path
        shown = [key for key in sorted(by_key) if len(by_key[key]) > 2]
        shown = [key for key in shown if "attention" not in key][:1] + [
            key for key in shown if "attention" in key
        ][:1]
        for key in shown:
            steps = sorted(by_key[key])
            for step in (steps[0], steps[len(steps) // 2], steps[-1]):
                width = SHEET_WIDTH // 2 if "attention" in key else PICTURE_WIDTH // 2
                if data := embed(by_key[key][step], width):
                    heading = f"{_heading(key)}, {arm.arm} as it trains"
                    rows.setdefault(heading, []).append({"caption": f"step {step}", "data": data})
    return rows


def _heading(key: str) -> str:
    """`train_0_attention` is `training image 0 attention`."""
    head, _, rest = key.partition("_")
    known = {"train": "training image", "val": "held-out image", "test": "test image"}
    return " ".join([known.get(head, head), *rest.split("_")]).strip()


def embed(path: Path, width: int) -> str | None:
    """An image file as a data URI, at most so many px wide; None when it cannot be read."""
    import cv2

    image = cv2.imread(str(path))
    if image is None:
        return None
    scale = min(1.0, width / image.shape[1])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    whole, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}" if whole else None
