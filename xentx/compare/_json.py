"""A report as JSON: the fields of `xentx.compare.report`, name by name.

JSON has no infinities and no NaN: such a number is the string "Infinity", "-Infinity" or "NaN".
"""

import dataclasses
import json
import math
import types
from typing import Any, Union, get_args, get_origin, get_type_hints

from xentx.compare.report import SCHEMA_VERSION, Number, Report

_NAMES = {math.inf: "Infinity", -math.inf: "-Infinity"}
_VALUES = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def dumps(report: Report) -> str:
    """Write a report as JSON text.

    Parameters
    ----------
    report : Report
        The results.

    Returns
    -------
    str
        An object with a key for each field.
    """
    return json.dumps(_encode(report), allow_nan=False, indent=1, ensure_ascii=False)


def loads(text: str) -> Report:
    """Read what `dumps` wrote.

    Parameters
    ----------
    text : str
        JSON of the schema that this version of xentx writes.

    Returns
    -------
    Report
        The report.

    Raises
    ------
    ValueError
        If the text is not JSON, or has a schema with another first number.
    """
    raw = json.loads(text)
    schema = str(raw.get("schema"))
    wanted = SCHEMA_VERSION.partition(".")[0]
    if schema.partition(".")[0] != wanted:
        msg = f"schema: got {schema}; expected {wanted}.x"
        raise ValueError(msg)
    report: Report = _decode(Report, raw)
    return report


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return _NAMES.get(value, "NaN")
    return value


def _decode(kind: Any, value: Any) -> Any:
    if value is None:
        return None
    kind = next((part for part in get_args(kind) if dataclasses.is_dataclass(part)), kind)
    if isinstance(value, dict) and dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        known = {f.name for f in dataclasses.fields(kind)}
        return kind(
            **{key: _decode(hints[key], item) for key, item in value.items() if key in known}
        )
    if isinstance(value, list):
        inner = get_args(kind)[0] if get_origin(kind) is tuple else kind
        return tuple(_decode(inner, item) for item in value)
    if isinstance(value, str) and value in _VALUES and _is_number(kind):
        return _VALUES[value]
    return value


def _is_number(kind: Any) -> bool:
    """Whether a field of this type holds numbers, and no text that could read "NaN"."""
    if get_origin(kind) in (Union, types.UnionType, tuple):
        return any(_is_number(part) for part in get_args(kind))
    return kind in (float, int, Number) or "Nested" in str(kind)
