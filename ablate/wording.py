"""How numbers, verdicts and effects are said: the same words in the terminal and in the report.

Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from ablate.arm import ArmGate, CriterionReading, RankedArm, Verdict
from ablate.compare import LOSSES_APART
from ablate.nouns import Finding
from ablate.rank import Ranking
from ablate.stats import AGREE, Effect, Interval

if TYPE_CHECKING:
    from ablate.margins import Interaction, Joint

MARKS: dict[Verdict, str] = {"passed": "✓", "likely": "~", "failed": "✗", "not testable": "?"}
VERBS: dict[Verdict, str] = {
    "passed": "meets",
    "likely": "likely meets",
    "failed": "misses",
    "not testable": "leaves open",
}
BARE = ("final", "train", "cost")
"""Prefixes of readings that go without: what was fitted, and what it took."""
NAMED = 4
"""Configurations that a sentence names before it counts the rest."""
LEGEND = (
    "✓ passed (the whole interval)  ~ likely (only the mean, or one seed)  ✗ failed  ? not testable"
)


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, without an exponent where it can do without.

    >>> [number(x) for x in (0.05309, 312.4, 999.6, 41234.0, 0.00012, 0.0, None)]
    ['0.0531', '312', '1000', '41234', '0.00012', '0', '-']
    """
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if abs(value) >= 10**digits:
        return f"{value:.0f}" if abs(value) < 1e7 else f"{value:.{digits}g}"
    text = f"{value:.{digits}g}"
    if "e" in text and abs(value) >= 1e-4:  # rounded up to 10**digits, or small
        text = f"{value:.0f}" if abs(value) >= 1 else f"{value:.{digits + 3}f}"
    return text


def measured(value: Interval | None) -> str:
    """Mean and half width of the interval: `0.053 ±0.012`."""
    if value is None:
        return "-"
    if value.high is None:
        return number(value.mean)
    half = value.high - value.mean
    if half < 1e-9 * abs(value.mean):  # the seeds agree; what is left is the mean's rounding
        half = 0.0
    return f"{number(value.mean)} ±{number(half, 2)}"


def cut(text: str, most: int) -> str:
    """At most so many characters of a name, for places that have no room for more.

    >>> cut("aligned", 7), cut("aligned", 6)
    ('aligned', 'align…')
    """
    return text if len(text) <= most else text[: most - 1] + "…"


def name(metric: str) -> str:
    """A metric as people say it; its prefix is said where it tells which images were read.

    >>> name("final/px_error"), name("test/px_error")
    ('px error', 'test px error')
    """
    prefix, slash, rest = metric.partition("/")
    return (rest if slash and prefix in BARE else f"{prefix} {rest}").replace("_", " ").strip()


def criterion_title(criterion: CriterionReading) -> str:
    """Name and threshold of a criterion's first condition: `px error < 5`, `f1 > 0.9`."""
    first = criterion.readings[0]
    return f"{name(criterion.name)} {'>' if first.above else '<'} {number(first.threshold)}"


def criterion_cell(criterion: CriterionReading) -> str:
    """Mark and deciding value, which is named when it is not the criterion's first."""
    deciding = criterion.deciding
    text = f"{MARKS[criterion.verdict]} {measured(deciding.value)}"
    if deciding.metric != criterion.readings[0].metric:
        text += " " + name(deciding.metric).removeprefix(name(criterion.name)).strip()
    return text


def gate_word(gate: ArmGate) -> str:
    """A failed gate in a word or two: what stands before the colon of its note, or its name."""
    head, colon, _ = gate.note.partition(":")
    return head if colon and len(head) <= 20 else gate.name.replace("_", " ")


def finding_text(finding: Finding) -> str:
    """What a finding says, without its rule's name where the text begins with it."""
    return finding.text.removeprefix(f"{finding.rule.replace('_', ' ')}: ")


def notes_beside_findings(arm: RankedArm) -> list[str]:
    """An arm's notes that its diagnosis does not say anyway."""
    said = [found.finding.text for found in arm.diagnosis]
    return [note for note in arm.notes if not any(text in note for text in said)]


def short_notes(arm: RankedArm) -> str:
    """An arm's notes, as short as a table needs them."""
    words = [gate_word(gate) for gate in arm.gates if gate.verdict == "failed"]
    for state in ("diverged", "failed", "pruned", "missing"):
        if arm.counts.get(state):
            words.append(f"{arm.counts[state]} {state}")  # noqa: PERF401 - reads better so
    return ", ".join(words)


def amount(effect: Effect) -> str:
    """Estimate and interval: `x0.8 [0.6, 1.1]`, with a star when it is clear after Holm."""
    if effect.estimate is None:
        return "not testable"
    say = ratio if effect.scale == "ratio" else partial(number, digits=2)
    sign = "x" if effect.scale == "ratio" else "+" if effect.estimate > 0 else ""
    text = sign + say(effect.estimate)
    if effect.low is not None and effect.high is not None:
        text += f" [{say(effect.low)}, {say(effect.high)}]"
    return text + ("*" if effect.clear else "")


