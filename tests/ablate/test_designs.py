import doctest
import itertools

import pytest

from ablate import designs, fractions, paths
from ablate.designs import Axis, axes_of, constrained, factorial, leave_one_out, one_at_a_time
from ablate.nouns import Factor, Level, StudyError

TOKENS = Axis.of("tokens", "full", "p5")
LR = Axis.of("lr", "3e-4", "1e-4", "5e-5")
CLIP = Axis.of("clip", "1.0", "0.5")


def labels(arms):
    return [arm.label for arm in arms]


def factor(name, *levels):
    return Factor(name, tuple(Level(level, {}) for level in levels))


@pytest.mark.parametrize("module", [designs, fractions, paths])
def test_worked_examples(module):
    outcome = doctest.testmod(module)
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_every_design_has_a_worked_example():
    for design in designs.DESIGNS.values():
        assert ">>>" in (design.__doc__ or "")


def test_factorial_is_the_product_of_all_levels():
    arms = factorial([TOKENS, LR, CLIP])
    assert len(arms) == 12
    assert {tuple(arm.levels.values()) for arm in arms} == set(
        itertools.product(("full", "p5"), ("3e-4", "1e-4", "5e-5"), ("1.0", "0.5"))
    )
    assert len(set(labels(arms))) == 12


def test_factorial_of_some_factors_keeps_the_others_at_their_base():
    arms = factorial([TOKENS, LR, CLIP], factors=["lr"], base={"tokens": "p5"})
    assert [arm.levels for arm in arms] == [
        {"tokens": "p5", "lr": lr, "clip": "1.0"} for lr in ("3e-4", "1e-4", "5e-5")
    ]


def test_designs_of_no_factor_are_one_arm():
    for design in (factorial, one_at_a_time):
        assert labels(design([])) == ["base"]


def test_one_at_a_time_changes_one_factor_per_arm():
    arms = one_at_a_time([TOKENS, LR, CLIP])
    assert labels(arms) == ["base", "tokens=p5", "lr=1e-4", "lr=5e-5", "clip=0.5"]
    for arm in arms[1:]:
        assert sum(arm.levels[name] != arms[0].levels[name] for name in arm.levels) == 1


def test_one_at_a_time_from_a_named_base():
    arms = one_at_a_time([TOKENS, LR], base={"lr": "1e-4"})
    assert arms[0].levels == {"tokens": "full", "lr": "1e-4"}
    assert labels(arms) == ["base", "tokens=p5", "lr=3e-4", "lr=5e-5"]


def test_leave_one_out_puts_one_factor_back():
    arms = leave_one_out([TOKENS, LR, CLIP])
    assert labels(arms) == ["all", "all but tokens", "all but lr", "all but clip"]
    assert arms[0].levels == {"tokens": "p5", "lr": "5e-5", "clip": "0.5"}
    assert arms[2].levels == {"tokens": "p5", "lr": "3e-4", "clip": "0.5"}


def test_leave_one_out_skips_what_the_best_leaves_as_it_was():
    arms = leave_one_out([TOKENS, CLIP], best={"tokens": "full"})
    assert labels(arms) == ["all", "all but clip"]


def test_listed_arms_take_the_base_for_what_they_do_not_name():
    arms = designs.listed([TOKENS, LR], arms={"mine": {"lr": "5e-5"}}, base={"tokens": "p5"})
    assert arms[0].levels == {"tokens": "p5", "lr": "5e-5"}


def test_zipped_factors_go_in_step():
    factors = [
        factor("lr", "3e-4", "1e-4"),
        factor("tokens", "full", "p5"),
        factor("clip", "1", "0"),
    ]
    axes = axes_of(factors, [("lr", "clip")])
    assert [axis.name for axis in axes] == ["lr+clip", "tokens"]
    arms = factorial(axes)
    assert len(arms) == 4
    assert {(arm.levels["lr"], arm.levels["clip"]) for arm in arms} == {
        ("3e-4", "1"),
        ("1e-4", "0"),
    }
    assert labels(one_at_a_time(axes)) == ["base", "lr+clip=1e-4+0", "tokens=p5"]


def test_zipped_factors_need_as_many_levels():
    with pytest.raises(StudyError, match=r"equal.*'lr': 2.*'clip': 3"):
        axes_of([factor("lr", "a", "b"), factor("clip", "a", "b", "c")], [("lr", "clip")])


def test_a_base_that_no_step_of_a_zip_has_is_refused():
    axes = axes_of([factor("lr", "a", "b"), factor("clip", "c", "d")], [("lr", "clip")])
    with pytest.raises(StudyError, match="lr=a, clip=d"):
        one_at_a_time(axes, base={"lr": "a", "clip": "d"})


