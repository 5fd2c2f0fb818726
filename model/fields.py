"""What a settings group is made of: strict frozen parts, number types, and walking their leaves."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _number(value: object) -> object:
    """PyYAML reads `3e-4` (no dot) as a string: accept what Python's float accepts."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Share = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1, allow_inf_nan=False)]
Decay = Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1, allow_inf_nan=False)]
"""Of a running mean, which would never move at 1."""
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


def outside_identity(default: Any, **kwargs: Any) -> Any:
    """A field that does not change numbers, or whose content is hashed elsewhere (paths)."""
    return Field(default, json_schema_extra={"identity": False}, **kwargs)


class Part(BaseModel):
    """A frozen, strict group of settings; `dead(...)` refuses knobs that nothing reads."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def dead(self, reason: str, *names: str) -> None:
        """Refuse non-neutral values of `names`, which have no effect because of `reason`."""
        for name in names:
            neutral = type(self).model_fields[name].default
            value = getattr(self, name)
            if value != neutral:
                raise ValueError(f"{name}={value!r} has no effect when {reason}: leave it out")


@functools.cache
def _fields(kind: type[Part]) -> tuple[tuple[str, Any, bool], ...]:
    """(name, neutral value, in identity) of a part's own fields; a plan asks for them often."""
    return tuple(
        (name, field.default, (field.json_schema_extra or {}) != {"identity": False})
        for name, field in kind.model_fields.items()
    )


def flatten(config: Part, prefix: str = "") -> Iterator[tuple[str, Any, Any, bool]]:
    """Yield (path, value, neutral value, in identity) of every leaf field."""
    for name, neutral, counts in _fields(type(config)):
        value = getattr(config, name)
        if isinstance(value, Part):
            for path, leaf, inner_neutral, inner in flatten(value, f"{prefix}{name}."):
                yield path, leaf, inner_neutral, inner and counts
        else:
            yield f"{prefix}{name}", value, neutral, counts
