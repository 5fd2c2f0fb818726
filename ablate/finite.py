"""Values as JSON takes them: it knows no NaN."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def finite(value: Any) -> Any:
    """A value with null for each number in it that is not finite; tuples become lists.

    >>> finite({"loss": math.nan, "ends": (1.0, math.inf)})
    {'loss': None, 'ends': [1.0, None]}
    """
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