def ratio(value: float) -> str:
    """A ratio to the hundredth where that says enough: 0.8, 1.02, 0.0041, 377."""
    if 0.1 <= value < 10:
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return number(value, 2 if value < 0.1 else 3)


def joint_amount(joint: Joint) -> str:
    """How two levels are together against each alone: `x1.5 [1.2, 1.9]`."""
    say = ratio if joint.scale == "ratio" else partial(number, digits=2)
    sign = "x" if joint.scale == "ratio" else "+" if joint.estimate > 0 else ""
    return f"{sign}{say(joint.estimate)} [{say(joint.low)}, {say(joint.high)}]"


def _joint(pair: Interaction) -> str:
    """The pair of levels that most surely does not do its work apart: the one of the least p."""
    if not pair.joint:
        return ""
    own = min(pair.joint, key=lambda joint: joint.p)
    alone = "beyond the sum" if own.scale == "difference" else "of the product"
    return f"; {own.level} with {own.other}: {joint_amount(own)} {alone} of each alone"


def effect_line(effect: Effect) -> str:
    """One effect in a line: `tokens: full -> p5: px error x0.8 [0.6, 1.1] (3 seeds)`."""
    counted = "jobs" if effect.kind == "main effect" else "seeds"
    counted = counted[:-1] if effect.n == 1 else counted
    lost = f", {effect.lost} lost" if effect.lost else ""
    note = f"; {effect.note}" if effect.note else ""
    change = f"{effect.factor}: {effect.against} -> {effect.level}"
    return f"{change}: {name(effect.metric)} {amount(effect)} ({effect.n} {counted}{lost}{note})"


def effect_title(kind: str, ranking: Ranking) -> str:
    """What a group of effects is measured against."""
    return {
        "one at a time": f"Each change alone, against {ranking.base}",
        "leave one out": f"Each change taken back, against {ranking.best}",
        "along the path": "Each change along the path, against the step before it",
        "main effect": "Each level, averaged over the other factors",
    }[kind]


def sentences(ranking: Ranking) -> list[str]:
    """The answer in a few sentences: who meets the criteria, who memorises, what went wrong."""
    ended = [arm for arm in ranking.arms if arm.ended]
    if not ended:
        return ["No job has ended yet."]
    said = [_winner(ended)]
    said += _gates(ended)
    trouble = [arm for arm in ended if not arm.seeds]
    if trouble:
        verb = "has" if len(trouble) == 1 else "have"
        reason = trouble[0].troubles[0].error if trouble[0].troubles else ""
        said.append(f"{_join(arm.arm for arm in trouble)} {verb} no finished job ({reason}).")
    pairs = [
        f"{pair.factor} and {pair.other} change each other's effect on {name(pair.metric)} "
        f"({100 * pair.share:.0f} % of its variance{_joint(pair)})."
        for pair in sorted(ranking.interactions, key=lambda pair: -pair.share)[:NAMED]
    ]
    return [*said, *levers(ranking), *pairs]


def headline(ranking: Ranking) -> list[str]:
    """The answer in a sentence or two: who meets the criteria, and what moves px most."""
    said = sentences(ranking)
    moves = [line for line in levers(ranking) if line.startswith(("Strongest", "Nothing"))]
    px = [line for line in moves if " px error" in line.partition(":")[0]]
    return [*said[:1], *(px or moves)[:1]]


def levers(ranking: Ranking) -> list[str]:
    """A sentence per reading of the criteria that some change moves, and one for the others."""
    said, still, apart = [], [], dict[str, None]()
    criteria = ranking.arms[0].criteria if ranking.arms else ()
    firsts = [criterion.readings[0] for criterion in criteria]
    for metric, above in {first.metric: first.above for first in firsts}.items():
        own = [e for e in ranking.effects if e.metric == metric and e.p_holm is not None]
        tested = [effect for effect in own if LOSSES_APART not in effect.note]
        apart |= dict.fromkeys(effect.factor for effect in own if LOSSES_APART in effect.note)
        clear = [effect for effect in tested if effect.clear and _log_or_difference(effect)]
        if clear:
            said.append(_strongest(ranking, metric, above, clear, tested))
        elif tested:
            still.append(name(metric))
    if ranking.effects and not any(e.p_holm is not None for e in ranking.effects):
        if any(AGREE in effect.note for effect in ranking.effects):
            return ["No effect can be tested: the seeds agree, or are too few."]
        return ["Too few seeds: no effect has an interval."]
    if still:
        said.append(f"No change has a clear effect on {_join(still)}.")
    if apart:
        said.append(f"Raw losses across {_join(apart)} are not comparable: tokenizers differ.")
    return said


