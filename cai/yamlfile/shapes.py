"""What a model expects at a path: its types, the keys it knows, the names near to a wrong one."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import PurePath
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cai.yamlfile.problems import Path, dotted

_LONGEST_NAME = 64
"""Longer names are near to nothing; comparing them would take long."""


def types_at(model: type[BaseModel], path: Path) -> list[Any]:
    """Return the types that may stand at `path`, unions taken apart; empty where the model knows no such path."""
    types: list[Any] = [model]
    for part in path:
        types = [inner for kind in types for inner in _inside(kind, part)]
    return types


def keys_of(types: Iterable[Any]) -> dict[str, FieldInfo]:
    """Return the fields of all models among `types`, by the name they have in YAML."""
    models = [kind for kind in types if _is_model(kind)]
    return {field.alias or name: field for model in models for name, field in model.model_fields.items()}


def kinds_of(types: Iterable[Any]) -> set[type]:
    """Return the kinds of scalar (bool, int, float, str, NoneType) that `types` allow."""
    kinds: set[type] = set()
    for kind in types:
        if get_origin(kind) is Literal:
            kinds |= {type(value) for value in get_args(kind)}
        elif isinstance(kind, type):
            is_text = issubclass(kind, (str, PurePath, enum.Enum))
            kinds |= {str} if is_text else {kind} & {bool, int, float, type(None)}
    return kinds


def choices_of(types: Iterable[Any]) -> list[Any]:
    """Return the values that the Literals among `types` allow."""
    return [value for kind in types if get_origin(kind) is Literal for value in get_args(kind)]


def has_list(types: Iterable[Any]) -> bool:
    """Return whether one of `types` is written as a YAML list."""
    origins = [get_origin(kind) or kind for kind in types]
    return any(isinstance(kind, type) and issubclass(kind, (list, tuple, set, frozenset)) for kind in origins)


def nearest(name: str, known: Collection[str]) -> str | None:
    """Return the known name that is nearest to `name`, or None where none is near."""
    if name in known:
        return name
    if len(name) > _LONGEST_NAME:
        return None
    spelled = {other.lower(): other for other in known}
    found = get_close_matches(name.lower().replace("-", "_"), spelled, n=1, cutoff=0.6)
    return spelled[found[0]] if found else None


def homes_of(name: str, model: type[BaseModel], *, depth: int = 4) -> list[str]:
    """Return the dotted paths at which a model and those inside it know the key `name`. Lists are not entered."""
    homes: list[str] = []
    _collect(name, model, (), depth, homes)
    return homes


def about_key(name: str, types: Sequence[Any], model: type[BaseModel]) -> str:
    """Return what to do about a key that none of `types` knows: the nearest name, or else where it belongs."""
    known = keys_of(types)
    near = nearest(name, known)
    if near is not None:
        return f"did you mean '{near}'?"
    homes = homes_of(name, model)
    if homes:
        return "it belongs to " + " or ".join(f"'{home}'" for home in homes[:4])
    return "delete it, or use a known key"


def _collect(name: str, model: type[BaseModel], path: Path, depth: int, homes: list[str]) -> None:
    for key, field in keys_of([model]).items():
        if key == name:
            homes.append(dotted((*path, key)))
        for kind in _members(field.annotation):
            if depth > 1 and _is_model(kind):
                _collect(name, kind, (*path, key), depth - 1, homes)


def _inside(kind: Any, part: str | int) -> list[Any]:
    """Return the types that stand under `part` in a value of type `kind`."""
    if _is_model(kind):
        field = keys_of([kind]).get(str(part))
        return _members(field.annotation) if field else []
    origin, args = get_origin(kind), get_args(kind)
    if not isinstance(origin, type) or not args:
        return []
    if issubclass(origin, Mapping):
        return _members(args[1]) if isinstance(part, str) else []
    if isinstance(part, int):
        is_fixed = origin is tuple and args[-1] is not Ellipsis
        return _members(args[min(part, len(args) - 1)] if is_fixed else args[0])
    return []


def _members(annotation: Any) -> list[Any]:
    """Return what an annotation stands for, with unions and Annotated taken away."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [kind for member in get_args(annotation) for kind in _members(member)]
    return [annotation]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
