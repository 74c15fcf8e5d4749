"""Options of a schema by dotted key and in words, and the key nearest to a misspelt one."""

from __future__ import annotations

import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

# A type as written in an annotation, and what pydantic keeps of `Field(...)`: neither has a type.
TypeForm: TypeAlias = Any
_Metadata: TypeAlias = Any

LIST_TYPES = (tuple, list, set, frozenset, Sequence)

# Below this similarity a suggestion misleads more than it helps.
_SUGGEST_FROM = 0.6
# The same for the last part alone: the right section is no reason to suggest any of its options.
_LEAF_FROM = 0.4
# Two keys this close in similarity are both suggested.
_TIE = 0.02


@dataclass(frozen=True)
class SchemaIndex:
    """Every key of a schema: sections (the root is ""), options (leaves), and free mappings.

    ``defaults`` has the options whose default is that of the job, not of the section's own class.
    """

    sections: dict[str, type[BaseModel]] = field(default_factory=dict)
    options: dict[str, FieldInfo] = field(default_factory=dict)
    mappings: set[str] = field(default_factory=set)
    defaults: dict[str, Any] = field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        """All dotted keys, first the sections, then the options, in schema order."""
        return [key for key in (*self.sections, *self.options) if key]


@cache
def index(schema: type[BaseModel]) -> SchemaIndex:
    """List the sections and options of a schema.

    Args:
        schema: Root model; sections are fields whose type is (or may be) another model.

    Returns:
        The keys in schema order.
    """
    found = SchemaIndex()
    _collect(schema, "", found, None)
    return found


def _collect(
    model: type[BaseModel], prefix: str, found: SchemaIndex, default: BaseModel | None
) -> None:
    found.sections[prefix] = model
    for name, info in model.model_fields.items():
        key = f"{prefix}.{name}" if prefix else name
        section = section_model(info.annotation)
        if section is not None:
            _collect(section, key, found, section_default(info, name, default))
            continue
        found.options[key] = info
        if default is not None and name in default.model_fields_set:
            found.defaults[key] = getattr(default, name)
        if any(
            type_origin(branch) is dict or branch is dict for branch in members(info.annotation)
        ):
            found.mappings.add(key)


def section_default(info: FieldInfo, name: str, outer: BaseModel | None) -> BaseModel | None:
    """Return the values that a section starts from where some of its options are given.

    Args:
        info: Field of the section.
        name: Its name.
        outer: Default of the section that it lies in, which wins over the field's own.
    """
    if outer is not None and name in outer.model_fields_set:
        value = getattr(outer, name)
    else:
        value = None if info.is_required() else info.get_default(call_default_factory=True)
    return value if isinstance(value, BaseModel) else None


def members(annotation: TypeForm) -> tuple[Any, ...]:
    """Flatten a union into its members; anything else is its own only member."""
    if type_origin(annotation) is Annotated and _is_union(get_args(annotation)[0]):
        return members(get_args(annotation)[0])
    if not _is_union(annotation):
        return (annotation,)
    return tuple(member for part in get_args(annotation) for member in members(part))


def section_model(annotation: TypeForm) -> type[BaseModel] | None:
    """Return the model of a section's type, or None if the type is no section."""
    for member in members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            return member
    return None


def type_origin(annotation: TypeForm) -> TypeForm:
    """Return the generic of a type (``tuple`` of ``tuple[int, int]``), None if there is none."""
    return get_origin(annotation)


def _is_union(annotation: TypeForm) -> bool:
    return type_origin(annotation) in (Union, types.UnionType)


# --- Types in words ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Words:
    """One type as a phrase with article, as a label, and in the plural."""

    one: str
    label: str
    many: str

    def limited(self, limit: str) -> _Words:
        return _Words(self.one + limit, self.label + limit, self.many + limit)


_SIMPLE = {
    bool: _Words("true or false", "true | false", "true or false"),
    int: _Words("an integer", "integer", "integers"),
    float: _Words("a number", "number", "numbers"),
    str: _Words("text", "text", "texts"),
    Path: _Words("a path", "path", "paths"),
    type(None): _Words("null", "null", "nulls"),
    dict: _Words("a mapping", "mapping", "mappings"),
}
_LIMITS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))


def expectation(info: FieldInfo) -> str:
    """Say what an option accepts, for an error: "a number > 0", "one of tiny, small"."""
    choices = _choices(info.annotation)
    return f"one of {', '.join(choices)}" if choices else _words(info.annotation, info.metadata).one


def type_label(info: FieldInfo) -> str:
    """Say what an option accepts, for a table: "number > 0", "tiny | small"."""
    return _words(info.annotation, info.metadata).label


def _choices(annotation: TypeForm) -> list[str]:
    """Return the choices of a type that has nothing but choices, else an empty list."""
    branches = members(annotation)
    if not any(type_origin(b) is Literal or _is_enum(b) for b in branches):
        return []
    if any(
        type_origin(b) is not Literal and not _is_enum(b) and b is not type(None) for b in branches
    ):
        return []
    return [choice for branch in branches for choice in _branch_choices(branch)]


def _branch_choices(branch: TypeForm) -> list[str]:
    if branch is type(None):
        return ["null"]
    return [scalar_text(value) for value in literal_values(branch)]


