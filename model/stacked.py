"""Several models of one shape as one: their parameters stacked, their images side by side.

On a GPU a small model's step is bound by kernel launches; K models as one launch hardly more than a
single one. The trick is where the K goes: into the batch. Members' images lie one member after the
other in the batch axis (K * B, ...), so that everything without parameters (attention, softmax,
residuals) is the solo model's own code; what has parameters is replaced by a layer with a leading
K, which takes its batch apart, multiplies member by member (`baddbmm`) and puts it together again.

The stack owns the storage: each member is a whole `LaneLM` whose parameters are views of it, so
that evaluation, checkpoint, clip and optimiser of a member are the solo ones.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from model.config import TrainConfig
from model.decoder import CrossAttention
from model.lanelm import LaneLM
from model.visual import Level


def can_stack(config: TrainConfig) -> bool:
    """Whether a model of this config has only parts that stack."""
    return (
        config.visual.select == "none"
        and not config.visual.neck
        and not config.loss.lane_map
        and config.visual.position != "learned"
        and (config.visual.position != "aligned" or config.batch.images == 1)
    )


class Stack:
    """K models of one shape that are trained as one.

    Args:
        members: their parameters become views of the stack, and keep their values.
    """

    def __init__(self, members: Sequence[LaneLM]) -> None:
        self.members = list(members)
        self.model = _stacked(members[0], len(members))
        self._parts: list[tuple[nn.Parameter, list[nn.Parameter]]] = []
        own = [dict(member.named_parameters()) for member in members]
        for name, parameter in self.model.named_parameters():
            parts = [parameters[name] for parameters in own]
            with torch.no_grad():
                torch.stack([part.data for part in parts], out=parameter.data)
                for part, view in zip(parts, parameter, strict=True):
                    part.data = view
            parameter.grad = torch.zeros_like(parameter)
            self._parts.append((parameter, parts))

    def __call__(
        self,
        features: Sequence[Float[Tensor, "KB _c _h _w"]],
        ids_in: Int[Tensor, "KB L T"],
        y_in: Int[Tensor, "KB L T"],
    ) -> tuple[Float[Tensor, "KB L T V"], Float[Tensor, "KB L T rows"]]:
        """Encode and decode all members' images, one member after the other."""
        lanes = torch.arange(ids_in.shape[1], device=ids_in.device).expand(ids_in.shape[:2])
        return self.model(self.model.encode(features), ids_in, y_in, lanes)

    def seed_dropout(self, seeds: Sequence[int]) -> None:
        """Begin a pass: every member's masks come from its own stream."""
        device = next(self.model.parameters()).device
        generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        for module in self.model.modules():
            if isinstance(module, Dropout):
                module.generators = generators

    def clear_gradients(self) -> None:
        """Set the gradients to 0 where they lie, so that members' views of them stay."""
        for parameter, _ in self._parts:
            assert parameter.grad is not None
            parameter.grad.zero_()

    def hand_out_gradients(self, unused: Sequence[Iterable[nn.Parameter]]) -> None:
        """Give members their gradients; None, as backward leaves it, for what one did not use."""
        left_out = [{id(parameter) for parameter in parameters} for parameters in unused]
        for parameter, parts in self._parts:
            assert parameter.grad is not None
            for part, gradient, left in zip(parts, parameter.grad, left_out, strict=True):
                part.grad = None if id(part) in left else gradient

    def release(self) -> None:
        """Let members own their parameters again, before another stack takes some of them."""
        for parameter, parts in self._parts:
            parameter.grad = None
            for part in parts:
                part.data, part.grad = part.data.clone(), None


class _Linear(nn.Module):
    def __init__(self, solo: nn.Linear, k: int) -> None:
        super().__init__()
        self.in_features, self.out_features = solo.in_features, solo.out_features
        self.weight = _room(solo.weight, k)
        self.bias = None if solo.bias is None else _room(solo.bias, k)

    def forward(self, x: Float[Tensor, "KB *rows i"]) -> Float[Tensor, "KB *rows o"]:
        K, o, i = self.weight.shape
        rows = x.reshape(K, -1, i)
        if self.bias is None:
            y = torch.bmm(rows, self.weight.mT)
        else:
            y = torch.baddbmm(self.bias[:, None], rows, self.weight.mT)
        return y.view(*x.shape[:-1], o)


