"""YAML files and ``key=value`` arguments as YAML nodes by key, each with its place.

PyYAML reads the text; its nodes keep the lines and the spelling, which its Python values lose.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

import yaml

from recon_ray.config.fields import Parts, SchemaIndex, scalar_text
from recon_ray.errors import ConfigError

COMMAND_LINE = "command line"
_ASSIGNMENT = re.compile(r"([A-Za-z_][\w.]*)=(.*)", re.DOTALL)
_TAG = "tag:yaml.org,2002:"
_STR, _SEQ, _MAP = f"{_TAG}str", f"{_TAG}seq", f"{_TAG}map"
_NULL = yaml.ScalarNode(f"{_TAG}null", "null")
_RESOLVERS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(?:0x[0-9a-fA-F]+|0o[0-7]+|[0-9][0-9_]*)",
    "float": r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "merge": "<<",
}


def add_resolvers(target: type[yaml.SafeLoader] | type[yaml.SafeDumper]) -> None:
    """Make a PyYAML class read plain scalars as YAML 1.2 does, where ``5e-4`` is a number."""
    for name, pattern in _RESOLVERS.items():
        target.add_implicit_resolver(_TAG + name, re.compile(f"^(?:{pattern})$"), None)


def scalar(node: yaml.Node) -> bool | int | float | str | None:
    """Return the value of a scalar by its tag; text where an explicit tag does not fit."""
    text, kind = str(node.value), node.tag.removeprefix(_TAG)
    digits = text.lower().replace("_", "")
    with suppress(ValueError):
        if kind == "int":
            return int(digits, {"0x": 16, "0o": 8}.get(digits.lstrip("+-")[:2], 10))
        if kind == "float":
            return float(digits.replace(".inf", "inf").replace(".nan", "nan"))
    return {"null": None, "bool": digits == "true"}.get(kind, text)


class _Loader(yaml.SafeLoader):
    """Reads scalars by YAML 1.2, where yes, 2026-01-01 and 1:30 are text."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012
    problems: list[str]

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Note keys that are set twice, refuse merge keys; PyYAML calls this for every mapping."""
        found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if key.tag == f"{_TAG}merge":
                reason = "merge keys (<<) are not supported; use include"
                raise yaml.constructor.ConstructorError(None, None, reason, key.start_mark)
            old, _ = found.setdefault(str(key.value), (key, value))
            if old is not key:
                self.problems.append(_set_twice(key.value, _place(key), _place(old)))
        node.value = list(found.values())


add_resolvers(_Loader)
_SCALARS = dict.fromkeys(("null", "bool", "int", "float", "str"), lambda _, node: scalar(node))
_Loader.yaml_constructors = {
    tag: yaml.SafeLoader.yaml_constructors[tag] for tag in (_SEQ, _MAP, None)
} | {_TAG + kind: construct for kind, construct in _SCALARS.items()}


def _compose(text: str, label: str, problems: list[str]) -> yaml.Node | None:
    """Return the root; raise a YAMLError for unknown tags and an alias inside its own value."""
    loader = _Loader(text)
    loader.name, loader.problems = label, problems
    root = loader.get_single_node()
    if root is not None:
        loader.construct_object(root, deep=True)
    return root


class Given(NamedTuple):
    """A value as it was written, and its place."""

    node: yaml.Node
    origin: str

    @property
    def is_empty(self) -> bool:
        """Return whether it is a section without keys."""
        return isinstance(self.node, yaml.MappingNode) and not self.node.value


@dataclass
class Reader:
    """Values from files and arguments for one schema, with the problems found in them.

    A value replaces an earlier one; `files` are in the order in which they take effect.
    """

    keys: SchemaIndex
    values: dict[Parts, Given] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    def file(self, path: Path, chain: tuple[Path, ...] = (), included_at: str = "") -> None:
        """Read a YAML file after the files that it includes; those in ``chain`` include it."""
        try:
            if path.resolve() in [known.resolve() for known in chain]:
                names = " -> ".join(map(_display, (*chain, path)))
                raise ConfigError(f"{included_at}: include cycle {names}")
            if not path.is_file():
                at = f" (included at {included_at})" if included_at else ""
                raise ConfigError(f"{_display(path)}: no such file{at}")
            root = _load(path, self.problems)
        except ConfigError as error:
            self.problems.append(str(error))
            return
        for name, place in self._includes(root):
            included = Path(os.path.normpath(path.parent / os.path.expanduser(name)))  # noqa: PTH111
            self.file(included, (*chain, path), place)
        if path not in self.files:
            self.files.append(path)
        self._add(root)

    def _includes(self, root: yaml.Node) -> Iterator[tuple[str, str]]:
        pairs = [pair for pair in root.value if pair[0].value == "include"]
        root.value = [pair for pair in root.value if pair not in pairs]
        if pairs and isinstance(pairs[0][1], yaml.SequenceNode):
            pairs = [(node, node) for node in pairs[0][1].value]
        for key, node in pairs:
            if isinstance(node, yaml.ScalarNode) and scalar(node) is not None:
                yield node.value, _place(key)
            else:
                self.problems.append(f"include ({_place(key)}): expected a list of YAML files")

    def argument(self, text: str) -> None:
        """Read one ``key=value`` argument; the value is YAML, or else text."""
        match = _ASSIGNMENT.fullmatch(text)
        if match is None:
            self.problems.append(f"{text}: expected a YAML file or key=value")
            return
        key, written = match.groups()
        node: yaml.Node = yaml.ScalarNode(_STR, written)
        with suppress(yaml.YAMLError):
            found = _compose(written, COMMAND_LINE, self.problems) or _NULL
            if getattr(found, "style", True) or scalar(found) != found.value:
                node = found  # plain text is kept with what YAML would drop as a comment
        self._add(_mapping({key: node}), COMMAND_LINE)

    def data(self, key: str, value: object, origin: str) -> None:
        """Read a value of a program, in plain Python types, as if it were an argument."""
        self._add(_mapping({key: _from_data(value)}), origin)

    def _add(self, root: yaml.Node, origin: str = "") -> None:
        found: dict[Parts, Given] = {}
        for parts, given in self._options(root, "", origin):
            old = _put(found, parts, given)
            if old:
                self.problems.append(_set_twice(".".join(parts), given.origin, old.origin))
        for parts, given in found.items():
            _put(self.values, parts, given)

    def _options(self, node: yaml.Node, prefix: str, origin: str) -> Iterator[tuple[Parts, Given]]:
        for name, child in node.value:
            key = f"{prefix}{name.value}"
            parts = self.keys.split(key)
            is_option = key in self.keys.options and key not in self.keys.mappings
            is_value = is_option or ".".join(parts[:-1]) in self.keys.mappings
            if key in self.keys.sections and child.value == "" and child.style is None:
                child = _mapping({})  # a heading with nothing below it
            if isinstance(child, yaml.MappingNode) and child.value and not is_value:
                yield from self._options(child, f"{key}.", origin)
            else:
                yield parts, Given(child, origin or _place(name))


def _load(path: Path, problems: list[str]) -> yaml.MappingNode:
    label = _display(path)
    try:
        root = _compose(path.read_text(encoding="utf-8-sig"), label, problems)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{label}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise ConfigError(f"{label}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", error)).split())
        raise ConfigError(f"{label}{line}: not valid YAML: {reason}") from error
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{_place(root)}: expected `key: value` lines at the top level")
    return root or _mapping({})


def _put(values: dict[Parts, Given], parts: Parts, given: Given) -> Given | None:
    """Set a value in place of those above and below it, and return one that was replaced.

    An empty section changes nothing below it, and is dropped when something below it is set.
    """
    size = len(parts)
    below = [key for key in values if key[:size] == parts and len(key) > size]
    if below and given.is_empty:
        return None
    above = [parts[:i] for i in range(1, size) if parts[:i] in values]
    replaced = [values.pop(key) for key in (*above, *below)]
    replaced += [values[parts]] if parts in values else []
    values[parts] = given
    return next((old for old in replaced if not old.is_empty), None)


def _mapping(items: Mapping[str, yaml.Node]) -> yaml.MappingNode:
    return yaml.MappingNode(_MAP, [(yaml.ScalarNode(_STR, key), items[key]) for key in items])


def _from_data(data: object) -> yaml.Node:
    if isinstance(data, Mapping):
        return _mapping({str(key): _from_data(item) for key, item in data.items()})
    if isinstance(data, list):
        return yaml.SequenceNode(_SEQ, [_from_data(item) for item in data])
    kind = {NoneType: "null", bool: "bool", int: "int", float: "float"}.get(type(data), "str")
    return yaml.ScalarNode(_TAG + kind, scalar_text(data), style='"')


def _place(node: yaml.Node) -> str:
    mark = node.start_mark
    return COMMAND_LINE if mark.name == COMMAND_LINE else f"{mark.name}:{mark.line + 1}"


def _set_twice(key: str, place: str, first: str) -> str:
    return f"{key} ({place}): set twice, first at {first}"


def _display(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
