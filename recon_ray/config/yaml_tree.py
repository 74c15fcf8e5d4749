"""YAML files and ``key=value`` arguments as one tree whose values know where they come from."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from recon_ray.config.fields import SchemaIndex, scalar_text

COMMAND_LINE = "command line"
_YAML_SUFFIXES = (".yaml", ".yml")
_ASSIGNMENT = re.compile(r"([A-Za-z_][\w.]*)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class ScalarNode:
    """A value as written (`text`) and as YAML 1.2 reads it (`value`); `plain` if without quotes."""

    text: str
    value: bool | int | float | str | None
    origin: str
    plain: bool = True


@dataclass(frozen=True)
class ListNode:
    """A YAML sequence."""

    items: list[Tree]
    origin: str


@dataclass(frozen=True)
class MappingNode:
    """A YAML mapping: a section, or the value of an option that is a free mapping."""

    items: dict[str, Tree] = field(default_factory=dict)
    origin: str = COMMAND_LINE


Tree = ScalarNode | ListNode | MappingNode


# --- Scalars ----------------------------------------------------------------------------------

_TAG = "tag:yaml.org,2002:"
_KNOWN_TAGS = ("null", "bool", "int", "float", "str", "seq", "map")
_NUMBER_STARTS = list("-+.0123456789")
_RESOLVERS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0x[0-9a-fA-F]+|0o[0-7]+|[0-9][0-9_]*)", _NUMBER_STARTS),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        _NUMBER_STARTS,
    ),
    ("merge", r"<<", ["<"]),
)


def add_resolvers(target: type[yaml.SafeLoader] | type[yaml.SafeDumper]) -> None:
    """Make a PyYAML class read plain scalars as YAML 1.2 does, where ``5e-4`` is a number."""
    for name, pattern, first in _RESOLVERS:
        target.add_implicit_resolver(_TAG + name, re.compile(rf"^(?:{pattern})$"), first)


class _Loader(yaml.SafeLoader):
    """Composes only; reads scalars by YAML 1.2, where yes, 2026-01-01 and 1:30 are text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


add_resolvers(_Loader)


def _scalar(node: yaml.ScalarNode, origin: str) -> ScalarNode:
    text, kind = node.value, node.tag.removeprefix(_TAG)
    value: bool | int | float | str | None = text
    if kind == "null":
        value = None
    elif kind == "bool":
        value = text.lower() == "true"
    elif kind == "int":
        value = _integer(text)
    elif kind == "float":
        value = _number(text)
    return ScalarNode(text, value, origin, plain=node.style is None)


def _integer(text: str) -> int | str:
    digits = text.replace("_", "")
    prefix = digits.lstrip("+-")[:2]
    try:
        return int(digits, {"0x": 16, "0o": 8}.get(prefix, 10))
    except ValueError:  # an explicit tag on something else: refused later as the text that it is
        return text


def _number(text: str) -> float | str:
    special = re.fullmatch(r"([-+]?)\.(inf|nan)", text.lower())
    try:
        return float("".join(special.groups()) if special else text.replace("_", ""))
    except ValueError:
        return text


# --- One YAML text ----------------------------------------------------------------------------


class _MalformedError(Exception):
    """A YAML text that cannot be read; the message names the place."""