def test_constraints():
    arms = factorial([TOKENS, LR])
    kept = constrained(arms, exclude=[{"tokens": ("full",), "lr": ("1e-4", "5e-5")}])
    assert labels(kept) == ["full/3e-4", "p5/3e-4", "p5/1e-4", "p5/5e-5"]
    only = constrained(arms, only=[{"tokens": ("p5",)}, {"lr": ("3e-4",)}])
    assert labels(only) == ["full/3e-4", "p5/3e-4", "p5/1e-4", "p5/5e-5"]
    assert constrained(arms, exclude=[{"tokens": ("full", "p5")}]) == []


def two_level(n):
    return [Axis.of("abcdefghijk"[i], "-", "+") for i in range(n)]


# Montgomery, Design and Analysis of Experiments, appendix of 2^(k-p) designs:
# factors, resolution -> runs
BOOKS = {
    (3, 3): 4,
    (4, 4): 8,
    (5, 3): 8,
    (5, 5): 16,
    (6, 3): 8,
    (6, 4): 16,
    (6, 6): 32,
    (7, 3): 8,
    (7, 4): 16,
    (7, 7): 64,
    (8, 4): 16,
    (8, 5): 64,
    (9, 3): 16,
    (9, 4): 32,
    (9, 6): 128,
    (10, 4): 32,
    (10, 5): 128,
    (11, 3): 16,
    (11, 5): 128,
}


@pytest.mark.parametrize(("n", "resolution"), BOOKS)
def test_fractions_are_as_small_as_the_books_have_them(n, resolution):
    fraction = fractions.of_resolution(n, resolution)
    assert 2**fraction.n_base == BOOKS[n, resolution]
    assert fraction.resolution == resolution


def test_two_to_the_five_minus_two():
    """2^(5-2), resolution III: D = AB, E = AC; I = ABD = ACE = BCDE."""
    fraction = fractions.of_resolution(5, 3)
    assert fraction.generated() == [(3, 0b00011), (4, 0b00101)]
    assert fraction.words() == {0b01011, 0b10101, 0b11110}
    groups = {frozenset(group) for group in fraction.aliases("abcde")}
    assert groups == {
        frozenset({"a", "b:d", "c:e"}),
        frozenset({"b", "a:d"}),
        frozenset({"c", "a:e"}),
        frozenset({"d", "a:b"}),
        frozenset({"e", "a:c"}),
        frozenset({"b:c", "d:e"}),
        frozenset({"b:e", "c:d"}),
    }


def test_two_to_the_seven_minus_four():
    """2^(7-4), resolution III: D = AB, E = AC, F = BC, G = ABC."""
    fraction = fractions.of_resolution(7, 3)
    assert [word for _, word in fraction.generated()] == [0b011, 0b101, 0b110, 0b111]
    groups = {frozenset(group) for group in fraction.aliases("abcdefg")}
    assert frozenset({"a", "b:d", "c:e", "f:g"}) in groups
    assert frozenset({"g", "a:f", "b:e", "c:d"}) in groups
    assert len(groups) == 7
    assert all(len(group) == 4 for group in groups)


def test_runs_hold_the_defining_relation_and_are_balanced():
    arms = designs.fractional(two_level(5), resolution=3)
    signs = [{name: 1 if level == "+" else -1 for name, level in a.levels.items()} for a in arms]
    assert len({tuple(run.values()) for run in signs}) == 8
    for run in signs:
        assert run["a"] * run["b"] == run["d"]
        assert run["a"] * run["c"] == run["e"]
    for one, other in itertools.combinations("abcde", 2):
        assert sum(run[one] * run[other] for run in signs) == 0
        assert sum(run[one] for run in signs) == 0


def test_fractional_by_generators():
    arms = designs.fractional(two_level(4), generators={"b": ["a", "c", "d"]})
    assert len(arms) == 8
    notes = designs.notes(two_level(4), generators={"b": ["a", "c", "d"]})
    assert notes[0] == "fractional: 8 of 16 combinations, resolution 4; b = a c d"
    assert "aliased: a:b = c:d" in notes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of resolution: .* and generators:"),
        ({"resolution": 2}, "given 2, must be 3 or more"),
        ({"generators": {"z": ["a"]}}, "unknown factor 'z'"),
        ({"generators": {"c": ["d"], "d": ["a", "b"]}}, "products must be of base factors"),
        ({"generators": {"c": ["a", "b"], "d": ["a", "b"]}}, "share one column"),
        ({"generators": {"c": ["a"]}}, "share one column"),
    ],
)
def test_fractions_that_cannot_be(options, message):
    with pytest.raises(StudyError, match=message):
        designs.fractional(two_level(4), **options)


def test_fractions_take_two_levels():
    with pytest.raises(StudyError, match=r"lr has 3 \(3e-4, 1e-4, 5e-5\)"):
        designs.fractional([TOKENS, LR], resolution=3)


def test_a_resolution_beyond_reach_is_the_full_factorial():
    assert len(designs.fractional(two_level(3), resolution=4)) == 8
