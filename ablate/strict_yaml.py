"""YAML without surprises: every value knows its place, and nothing is dropped or guessed.

Scalars are read as YAML 1.2 does: `on`, `off`, `yes` and `no` are strings, `3e-4` is a number and
`010` is ten. A key given twice is an error (PyYAML keeps the last in silence), a key is the text
that stands there (a level named `3e-4` or `off` keeps its name), merge keys are not read.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ablate.nouns import StudyError

_TAG = "tag:yaml.org,2002:"
_SCALARS: tuple[tuple[str, str, Callable[[str], Any]], ...] = (
    ("null", r"~|null|Null|NULL|", lambda _: None),
    ("bool", r"true|True|TRUE|false|False|FALSE", lambda text: text[0] in "tT"),
    ("int", r"[-+]?[0-9]+", int),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    ),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own class attribute


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own class attribute

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, _pattern, _ in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), None)


@dataclass(frozen=True)
class Entry:
    """A value in a YAML file, with the file and the keys that lead to it."""

    node: yaml.Node
    file: str
    key: str = ""
    under: Entry | None = None
    """The mapping this one is laid over: its own keys win."""

    def error(self, message: str) -> StudyError:
        """The error that says where this value stands."""
        place = f"{self.file}:{self.node.start_mark.line + 1}" if self.file else ""
        return StudyError(": ".join(part for part in (place, self.key, message) if part))

    def is_null(self) -> bool:
        return self.node.tag == _TAG + "null"

    def is_mapping(self) -> bool:
        return isinstance(self.node, yaml.MappingNode)

    def is_list(self) -> bool:
        return isinstance(self.node, yaml.SequenceNode)

    def entries(self, allowed: Collection[str] | None = None) -> dict[str, Entry]:
        """The values of a mapping by key.

        Raises:
            StudyError: not a mapping, a key twice, or one that is not `allowed`.
        """
        if not isinstance(self.node, yaml.MappingNode):
            raise self._wrong("a mapping (key: value)")
        found: dict[str, Entry] = {}
        for key_node, value in self.node.value:
            name = Entry(key_node, self.file, self.key).text()
            here = Entry(value, self.file, f"{self.key}.{name}" if self.key else name)
            at_key = Entry(key_node, self.file, here.key)
            if name == "<<":
                raise at_key.error("merge keys are not read; a study can build on another: extends")
            if name in found:
                raise at_key.error("given twice; keep one")
            if allowed is not None and name not in allowed:
                raise at_key.error(f"unknown key{suggestion(name, allowed)}")
            found[name] = here
        return {**self.under.entries(allowed), **found} if self.under else found

    def items(self) -> list[Entry]:
        """The values of a list."""
        if not isinstance(self.node, yaml.SequenceNode):
            raise self._wrong("a list ([a, b])")
        return [
            Entry(node, self.file, f"{self.key}[{i}]") for i, node in enumerate(self.node.value)
        ]

    def text(self) -> str:
        """A scalar as it is written: `3e-4` and `off` stay what they are."""
        if not isinstance(self.node, yaml.ScalarNode):
            raise self._wrong("a single word or number")
        return self.node.value

    def plain(self) -> Any:
        """The value in plain Python: str, int, float, bool, None, list, dict."""
        node = self.node
        if isinstance(node, yaml.MappingNode):
            return {name: entry.plain() for name, entry in self.entries().items()}
        if isinstance(node, yaml.SequenceNode):
            return [entry.plain() for entry in self.items()]
        if node.tag == _TAG + "str":
            return node.value
        for name, pattern, convert in _SCALARS:
            if node.tag == _TAG + name and re.fullmatch(pattern, node.value):
                return convert(node.value)
        raise self.error(f"given {node.value!r} with the tag {node.tag!r}; only plain values")

    def typed(self, kind: type, what: str) -> Any:
        """The plain value, which must be of `kind` (an int passes for a float, never a bool)."""
        value = self.plain()
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise self._wrong(what)
        return value

    def _wrong(self, allowed: str) -> StudyError:
        node = self.node
        given = "a mapping" if self.is_mapping() else "a list" if self.is_list() else None
        return self.error(f"given {given or repr(node.value)}, must be {allowed}")


def read(path: Path) -> Entry:
    """The top of a YAML file.

    Raises:
        StudyError: it cannot be read, or is not one YAML document: file, line and problem.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StudyError(f"{path}: cannot be read ({reason})") from None
    return parse(text, str(path))


def parse(text: str, file: str = "", key: str = "") -> Entry:
    """The top of a YAML text; `file` and `key` are what errors name."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{file}:{mark.line + 1}" if mark and file else file
        raise StudyError(f"{place or key}: not YAML: {error.problem}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise StudyError(f"{file or key}: not YAML: {error}") from None
    if node is None:
        raise StudyError(f"{file or key}: empty")
    return Entry(node, file, key)


def dump(value: Any) -> str:
    """YAML text that `parse` reads back to the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def suggestion(given: str, allowed: Collection[str]) -> str:
    """The nearest allowed name, and all of them when they are few, as the end of an error."""
    near = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{hint}; allowed: {', '.join(allowed)}" if len(allowed) <= 16 else hint