def _strongest(
    ranking: Ranking,
    metric: str,
    above: bool,
    clear: Sequence[Effect],
    tested: Sequence[Effect],
) -> str:
    """What betters a reading most, or worsens it where nothing does, and what does nothing.

    Less is better but where its criterion asks for more (`above`).
    """
    order = sorted(clear, key=_log_or_difference, reverse=above)
    best, worst = order[0], order[-1]
    head = f"Strongest lever on {name(metric)}: "
    if (_log_or_difference(best) < 0) if above else (_log_or_difference(best) > 0):
        best = worst
        verbs = ("raises", "lowered") if above else ("lowers", "raised")
        head = f"Nothing clearly {verbs[0]} {name(metric)}; {verbs[1]} most by "
    change = f"{best.factor} {best.against} -> {best.level}, {amount(best).removesuffix('*')}"
    said = f"{head}{change}{_between(ranking, best)}{_left(best)}"
    idle = dict.fromkeys(e.factor for e in tested if e.factor not in {c.factor for c in clear})
    return f"{said}; no clear effect: {_join(idle)}." if idle else f"{said}."


def _left(effect: Effect) -> str:
    """What an effect is of, where some of it was lost: ` (2 of 3 seeds)`."""
    counted = "jobs" if effect.kind == "main effect" else "seeds"
    return f" ({effect.n} of {effect.n + effect.lost} {counted})" if effect.lost else ""


def _log_or_difference(effect: Effect) -> float:
    """How much an effect moves its reading; below 0 is better."""
    value = effect.estimate or 0.0
    if effect.scale == "difference":
        return value
    return math.log(value) if 0.0 < value < math.inf else 0.0


def _between(ranking: Ranking, effect: Effect) -> str:
    """An effect of one arm against another in the metric's own unit: `, 40.1 to 9.8`."""
    against = {"one at a time": ranking.base, "leave one out": ranking.best}.get(effect.kind)
    arms = {arm.arm: arm for arm in ranking.arms}
    if against not in arms:
        return ""
    changed = dict(zip(effect.factor.split("+"), effect.level.split("+"), strict=False))
    levels = {**arms[against].levels, **changed}
    for arm in ranking.arms:
        if dict(arm.levels) == levels and effect.metric in arm.metrics:
            ends = (arms[against].metrics.get(effect.metric), arm.metrics[effect.metric])
            return ", from {} to {}".format(*(number(end.mean) if end else "-" for end in ends))
    return ""


def front(ranking: Ranking) -> str | None:
    """Which arms nothing beats in all readings and cost."""
    arms = [arm for arm in ranking.arms if arm.pareto]
    if not arms or len([arm for arm in ranking.arms if arm.seeds]) < 2:
        return None
    read = [name(criterion.name) for criterion in arms[0].criteria]
    return f"Pareto front of {_join([*read, 'seconds'])}: {_join(arm.arm for arm in arms)}."


def _winner(ended: Sequence[RankedArm]) -> str:
    total = len(ended[0].criteria)
    if not total:
        return "There are no criteria: nothing says which configuration is better."
    goal = f"all {total} criteria" if total > 1 else "the criterion"
    whole = [arm for arm in ended if total and arm.count("passed") == total]
    if whole:
        verb = "meets" if len(whole) == 1 else "meet"
        return f"{_join(map(_marked, whole))} {verb} {goal}."
    best = ended[0]
    by_verdict: dict[Verdict, list[str]] = {}
    for criterion in best.criteria:
        by_verdict.setdefault(criterion.verdict, []).append(name(criterion.name))
    does = [
        f"{verb} {_join(by_verdict[verdict])}"
        for verdict, verb in VERBS.items()
        if verdict in by_verdict
    ]
    sure = "No configuration surely meets" if "likely" in by_verdict else "No configuration meets"
    said = does[0]
    for part in does[1:]:
        link = ", but " if part.startswith(VERBS["failed"]) else ", "
        said += link + part
    return f"{sure} {goal}. The first, {best.arm}, {said}."


def _marked(arm: RankedArm) -> str:
    """An arm with what qualifies its readings: `all (memorises)`."""
    words = ", ".join(gate_word(gate) for gate in arm.gates if gate.verdict == "failed")
    return f"{arm.arm} ({words})" if words else arm.arm


def _gates(ended: Sequence[RankedArm]) -> list[str]:
    """One sentence per gate that fails somewhere."""
    failing: dict[str, list[tuple[RankedArm, ArmGate]]] = {}
    for arm in ended:
        for gate in arm.gates:
            if gate.verdict == "failed":
                failing.setdefault(gate.name, []).append((arm, gate))
    said = []
    tested = [arm for arm in ended if arm.seeds]
    for found in failing.values():
        word, note = gate_word(found[0][1]), found[0][1].note
        who = (
            f"all {len(tested)} configurations"
            if len(found) == len(tested) > 1
            else _join(arm.arm for arm, _ in found)
        )
        detail = note.partition(": ")[2] if note.startswith(word + ": ") else note
        example = f"{found[0][0].arm}: {detail}" if len(found) > 1 else detail
        said.append(f"{word[0].upper()}{word[1:]}: {who} ({example}).")
    return said


def _join(words: Iterable[str]) -> str:
    named = list(words)
    if len(named) > NAMED + 1:
        named = [*named[:NAMED], f"{len(named) - NAMED} more"]
    *head, last = named
    return f"{', '.join(head)} and {last}" if head else last
