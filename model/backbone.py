"""Frozen feature pyramids: uint8 BGR images in, maps at strides 8, 16 and 32 out."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model.config import BackboneConfig
from model.dla import CLRerNetFeatures
from model.efficientnet import MEAN, STD, EfficientNetLite0
from model.weights_file import CheckpointError

STRIDES = (8, 16, 32)


class Pyramid(nn.Module):
    """A frozen backbone with its preprocessing, in evaluation mode.

    Args:
        body: maps (B, 3, H, W) to P3, P4 and P5; its batch norms are folded away.
        channels: of P3, P4 and P5.
        mean: subtracted from every pixel value of 0..255.
        std: then divides it.
    """

    def __init__(
        self, body: nn.Module, channels: tuple[int, int, int], mean: float, std: float
    ) -> None:
        super().__init__()
        self.channels = channels
        self.mean, self.std = mean, std
        body.eval().requires_grad_(False)
        fold_batch_norms(body)
        # with the images' own memory order (pixel by pixel) 1.6 times as fast as plane by plane
        self.body = body.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.eval()

    @torch.no_grad()
    def forward(
        self, images: UInt8[Tensor, "B H W 3"]
    ) -> tuple[
        Float[Tensor, "B C3 H//8 W//8"],
        Float[Tensor, "B C4 H//16 W//16"],
        Float[Tensor, "B C5 H//32 W//32"],
    ]:
        """Compute P3, P4 and P5 of BGR images whose sides are multiples of 32."""
        x = images.permute(0, 3, 1, 2).float()  # (B, 3, H, W), in memory still (B, H, W, 3)
        return self.body(x.sub_(self.mean).div_(self.std))


class RandomBody(nn.Module):
    """Patches of 8x8 px through fixed random weights, then twice 2x2 of the level before.

    The weights come from NumPy's PCG64, whose stream is the same on every machine.
    """

    def __init__(self, seed: int, channels: int) -> None:
        super().__init__()
        self.channels = (channels, channels, channels)
        rng = np.random.default_rng(seed)

        def patches(inputs: int, size: int) -> nn.Conv2d:
            conv = nn.Conv2d(inputs, channels, size, stride=size, bias=False, device="meta")
            weight = rng.standard_normal(tuple(conv.weight.shape)) / np.sqrt(inputs * size * size)
            conv.weight = nn.Parameter(torch.from_numpy(weight).float())
            return conv

        self.p3, self.p4, self.p5 = patches(3, 8), patches(channels, 2), patches(channels, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p3 = torch.tanh(2 * self.p3(x))
        p4 = torch.tanh(2 * self.p4(p3))
        return p3, p4, torch.tanh(2 * self.p5(p4))


def make_pyramid(config: BackboneConfig) -> Pyramid:
    """Build the frozen pyramid with its weights.

    Raises:
        CheckpointError: the CLRerNet checkpoint is missing, unreadable or of another model.
    """
    if config.name == "efficientnet_lite0":
        body = EfficientNetLite0()
        return Pyramid(body, body.channels, MEAN, STD)
    if config.name == "clrernet_dla34":
        assert config.checkpoint is not None  # BackboneConfig sees to it
        body = load_clrernet(Path(config.checkpoint))
        return Pyramid(body, body.channels, mean=0.0, std=255.0)
    body = RandomBody(config.random_seed, config.random_channels)
    return Pyramid(body, body.channels, mean=127.5, std=127.5)


def fold_batch_norms(net: nn.Module) -> None:
    """Fold every batch norm into the convolution registered just before it, in place.

    Changes the output by float rounding alone. The network must be in evaluation mode.
    """
    for parent in list(net.modules()):
        before: tuple[str, nn.Module] | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                assert before is not None, name
                assert isinstance(before[1], nn.Conv2d), name
                setattr(parent, before[0], fuse_conv_bn_eval(before[1], child))
                setattr(parent, name, nn.Identity())
            before = (name, child)


_DAMAGED = (
    *(OSError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError),
    *(AssertionError, OverflowError, MemoryError, struct.error),
)
"""What torch was seen to raise on truncated archives and foreign bytes."""


def read_checkpoint(path: Path) -> Any:
    """Read a torch file to the CPU without running any code that it holds.

    Raises:
        CheckpointError: no such file, no torch file, or one that needs a class to be imported,
            which is named.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise CheckpointError(f"checkpoint {path}: {error.strerror or error}") from None
    try:
        with file, warnings.catch_warnings(action="ignore"):  # an error says more, on one line
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        blocked = re.search(r"GLOBAL (\S+)", str(error))
        if blocked is None:
            raise CheckpointError(f"checkpoint {path}: is no torch checkpoint") from None
        raise CheckpointError(
            f"checkpoint {path}: holds {blocked[1]}, which is code, not weights, and is not run; "
            'save it again with its "state_dict" alone'
        ) from None
    except _DAMAGED:
        raise CheckpointError(f"checkpoint {path}: is no torch checkpoint, or damaged") from None


