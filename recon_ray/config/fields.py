"""Options of a schema by dotted key, their types in words, the key nearest to a misspelt one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

ModelT = TypeVar("ModelT", bound=BaseModel)

#: A type as written in an annotation, for which there is no type.
TypeForm: TypeAlias = Any
#: Sections and name of an option; a key of a free mapping is one part, with its dots.
Parts: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class SchemaIndex:
    """Sections (the root is ""), options and free mappings (with their values' type) by key.

    ``defaults`` has the values that the job sets in a section, unlike the section's own class.
    """

    sections: dict[str, type[BaseModel]] = field(default_factory=dict)
    options: dict[str, FieldInfo] = field(default_factory=dict)
    mappings: dict[str, TypeForm] = field(default_factory=dict)
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        """All dotted keys, first the sections, then the options, in schema order."""
        return [key for key in (*self.sections, *self.options) if key]

    def split(self, key: str) -> Parts:
        """Take a dotted key apart; what follows the name of a free mapping is one part."""
        parts = key.split(".")
        for i in range(1, len(parts)):
            if ".".join(parts[:i]) in self.mappings:
                return (*parts[:i], ".".join(parts[i:]))
        return tuple(parts)


@cache
def index(schema: type[BaseModel]) -> SchemaIndex:
    """List the sections of a schema, which are fields whose type is another model, and options."""
    found = SchemaIndex()
    _collect(schema, "", found, None)
    return found


def _collect(model: type[BaseModel], prefix: str, found: SchemaIndex, default: object) -> None:
    found.sections[prefix] = model
    is_set = default.model_fields_set if isinstance(default, BaseModel) else ()
    found.defaults[prefix] = {name: getattr(default, name) for name in is_set}
    for name, info in model.model_fields.items():
        key = f"{prefix}.{name}" if prefix else name
        section = section_model(info.annotation)
        if section is None:
            found.options[key] = info
            if dict in kinds(info.annotation):
                found.mappings[key] = kinds(info.annotation)[dict][1]
        elif name in is_set:
            _collect(section, key, found, getattr(default, name))
        else:
            _collect(section, key, found, info.get_default(call_default_factory=True))


def kinds(annotation: TypeForm) -> dict[Any, tuple[Any, ...]]:
    """Return the types of a union with their arguments (``tuple``: (int, int)), or the only one."""
    return {_origin(kind): get_args(kind) for kind, _ in _branches(annotation)}


def section_model(annotation: TypeForm) -> type[BaseModel] | None:
    """Return the model of a section's type, or None if the type is no section."""
    models = (kind for kind in kinds(annotation) if isinstance(kind, type))
    return next((kind for kind in models if issubclass(kind, BaseModel)), None)


def _branches(annotation: TypeForm, limits: tuple[Any, ...] = ()) -> list[tuple[TypeForm, Any]]:
    """Return the types of a union, or the only one, with the limits on them."""
    if _origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        found = [limit for item in more for limit in getattr(item, "metadata", [item])]
        return _branches(inner, (*limits, *found))
    if _origin(annotation) in (Union, UnionType):
        return [branch for part in get_args(annotation) for branch in _branches(part, limits)]
    return [(annotation, limits)]


def _origin(annotation: TypeForm) -> TypeForm:
    return get_origin(annotation) or annotation


# --- Types in words ---------------------------------------------------------------------------

_NAMES = {int: "integer", float: "number", str: "text", Path: "path", dict: "mapping"}
_ARTICLES = {"integer": "an ", "number": "a ", "path": "a ", "mapping": "a ", "list": "a "}
_LIMITS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "min_length": "of length >="}


def type_label(info: FieldInfo) -> str:
    """Return the type of an option for a table: "number > 0", "tiny | small"."""
    return " | ".join(_labels(info.annotation, info.metadata))


