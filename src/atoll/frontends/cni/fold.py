"""JSON keys as Go matches them: without regard to case. Pure.

The reference plugins and all runtimes are written in Go, whose encoding/json takes `bandWidth` for `bandwidth`, lets the last of two such
keys win, and reads null as nothing said. Configurations rely on it, so ours are read the same way.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from msgspec import inspect


def fold(kind: type[Any], value: Any) -> Any:
    """JSON as Python's own types, with the keys that the fields of the struct `kind` (and of structs in it) know spelled as they are there.
    Unknown keys are left out, unless the struct forbids them; then they stay, to be complained of."""
    found: Any = kind
    return _fold(_shape(found), value)


@cache
def _shape(kind: Any) -> inspect.Type:
    return inspect.type_info(kind)


@cache
def _fields(struct: Any) -> dict[str, inspect.Field]:
    shape = _shape(struct)
    assert isinstance(shape, inspect.StructType)  # noqa: S101
    return {field.encode_name.lower(): field for field in shape.fields}


def _fold(shape: inspect.Type, value: Any) -> Any:
    match shape:
        case inspect.StructType(cls=struct) if isinstance(value, dict):
            fields = _fields(struct)
            strict = struct.__struct_config__.forbid_unknown_fields
            folded: dict[str, Any] = {}
            for key, part in value.items():
                field = fields.get(key.lower())
                if field is None:
                    if strict:
                        folded[key] = part
                elif part is not None:
                    folded[field.encode_name] = _fold(field.type, part)
            return folded
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item) if isinstance(value, list):
            return [_fold(item, part) for part in value]
        case inspect.DictType(value_type=item) if isinstance(value, dict):
            return {key: _fold(item, part) for key, part in value.items()}
        case inspect.UnionType(types=kinds):
            structured = [k for k in kinds if isinstance(k, (inspect.StructType, inspect.ListType, inspect.VarTupleType, inspect.DictType))]
            return _fold(structured[0], value) if structured else value
        case _:
            return value
