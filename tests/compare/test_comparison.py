"""Comparisons: verdicts, tolerances, failures, and the results of xentx."""

import dataclasses

import numpy as np
import pytest

from xentx.compare import (
    BINARY_CORNERS,
    CORNERS,
    REGIMES,
    Plan,
    _evaluate,
    _run,
    compare,
    user_regime,
)
from xentx.compare._evaluate import Availability, Truth, measure, visit
from xentx.compare._floats import FORMATS, Yardstick
from xentx.natives import Native, Requirement, natives, xentx_records

NUMPY = Requirement(module="numpy", distributions=("numpy",))
BINARY = "binary_cross_entropy"
XENTX = {record.id: record for record in xentx_records()}
NATIVES = {record.id: record for record in (*natives(), *natives(BINARY))}
EVERY_CORNER = CORNERS | BINARY_CORNERS


def stand_in(function, **changes):
    """Record of a loss in tests/support/stand_ins.py."""
    record = Native(
        id=f"numpy:{function}",
        name=function,
        framework="numpy",
        call=f"stand_ins:{function}",
        needs=(NUMPY,),
        class_axis="the last",
        reductions={"none": "none", "mean": "mean", "sum": "sum"},
        documentation="https://example.org",
    )
    return dataclasses.replace(record, **changes)


@pytest.fixture
def truth():
    return Truth.of(REGIMES["worked-example"].case("float32", seed=0))


@pytest.mark.parametrize(
    ("function", "verdict"),
    [("right", "accurate"), ("near", "close"), ("wrong", "wrong"), ("raises", "error")],
)
def test_verdicts(function, verdict, truth):
    assert measure(stand_in(function), truth).verdict == verdict


def test_an_error_is_reported_in_one_line(truth):
    found = measure(stand_in("raises"), truth)
    assert found.message == "ArithmeticError: nothing is good enough"
    assert found.loss_errors is None


def test_a_loss_of_the_wrong_shape_is_an_error(truth):
    found = measure(stand_in("of_one_row"), truth)
    assert found.message == "ValueError: returned losses of shape () for 2 rows"


def test_a_loss_that_only_reduces_is_called_row_by_row(truth):
    found = measure(stand_in("reduces", reductions={"mean": "mean"}), truth)
    assert found.verdict == "accurate"
    assert found.row_losses == measure(stand_in("right"), truth).row_losses


def test_row_by_row_takes_the_extreme_rows_and_the_mean_is_of_all(monkeypatch):
    truth = Truth.of(REGIMES["gap"].case("float32", seed=0))
    every = measure(stand_in("right"), truth)
    monkeypatch.setattr(_evaluate, "ONE_BY_ONE", 4)
    found = measure(stand_in("reduces", reductions={"mean": "mean"}), truth)
    assert found.verdict == "accurate"
    assert found.row_losses == every.row_losses[:2] + every.row_losses[-2:]
    assert found.mean == pytest.approx(every.mean, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"logits_dtypes": ("float64",)}, "takes no float32"),
        ({"max_classes": 2}, "at most 2 classes"),
    ],
)
def test_unsupported_calls_of_a_native_are_not_applicable(changes, text, truth):
    found = measure(stand_in("right", **changes), truth)
    assert (found.verdict, text in found.message) == ("not applicable", True)


def test_a_broken_library_is_unavailable_and_tried_once():
    available = Availability()
    broken = stand_in("no_such_function")
    assert available.problem(broken).startswith("fails to import: AttributeError")
    assert available.problem(stand_in("right")) is None


def test_errors_count_zeros_and_nan():
    true = Yardstick.of(np.asarray([1e-9, 1.0, 2.0]), FORMATS["float32"])
    found, close = _evaluate.errors(np.asarray([0.0, 1.0, np.nan]), true)
    assert not close
    assert found.zeros == pytest.approx(1 / 3)
    assert found.max_ulp == np.inf
    assert found.max_absolute == pytest.approx(1e-9)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", [n for n in REGIMES if "262144" not in n])
