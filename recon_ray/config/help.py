"""What ``--help`` and ``--print-config`` print: both come from the schema alone."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import PurePath
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from recon_ray.config.fields import SchemaIndex, index, nearest, scalar_text, type_label
from recon_ray.config.yaml_tree import add_resolvers
from recon_ray.errors import ConfigError

# Widest type and default column before their cells are broken into lines.
_TYPE_WIDTH = 30
_DEFAULT_WIDTH = 20
_DESCRIPTION_WIDTH = 40


def format_help(schema: type[BaseModel], section: str | None = None, *, width: int = 110) -> str:
    """Describe the options of a job in a table: key, type, default, meaning.

    Args:
        schema: Root model of the job.
        section: Dotted section or option to describe; everything if None.
        width: Columns of the terminal.

    Returns:
        The text, without a final newline.

    Raises:
        ConfigError: No such section; names the nearest.
    """
    keys = index(schema)
    if section in keys.options:
        return "\n".join(_table({section: keys.options[section]}, keys, width))
    if section is not None and section not in keys.sections:
        raise ConfigError(_unknown_section(section, keys))
    wanted = section or ""
    blocks = []
    for name in keys.sections:
        if not wanted or name == wanted or name.startswith(f"{wanted}."):
            blocks += _section(name, keys, width)
    return "\n\n".join(blocks)


def _section(name: str, keys: SchemaIndex, width: int) -> list[str]:
    options = {key: info for key, info in keys.options.items() if key.rpartition(".")[0] == name}
    if not options:
        return []
    summary = (keys.sections[name].__doc__ or "").strip().partition("\n")[0]
    title = [f"{name}: {summary}" if summary else name] if name else []
    return ["\n".join(title + _table(options, keys, width))]


def _unknown_section(section: str, keys: SchemaIndex) -> str:
    suggested = nearest(section, keys.keys)
    names = ", ".join(name for name in keys.sections if name)
    hint = f"did you mean {' or '.join(suggested)}?" if suggested else f"sections are {names}"
    return f"{section}: unknown section; {hint}"


def _table(options: Mapping[str, FieldInfo], keys: SchemaIndex, width: int) -> list[str]:
    rows = [
        (key, type_label(info), _default(key, info, keys), info.description or "")
        for key, info in options.items()
    ]
    sizes = [max(len(row[column]) for row in rows) for column in range(3)]
    sizes[1], sizes[2] = min(sizes[1], _TYPE_WIDTH), min(sizes[2], _DEFAULT_WIDTH)
    sizes.append(max(_DESCRIPTION_WIDTH, width - sum(sizes) - 2 - 2 * 3))
    return [line for row in rows for line in _row(row, sizes)]


def _row(cells: Sequence[str], sizes: Sequence[int]) -> list[str]:
    columns = [textwrap.wrap(cell, size) or [""] for cell, size in zip(cells, sizes, strict=True)]
    height = max(len(column) for column in columns)
    lines = []
    for i in range(height):
        parts = [
            (column[i] if i < len(column) else "").ljust(size)
            for column, size in zip(columns, sizes, strict=True)
        ]
        lines.append("  " + "  ".join(parts).rstrip())
    return lines


def _default(key: str, info: FieldInfo, keys: SchemaIndex) -> str:
    if key in keys.defaults:
        value = _as_data(keys.defaults[key])
    elif info.is_required():
        return "required"
    else:
        value = _as_data(info.get_default(call_default_factory=True))
    if isinstance(value, list | dict):
        dumped = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=_NO_WRAP)
        return dumped.strip()
    return scalar_text(value)


# --- YAML ---------------------------------------------------------------------------------------

_NO_WRAP = 1 << 30


class _Dumper(yaml.SafeDumper):
    """Quotes whatever the loader, or a YAML 1.1 reader, would not read back as the same text."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_list(dumper: _Dumper, data: list[Any]) -> yaml.Node:
    inline = not any(isinstance(item, list | dict) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=inline or None)


_Dumper.add_representer(list, _represent_list)
add_resolvers(_Dumper)


def dump_yaml(config: BaseModel) -> str:
    """Write a resolved configuration, sections in schema order; loading it gives an equal one.

    Args:
        config: Configuration.

    Returns:
        YAML text that ends in a newline.
    """
    return yaml.dump(
        as_mapping(config),
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=False,
        allow_unicode=True,
        width=_NO_WRAP,
    )


def as_mapping(config: BaseModel | Mapping[str, object]) -> dict[str, object]:
    """Turn a configuration or a dictionary into a dictionary of plain YAML data."""
    if isinstance(config, BaseModel):
        return {name: _as_data(getattr(config, name)) for name in type(config).model_fields}
    return {str(key): _as_data(item) for key, item in config.items()}


def _as_data(value: object) -> object:
    """Turn models, tuples, sets, paths and enumerations into the plain data that YAML has."""
    if isinstance(value, BaseModel | Mapping):
        return as_mapping(value)
    if isinstance(value, tuple | list):
        return [_as_data(item) for item in value]
    if isinstance(value, set | frozenset):
        return [_as_data(item) for item in sorted(value, key=str)]
    if isinstance(value, Enum):
        return _as_data(value.value)
    return str(value) if isinstance(value, PurePath) else value
