"""Reads off the models what people may write as TOML: every field, its type and its default."""

import json
from collections.abc import Iterator, Mapping, Set
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from heliograph.documents import Document


class Row(NamedTuple):
    """One field.

    Attributes:
        field: its place: `soak.min_s`, `gates[].name`, `limits.<class>.queue`.
        type: of its value; `table` or `tables` for what groups other fields.
        default: in TOML's spelling, or `required`; empty where there is none to be written.
    """

    field: str
    type: str
    default: str


def rows(
    model: type[Document], hidden: Set[str], keys: Mapping[str, str] | None = None, prefix: str = ""
) -> Iterator[Row]:
    """Every field that may be written, in the model's order, what groups fields before them.

    Args:
        model: what the file becomes.
        hidden: names of fields that are filled in, at whatever depth.
        keys: what the names in a table of tables stand for, by the field.
        prefix: the place of the model itself.
    """
    for name, field in model.model_fields.items():
        if name in hidden:
            continue
        shown = prefix + (field.alias or name)
        inner = table_in(field.annotation)
        if inner is None:
            yield Row(shown, _type_name(field.annotation), _default(field))
            continue
        is_list = get_origin(field.annotation) is tuple
        if is_map(field.annotation):
            shown += f".{(keys or {})[name]}"
        elif is_list:
            shown += "[]"
        kind = "tables" if is_list or is_map(field.annotation) else "table"
        yield Row(shown, kind, "required" if field.is_required() else "")
        yield from rows(inner, hidden, keys, shown + ".")


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    return "" if field.default is None else json.dumps(field.default)


def table_in(annotation: Any) -> type[Document] | None:
    """The model that a field's value, or each of its values, is; None for plain values."""
    if isinstance(annotation, type) and issubclass(annotation, Document):
        return annotation
    return next((found for inner in get_args(annotation) if (found := table_in(inner)) is not None), None)


def is_map(annotation: Any) -> bool:
    """Whether a field's value is a table whose names the operator chooses."""
    return get_origin(annotation) is dict


def _type_name(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(inner[0])
    if origin is Literal:
        return " | ".join(json.dumps(value) for value in inner)
    if origin is tuple:
        return f"list of {_type_name(inner[0])}"
    if origin is dict:
        return f"table of {_type_name(inner[1])}"
    if inner:
        return " | ".join(_type_name(part) for part in inner if part is not type(None))
    return {str: "text", int: "integer", float: "number", bool: "true | false"}[annotation]