def literal_values(branch: TypeForm) -> tuple[Any, ...]:
    """Return the values of a ``Literal`` or an enumeration, else nothing."""
    if type_origin(branch) is Literal:
        return get_args(branch)
    return tuple(member.value for member in branch) if _is_enum(branch) else ()


def _is_enum(annotation: TypeForm) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Enum)


def _words(annotation: TypeForm, metadata: Iterable[Any] = ()) -> _Words:
    if type_origin(annotation) is Annotated:
        inner, *extra = get_args(annotation)
        return _words(inner, (*metadata, *extra))
    if _is_union(annotation):
        return _union_words(annotation, metadata)
    if literal_values(annotation):
        choices = _branch_choices(annotation)
        words = _Words(", ".join(choices), " | ".join(choices), f"values from {', '.join(choices)}")
    else:
        words = (
            _SIMPLE.get(annotation) or _SIMPLE.get(type_origin(annotation)) or _other(annotation)
        )
    return words.limited(_limits(metadata))


def _union_words(annotation: TypeForm, metadata: Iterable[Any]) -> _Words:
    parts = [
        _words(member, () if member is type(None) else metadata) for member in members(annotation)
    ]
    one = f"{', '.join(part.one for part in parts[:-1])} or {parts[-1].one}"
    return _Words(one, " | ".join(part.label for part in parts), one)


def _other(annotation: TypeForm) -> _Words:
    if type_origin(annotation) in LIST_TYPES or annotation in LIST_TYPES:
        return _list_words(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _Words("a section", "section", "sections")
    if isinstance(annotation, type) and issubclass(annotation, Path):
        return _SIMPLE[Path]
    return _Words("any value", "any", "any values")


def _list_words(annotation: TypeForm) -> _Words:
    items = get_args(annotation)
    if not items:
        phrase = "list"
    elif len(items) == 1 or items[-1] is Ellipsis:
        phrase = f"list of {_words(items[0]).many}"
    elif len({str(item) for item in items}) == 1:
        phrase = f"list of {len(items)} {_words(items[0]).many}"
    else:
        phrase = f"list [{', '.join(_words(item).label for item in items)}]"
    return _Words(f"a {phrase}", phrase, phrase.replace("list", "lists", 1))


def _limits(metadata: Iterable[Any]) -> str:
    flat: list[Any] = []
    for item in metadata:
        flat += item.metadata if isinstance(item, FieldInfo) else [item]
    bounds = [
        f"{sign} {scalar_text(getattr(item, name))}"
        for name, sign in _LIMITS
        for item in flat
        if getattr(item, name, None) is not None
    ]
    text = f" {' and '.join(bounds)}" if bounds else ""
    for item in flat:
        text += _size_limit(item)
    return text


def _size_limit(item: _Metadata) -> str:
    if getattr(item, "pattern", None):
        return f" matching {item.pattern}"
    if getattr(item, "multiple_of", None) is not None:
        return f" divisible by {item.multiple_of}"
    if getattr(item, "min_length", 0):
        return f" (at least {item.min_length} long)"
    if getattr(item, "max_length", None) is not None:
        return f" (at most {item.max_length} long)"
    return ""


def scalar_text(value: object) -> str:
    """Write a scalar as YAML would: true, null, 5e-4 in its shortest form."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return (
        format(value, "g")
        if isinstance(value, float) and value == float(f"{value:g}")
        else str(value)
    )


# --- Nearest key ------------------------------------------------------------------------------


def nearest(key: str, candidates: Iterable[str]) -> list[str]:
    """Find the known keys that a misspelt one most likely means.

    The last part of a key weighs most, so that ``train.lr`` finds ``optim.lr``; a name also matches
    its initials (``learning_rate``, ``lr``) and its own words with others added
    (``batch_size``, ``global_batch_size``).

    Args:
        key: Dotted key that is not known.
        candidates: Dotted keys that are.

    Returns:
        Best match first, at most two and only if equally good; empty if nothing is near.
    """
    scored = sorted(((_similarity(key, other), other) for other in candidates), reverse=True)
    best = scored[0][0] if scored else 0.0
    if best < _SUGGEST_FROM:
        return []
    return [other for score, other in scored if score >= best - _TIE][:2]


def _similarity(key: str, other: str) -> float:
    section, _, leaf = key.rpartition(".")
    other_section, _, other_leaf = other.rpartition(".")
    leaves = _leaf_similarity(leaf, other_leaf)
    if section and leaves < _LEAF_FROM:
        return 0.0
    return max(_ratio(key, other), 0.75 * leaves + 0.25 * _ratio(section, other_section))


def _leaf_similarity(leaf: str, other: str) -> float:
    words, others = leaf.split("_"), other.split("_")
    initials = {"".join(word[:1] for word in words), "".join(word[:1] for word in others)}
    if leaf != other and len(min(leaf, other, key=len)) > 1 and initials & {leaf, other}:
        return 0.9
    if leaf != other and (set(words) <= set(others) or set(others) <= set(words)):
        return 0.85
    return _ratio(leaf, other)


def _ratio(a: str, b: str) -> float:
    return SequenceMatcher(None, a, b).ratio() if a != b else 1.0
