"""Does it look at the image? Tests by behaviour, because attention weights alone mislead."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from model.eval_split import EvalSplit
from model.init import stream
from model.lanelm import LaneLM
from model.metrics import first_points, movement, px_readings
from model.passes import Bank, Forced, Known, decode, force, plain_steps


@dataclass(frozen=True)
class Blank:
    """Every feature becomes its channel's mean."""

    means: list[Float[Tensor, " C"]]
    """of each level used"""

    def __call__(
        self, feature: Float[Tensor, "C h w"], level: int, place: int
    ) -> Float[Tensor, "C h w"]:
        return self.means[level][:, None, None].expand_as(feature)


def shuffle(feature: Float[Tensor, "C h w"], level: int, place: int) -> Float[Tensor, "C h w"]:
    """Let the features change places within their level, at random but always alike."""
    order = torch.randperm(feature[0].numel(), generator=stream(place, f"shuffle/{level}"))
    return feature.flatten(1)[:, order].view_as(feature)


def sight_readings(
    model: LaneLM,
    bank: Bank,
    split: EvalSplit,
    donors: EvalSplit | None = None,
    seen: Forced | None = None,
    known: Known | None = None,
) -> dict[str, float]:
    """Read what changes when the image does.

    Swap: each image's lanes are written over the next image of the split. A split of one image
    takes the `donors` in turn, at most `evaluation.train_images`; without any there is no reading.

    - `swap_px`: movement of the decoded lanes, lane id by lane id, px; `swap_kept`: share of their
      points that are still decoded; `swap_px_labels`: how far the labels of the two images are
      apart.
    - `swap_px_donor`, `swap_donor_coverage`: px error and coverage of the lanes written over the
      other image against that image's own labels, paired as `px_error` is; `swap_px_stay`: the px
      error there of the first image's labels, which lanes that did not move at all would have.
    - `swap_loss`, `swap_loss_first_token`: rise of the cross-entropy after the true prefix.
    - `blank_loss`: its rise when every feature is its channel's mean over the split.
    - `shuffle_loss`: its rise when features change places within their level, while the position
      codes stay.

    Args:
        model: in any mode.
        bank: features of the split and the donors.
        split: the images.
        donors: other images.
        seen: what the model says of these images, and perhaps more after them; None: it is asked.
        known: what these weights wrote before; what they write now is added.
    """
    statistics = bank.statistics(split.indices)
    blank = Blank([statistics[level][0] for level in model.levels])
    plain, first = plain_steps(split.targets), first_points(split.targets.point)
    known = Known() if known is None else known
    seen = (force(model, bank, split) if seen is None else seen).of(range(len(split)))
    read = _rise("blank_loss", seen, force(model, bank, split, change=blank), plain)
    read |= _rise("shuffle_loss", seen, force(model, bank, split, change=shuffle), plain)

    places, others = _swap(split, donors, model.config.evaluation.train_images)
    if not places:
        return read
    targets = split.targets.select(places)
    swapped = EvalSplit(others.indices, targets, ())  # these lanes over those images
    over = force(model, bank, swapped)
    seen = seen.of(places)
    read |= _rise("swap_loss", seen, over, plain[places])
    read |= _rise("swap_loss_first_token", seen, over, first[places])
    own = decode(model, bank, split, known=known).lanes[places]
    written = decode(model, bank, swapped, known=known).lanes
    moved = movement(own, written)
    apart = movement(targets.x.double().numpy(), others.targets.x.double().numpy())
    follows = px_readings(written, others.truth)
    stays = px_readings(split.select(places).truth, others.truth)
    named = {
        "swap_px_donor": follows.get("px_error"),
        "swap_donor_coverage": follows.get("coverage"),
        "swap_px_stay": stays.get("px_error"),
        "swap_px": moved.get("px"),
        "swap_kept": moved.get("kept"),
        "swap_px_labels": apart.get("px"),
    }
    return read | {name: value for name, value in named.items() if value is not None}


def _swap(split: EvalSplit, donors: EvalSplit | None, most: int) -> tuple[list[int], EvalSplit]:
    """Give places in the split, and as many images to write their lanes over."""
    if len(split) > 1:
        return list(range(len(split))), split.select([*range(1, len(split)), 0])
    if donors is not None and len(donors):
        others = donors.first(most)
        return [0] * len(others), others
    return [], split


def _rise(
    name: str, before: Forced, after: Forced, steps: Bool[Tensor, "n L T"]
) -> dict[str, float]:
    rise = (after.nll - before.nll)[steps]
    return {name: float(rise.mean())} if len(rise) else {}