@dataclass
class Reader:
    """Reads files and arguments for one schema and collects everything that is wrong with them.

    Attributes:
        keys: Keys of the schema; dotted keys are taken apart by it.
        problems: One line for each problem found so far.
        files: Files read, in the order in which they take effect.
    """

    keys: SchemaIndex
    problems: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    def file(self, path: Path, chain: tuple[Path, ...] = (), asked_by: str = "") -> MappingNode:
        """Read a YAML file after the files that it includes.

        Args:
            path: File, relative to the working directory.
            chain: Files that are being read and led to this one by their includes.
            asked_by: Place of the include, empty if the user named the file.

        Returns:
            The merged mapping; empty where a problem was noted.
        """
        label = display(path)
        at = f" (included at {asked_by})" if asked_by else ""
        resolved = path.resolve()
        if resolved in [known.resolve() for known in chain]:
            names = " -> ".join(display(known) for known in (*chain, path))
            self.problems.append(f"{asked_by}: include cycle {names}")
            return MappingNode()
        if not path.is_file():
            self.problems.append(f"{label}: no such file{at}")
            return MappingNode()
        try:
            tree = self._root(_compose(_text(path, label), label), label)
        except _MalformedError as error:
            self.problems.append(str(error))
            return MappingNode()
        merged = MappingNode(origin=label)
        for name, origin in self._includes(tree):
            included = Path(os.path.normpath(path.parent / os.path.expanduser(name)))  # noqa: PTH111
            merged = merge(merged, self.file(included, (*chain, path), origin), self.keys)
        if path not in self.files:
            self.files.append(path)
        return merge(merged, tree, self.keys)

    def _root(self, root: yaml.Node | None, label: str) -> MappingNode:
        if root is None:
            return MappingNode(origin=label)
        if not isinstance(root, yaml.MappingNode):
            raise _MalformedError(
                f"{_place(root, label)}: expected `key: value` lines at the top level"
            )
        return self._mapping(root, label, (), ())

    def _includes(self, tree: MappingNode) -> list[tuple[str, str]]:
        node = tree.items.pop("include", None)
        entries = node.items if isinstance(node, ListNode) else [] if node is None else [node]
        found = []
        for entry in entries:
            if isinstance(entry, ScalarNode) and entry.value is not None:
                found.append((entry.text, entry.origin))
            else:
                self.problems.append(f"include ({entry.origin}): expected a list of YAML files")
        return found

    def argument(self, text: str) -> MappingNode:
        """Read one ``key=value`` argument; the value is YAML.

        Args:
            text: The argument.

        Returns:
            A tree with this one value; empty where a problem was noted.
        """
        match = _ASSIGNMENT.fullmatch(text)
        if match is None:
            self.problems.append(f"{text}: expected a YAML file or key=value{_flag_hint(text)}")
            return MappingNode()
        parts = self._split((), match[1])
        tree = MappingNode()
        self._put(tree, parts, self._argument_value(match[2], parts))
        return tree

    def _argument_value(self, text: str, parts: tuple[str, ...]) -> Tree:
        as_text = ScalarNode(text, text, COMMAND_LINE)
        try:
            node = _compose(text, COMMAND_LINE)
            value = self._tree(node, COMMAND_LINE, parts, ()) if node else None
        except _MalformedError:  # then it is text, and the option says whether that will do
            return as_text
        if value is None:
            return ScalarNode("", None, COMMAND_LINE)
        is_text = isinstance(value, ScalarNode) and value.plain and value.value == value.text
        return as_text if is_text else value  # with what YAML would drop as a comment

    def value(self, key: str, data: object, origin: str) -> MappingNode:
        """Convert one value of a program to the form of an argument.

        Args:
            key: Dotted key.
            data: Value in plain Python types.
            origin: Place that error messages name.

        Returns:
            A tree with this one value.
        """
        tree = MappingNode(origin=origin)
        self._put(tree, self._split((), key), from_data(data, origin))
        return tree

    # -- conversion of composed nodes --

    def _tree(
        self, node: yaml.Node, label: str, path: tuple[str, ...], active: tuple[int, ...]
    ) -> Tree:
        if id(node) in active:
            raise _MalformedError(f"{_place(node, label)}: an alias that contains itself")
        origin = _place(node, label)
        if node.tag.removeprefix(_TAG) not in _KNOWN_TAGS:
            raise _MalformedError(f"{origin}: the tag {node.tag} is not supported")
        if isinstance(node, yaml.ScalarNode):
            if node.value == "" and node.style is None and ".".join(path) in self.keys.sections:
                return MappingNode(origin=origin)  # a heading with nothing below it
            return _scalar(node, origin)
        if isinstance(node, yaml.SequenceNode):
            inner = (*active, id(node))
            return ListNode([self._tree(item, label, path, inner) for item in node.value], origin)
        return self._mapping(node, label, path, active)

    def _mapping(
        self, node: yaml.Node, label: str, path: tuple[str, ...], active: tuple[int, ...]
    ) -> MappingNode:
        result = MappingNode(origin=_place(node, label))
        seen: dict[str, str] = {}
        for key_node, value_node in node.value:
            place = _place(key_node, label)
            key = self._key(key_node, place)
            if key in seen:
                self._twice(".".join((*path, key)), place, seen[key])
                continue
            seen[key] = place
            parts = self._split(path, key)
            value = self._tree(value_node, label, (*path, *parts), (*active, id(node)))
            self._put(result, parts, _moved(value, place), path)
        return result

    def _key(self, node: yaml.Node, place: str) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise _MalformedError(f"{place}: a key must be text")
        if node.tag == _TAG + "merge":
            raise _MalformedError(f"{place}: merge keys (<<) are not supported; use include")
        return str(node.value)

    def _split(self, path: tuple[str, ...], key: str) -> tuple[str, ...]:
        """Take a dotted key apart down to its option; below an option, keys stay as they are."""
        if any(".".join(path[: i + 1]) in self.keys.options for i in range(len(path))):
            return (key,)
        parts: tuple[str, ...] = ()
        rest = key.split(".")
        while rest:
            if ".".join((*path, *parts)) in self.keys.mappings:
                return (*parts, ".".join(rest))
            parts = (*parts, rest.pop(0))
        return parts

    def _put(
        self, root: MappingNode, parts: tuple[str, ...], value: Tree, path: tuple[str, ...] = ()
    ) -> None:
        """Store a value below `root`, making the sections on the way; note a second value."""
        *above, name = parts
        target = root
        for part in above:
            path = (*path, part)
            inner = target.items.setdefault(part, MappingNode(origin=value.origin))
            if not isinstance(inner, MappingNode):
                self._twice(".".join(path), value.origin, inner.origin)
                return
            target = inner
        old = target.items.get(name)
        if old is None:
            target.items[name] = value
        elif isinstance(old, MappingNode) and isinstance(value, MappingNode):
            for key, item in value.items.items():
                self._put(old, (key,), item, (*path, name))
        else:
            self._twice(".".join((*path, name)), value.origin, old.origin)

    def _twice(self, key: str, place: str, first: str) -> None:
        self.problems.append(f"{key} ({place}): set twice, first at {first}")


