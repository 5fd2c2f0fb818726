"""The algebra of regular two-level fractions: generators, defining words, resolution, aliases.

An effect is a bit mask over the factors (0b101 = factor 0 times factor 2). The product of two
effects is their exclusive or, because the square of a +-1 column is 1. A fraction is given by its
defining words, the effects equal to 1 on all its runs: an effect is aliased with its product with
each of them, and the length of the shortest is the resolution (Box, Hunter and Hunter, *Statistics
for Experimenters*, chapter 6).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ablate.nouns import StudyError


def members(word: int) -> list[int]:
    """The factors of an effect.

    >>> members(0b101)
    [0, 2]
    """
    return [index for index in range(word.bit_length()) if word >> index & 1]


@dataclass(frozen=True)
class Fraction:
    """A regular fraction: each generated factor's column is the product of base columns."""

    columns: tuple[int, ...]
    """Per factor its column as an effect of base factors; a base factor is its own bit."""

    @property
    def n_factors(self) -> int:
        return len(self.columns)

    @property
    def n_base(self) -> int:
        return self.n_factors - len(self.generated())

    def generated(self) -> list[tuple[int, int]]:
        """(factor, effect it equals) of the factors that are not base factors."""
        return [(i, word) for i, word in enumerate(self.columns) if word != 1 << i]

    def words(self) -> set[int]:
        """All defining words: every product of the generators' own words."""
        words = {0}
        for factor, effect in self.generated():
            words |= {word ^ effect ^ (1 << factor) for word in words}
        return words - {0}

    @property
    def resolution(self) -> int | None:
        """Length of the shortest defining word; None for the full factorial."""
        return min((word.bit_count() for word in self.words()), default=None)

    def runs(self) -> Iterator[list[int]]:
        """Per run the level (0 or 1) of each factor, the last base factor changing fastest."""
        base = [i for i, word in enumerate(self.columns) if word == 1 << i]
        for levels in itertools.product((0, 1), repeat=len(base)):
            low = sum(1 << i for i, level in zip(base, levels, strict=True) if level == 0)
            # a product of +-1 is +1 when it has an even number of low (-1) members
            yield [int((word & low).bit_count() % 2 == 0) for word in self.columns]

    def aliases(self, names: Sequence[str], order: int = 2) -> tuple[tuple[str, ...], ...]:
        """Groups of effects of up to `order` factors that are one column, lower orders first."""
        effects = [
            sum(1 << i for i in chosen)
            for size in range(1, order + 1)
            for chosen in itertools.combinations(range(self.n_factors), size)
        ]
        words = self.words()
        groups: dict[int, list[int]] = {}
        for effect in effects:
            key = min([effect, *(effect ^ word for word in words)])
            groups.setdefault(key, []).append(effect)
        return tuple(
            tuple(":".join(names[i] for i in members(effect)) for effect in group)
            for group in groups.values()
            if len(group) > 1
        )


def of_resolution(n_factors: int, resolution: int) -> Fraction:
    """The smallest fraction of at least that resolution, and of the highest at that size.

    It is as small as the books' tables have it (to 11 factors); beyond, the search is bounded and
    what it finds may be larger than need be.

    >>> [members(word) for _, word in of_resolution(5, 3).generated()]  # d = ab, e = ac
    [[0, 1], [0, 2]]

    Raises:
        StudyError: resolution below 3.
    """
    if resolution < 3:
        raise StudyError(f"design: fractional: resolution: given {resolution}, must be 3 or more")
    for n_base in range(1, n_factors):
        found = None
        while (better := _search(n_base, n_factors, resolution)) is not None:
            found, resolution = better, resolution + 1
        if found is not None:
            return Fraction(tuple(1 << i for i in range(n_base)) + found)
    return Fraction(tuple(1 << i for i in range(n_factors)))


def by_generators(n_factors: int, generators: Mapping[int, Sequence[int]]) -> Fraction:
    """The fraction with the given columns made as products of base columns.

    Raises:
        StudyError: a generator made of generated factors, or two factors with one column.
    """
    columns = [1 << i for i in range(n_factors)]
    for made, of in generators.items():
        columns[made] = sum(1 << i for i in set(of))
        if not of or set(of) & set(generators):
            raise StudyError("design: fractional: generators: products must be of base factors")
    if len(set(columns)) < n_factors:
        raise StudyError("design: fractional: generators: two factors would share one column")
    return Fraction(tuple(columns))


def _search(n_base: int, n_factors: int, resolution: int) -> tuple[int, ...] | None:
    """Generated columns for factors n_base.. such that no defining word is too short."""
    tries = itertools.count()
    candidates = [
        sum(1 << i for i in chosen)
        for size in range(resolution - 1, n_base + 1)
        for chosen in itertools.combinations(range(n_base), size)
    ]

    def extend(chosen: tuple[int, ...], words: set[int], start: int) -> tuple[int, ...] | None:
        if n_base + len(chosen) == n_factors:
            return chosen
        bit = 1 << (n_base + len(chosen))
        for place in range(start, len(candidates)):
            if next(tries) > 3_000:
                return None
            new = {word ^ candidates[place] ^ bit for word in words}
            if min(word.bit_count() for word in new) >= resolution:
                found = extend((*chosen, candidates[place]), words | new, place + 1)
                if found is not None:
                    return found
        return None

    return extend((), {0}, 0)
