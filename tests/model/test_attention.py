"""The fast products and the attention made of them agree with torch's own, gradients included."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import attention, matmul
from model.attention import attend, attention_weights
from model.matmul import Linear, product, project

torch.manual_seed(0)
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(params=["fast", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Force either path, whatever the sizes."""
    if request.param == "fast" and not matmul.ONEDNN:
        pytest.skip("this build of torch has no oneDNN")
    worth = 0 if request.param == "fast" else math.inf
    monkeypatch.setattr(matmul, "WORTH", worth)
    monkeypatch.setattr(attention, "WORTH", worth)
    return request.param


def gradients(out: Tensor, *inputs: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), inputs)]


def agree(ours: list[Tensor], reference: list[Tensor]) -> None:
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.skipif(not matmul.ONEDNN, reason="this build of torch has no oneDNN")
def test_product_takes_views():
    x, y = torch.randn(6, 40), torch.randn(50, 80)
    for left, right in [
        (x, y[:, :40]),  # a slice
        (x[:, ::2], y[:20].t()[:20].t()),
        (x.t(), torch.randn(6, 9).t()),  # transposed
        (x[:1], y[:1, :40]),
    ]:
        torch.testing.assert_close(product(left, right), left @ right.t(), **CLOSE)
    bias = torch.randn(50)
    torch.testing.assert_close(product(x, y[:, :40], bias), x @ y[:, :40].t() + bias, **CLOSE)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_linear(path: str, bias: bool):
    layer = Linear(7, 5, bias=bias)
    x = torch.randn(2, 3, 4, 7, requires_grad=True)
    inputs = (x, *layer.parameters())
    agree(gradients(layer(x), *inputs), gradients(F.linear(x, layer.weight, layer.bias), *inputs))


@pytest.mark.parametrize("images", [1, 3])
def test_project_multiplies_channels(path: str, images: int):
    weight = torch.randn(5, 7, requires_grad=True)
    x = torch.randn(images, 7, 11, requires_grad=True)
    agree(
        gradients(project(weight, x), weight, x),
        gradients(torch.einsum("oc,bcn->bon", weight, x), weight, x),
    )
    frozen = x.detach()  # features need no gradient
    agree(
        gradients(project(weight, frozen), weight),
        gradients(torch.einsum("oc,bcn->bon", weight, frozen), weight),
    )


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("padded", [False, True])
def test_attend_is_softmax_attention(path: str, images: int, padded: bool):
    B, M, H, d, e, N = images, 6, 3, 4, 5, 10
    q = torch.randn(B, M, H * d, requires_grad=True)
    k, v = (torch.randn(B, H, size, N, requires_grad=True) for size in (d, e))
    padding = None
    if padded:
        padding = torch.zeros(B, N, dtype=torch.bool)
        padding[0, 7:] = True
        padding[-1, 0] = True
    mask = None if padding is None else ~padding[:, None, None]
    heads = q.view(B, M, H, d).transpose(1, 2)
    y = F.scaled_dot_product_attention(heads, k.mT, v.mT, attn_mask=mask, scale=1.0)
    reference = y.transpose(1, 2).reshape(B, M, H * e)
    agree(gradients(attend(q, k, v, padding), q, k, v), gradients(reference, q, k, v))


def test_weights_are_those_that_mix(path: str):
    q, k, v = torch.randn(2, 6, 8), torch.randn(2, 2, 4, 10), torch.randn(2, 2, 4, 10)
    padding = torch.zeros(2, 10, dtype=torch.bool)
    padding[1, 3:] = True
    weights = attention_weights(q, k, padding)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 6))
    assert weights[1, :, :, 3:].abs().max() == 0
    mixed = (weights @ v.mT).transpose(1, 2).reshape(2, 6, 8)
    torch.testing.assert_close(attend(q, k, v, padding), mixed, **CLOSE)


def test_a_gpu_s_fused_kernels_get_channels_that_lie_side_by_side(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Keys and values are channel-first; a meta tensor stands for a device that is no CPU."""
    seen = []
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *given, **_: seen.append(given) or given[0]
    )
    q = torch.empty(1, 6, 8, device="meta")
    k, v = (torch.empty(1, 2, 4, 10, device="meta") for _ in range(2))
    assert attend(q, k, v).shape == (1, 6, 8)
    ((_, keys, values),) = seen
    assert keys.shape == values.shape == (1, 2, 10, 4)
    assert keys.is_contiguous()
    assert values.is_contiguous()


def test_other_types_take_torch_s_way():
    layer, plain = Linear(64, 64).double(), nn.Linear(64, 64).double()
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(1000, 64, dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert Linear(64, 64)(torch.randn(1000, 64)).dtype == torch.bfloat16
        q, k, v = torch.randn(1, 200, 64), torch.randn(1, 2, 32, 900), torch.randn(1, 2, 32, 900)
        assert attend(q, k, v).shape == (1, 200, 64)