def test_xentx_is_accurate_on_numpy(name, dtype):
    if REGIMES[name].needs:
        pytest.importorskip(REGIMES[name].needs)
    truth = Truth.of(REGIMES[name].case(dtype, seed=0))
    found = measure(XENTX["xentx:numpy"], truth, timed=False)
    assert found.verdict == "accurate", found


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_xentx_is_accurate_on_every_framework(dtype, frameworks):
    for name in ("normal-10", "confident-10", "offset-10", "scaled-10"):
        truth = Truth.of(REGIMES[name].case(dtype, seed=0))
        for record in XENTX.values():
            if record.framework in frameworks:
                found = measure(record, truth, timed=False)
                assert found.verdict == "accurate", (name, found)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_binary_loss_is_accurate_on_every_framework(dtype, frameworks):
    for name in ("worked-example", "gap", "confident-10", "scaled-10"):
        truth = Truth.of(REGIMES[name].case(dtype, 0, BINARY))
        for record in xentx_records(BINARY):
            if record.framework in frameworks:
                found = measure(record, truth, timed=False)
                assert found.verdict == "accurate", (name, found)


def test_each_logit_of_a_regime_is_a_row_of_the_binary_loss():
    report = compare(
        Plan(frameworks=("numpy",), loss=BINARY, regimes=(REGIMES["worked-example"],), timed=False)
    )
    (regime,) = report.regimes
    (found,) = regime.measurements
    assert (regime.rows, regime.classes, found.loss) == (6, 1, f"xentx:numpy.{BINARY}")
    logits = np.asarray([1.0, 2.0, 0.5, 0.1, 0.5, 2.0], np.float32)
    losses = np.log1p(np.exp(logits * [1, -1, 1, 1, 1, -1]))
    np.testing.assert_allclose(found.row_losses, losses, rtol=1e-6)
    assert found.mean == pytest.approx(losses.mean())


def test_naive_is_wrong_where_exp_overflows():
    truth = Truth.of(REGIMES["scaled-10"].case("float32", seed=0))
    found = measure(NATIVES["numpy:naive softmax, then log"], truth, timed=False)
    assert found.verdict == "wrong"
    assert found.loss_errors.max_ulp == np.inf


@pytest.mark.parametrize("name", EVERY_CORNER)
def test_xentx_obeys_its_rules(name, frameworks):
    """Eager mode, on every framework. Compiled functions are tested in tests/matrix."""
    corner = EVERY_CORNER[name]
    for record in xentx_records(corner.case.loss):
        if record.framework in frameworks and not record.compiled:
            found = visit(record, corner)
            assert found.verdict != "deviates", (record.id, found)


def test_a_corner_sees_each_kind_of_difference():
    wanted = {
        ("target-too-high", "accepts"): ("accepts",),
        ("offset-1e4", "raises"): ("refuses",),
        ("offset-1e4", "wrong"): ("loss",),
        ("scalar-target", "accepts"): ("accepts",),
    }
    for (corner, function), differences in wanted.items():
        assert visit(stand_in(function), CORNERS[corner]).differences == differences, corner


def test_xentx_must_raise_the_expected_error():
    found = visit(stand_in("raises", id="xentx:numpy"), CORNERS["target-too-high"])
    assert found.differences == ("error",)
    assert visit(stand_in("raises"), CORNERS["target-too-high"]).verdict == "agrees"


