# ruff: noqa: ANN401  (JSON values and type annotations have no narrower type)
"""Frozen dataclasses to JSON and back, refusing whatever does not fit the annotated types exactly."""

import contextlib
import dataclasses
import functools
import json
import math
import types
from typing import Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")

_PLAIN: Final = (str, int, bool, types.NoneType)
"""Types whose every value fits."""


class Misfit(ValueError):
    """A JSON value that does not fit; the message says where in the document."""


def dumps(record: object) -> str:
    """Indented JSON of a dataclass, its fields in the order of declaration, with a newline at the end."""
    if not dataclasses.is_dataclass(record) or isinstance(record, type):
        raise TypeError(f"{record!r} is no dataclass instance")
    return json.dumps(dataclasses.asdict(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def loads(kind: type[T], text: str | bytes) -> T:
    """A `kind` from JSON: every field there, no other, each of its type; an int may stand for a float.

    Only a field with a default may be missing. Understands str, int, float, bool, None, Literal, unions, tuples,
    `dict[str, ...]` and dataclasses of these.

    Raises:
        Misfit: not JSON, or not this shape.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except Misfit:
        raise
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a plain ValueError
        raise Misfit(f"not JSON: {error}") from error
    return cast(T, _fit(kind, value, ""))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise Misfit(f"the same name twice among {', '.join(names)}")
    return dict(pairs)


def _no_constant(name: str) -> float:
    raise Misfit(f"{name} is no number")


def _fit(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`; `where` is the path to it, for the message."""
    if type(value) is kind and kind in _PLAIN:
        return value
    origin = get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _fit_record(cast(type, kind), value, where)
    if origin is Literal:
        return _checked(value, where, value in get_args(kind), "one of " + ", ".join(map(repr, get_args(kind))))
    if origin in (Union, types.UnionType):
        return _fit_union(kind, value, where)
    if origin is tuple:
        return _fit_tuple(get_args(kind), value, where)
    if origin is dict:
        _checked(value, where, isinstance(value, dict), "an object")
        return {name: _fit(get_args(kind)[1], item, f"{where}.{name}") for name, item in value.items()}
    return _fit_scalar(kind, value, where)


def _fit_record(kind: type, value: Any, where: str) -> Any:
    _checked(value, where, isinstance(value, dict), "an object")
    hints = _hints(kind)
    fields = dataclasses.fields(kind)
    unknown = sorted(set(value) - {f.name for f in fields})
    missing = [f.name for f in fields if f.name not in value and _required(f)]
    if unknown or missing:
        faults = [f"unknown {n!r}" for n in unknown] + [f"missing {n!r}" for n in missing]
        raise Misfit(f"{where.lstrip('.') or 'top level'}: {', '.join(faults)}")
    plain = _plain_types(kind)  # most values are plain: this is what reading thousands of records lives on
    return kind(**{
        n: item if type(item) in plain[n] else _fit(hints[n], item, f"{where}.{n}") for n, item in value.items()
    })  # fmt: skip


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


@functools.cache
def _plain_types(kind: type) -> dict[str, frozenset[type]]:
    """For each field of a dataclass, the types whose values it takes as they are."""
    found: dict[str, frozenset[type]] = {}
    for name, hint in _hints(kind).items():
        members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        found[name] = frozenset(member for member in members if member in _PLAIN)
    return found


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _fit_union(kind: Any, value: Any, where: str) -> Any:
    if type(value) in _PLAIN and type(value) in get_args(kind):
        return value
    faults: list[str] = []
    for member in get_args(kind):
        try:
            return _fit(member, value, where)
        except Misfit as fault:
            faults.append(str(fault))
    raise Misfit(" or ".join(faults))


def _fit_tuple(members: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    _checked(value, where, isinstance(value, list), "an array")
    if len(members) == 2 and members[1] is Ellipsis:
        members = (members[0],) * len(value)
    _checked(value, where, len(value) == len(members), f"{len(members)} long")
    return tuple(_fit(m, item, f"{where}[{k}]") for k, (m, item) in enumerate(zip(members, value, strict=True)))


def _fit_scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is float and type(value) is int:
        with contextlib.suppress(OverflowError):
            value = float(value)
    right = type(value) is kind and not (kind is float and not math.isfinite(value))
    return _checked(value, where, right, "null" if kind is types.NoneType else f"a finite {kind.__name__}")


def _checked(value: Any, where: str, fits: bool, wanted: str) -> Any:  # noqa: FBT001
    if not fits:
        raise Misfit(f"{where.lstrip('.') or 'top level'}: {str(value)[:60]!r} is not {wanted}")
    return value
