"""From a study file and the command line's options to a `Study`, or one line that says why not.

The keys of a study file:

    question   what the study is to find out (required)
    extends    another study to build on: base, factors and criteria are laid over its own
    core       what is ablated: lanelm, or a module (ablate.module_core)
    base       settings of every arm; presets by name
    factors    factor -> level -> settings
    zip        lists of factors whose levels go in step
    design     one or a list of designs: a name, or {name: options} (required)
    seeds      list of seeds
    criteria   name -> threshold, or metric -> threshold, or null for "not asked here"; a
               threshold is a number that the reading must be below, {below: n} or {above: n}
    exclude    list of {factor: level or levels}: such arms are left out
    only       list of {factor: level or levels}: only such arms are kept
    timeout    seconds an attempt of a job may take
    attempts   starts a job may have
    pruning    {rule: options}: stop jobs that do worse than others; off by default
    stop_when_passed   true: end a job at the first evaluation where all criteria and gates hold
    resources  what a job needs on a cluster (ablate.resources)
    name       the study's name; the file's by default
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ablate import schema, strict_yaml
from ablate.core import Core, CoreError, load_core
from ablate.designs import axes_of
from ablate.nouns import Factor, Options, Settings, Study, StudyError
from ablate.pruning_schema import pruning_plain, read_pruning
from ablate.resources import plain, read_resources
from ablate.starts import with_whole_starts
from ablate.strict_yaml import Entry, suggestion

KEYS = (
    "name",
    "question",
    "extends",
    "core",
    "base",
    "factors",
    "zip",
    "design",
    "seeds",
    "criteria",
    "exclude",
    "only",
    "timeout",
    "attempts",
    "resources",
    "pruning",
    "stop_when_passed",
)
RESERVED = ("jobs", "cache", "lock", "slurm", "mlartifacts", "mlflow.db")
"""What else lies in OUT."""

Entries = dict[str, Entry]


def load_study(name_or_path: str, options: Options | None = None) -> Study:
    """Read a study by its path or its name in `studies/`, with the options laid over.

    Raises:
        StudyError: one line that names file, key, what was given and what is allowed.
    """
    path = _find(name_or_path)
    try:
        merged = _with_parents(path, ())
        return _study(path, merged, options or Options())
    except RecursionError:
        raise StudyError(f"{path}: not YAML: an anchor that holds itself") from None


def parse_sets(sets: Sequence[str]) -> dict[str, Any]:
    """The settings of `--set path=value`; values are read as YAML.

    >>> parse_sets(["optim.lr=1e-4", "optim.clip=null visual.levels=p5"])
    {'optim.lr': 0.0001, 'optim.clip': None, 'visual.levels': 'p5'}
    """
    settings: dict[str, Any] = {}
    for given in (part for text in sets for part in re.split(r"\s+(?=[\w.]+=)", text.strip())):
        path, _, value = given.partition("=")
        if not path or not value.strip():
            raise StudyError(f"--set: given {given!r}, must be path=value (null for none)")
        if path in settings:
            raise StudyError(f"--set: {path} is given twice")
        settings[path] = strict_yaml.parse(value, key=f"--set {path}").plain()
        if isinstance(settings[path], str) and re.fullmatch(r"[-+.\d\w]+(,[-+.\d\w]+)+", value):
            first, *_ = values = value.split(",")
            if all(isinstance(strict_yaml.parse(v).plain(), int | float) for v in values):
                raise StudyError(
                    f"--set {path}: given {value}, must be one value: {path}={first}; several are "
                    "a factor's levels, in the study file"
                )
    return settings


def resolved(study: Study) -> str:
    """The study as YAML with `extends` and options laid in; `load_study` reads it to the same."""
    dropped = {criterion.name: None for criterion in load_core(study.core).criteria()}
    value: dict[str, Any] = {
        "name": study.name,
        "question": study.question,
        "core": study.core,
        "base": dict(study.base),
        "factors": {f.name: {v.name: dict(v.settings) for v in f.levels} for f in study.factors},
        "zip": [list(group) for group in study.zipped],
        "design": [
            {design.name: dict(design.options.get("arms", design.options))}
            for design in study.designs
        ],
        "seeds": list(study.seeds),
        "criteria": dropped
        | {c.name: dict(map(schema.condition_plain, c.conditions)) for c in study.criteria},
        "exclude": [{name: list(levels) for name, levels in m.items()} for m in study.exclude],
        "only": [{name: list(levels) for name, levels in match.items()} for match in study.only],
        "timeout": study.timeout,
        "attempts": study.attempts,
        "pruning": pruning_plain(study.pruning),
        "stop_when_passed": study.stop_when_passed or None,
        "resources": plain(study.resources) or None,
    }
    return strict_yaml.dump({key: v for key, v in value.items() if v not in (None, [])})


def _find(name_or_path: str) -> Path:
    if name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path:
        path = Path(name_or_path)
        if not path.is_file():
            raise StudyError(f"study {name_or_path!r}: no such file")
        return path
    folders = (Path("studies"), Path(__file__).parent.parent / "studies")
    for folder in folders:
        if (path := folder / f"{name_or_path}.yaml").is_file():
            return path
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise StudyError(f"study {name_or_path!r}: not in studies/{suggestion(name_or_path, known)}")


def _with_parents(path: Path, children: tuple[Path, ...]) -> Entries:
    """The top-level entries, laid over those of the study it `extends`."""
    entries = strict_yaml.read(path).entries(KEYS)
    if "extends" not in entries:
        return entries
    extends = entries.pop("extends")
    name = extends.text()
    beside = path.parent / (name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    parent = beside if beside.is_file() else _find(name)
    if parent.resolve() in (*children, path.resolve()):
        raise extends.error(f"{name} builds on this study in turn; leave one extends out")
    under = _with_parents(parent, (*children, path.resolve()))
    under.pop("name", None)
    for key in ("base", "factors", "criteria", "resources"):
        if key in entries and key in under and entries[key].is_mapping():
            entries[key] = dataclasses.replace(entries[key], under=under[key])
    return {**under, **entries}


def _study(path: Path, entries: Entries, options: Options) -> Study:
    for key in ("question", "design"):
        if key not in entries:
            raise StudyError(f"{path}: {key}: is missing; every study has one")
    core_name = entries["core"].text() if "core" in entries else "lanelm"
    core = load_core(core_name)
    factors = schema.read_factors(entries.get("factors"))
    levels = {factor.name: factor.names for factor in factors}
    base = schema.read_settings(entries.get("base"))
    laid = _laid_over(core, options)
    _refuse_varied(core, base, factors, laid)
    criteria = schema.read_criteria(entries.get("criteria"), core.criteria())
    designs = schema.read_designs(entries["design"], levels, [c.name for c in criteria])
    for design in designs:
        ranges = design.options.get("ranges", {})
        _refuse_ranges(entries["design"], core, base, factors, ranges)
        if both := sorted(set(ranges) & set(laid)):
            own = ranges[both[0]]
            raise _varied(both[0], "the search", f"{own['low']} to {own['high']}")
    zipped = schema.read_zipped(entries.get("zip"), levels)
    try:
        axes = axes_of(factors, zipped)
    except StudyError as error:
        raise entries["zip"].error(str(error).removeprefix("zip: ")) from None
    try:
        designs = with_whole_starts(designs, axes)
    except StudyError as error:
        raise entries["design"].error(str(error)) from None
    if options.seeds is not None and options.seeds < 1:
        raise StudyError(f"--seeds: given {options.seeds}, must be 1 or more")
    seeds = schema.read_seeds(entries.get("seeds"))
    if options.seeds is not None:
        seeds = tuple(range(options.seeds))
    return Study(
        name=_name(path, entries.get("name"), options.data),
        question=_question(entries["question"]),
        base={**base, **laid},
        factors=factors,
        designs=designs,
        seeds=seeds,
        criteria=criteria,
        zipped=zipped,
        exclude=schema.read_matches(entries.get("exclude"), levels),
        only=schema.read_matches(entries.get("only"), levels),
        core=core_name,
        timeout=schema.read_positive(entries.get("timeout"), float, None),
        attempts=schema.read_positive(entries.get("attempts"), int, 2),
        resources=read_resources(entries.get("resources"), options.resources),
        pruning=read_pruning(entries.get("pruning"), len(seeds)),
        stop_when_passed=_early(entries.get("stop_when_passed"), core),
        source=str(path),
    )


def _question(entry: Entry) -> str:
    text = " ".join(entry.text().split())
    if entry.is_null() or not text:
        raise entry.error("empty; say what the study is to find out")
    return text


def _early(entry: Entry | None, core: Core) -> bool:
    """`stop_when_passed`, of a core that can end a job early."""
    if entry is None or not entry.typed(bool, "true or false"):
        return False
    if "enough" not in inspect.signature(core.train).parameters:
        raise entry.error("this core ends no job early: its train takes no `enough`")
    return True


def _laid_over(core: Core, options: Options) -> dict[str, Any]:
    """What --data, --checkpoint and --set put over the base."""
    try:
        inputs = core.inputs(options.data, options.checkpoint)
    except CoreError as error:
        raise StudyError(str(error)) from None
    sets = parse_sets(options.sets)
    if "seed" in sets:
        raise StudyError("--set seed: seeds are the study's: give --seeds N")
    if both := set(inputs) & set(sets):
        raise StudyError(f"--set {min(both)}: --data or --checkpoint says it already")
    return {**inputs, **sets}


def _refuse_varied(core: Core, base: Settings, factors: Sequence[Factor], laid: Settings) -> None:
    """Refuse an option that a factor's levels would override, directly or through a preset."""
    for path in laid:
        for factor in factors:
            values = []
            for level in factor.levels:
                if path in level.settings:
                    raise _varied(path, f"the factor {factor.name}", ", ".join(factor.names))
                try:
                    config = core.build({**base, **level.settings})
                    values.append(core.settings(config).get(path))
                except CoreError:  # `plan` says what is wrong with it
                    continue
            if any(value != values[0] for value in values):
                raise _varied(path, f"the factor {factor.name}", ", ".join(factor.names))