DEVIATIONS = [
    ("target-minus-one", "optax:softmax_cross_entropy_with_integer_labels", ("accepts",)),
    ("soft-sum-2", "tf:nn.softmax_cross_entropy_with_logits", ("gradient",)),
    ("soft-sum-2", "tf:nn.softmax_cross_entropy_with_logits[xla]", ("gradient",)),
    ("smoothing-axis-1", "keras:CategoricalCrossentropy(from_logits=True)", ("loss", "gradient")),
    ("ignored-nan-row", "torch:F.cross_entropy", ("gradient",)),
    ("sample-weight-mean", "keras:CategoricalCrossentropy(from_logits=True)", ("loss", "gradient")),
    ("sample-weight-zero-mean", "tf:compat.v1.losses.softmax_cross_entropy", ("loss", "gradient")),
    ("float16-mean-overflow", "torch:F.cross_entropy", ("loss",)),
    ("float16-mean-overflow", "tf:nn.sparse_softmax_cross_entropy_with_logits", ("loss",)),
    ("float16-zeros-65536", "torch:F.cross_entropy", ("loss",)),
    ("smoothing-negative", "torch:F.cross_entropy", ("accepts",)),
    ("square-sequences", "torch:F.cross_entropy", ("accepts",)),
    ("soft-one-row", "optax:softmax_cross_entropy", ("accepts",)),
    ("soft-one-row", "tf:nn.softmax_cross_entropy_with_logits", ("accepts",)),
    ("soft-zero-at-minus-inf", "torch:F.cross_entropy", ("loss",)),
    ("weight-zero-mean", "torch:F.cross_entropy", ("gradient",)),
    ("confident-20", "torch:F.cross_entropy", ("loss", "gradient")),
    ("confident-20", "scipy:log_softmax + gather", ("loss", "gradient")),
    ("offset-1e4", "optax:softmax_cross_entropy_with_integer_labels", ("loss",)),
    (
        "bfloat16-target-257",
        "keras:SparseCategoricalCrossentropy(from_logits=True, dtype=logits.dtype)",
        ("loss", "gradient"),
    ),
    ("wrong-20", "keras:SparseCategoricalCrossentropy()", ("loss", "gradient")),
    ("ignored-2-to-24", "keras:SparseCategoricalCrossentropy(from_logits=True)", ("accepts",)),
    (
        "not-probabilities",
        "keras:SparseCategoricalCrossentropy() on logits",
        ("loss", "gradient"),
    ),
    ("binary-confident", "torch:F.binary_cross_entropy_with_logits", ("loss", "gradient")),
    ("binary-target-int64", "torch:F.binary_cross_entropy_with_logits", ("refuses",)),
    ("binary-infinity-right", "optax:sigmoid_binary_cross_entropy", ("loss",)),
    ("binary-target-of-one-row", "optax:sigmoid_binary_cross_entropy", ("accepts",)),
    ("binary-infinity-right", "tf:nn.sigmoid_cross_entropy_with_logits", ("loss",)),
    ("binary-infinity-right", "tf:nn.sigmoid_cross_entropy_with_logits[xla]", ("loss",)),
    ("binary-smoothing-2", "keras:BinaryCrossentropy(from_logits=True)", ("accepts",)),
]  # fmt: skip


@pytest.mark.pinned
@pytest.mark.parametrize(("corner", "native", "differences"), DEVIATIONS)
def test_known_deviations(corner, native, differences, frameworks):
    """Detect releases that change one of these deviations."""
    record = NATIVES[native]
    framework = "tensorflow" if record.framework == "keras" else record.framework
    if framework not in frameworks or record.missing():
        pytest.skip(f"{native} was not requested")
    assert visit(record, EVERY_CORNER[corner]).differences == differences


def test_a_report_has_all_results():
    plan = Plan(frameworks=("numpy",), regimes=(REGIMES["worked-example"],), timed=False)
    report = compare(plan)
    assert report.passed
    assert report.losses[0].id == "xentx:numpy"
    (regime,) = report.regimes
    assert regime.truth == pytest.approx(0.390573749, rel=1e-8)
    assert [found.loss for found in regime.measurements] == [loss.id for loss in report.losses]
    np.testing.assert_allclose(
        regime.measurements[0].row_gradients,
        [[0.231224, -0.371468, 0.140244], [0.108960, 0.162549, -0.271508]],
        atol=1e-6,
    )


