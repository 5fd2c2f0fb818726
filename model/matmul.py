"""The products a training step spends its time in, at the speed the CPU has.

torch hands float32 products on the CPU to MKL, which leaves half of an AVX-512 machine unused when
its maker is not Intel (90 of 210 GFLOP/s where this was measured). oneDNN lies in the same build of
torch and does not; this module reaches it, in full float32, and falls back to torch's own product
wherever it cannot: other devices, other types, autocast, other builds.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
WIDE = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
WORTH = 1 << (21 if WIDE else 25)
"""Multiplications from which the detour repays. Without AVX-512 the two libraries are equally fast
and MKL copies nothing: a step at 250 tokens then takes 88 ms by way of MKL, 95 by oneDNN."""


def fast(*tensors: Tensor) -> bool:
    """Say whether `product` takes these: float32 on the CPU, outside autocast."""
    ours = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
    return ONEDNN and ours and not torch.is_autocast_enabled("cpu")


def product(
    x: Float[Tensor, "m k"], y: Float[Tensor, "n k"], bias: Float[Tensor, " n"] | None = None
) -> Float[Tensor, "m n"]:
    """Compute x @ y.T + bias, without a gradient; y may be a transposed view."""
    if not (y.is_contiguous() or y.t().is_contiguous()):
        y = y.contiguous()  # oneDNN takes a slice, and then forgets its fast kernels
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), y, bias, "none", [], "")


class Linear(nn.Linear):
    """`nn.Linear`, by way of `product` where that is worth it."""

    def forward(self, input: Float[Tensor, "*rows i"]) -> Float[Tensor, "*rows o"]:
        if input.numel() * self.out_features < WORTH or not fast(input, self.weight):
            return super().forward(input)
        rows = input.reshape(-1, self.in_features)
        out: Tensor = _Linear.apply(rows, self.weight, self.bias)  # pyright: ignore
        return out.view(*input.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, weight = ctx.saved_tensors
        dx = product(dy, weight.t()) if ctx.needs_input_grad[0] else None
        dw = product(dy.t(), x.t()) if ctx.needs_input_grad[1] else None
        return dx, dw, dy.sum(0) if ctx.has_bias else None


def project(weight: Float[Tensor, "*K o c"], x: Float[Tensor, "B c N"]) -> Float[Tensor, "_KB o N"]:
    """Compute weight @ x for channel-first tokens, the layout in which features arrive.

    A stack of K weights (K, o, c) takes B = K * b images, or one image for all, member by member.
    """
    if weight.ndim == 3:
        K, o, c = weight.shape
        apart = x.expand(K, -1, -1) if len(x) == 1 else x
        return torch.matmul(weight[:, None], apart.reshape(K, -1, *x.shape[1:])).flatten(0, 1)
    if weight.numel() * x.shape[-1] < WORTH or not fast(weight, x):
        return torch.matmul(weight, x)
    out: Tensor = _Project.apply(weight, x)  # pyright: ignore
    return out


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(weight, x)
        return _stack([product(weight, image.t()) for image in x])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        weight, x = ctx.saved_tensors
        dw = dx = None
        if ctx.needs_input_grad[0]:
            dw = _stack([product(d, image) for d, image in zip(dy, x, strict=True)]).sum(0)
        if ctx.needs_input_grad[1]:
            columns = weight.t().contiguous()
            dx = _stack([product(columns, d.t()) for d in dy])
        return dw, dx


def _stack(images: list[Tensor]) -> Tensor:
    """Stack, without the copy when there is one image."""
    return images[0][None] if len(images) == 1 else torch.stack(images)