def _refuse_ranges(
    entry: Entry, core: Core, base: Settings, factors: Sequence[Factor], ranges: Settings
) -> None:
    """Refuse a range of a setting that there is none of, or that a factor varies too."""

    def refusal(settings: Settings) -> str | None:
        try:
            core.build(settings)
        except CoreError as error:
            return str(error)
        return None

    for path, ends in ranges.items():
        place = f"search.ranges.{path}"
        for factor in factors:
            if any(path in level.settings for level in factor.levels):
                raise entry.error(f"{place}: the factor {factor.name} sets it; keep one of them")
        refusals = [refusal({**base, path: ends[end]}) for end in ("low", "high")]
        if all(refusals) and refusal(base) is None:
            raise entry.error(f"{place}: {refusals[0]}")


def _varied(path: str, by: str, values: str) -> StudyError:
    return StudyError(
        f"{path}: given by an option, but {by} varies it ({values}); give what the study does not "
        "vary, or edit the study"
    )


def _name(path: Path, given: Entry | None, data: Sequence[str]) -> str:
    """A folder name: `strategy1`, or `strategy1@CULane+TuSimple`."""
    name = given.text() if given else path.stem
    if not re.fullmatch(r"\w[-\w@+.]*", name) or name in RESERVED:
        allowed = f"letters, digits, - _ . @ + and none of {', '.join(RESERVED)}"
        raise StudyError(f"{path}: name: given {name!r}, must be {allowed}")
    folders = "+".join(Path(root).expanduser().absolute().name or "root" for root in data)
    return f"{name}@{re.sub(r'[^-0-9A-Za-z_+.]', '_', folders)}" if data else name