def test_progress_is_reported_for_each_step():
    steps = []
    plan = Plan(frameworks=("numpy",), regimes=(REGIMES["worked-example"],), timed=False)
    compare(plan, lambda done, total, what: steps.append((done, total, what)))
    assert [done for done, _, _ in steps] == list(range(len(steps)))
    assert {total for _, total, _ in steps} == {len(steps)}


@pytest.mark.parametrize(
    ("fail_on", "failing"),
    [("none", []), ("xentx", ["xentx:numpy"]), ("any", ["xentx:numpy", "numpy:wrong"])],
)
def test_what_counts_as_a_failure(fail_on, failing, monkeypatch):
    broken = stand_in("near", id="xentx:numpy")
    bad = stand_in("wrong", id="numpy:bad example", caveat="it is known to be wrong")
    monkeypatch.setattr(_run, "xentx_records", lambda _: (broken,))
    monkeypatch.setattr(_run, "natives", lambda _: (stand_in("wrong"), bad, stand_in("near")))
    plan = Plan(regimes=(REGIMES["worked-example"],), timed=False, fail_on=fail_on)
    report = compare(plan)
    assert report.passed == (not failing)
    assert [failure.split(": ")[1].split(" is ")[0] for failure in report.failures] == failing


def test_corners_count_for_xentx_only(monkeypatch):
    monkeypatch.setattr(_run, "natives", lambda _: (stand_in("accepts"),))
    corners = (CORNERS["target-too-high"],)
    plan = Plan(frameworks=("numpy",), regimes=(), corners=corners, fail_on="any")
    report = compare(plan)
    assert report.passed
    assert report.corners[0].results[1].differences == ("accepts",)
    monkeypatch.setattr(_run, "xentx_records", lambda _: (stand_in("accepts", id="xentx:numpy"),))
    assert compare(plan).failures == ("target-too-high: xentx:numpy deviates in accepts",)


def test_patterns_choose_natives():
    plan = Plan(losses=("torch:nn.*", "numpy:naive*"))
    ids = [native.id for native in plan.chosen() if not native.is_xentx]
    assert ids == [
        "numpy:naive softmax, then log",
        "torch:nn.CrossEntropyLoss",
        "torch:nn.LogSoftmax + nn.NLLLoss",
    ]
    jit = Plan(losses=("optax:softmax_cross_entropy[jit]",)).chosen()
    assert jit[-1].id == "optax:softmax_cross_entropy[jit]"


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (Plan(frameworks=("caffe",)), "caffe"),
        (
            Plan(
                losses=("torch:*", "nope"),
            ),
            "'nope'",
        ),
    ],
)
def test_unknown_names_are_errors(plan, text):
    with pytest.raises(ValueError, match=text):
        plan.chosen()


def test_slow_losses_run_only_if_named():
    slow = stand_in("right", slow=True)
    assert "--native with its id" in Plan().skips(slow)
    assert Plan(losses=("numpy:*",)).skips(slow) is None


def test_a_users_soft_targets():
    logits = np.asarray([[1.0, 2.0, 0.5], [0.1, 0.5, 2.0]])
    regime = user_regime("mine.npz", logits, np.asarray([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]))
    report = compare(Plan(frameworks=("numpy",), regimes=(regime,), timed=False))
    verdicts = {found.loss: found.verdict for found in report.regimes[0].measurements}
    assert verdicts["xentx:numpy"] == "accurate"
    assert verdicts["scipy:log_softmax + gather"] == "not applicable"


def test_a_missing_library_of_a_regime_is_reported():
    regime = dataclasses.replace(REGIMES["gap"], needs="no_such_library")
    report = compare(Plan(frameworks=("numpy",), regimes=(regime,)))
    assert "pip install" in report.regimes[0].problem
    assert report.passed