class _LayerNorm(nn.Module):
    def __init__(self, solo: nn.LayerNorm, k: int) -> None:
        super().__init__()
        self.shape, self.eps = solo.normalized_shape, solo.eps
        self.weight, self.bias = _room(solo.weight, k), _room(solo.bias, k)

    def forward(self, x: Float[Tensor, "KB *rows D"]) -> Float[Tensor, "KB *rows D"]:
        K, D = self.weight.shape
        h = F.layer_norm(x, self.shape, eps=self.eps).view(K, -1, D)
        return torch.addcmul(self.bias[:, None], h, self.weight[:, None]).view(x.shape)


class _Embedding(nn.Module):
    def __init__(self, solo: nn.Embedding, k: int) -> None:
        super().__init__()
        self.weight = _room(solo.weight, k)

    def forward(self, ids: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows D"]:
        K, V, D = self.weight.shape
        first = torch.arange(0, K * V, V, device=ids.device)[:, None]
        of_stack = (ids.reshape(K, -1) + first).view(ids.shape)
        return F.embedding(of_stack, self.weight.flatten(0, 1))


class Dropout(nn.Module):
    """Draws each member's masks from a generator of its own: on the CPU those of its solo run.

    On CUDA torch's own dropout draws by another kernel, so a member's masks are others there.
    """

    def __init__(self, rate: float, k: int) -> None:
        super().__init__()
        self.rate, self.k = rate, k
        self.generators: Sequence[torch.Generator] = ()

    def forward(self, x: Float[Tensor, "KB *rows D"]) -> Float[Tensor, "KB *rows D"]:
        if not self.rate:
            return x
        masks = [
            torch.empty_like(part).bernoulli_(1 - self.rate, generator=generator)
            for part, generator in zip(x.detach().chunk(self.k), self.generators, strict=True)
        ]
        return x * torch.cat(masks).div_(1 - self.rate)


class _CrossAttention(CrossAttention):
    """With the temperatures of each member."""

    def temperatures(self, images: int) -> Float[Tensor, "KB 1 heads 1"]:
        assert self.log_temperature is not None
        per_image = images // len(self.log_temperature)
        return self.log_temperature.exp().repeat_interleave(per_image, 0)[:, None, :, None]


class _Level(Level):
    """With the projection, norm and embedding of each member."""

    images = 1

    def forward(self, feature: Float[Tensor, "KB _c _h _w"]) -> Float[Tensor, "KB D n"]:
        self.images = len(feature) // len(self.projection.weight)
        return super().forward(feature)

    def column(self, vector: Float[Tensor, "K D"]) -> Float[Tensor, "KB D 1"]:
        return vector.repeat_interleave(self.images, 0)[..., None]

    def position(self) -> Float[Tensor, "KB D n"]:
        K, D, _ = self.projection.weight.shape
        position = self.projection.weight.new_zeros(K * self.images, D, self.grid.cells)
        if self.embedding is not None:
            position = position + self.column(self.embedding.weight[:, 0])
        return position


class _LaneLM(LaneLM):
    """With the row embedding of each member."""

    def row_embedding(self, first: int, stop: int, images: int) -> Float[Tensor, "KB 1 t D"]:
        rows = self.embed_row.weight[:, first:stop]  # (K, t, D)
        return rows.repeat_interleave(images // len(rows), 0)[:, None]


def _stacked(solo: LaneLM, k: int) -> LaneLM:
    """Make the model whose parameters have a leading K."""
    model = copy.deepcopy(solo)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            for kind, stacked in _LAYERS.items():
                if isinstance(child, kind):
                    setattr(module, name, stacked(child, k))
            if isinstance(child, nn.Dropout):
                setattr(module, name, Dropout(child.p, k))
        if isinstance(module, CrossAttention):
            module.__class__ = _CrossAttention
            if module.log_temperature is not None:
                module.log_temperature = _room(module.log_temperature, k)
        elif isinstance(module, Level):
            module.__class__ = _Level
    model.__class__ = _LaneLM
    return model.train()


_LAYERS = {nn.Linear: _Linear, nn.LayerNorm: _LayerNorm, nn.Embedding: _Embedding}


def _room(parameter: Tensor, k: int) -> nn.Parameter:
    return nn.Parameter(parameter.new_empty(k, *parameter.shape))
