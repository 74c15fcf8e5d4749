"""Field defaults, YAML files and ``key=value`` arguments -> one validated configuration.

Later wins: defaults, the YAML files in their order (each after the files it includes), then the
arguments. Sections merge, everything else is replaced. pydantic checks the values; every problem is
one line with its dotted key and its place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from recon_ray.config.fields import SchemaIndex, TypeForm, expectation, index, kinds, nearest
from recon_ray.config.help import as_mapping
from recon_ray.config.yaml_tree import COMMAND_LINE, Reader, scalar
from recon_ray.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound=BaseModel)

_FOUND_LENGTH = 60
_YAML_FILE = re.compile(r"(?![A-Za-z_][\w.]*=).*\.ya?ml", re.DOTALL)  # not storage=x.yaml
_BOOLEANS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}


@dataclass(frozen=True)
class Loaded(Generic[ConfigT]):
    """A configuration and where it comes from.

    ``origins`` has the place of every option that was set ("file:line" or "command line") by dotted
    key, ``files`` the YAML files read, includes too, in the order in which they take effect.
    """

    config: ConfigT
    origins: dict[str, str]
    files: tuple[Path, ...]


def load(
    schema: type[ConfigT], arguments: Sequence[str], *, default: Path | None = None
) -> Loaded[ConfigT]:
    """Build the configuration that a command line describes.

    The arguments are YAML files (ending in .yaml or .yml; else the default file) and
    ``key=value`` with YAML values.

    Raises:
        ConfigError: Everything that is wrong, one line each.
    """
    reader = Reader(index(schema))
    files = [text for text in arguments if _YAML_FILE.fullmatch(text)]
    for path in map(Path, files) if files else [default] if default else []:
        reader.file(path)
    for text in arguments:
        if text not in files:
            reader.argument(text)
    return _validated(schema, reader)


def override(config: ConfigT, values: Mapping[str, Any], *, origin: str = COMMAND_LINE) -> ConfigT:
    """Return a configuration with options changed by dotted key, with all checks.

    Raises:
        ConfigError: A key is unknown or a value is refused; one line each, with the origin.
    """
    reader = Reader(index(type(config)))
    for key, value in (*as_mapping(config).items(), *as_mapping(values).items()):
        reader.data(key, value, origin)
    return _validated(type(config), reader).config


def assemble(
    schema: type[ConfigT],
    files: Sequence[Path],
    values: Mapping[str, object],
    *,
    origins: Mapping[str, str],
) -> Loaded[ConfigT]:
    """Build the configuration of one job that another job's configuration holds.

    The files are read before the values, which are options by dotted key and sections as mappings;
    later ones win. ``origins`` has the places of the values for messages, if not the command line.

    Raises:
        ConfigError: Everything that is wrong, one line each.
    """
    reader = Reader(index(schema))
    for path in files:
        reader.file(path)
    for key, value in as_mapping(values).items():
        reader.data(key, value, origins.get(key, COMMAND_LINE))
    return _validated(schema, reader)


def _validated(schema: type[ConfigT], reader: Reader) -> Loaded[ConfigT]:
    if reader.problems:
        raise ConfigError("\n".join(reader.problems))
    try:
        config = schema.model_validate(_values(reader), strict=True)
    except ValidationError as error:
        lines: dict[str, str] = {}  # one a key: the branches of a union count as one error
        for details in error.errors():
            key = _key(reader.keys, details)
            lines.setdefault(key, _line(key, details, reader))
        raise ConfigError("\n".join(lines.values())) from None
    origins = {".".join(parts): given.origin for parts, given in reader.values.items()}
    return Loaded(config, origins, tuple(reader.files))


# --- From nodes to values of the annotated types ------------------------------------------------


def _values(reader: Reader) -> dict[str, Any]:
    """Return the values as nested dictionaries; sections start from the defaults of the job.

    pydantic would complete a section given in part with its class's defaults.
    """
    keys = reader.keys
    required = [name for name, info in keys.sections[""].model_fields.items() if info.is_required()]
    tree: dict[str, Any] = {name: {} for name in required if name in keys.sections}
    for parts, given in reader.values.items():
        key, target = ".".join(parts), tree
        sections = parts if key in keys.sections and given.is_empty else parts[:-1]
        for i, section in enumerate(sections, 1):
            if not isinstance(target.get(section), dict):
                target[section] = dict(keys.defaults.get(".".join(parts[:i]), {}))
            target = target[section]
        if sections != parts:
            above = ".".join(sections)
            option = keys.options.get(key)
            annotation = option.annotation if option else keys.mappings.get(above, Any)
            target[parts[-1]] = _decode(given.node, annotation)
    return tree


def _decode(node: yaml.Node, annotation: TypeForm) -> object:
    """Return a node's value as the annotated type, or else as YAML has it, for pydantic to refuse.

    pydantic's strict mode takes neither true for 1 nor '3' for 3, nor a list for a tuple.
    """
    types = kinds(annotation)
    if isinstance(node, yaml.MappingNode):
        return {key.value: _decode(item, Any) for key, item in node.value}
    if isinstance(node, yaml.SequenceNode):
        items = [item for item in types.get(tuple, ()) if item is not Ellipsis] or [Any]
        pairs = zip(node.value, chain(items, repeat(items[-1])), strict=False)
        values = [_decode(item, kind) for item, kind in pairs]
        return tuple(values) if tuple in types else values
    value, text = scalar(node), str(node.value)
    if text in types.get(Literal, ()):
        return text
    if bool in types and not getattr(node, "style", None) and text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    if int in types and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e5
    if value is None or type(value) in types or (type(value) is int and float in types):
        return value
    if Path in types and "://" not in text:  # a path would lose a slash of a URI
        return Path(text)
    return text if Path in types or str in types else value


# --- Errors -------------------------------------------------------------------------------------


def _key(keys: SchemaIndex, details: ErrorDetails) -> str:
    """Return the option, section or unknown key; what lies inside an option is left out."""
    paths = [".".join(map(str, details["loc"][: i + 1])) for i in range(len(details["loc"]))]
    known = next((path for path in paths if path in keys.options), None)
    if known is None and details["type"] != "extra_forbidden":
        paths = [path for path in paths if path in keys.sections]
    return known or (paths or [""])[-1]


def _line(key: str, details: ErrorDetails, reader: Reader) -> str:
    keys, kind = reader.keys, details["type"]
    path = tuple(key.split(".")) if key else ()
    given = {parts: value for parts, value in reader.values.items() if parts[: len(path)] == path}
    origin = [*given.values()][-1].origin if given else ""
    place = f"{key} ({origin})" if origin else key
    if kind in ("value_error", "assertion_error"):
        head = key if key in keys.sections else place
        return f"{head}: {details['ctx']['error']}" if head else str(details["ctx"]["error"])
    if kind == "extra_forbidden" and key not in keys.options:
        known = ".".join(*given) if len(given) == 1 else key
        return _unknown(known, origin, keys, is_section=len(given) > 1)
    names = ", ".join(keys.sections[key].model_fields) if key in keys.sections else ""
    expected = f"a section with keys {names}" if names else expectation(keys.options[key])
    if not given:
        return f"{key}: required ({expected}) but not set; give {key}=<value>"
    below = ", ".join(parts[len(path)] for parts in given if parts != path)
    found = f"a section with keys {below}" if below else _found(given[path].node)
    return f"{place}: expected {expected}, found {found}"


def _unknown(key: str, origin: str, keys: SchemaIndex, *, is_section: bool) -> str:
    near = nearest(key, [k for k in keys.sections if k] if is_section else keys.options)
    above = key.rpartition(".")[0]
    hint = f"did you mean {' or '.join(near)}?" if near else "see --help"
    if above in keys.sections and above and not near:
        hint = f"keys of {above} are {', '.join(keys.sections[above].model_fields)}"
    return f"{key} ({origin}): unknown key; {hint}"


def _found(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        names = ", ".join(name.value for name, _ in node.value)
        return f"a section with keys {names}" if names else "an empty section"
    if isinstance(node, yaml.SequenceNode):
        text = f"[{', '.join(map(_found, node.value))}]"
    else:
        value = scalar(node)
        text = repr(value) if isinstance(value, str) else "null" if value is None else node.value
    return text if len(text) <= _FOUND_LENGTH else f"{text[:_FOUND_LENGTH]}..."
