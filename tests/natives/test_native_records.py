"""Records of native losses are valid and unique, and listing them imports no framework."""

import importlib.metadata
import inspect
import subprocess
import sys
import types
from dataclasses import replace

import numpy as np
import pytest

from xentx.compare.case import Case, prepare
from xentx.compare.truth import OF_LOSS
from xentx.natives import (
    ENTRY_POINT_GROUP,
    Native,
    Requirement,
    _registry,
    natives,
    plugins,
    runtime_of,
    xentx_records,
)

LOSSES = ("cross_entropy", "binary_cross_entropy")
EVERY = tuple(record for loss in LOSSES for record in (*xentx_records(loss), *natives(loss)))
LIBRARIES = ("torch", "jax", "optax", "tensorflow", "keras", "scipy", "sklearn", "ml_dtypes")
LOGITS = np.asarray([[1.0, 2.0, 0.5], [0.1, 0.5, 2.0]])
TARGET = np.asarray([1, 2])


def fields(**changes):
    """Arguments of a valid record, with changes."""
    return {
        "id": "numpy:example",
        "name": "example",
        "framework": "numpy",
        "call": "stand_ins:right",
        "needs": (Requirement(module="numpy", distributions=("numpy",)),),
        "class_axis": "the last",
        "reductions": {"none": "reduction='none'"},
        "documentation": "https://example.org",
    } | changes


@pytest.fixture
def installed(frameworks):
    """Records that this run can call."""
    keras = [] if "tensorflow" not in frameworks else ["keras"]
    return [r for r in EVERY if r.framework in (*frameworks, *keras) and r.missing() is None]


def test_listing_imports_no_library():
    program = (
        "import sys, xentx.natives as n; records = n.natives(); [r.missing() for r in records]\n"
        f"print(len(records), [m for m in {LIBRARIES} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"{len(natives())} []"


def test_loading_does_import_the_library():
    """The check above can fail."""
    program = (
        "import sys, xentx.natives as n\n"
        "next(r for r in n.natives() if r.id.startswith('scipy')).load()\n"
        "print('scipy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "True"


def test_ids_are_unique():
    ids = [record.id for record in EVERY]
    assert len(ids) == len(set(ids))


def test_options_are_the_keywords_of_the_call(installed):
    for record in installed:
        parameters = inspect.signature(record.load()).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            continue
        assert {*record.options, "reduction"} <= set(parameters), record.id


def test_every_reduction_of_every_native_is_called_and_right(installed):
    """All losses compute the worked example correctly to three digits."""
    for record in installed:
        if record.slow or record.caveat or record.compiled:
            continue
        for reduction in record.reductions:
            case = Case(logits=LOGITS, target=TARGET, reduction=reduction)
            if record.loss == "binary_cross_entropy":
                case = replace(
                    case,
                    target=np.eye(3)[TARGET],
                    target_dtype="float32",
                    kind="probabilities",
                    loss=record.loss,
                )
            answer = prepare(record, case)[1]()
            true = OF_LOSS[record.loss](LOGITS, case.target, reduction=reduction)
            label = f"{record.id} {reduction}"
            np.testing.assert_allclose(answer.loss, true.value, rtol=1e-3, err_msg=label)
            if answer.gradient is not None:
                np.testing.assert_allclose(answer.gradient, true.gradient, rtol=1e-3, err_msg=label)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"id": "nameless"}, "framework:spelling"),
        ({"call": "not a reference"}, "module:function"),
        ({"gradient": "nor this"}, "module:function"),
        ({"needs": ()}, "at least one requirement"),
        ({"documentation": "somewhere"}, "https address"),
        ({"loss": "hinge"}, "hinge"),
        ({"takes": "scores"}, "takes"),
        ({"targets": ()}, "targets"),
        ({"targets": ("labels",)}, "labels"),
        ({"options": {"smoothing": "smoothing"}}, "smoothing"),
        ({"reductions": {}}, "reductions"),
        ({"reductions": {"avg": "avg"}}, "avg"),
    ],
)
def test_an_invalid_record_is_refused(changes, text):
    Native(**fields())
    with pytest.raises(ValueError, match=text):
        Native(**fields(**changes))


def test_a_record_is_frozen():
    record = Native(**fields())
    with pytest.raises(AttributeError):
        record.id = "other"
    with pytest.raises(TypeError):
        record.options["axis"] = "dim"


@pytest.mark.parametrize(
    ("requirement", "text"),
    [
        ({"module": "numpy", "distributions": ("numpy",)}, None),
        ({"module": "numpy", "distributions": ("numpy",), "since": "1.0"}, None),
        (
            {"module": "numpy", "distributions": ("numpy",), "since": "1000.1"},
            "pip install 'numpy>=1000.1'",
        ),
        ({"module": "nowhere", "distributions": ("no-where", "nowhere")}, "pip install no-where"),
    ],
)
def test_a_requirement_says_what_to_install(requirement, text):
    missing = Requirement(**requirement).missing()
    assert (missing is None) if text is None else text in missing


def test_versions_are_numbers_and_not_text(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "2.9.1+cpu")
    assert Requirement(module="numpy", distributions=("numpy",), since="2.13").missing()
    assert Requirement(module="numpy", distributions=("numpy",), since="2.9").missing() is None


def test_a_missing_program_is_a_reason():
    record = Native(**fields(programs=("no-such-compiler", "nor-this")))
    assert record.missing() == "needs a program on the PATH: no-such-compiler or nor-this"


def test_an_unknown_framework_is_refused():
    with pytest.raises(ValueError, match="expected one of numpy, torch"):
        runtime_of("caffe")


@pytest.fixture
def entry_points(monkeypatch):
    """Return a function that registers entry points for a test."""

    def register(**loads):
        def points(*, group):
            assert group == ENTRY_POINT_GROUP
            return [types.SimpleNamespace(name=name, load=load) for name, load in loads.items()]

        monkeypatch.setattr(_registry.importlib.metadata, "entry_points", points)
        plugins.cache_clear()

    yield register
    monkeypatch.undo()
    plugins.cache_clear()


def test_third_parties_register_records(entry_points):
    one, two, three = (Native(**fields(id=f"numpy:{name}")) for name in "abc")
    entry_points(single=lambda: one, several=lambda: [two, three])
    assert natives()[-3:] == (one, two, three)
    assert plugins()[1] == ()


def test_a_broken_plugin_breaks_nothing_else(entry_points):
    good = Native(**fields())
    taken = Native(**fields(id=EVERY[-1].id))
    entry_points(
        crashes=lambda: 1 / 0, strange=lambda: ["text"], taken=lambda: taken, good=lambda: good
    )
    assert natives()[-1] is good
    reasons = {broken.name: broken.reason for broken in plugins()[1]}
    assert "ZeroDivisionError" in reasons["crashes"]
    assert "expected xentx.natives.Native" in reasons["strange"]
    assert "is taken" in reasons["taken"]