def load_clrernet(path: Path) -> CLRerNetFeatures:
    """Load CLRerNet's DLA34 and FPN strictly: every tensor there, nothing more beside the head.

    Takes a dict with `state_dict` or a bare state dict, with or without `num_batches_tracked`.
    Trainers that average weights save the averaged ones under the plain names and the raw ones
    under `ema_` names, so plain names win, and `ema_` names are taken where there are no others.

    Raises:
        CheckpointError: also for a near miss; names the first missing and unexpected keys.
    """
    stored = read_checkpoint(path)
    if isinstance(stored, Mapping) and isinstance(stored.get("state_dict"), Mapping):
        stored = stored["state_dict"]
    if not isinstance(stored, Mapping) or not all(isinstance(key, str) for key in stored):
        kind = type(stored).__name__
        raise CheckpointError(f"checkpoint {path}: expected a state dict, found a {kind}")
    with torch.device("meta"):
        net = CLRerNetFeatures()
    try:
        weights = _match(stored, net.state_dict())
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path}: not CLRerNet's DLA34 + FPN: {error}") from None
    net.load_state_dict(weights, strict=False, assign=True)  # _match was the strict check
    return net


_HEAD = re.compile(r"(ema_)?[a-z_]*heads?[._]")
"""Keys of a detection head (`bbox_head.`, `heads.`), which the features do not need."""


def _match(stored: Mapping[str, Any], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Find the expected tensors in `stored`, or say what is missing, too much or misshapen."""
    names = _spelling(stored, expected)
    if not any(names[key] in stored for key in expected if key.endswith("num_batches_tracked")):
        names = {k: v for k, v in names.items() if not k.endswith("num_batches_tracked")}
    missing = [name for name in names.values() if name not in stored]
    known = set(names.values())
    unexpected = [
        key
        for key in stored
        if key not in known
        and not _HEAD.match(key)
        # raw weights beside the averaged ones
        and not (key.startswith("ema_") and next(iter(expected)) in known)
    ]
    if missing or unexpected:
        counts = (("missing", missing), ("unexpected", unexpected))
        raise CheckpointError(
            "; ".join(f"{len(keys)} {kind}, first {keys[0]}" for kind, keys in counts if keys)
        )
    for key, name in names.items():
        _check_tensor(name, stored[name], expected[key].shape)
    return {key: stored[name].to(expected[key].dtype) for key, name in names.items()}


def _spelling(stored: Mapping[str, Any], expected: Mapping[str, Tensor]) -> dict[str, str]:
    """How the file spells each expected key; the plain way when it has none of them."""
    plain = {key: key for key in expected}
    dotted = {key: f"ema_{key}" for key in expected}
    buffers = {key: f"ema_{key.replace('.', '_')}" for key in expected}
    spellings = (plain, dotted, buffers)
    return next((s for s in spellings if any(name in stored for name in s.values())), plain)


def _check_tensor(name: str, given: Any, shape: torch.Size) -> None:
    if not isinstance(given, Tensor):
        raise CheckpointError(f"{name} is a {type(given).__name__}, expected a tensor")
    if given.shape != shape:
        raise CheckpointError(f"{name} has shape {tuple(given.shape)}, expected {tuple(shape)}")
    if not given.isfinite().all():
        raise CheckpointError(f"{name} holds values that are not finite")