def _text(path: Path, label: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _MalformedError(f"{label}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise _MalformedError(f"{label}: cannot be read: {error.strerror}") from error


def _compose(text: str, label: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise _MalformedError(
            f"{label}{line}: not valid YAML: {error.problem or error.context}"
        ) from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise _MalformedError(f"{label}: not valid YAML: {reason}") from error


def _place(node: yaml.Node, label: str) -> str:
    return label if label == COMMAND_LINE else f"{label}:{node.start_mark.line + 1}"


def _moved(value: Tree, origin: str) -> Tree:
    """Return a value the place of its key, which is where a user looks for it."""
    if isinstance(value, ScalarNode):
        return ScalarNode(value.text, value.value, origin, value.plain)
    return (
        ListNode(value.items, origin)
        if isinstance(value, ListNode)
        else MappingNode(value.items, origin)
    )


def display(path: Path) -> str:
    """Write a path relative to the working directory if it lies below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd())) if path.is_absolute() else str(path)
    except ValueError:
        return str(path)


def _flag_hint(text: str) -> str:
    bare = text.lstrip("-")
    return f"; did you mean {bare}?" if text.startswith("-") and _ASSIGNMENT.fullmatch(bare) else ""


def from_data(data: object, origin: str) -> Tree:
    """Turn plain Python data (None, numbers, text, lists, dictionaries) into a tree."""
    if isinstance(data, Mapping):
        return MappingNode(
            {str(key): from_data(item, origin) for key, item in data.items()}, origin
        )
    if isinstance(data, list | tuple):
        return ListNode([from_data(item, origin) for item in data], origin)
    value = data.item() if hasattr(data, "item") else data  # numbers of numpy and torch
    known = value if isinstance(value, bool | int | float | str | None) else str(value)
    return ScalarNode(scalar_text(value), known, origin, plain=False)


# --- Merging ----------------------------------------------------------------------------------


def merge(base: MappingNode, over: MappingNode, keys: SchemaIndex, path: str = "") -> MappingNode:
    """Lay one tree over another: sections merge, everything else is replaced.

    Args:
        base: Earlier source.
        over: Later source, which wins.
        keys: Keys of the schema. An option that is a free mapping merges by its own keys only.
        path: Dotted key of both trees.

    Returns:
        A new tree.
    """
    items = dict(base.items)
    for name, node in over.items.items():
        old = items.get(name)
        if (
            isinstance(old, MappingNode)
            and isinstance(node, MappingNode)
            and path not in keys.mappings
        ):
            items[name] = merge(old, node, keys, f"{path}.{name}" if path else name)
        else:
            items[name] = node
    return MappingNode(items, over.origin)


def is_yaml_path(argument: str) -> bool:
    """Tell a YAML file from ``key=value`` (which may itself end in .yaml) and from flags."""
    is_file = argument.endswith(_YAML_SUFFIXES) and not argument.startswith("-")
    return is_file and _ASSIGNMENT.fullmatch(argument) is None


def read(
    keys: SchemaIndex, arguments: Sequence[str], default: Path | None
) -> tuple[Reader, MappingNode]:
    """Read the YAML files among the arguments in order, then the ``key=value`` ones.

    Args:
        keys: Keys of the schema.
        arguments: Command line.
        default: File to read if the command line names none.

    Returns:
        The reader, with the problems found, and the merged tree.
    """
    reader = Reader(keys)
    paths = [Path(argument) for argument in arguments if is_yaml_path(argument)]
    tree = MappingNode()
    for path in paths or ([default] if default else []):
        tree = merge(tree, reader.file(path), keys)
    for argument in arguments:
        if not is_yaml_path(argument):
            tree = merge(tree, reader.argument(argument), keys)
    return reader, tree