def expectation(info: FieldInfo) -> str:
    """Return the type of an option for an error: "a number > 0", "one of tiny, small"."""
    labels = _labels(info.annotation, info.metadata)
    if kinds(info.annotation).keys() - {NoneType} == {Literal}:
        return f"one of {', '.join(labels)}"
    *words, last = [_ARTICLES.get(label.split()[0], "") + label for label in labels]
    return f"{', '.join(words)} or {last}" if words else last


def _labels(annotation: TypeForm, metadata: Iterable[Any] = ()) -> list[str]:
    labels = []
    for kind, limits in _branches(annotation, tuple(metadata)):
        base = _origin(kind)
        if base is Literal:
            labels += [scalar_text(value) for value in get_args(kind)]
        elif base in (bool, NoneType):
            labels += ["true", "false"] if kind is bool else ["null"]
        else:
            name = _list_label(kind) if base is tuple else _NAMES.get(base, "any value")
            bounds = [
                f"{sign} {scalar_text(getattr(limit, attribute))}"
                for attribute, sign in _LIMITS.items()
                for limit in limits
                if hasattr(limit, attribute)
            ]
            labels.append(f"{name} {' and '.join(bounds)}".strip())
    return labels


def _list_label(kind: TypeForm) -> str:
    items = [", ".join(_labels(item)) for item in get_args(kind) if item is not Ellipsis]
    if Ellipsis not in get_args(kind):
        return f"list [{', '.join(items)}]"
    return "list of " + re.sub("^(integer|number|text|path)", r"\1s", items[0])


def scalar_text(value: object) -> str:
    """Return a scalar as YAML: true, null, 5e-4 in its shortest form."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    is_short = isinstance(value, float) and value == float(f"{value:g}")
    return f"{value:g}" if is_short else str(value)


# --- Options by their dotted keys -------------------------------------------------------------


def option(config: BaseModel, key: str, *default: Any) -> Any:  # noqa: ANN401 - any option's value
    """Return an option by its dotted key, or the default where the job does not have it."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part, *default)
    return value


def with_option(config: ModelT, key: str, value: object) -> ModelT:
    """Return the configuration with another value of an option, which is not validated."""
    name, _, rest = key.partition(".")
    inner = with_option(getattr(config, name), rest, value) if rest else value
    return config.model_copy(update={name: inner})


# --- Nearest key ------------------------------------------------------------------------------

# Below the first similarity, or the second of the last parts alone, a suggestion misleads more than
# it helps. Two keys closer than the third are both suggested.
_SUGGEST_FROM, _LEAF_FROM, _TIE = 0.6, 0.4, 0.02


def nearest(key: str, candidates: Iterable[str]) -> list[str]:
    """Return the known key that a misspelt dotted key most likely means, or two, or none.

    The last part of a key weighs most, so that ``train.lr`` finds ``optim.lr``; a name also matches
    its initials (``learning_rate``, ``lr``) and its own words with others added
    (``batch_size``, ``global_batch_size``).
    """
    scored = sorted(((_similarity(key, other), other) for other in candidates), reverse=True)
    if not scored or scored[0][0] < _SUGGEST_FROM:
        return []
    return [other for score, other in scored[:2] if score >= scored[0][0] - _TIE]


def _similarity(key: str, other: str) -> float:
    (section, _, leaf), (other_section, _, other_leaf) = key.rpartition("."), other.rpartition(".")
    words, others = leaf.split("_"), other_leaf.split("_")
    initials = {"".join(word[:1] for word in names) for names in (words, others)}
    leaves = _ratio(leaf, other_leaf)
    if leaf != other_leaf and min(len(leaf), len(other_leaf)) > 1 and {leaf, other_leaf} & initials:
        leaves = 0.9
    elif leaf != other_leaf and (set(words) <= set(others) or set(others) <= set(words)):
        leaves = 0.85
    if section and leaves < _LEAF_FROM:
        return 0.0
    return max(_ratio(key, other), 0.75 * leaves + 0.25 * _ratio(section, other_section))


def _ratio(a: str, b: str) -> float:
    return SequenceMatcher(None, a, b).ratio()
