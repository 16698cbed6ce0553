"""Reports as JSON: stable, documented, and equal after reading."""

import ast
import dataclasses
import inspect
import json
import math

import pytest

from xentx.compare import CORNERS, REGIMES, Plan, _json, compare
from xentx.compare import report as schema


@pytest.fixture(scope="module")
def report():
    names = ("minus-inf-at-target", "nan-logit", "target-too-high", "weight-mean")
    plan = Plan(
        frameworks=("numpy",),
        regimes=(REGIMES["worked-example"], REGIMES["gap"]),
        dtypes=("float32", "float16"),
        corners=tuple(CORNERS[name] for name in names),
    )
    return compare(plan)


def test_it_is_equal_after_reading(report):
    text = _json.dumps(report)
    # The texts are compared, since NaN is unequal to itself.
    assert _json.dumps(_json.loads(text)) == text
    assert type(_json.loads(text).corners[0].results[0].outcome) is schema.Outcome


def test_it_is_strict_json(report):
    def refuse(constant):
        pytest.fail(f"{constant} is no JSON")

    raw = json.loads(_json.dumps(report), parse_constant=refuse)
    at_target = raw["corners"][0]["expected"]
    assert at_target["loss"][0] == "Infinity"
    assert raw["corners"][1]["expected"]["loss"][0] == "NaN"


def test_numbers_that_json_lacks_come_back(report):
    back = _json.loads(_json.dumps(report))
    assert back.corners[0].expected.loss[0] == math.inf
    assert math.isnan(back.corners[1].expected.loss[0])


def test_text_stays_text(report):
    """A message that looks like a number remains a string."""
    outcome = schema.Outcome(error="E", message="NaN", loss=math.nan, dtype=None, gradient=None)
    corner = dataclasses.replace(report.corners[0], expected=outcome)
    back = _json.loads(_json.dumps(dataclasses.replace(report, corners=(corner,))))
    assert back.corners[0].expected.message == "NaN"
    assert math.isnan(back.corners[0].expected.loss)


def test_another_schema_is_refused(report):
    raw = json.loads(_json.dumps(report)) | {"schema": "99.0"}
    with pytest.raises(ValueError, match="got 99"):
        _json.loads(json.dumps(raw))


def test_a_later_minor_schema_is_read(report):
    major = schema.SCHEMA_VERSION.partition(".")[0]
    raw = json.loads(_json.dumps(report)) | {"schema": f"{major}.999", "news": 1}
    assert _json.loads(json.dumps(raw)).xentx == report.xentx


RECORDS = [
    kind
    for _, kind in inspect.getmembers(schema, dataclasses.is_dataclass)
    if kind.__module__ == schema.__name__
]


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_every_field_is_documented(kind):
    body = ast.parse(inspect.getsource(kind)).body[0].body
    for field, text in zip(body, [*body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign):
            documented = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            assert documented, f"{kind.__name__}.{field.target.id}"
