"""Texts of ``--help`` and ``--print-config``: both come from the schema alone."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from recon_ray.config.fields import SchemaIndex, index, nearest, scalar_text, type_label
from recon_ray.config.yaml_tree import add_resolvers
from recon_ray.errors import ConfigError

# Widest column of types and of defaults, narrowest of descriptions.
_TYPE_WIDTH, _DEFAULT_WIDTH, _DESCRIPTION_WIDTH = 30, 20, 40


def format_help(schema: type[BaseModel], section: str | None = None, *, width: int = 110) -> str:
    """Describe the options of a job in a table: key, type, default, meaning.

    Args:
        schema: Root model of the job.
        section: Dotted section or option to describe; everything if None.
        width: Columns of the terminal.

    Raises:
        ConfigError: No such section; names the nearest.
    """
    keys = index(schema)
    if section in keys.options:
        return _table({section: keys.options[section]}, keys, width)
    if section is not None and section not in keys.sections:
        suggested = nearest(section, keys.keys)
        names = ", ".join(name for name in keys.sections if name)
        hint = f"did you mean {' or '.join(suggested)}?" if suggested else f"sections are {names}"
        raise ConfigError(f"{section}: unknown section; {hint}")
    blocks = []
    for name, model in keys.sections.items():
        options = {k: info for k, info in keys.options.items() if k.rpartition(".")[0] == name}
        if options and (not section or f"{name}.".startswith(f"{section}.")):
            summary = (model.__doc__ or "").strip().partition("\n")[0]
            title = f"{name}: {summary}\n" if name else ""
            blocks.append(title + _table(options, keys, width))
    return "\n\n".join(blocks)


def _table(options: Mapping[str, FieldInfo], keys: SchemaIndex, width: int) -> str:
    rows = [
        (key, type_label(info), _default(key, keys), info.description or "")
        for key, info in options.items()
    ]
    sizes = [max(len(row[column]) for row in rows) for column in range(3)]
    sizes[1:] = min(sizes[1], _TYPE_WIDTH), min(sizes[2], _DEFAULT_WIDTH)
    sizes.append(max(_DESCRIPTION_WIDTH, width - sum(sizes) - 2 - 2 * 3))
    lines = []
    for row in rows:
        cells = [textwrap.wrap(cell, size) for cell, size in zip(row, sizes, strict=True)]
        for parts in zip_longest(*cells, fillvalue=""):
            padded = [part.ljust(size) for part, size in zip(parts, sizes, strict=True)]
            lines.append(f"  {'  '.join(padded)}".rstrip())
    return "\n".join(lines)


def _default(key: str, keys: SchemaIndex) -> str:
    section, _, name = key.rpartition(".")
    info = keys.options[key]
    if name not in keys.defaults[section] and info.is_required():
        return "required"
    own = info.get_default(call_default_factory=True)
    value = to_jsonable_python(keys.defaults[section].get(name, own))
    return _dump(value, flow=True).strip() if isinstance(value, list | dict) else scalar_text(value)


# --- YAML ---------------------------------------------------------------------------------------


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
    """Return a configuration as YAML, sections in schema order; it loads as an equal one."""
    return _dump(as_mapping(config), flow=False)


def _dump(data: object, *, flow: bool) -> str:
    options: Any = {"default_flow_style": flow, "allow_unicode": True, "width": 1 << 30}
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, **options)


def as_mapping(config: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration or a dictionary in plain YAML data: no models, tuples and paths."""
    data = config.model_dump() if isinstance(config, BaseModel) else config
    plain: dict[str, Any] = to_jsonable_python(data, fallback=lambda value: value.item())
    return plain
