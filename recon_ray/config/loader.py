"""Field defaults, YAML files and ``key=value`` arguments -> one validated configuration.

Later wins: defaults, the YAML files in their order (each after the files it includes), then the
arguments. Sections merge, everything else is replaced. Every problem is reported in one line with
its dotted key and its place; pydantic does the checking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from recon_ray.config.fields import (
    LIST_TYPES,
    SchemaIndex,
    expectation,
    index,
    literal_values,
    members,
    nearest,
    section_default,
    section_model,
    type_origin,
)
from recon_ray.config.help import as_mapping
from recon_ray.config.yaml_tree import (
    COMMAND_LINE,
    ListNode,
    MappingNode,
    Reader,
    ScalarNode,
    Tree,
    merge,
    read,
)
from recon_ray.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound=BaseModel)

_FOUND_LENGTH = 60
_TRUE, _FALSE = ("yes", "on", "true"), ("no", "off", "false")


@dataclass(frozen=True)
class Loaded(Generic[ConfigT]):
    """A configuration and where it comes from.

    Attributes:
        config: The validated configuration.
        origins: Place of every option that was set: "file:line" or "command line", by dotted key.
        files: YAML files read, includes too, in the order in which they take effect.
    """

    config: ConfigT
    origins: dict[str, str]
    files: tuple[Path, ...]


def load(
    schema: type[ConfigT], arguments: Sequence[str], *, default: Path | None = None
) -> Loaded[ConfigT]:
    """Build the configuration that a command line asks for.

    Args:
        schema: Root model of the job.
        arguments: YAML files (ending in .yaml or .yml) and ``key=value`` with YAML values.
        default: YAML file to read if the arguments name none.

    Returns:
        The configuration with the places of its values.

    Raises:
        ConfigError: Everything that is wrong, one line each.
    """
    reader, tree = read(index(schema), arguments, default)
    if reader.problems:
        raise ConfigError("\n".join(reader.problems))
    return _validated(schema, tree, tuple(reader.files))


def override(config: ConfigT, values: Mapping[str, Any], *, origin: str = COMMAND_LINE) -> ConfigT:
    """Change options of a configuration as ``key=value`` arguments would, with all checks.

    Args:
        config: Base; it stays as it is.
        values: New values by dotted key.
        origin: Place that error messages name.

    Returns:
        The changed configuration.

    Raises:
        ConfigError: A key is unknown or a value is refused; one line each.
    """
    reader = Reader(index(type(config)))
    tree = MappingNode()
    for source in (config, values):
        for key, value in as_mapping(source).items():
            tree = merge(tree, reader.value(key, value, origin), reader.keys)
    return _validated(type(config), tree, ()).config


def assemble(
    schema: type[ConfigT],
    files: Sequence[Path],
    values: Mapping[str, object],
    *,
    origins: Mapping[str, str],
) -> Loaded[ConfigT]:
    """Build the configuration of one job that another job's configuration holds.

    Args:
        schema: Root model of the inner job.
        files: YAML files of that job, read in order before the values.
        values: Options by dotted key, sections as mappings; later ones win.
        origins: Place of each of the values, for messages; "command line" where there is none.

    Returns:
        The configuration with the places of its values.

    Raises:
        ConfigError: Everything that is wrong, one line each.
    """
    reader = Reader(index(schema))
    tree = MappingNode()
    for path in files:
        tree = merge(tree, reader.file(path), reader.keys)
    for key, value in as_mapping(values).items():
        node = reader.value(key, value, origins.get(key, COMMAND_LINE))
        tree = merge(tree, node, reader.keys)
    if reader.problems:
        raise ConfigError("\n".join(reader.problems))
    return _validated(schema, tree, tuple(reader.files))


def _validated(
    schema: type[ConfigT], tree: MappingNode, files: tuple[Path, ...]
) -> Loaded[ConfigT]:
    try:
        values = _decode_section(schema, tree)
        _start_from_defaults(schema, values, None)
        config = schema.model_validate(values)
    except ValidationError as error:
        lines = _Report(schema, tree).lines(error)
        raise ConfigError("\n".join(lines)) from None
    return Loaded(config, dict(_origins(tree, "", index(schema))), files)


def _origins(node: MappingNode, prefix: str, keys: SchemaIndex) -> Iterator[tuple[str, str]]:
    for name, child in node.items.items():
        key = f"{prefix}.{name}" if prefix else name
        is_option = key in keys.options or prefix in keys.mappings
        if is_option or not isinstance(child, MappingNode):
            yield key, child.origin
        if isinstance(child, MappingNode) and (key in keys.sections or key in keys.mappings):
            yield from _origins(child, key, keys)


# --- From the tree to values of the annotated types ---------------------------------------------


class _Refused:
    """Stands for a value of the wrong type, so that pydantic reports it among all the others."""


_REFUSED = _Refused()


def _decode(annotation: object, node: Tree) -> object:
    """Read a node as the annotated type; text stays text where text is meant (``name: no``)."""
    branches = sorted(members(annotation), key=_rank)
    decoded = (_decode_one(branch, node) for branch in branches)
    return next((value for value in decoded if value is not _REFUSED), _REFUSED)


def _rank(branch: object) -> int:
    """Order of trial in a union: choices by name first, text last, as text accepts every scalar."""
    base = _bare(branch)
    if literal_values(base):
        return 0
    if base in (bool, int, float):
        return 1 + (bool, int, float).index(base)
    return 5 if base is str or _is_path(base) else 4


def _bare(annotation: object) -> object:
    return get_args(annotation)[0] if type_origin(annotation) is Annotated else annotation


def _is_path(base: object) -> bool:
    return isinstance(base, type) and issubclass(base, Path)


def _decode_one(branch: object, node: Tree) -> object:
    base = _bare(branch)
    if base is not branch and len(members(base)) > 1:
        return _decode(base, node)
    model = section_model(base)
    if model is not None:
        return _decode_section(model, node) if isinstance(node, MappingNode) else _REFUSED
    kind = type_origin(base) or base
    if kind in LIST_TYPES:
        return _decode_list(base, node)
    if kind is dict:
        return _decode_mapping(base, node)
    if kind in (bool, int, float, str, type(None)) or literal_values(base) or _is_path(base):
        return _decode_scalar(base, node) if isinstance(node, ScalarNode) else _REFUSED
    return _plain(node)


def _decode_section(model: type[BaseModel], node: MappingNode) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, child in node.items.items():
        info = model.model_fields.get(name)
        values[name] = _plain(child) if info is None else _decode(info.annotation, child)
    for name, info in model.model_fields.items():
        if info.is_required() and section_model(info.annotation) is not None:
            values.setdefault(name, {})  # so that the missing options are named, not the section
    return values


def _start_from_defaults(
    model: type[BaseModel], values: dict[str, Any], default: BaseModel | None
) -> None:
    """Add what a job sets in a section by default and the user did not.

    A section given in part would else be completed with its class's defaults, not the job's.
    """
    for name, info in model.model_fields.items():
        section = section_model(info.annotation)
        if section is not None and isinstance(values.get(name), dict):
            _start_from_defaults(section, values[name], section_default(info, name, default))
        elif default is not None and name in default.model_fields_set:
            values.setdefault(name, getattr(default, name))


def _decode_list(base: object, node: Tree) -> object:
    if not isinstance(node, ListNode):
        return _REFUSED
    kinds = get_args(base) or (Any,)
    if len(kinds) == 1 or kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(node.items)
    if len(kinds) != len(node.items):
        return _REFUSED
    values = [_decode(kind, item) for kind, item in zip(kinds, node.items, strict=True)]
    return _REFUSED if _REFUSED in values else values


def _decode_mapping(base: object, node: Tree) -> object:
    if not isinstance(node, MappingNode):
        return _REFUSED
    kind = (get_args(base) or (str, Any))[1]
    values = {key: _decode(kind, item) for key, item in node.items.items()}
    return _REFUSED if _REFUSED in values.values() else values


def _decode_scalar(base: object, node: ScalarNode) -> object:
    choices = literal_values(base)
    if choices:
        return _choice(choices, node)
    if base is type(None):
        return None if node.value is None else _REFUSED
    if node.value is None:
        return _REFUSED
    if _is_path(base):
        return Path(node.text)
    decoders: dict[Any, Callable[[ScalarNode], Any]] = {
        bool: _boolean,
        int: _integer,
        float: _number,
        str: lambda scalar: scalar.text,
    }
    return decoders[base](node)


def _choice(choices: tuple[Any, ...], node: ScalarNode) -> object:
    same = [c for c in choices if type(c) is type(node.value) and c == node.value]
    return same[0] if same else node.text if node.text in choices else _REFUSED


def _boolean(node: ScalarNode) -> object:
    if isinstance(node.value, bool):
        return node.value
    word = node.text.lower()
    return word in _TRUE if node.plain and word in _TRUE + _FALSE else _REFUSED


def _integer(node: ScalarNode) -> object:
    if isinstance(node.value, float) and node.value.is_integer():
        return int(node.value)  # 1e5
    return node.value if type(node.value) is int else _REFUSED


def _number(node: ScalarNode) -> object:
    if isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return float(node.value)
    return _REFUSED


def _plain(node: Tree) -> object:
    if isinstance(node, ScalarNode):
        return node.value
    if isinstance(node, ListNode):
        return [_plain(item) for item in node.items]
    return {key: _plain(item) for key, item in node.items.items()}


# --- Errors -------------------------------------------------------------------------------------


class _Report:
    """Turns pydantic's errors into one line for each key, in the user's words."""

    def __init__(self, schema: type[BaseModel], tree: MappingNode) -> None:
        self.keys = index(schema)
        self.tree = tree

    def lines(self, error: ValidationError) -> list[str]:
        """Return one line a key; the branches of a union count as one error."""
        found: dict[str, str] = {}
        for details in error.errors():
            key = self._key(details)
            found.setdefault(key, self._line(key, details))
        return list(found.values())

    def _key(self, details: ErrorDetails) -> str:
        """Return the option, section or unknown key; what lies inside an option is left out."""
        key = ""
        unknown = len(details["loc"]) - 1 if details["type"] == "extra_forbidden" else None
        for i, part in enumerate(details["loc"]):
            longer = f"{key}.{part}" if key else str(part)
            if longer in self.keys.options or longer in self.keys.sections or i == unknown:
                key = longer
            if key in self.keys.options:
                break
        return key

    def _line(self, key: str, details: ErrorDetails) -> str:
        node = self._node(key)
        place = f"{key} ({node.origin})" if node else key
        kind = details["type"]
        if kind in ("value_error", "assertion_error"):
            message = str(details["ctx"]["error"])
            head = key if key in self.keys.sections else place
            return f"{head}: {message}" if head else message
        if kind == "extra_forbidden" and key not in self.keys.options:
            return self._unknown(key, node)
        if kind == "missing" and node is None:
            expected = expectation(self.keys.options[key])
            return f"{key}: required ({expected}) but not set; give {key}=<value>"
        if key in self.keys.sections:
            names = ", ".join(self.keys.sections[key].model_fields)
            return f"{place}: expected a section with keys {names}, found {_found(node)}"
        found = _found(node) if node else repr(details["input"])
        return f"{place}: expected {expectation(self.keys.options[key])}, found {found}"

    def _unknown(self, key: str, node: Tree | None) -> str:
        while isinstance(node, MappingNode) and len(node.items) == 1:
            name, node = next(iter(node.items.items()))
            key = f"{key}.{name}"
        place = f" ({node.origin})" if node else ""
        is_section = isinstance(node, MappingNode)
        known = [name for name in self.keys.sections if name] if is_section else self.keys.options
        suggested = nearest(key, known)
        section = self.keys.sections.get(key.rpartition(".")[0])
        hint = "see --help"
        if suggested:
            hint = f"did you mean {' or '.join(suggested)}?"
        elif section and "." in key:
            hint = f"keys of {key.rpartition('.')[0]} are {', '.join(section.model_fields)}"
        return f"{key}{place}: unknown key; {hint}"

    def _node(self, key: str) -> Tree | None:
        node: Tree | None = self.tree
        for part in key.split(".") if key else ():
            node = node.items.get(part) if isinstance(node, MappingNode) else None
        return node


def _found(node: Tree | None) -> str:
    if isinstance(node, MappingNode):
        return f"a section with keys {', '.join(node.items)}" if node.items else "an empty section"
    text = _literal(node)
    return text if len(text) <= _FOUND_LENGTH else f"{text[:_FOUND_LENGTH]}..."


def _literal(node: Tree | None) -> str:
    if isinstance(node, ListNode):
        return f"[{', '.join(_literal(item) for item in node.items)}]"
    if isinstance(node, ScalarNode):
        if node.value is None:
            return "null"
        return repr(node.text) if isinstance(node.value, str) else node.text
    return "a mapping" if node else "nothing"
