"""CLRerNet's frozen feature extractor: DLA34 and its feature pyramid, with CLRerNet's key names.

Source: Yu et al., Deep Layer Aggregation (2018), and the public CLRerNet checkpoint. The names of
the modules are the keys of that checkpoint (`backbone.model.level3.tree1.tree1.conv1.weight`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

CHANNELS = (16, 32, 64, 128, 256, 512)
NECK_CHANNELS = 64


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a residual that the tree hands in (it may be projected)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + residual)


class Root(nn.Module):
    """Aggregation: 1x1 convolution over its children side by side."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, *children: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(torch.cat(children, dim=1))))


class Tree(nn.Module):
    """One level: two blocks and the root that joins them with what older trees hand down.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        stride: 2 halves the map, in the first block and by max pooling for the residual.
        older: channels that `children` adds to the root.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, older: int = 0) -> None:
        super().__init__()
        self.tree1 = BasicBlock(inputs, outputs, stride)
        self.tree2 = BasicBlock(outputs, outputs, 1)
        self.root = Root(2 * outputs + older, outputs)
        self.downsample = nn.MaxPool2d(stride) if stride > 1 else nn.Identity()
        self.project = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
            if inputs != outputs
            else nn.Identity()
        )

    def forward(self, x: Tensor, children: Sequence[Tensor] = ()) -> Tensor:
        x1 = self.tree1(x, self.project(self.downsample(x)))
        x2 = self.tree2(x1, x1)
        return self.root(x2, x1, *children)


class NestedTree(nn.Module):
    """A level of two trees; the second root also sees the downsampled input and the first tree."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.downsample = nn.MaxPool2d(2)
        self.tree1 = Tree(inputs, outputs, stride=2)
        self.tree2 = Tree(outputs, outputs, stride=1, older=inputs + outputs)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.tree1(x)
        return self.tree2(x1, children=(self.downsample(x), x1))


class RootedTree(Tree):
    """A one-level tree whose root also sees the downsampled input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, stride=2, older=inputs)

    def forward(self, x: Tensor, children: Sequence[Tensor] = ()) -> Tensor:
        return super().forward(x, (self.downsample(x), *children))


class DLA34(nn.Module):
    """Outputs of levels 3, 4 and 5: strides 8, 16, 32 with 128, 256, 512 channels."""

    def __init__(self) -> None:
        super().__init__()
        c = CHANNELS
        self.base_layer = _conv_bn_relu(3, c[0], kernel=7, stride=1)
        self.level0 = _conv_bn_relu(c[0], c[0], kernel=3, stride=1)
        self.level1 = _conv_bn_relu(c[0], c[1], kernel=3, stride=2)
        self.level2 = Tree(c[1], c[2], stride=2)
        self.level3 = NestedTree(c[2], c[3])
        self.level4 = NestedTree(c[3], c[4])
        self.level5 = RootedTree(c[4], c[5])

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        x = self.level2(self.level1(self.level0(self.base_layer(x))))
        x3 = self.level3(x)
        x4 = self.level4(x3)
        return [x3, x4, self.level5(x4)]


class ConvModule(nn.Module):
    """A bare convolution with bias, wrapped because the checkpoint's keys hold `.conv.`."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class FPN(nn.Module):
    """Top-down feature pyramid, without norm or activation."""

    def __init__(self) -> None:
        super().__init__()
        n = NECK_CHANNELS
        self.lateral_convs = nn.ModuleList(ConvModule(c, n, 1) for c in CHANNELS[3:])
        self.fpn_convs = nn.ModuleList(ConvModule(n, n, 3) for _ in CHANNELS[3:])

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, levels, strict=True)]
        for i in (1, 0):
            size = laterals[i].shape[-2:]
            laterals[i] = laterals[i] + F.interpolate(laterals[i + 1], size=size, mode="nearest")
        p3, p4, p5 = (conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=True))
        return p3, p4, p5


class CLRerNetFeatures(nn.Module):
    """DLA34 and FPN: BGR / 255 in, 64 channels at strides 8, 16 and 32 out."""

    channels = (NECK_CHANNELS, NECK_CHANNELS, NECK_CHANNELS)

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"model": DLA34()})
        self.neck = FPN()

    def forward(
        self, x: Float[Tensor, "B 3 H W"]
    ) -> tuple[
        Float[Tensor, "B 64 H//8 W//8"],
        Float[Tensor, "B 64 H//16 W//16"],
        Float[Tensor, "B 64 H//32 W//32"],
    ]:
        return self.neck(self.backbone["model"](x))


def _conv_bn_relu(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
