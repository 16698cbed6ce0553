"""`xentx diff`: parsing calls, differences between two losses, and equal calls."""

import dataclasses
import importlib
import importlib.util
import itertools
import json

import numpy as np
import pytest

from xentx.diff import CallError, _plan, diff, parse
from xentx.diff._call import Symbol
from xentx.diff._comparison import SCHEMA_VERSION
from xentx.diff._meaning import _full_divisor
from xentx.diff._plan import CLASSES, ROWS, Data
from xentx.natives import natives, runtime_of

# TensorFlow and Keras raise these warnings when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def usable(native, frameworks):
    """Whether this run tests the frameworks that a native needs."""
    needed = {requirement.module for requirement in native.needs} & {
        "torch",
        "jax",
        "tensorflow",
        "keras",
    }
    if "keras" in needed:
        # Keras runs on the first of these frameworks that is installed, and imports no other.
        needed = (needed - {"keras"}) | {"tensorflow"}
    if "optax" in {requirement.module for requirement in native.needs}:
        needed |= {"jax"}
    return needed <= set(frameworks) and native.missing() is None


def needs(frameworks, *calls):
    for call in calls:
        native = parse(call).native
        if not usable(native, frameworks):
            pytest.skip(f"this run lacks a requirement of {native.id}")


# Parsing calls.


def test_a_call_is_read_by_the_record_s_spelling():
    call = parse("keras:SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)")
    assert call.native.id == "keras:SparseCategoricalCrossentropy(from_logits=True)"
    assert dict(call.options) == {"ignore_index": -1}
    assert call.reduction == "mean"


@pytest.mark.parametrize(
    ("text", "native", "options", "reduction"),
    [
        ("torch:F.cross_entropy", "torch:F.cross_entropy", {}, "mean"),
        (
            "torch:F.cross_entropy(x, y, weight=w, reduction='sum')",
            "torch:F.cross_entropy",
            {"weight": Symbol("w")},
            "sum",
        ),
        ("torch:torch.nn.functional.cross_entropy()", "torch:F.cross_entropy", {}, "mean"),
        ("torch:cross_entropy(ignore_index=0)", "torch:F.cross_entropy", {"ignore_index": 0}, None),
        ("torch:F.cross_entropy[compile]", "torch:F.cross_entropy[compile]", {}, "mean"),
        (
            "torch:F.log_softmax(x, y) + F.nll_loss(weight=w)",
            "torch:F.log_softmax + F.nll_loss",
            {"weight": Symbol("w")},
            "mean",
        ),
        ("keras:CategoricalCrossentropy()", "keras:CategoricalCrossentropy()", {}, "mean"),
        (
            "keras:losses.CategoricalCrossentropy(from_logits=False, reduction=None)",
            "keras:CategoricalCrossentropy()",
            {},
            "none",
        ),
        (
            "keras:CategoricalCrossentropy(reduction='none')",
            "keras:CategoricalCrossentropy()",
            {},
            "none",
        ),
        (
            "tf:compat.v1.losses.softmax_cross_entropy(weights=s, reduction=Reduction.MEAN)",
            "tf:compat.v1.losses.softmax_cross_entropy",
            {"sample_weight": Symbol("s")},
            "weighted_mean",
        ),
        (
            "optax:softmax_cross_entropy(axis=1)",
            "optax:softmax_cross_entropy",
            {"axis": 1},
            "none",
        ),
        ("sklearn:log_loss(normalize=False)", "sklearn:log_loss", {}, "sum"),
        ("xentx:torch(reduction='weighted_mean')", "xentx:torch", {}, "weighted_mean"),
        ("numpy:naive softmax, then log", "numpy:naive softmax, then log", {}, "none"),
    ],
)
def test_spellings(text, native, options, reduction):
    call = parse(text)
    assert call.native.id == native
    assert dict(call.options) == options
    assert reduction in (None, call.reduction)


@pytest.mark.parametrize("native", natives(), ids=lambda native: native.id)
def test_every_id_is_a_call(native):
    assert parse(native.id).native == native


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("F.cross_entropy", "got 'F.cross_entropy' for a library; expected one of jax, keras"),
        ("pytorch:F.cross_entropy", "Did you mean torch?"),
        ("torch:F.cros_entropy()", "Did you mean torch:F.cross_entropy"),
        ("keras:categoricalcrossentropy()", "Did you mean keras:CategoricalCrossentropy()"),
        ("torch:F.cross_entropy(label_smooth=0.1)", "Did you mean label_smoothing?"),
        (
            "optax:softmax_cross_entropy(weight=w)",
            "optax:softmax_cross_entropy has no option 'weight'; it has axis",
        ),
        ("torch:F.cross_entropy(reduction='avg')", "expected one of 'none', 'mean', 'sum'"),
        ("torch:F.cross_entropy(label_smoothing=w)", "got w; expected a number"),
        ("torch:F.cross_entropy(label_smoothing=True)", "got True; expected a number"),
        ("torch:F.cross_entropy(ignore_index=0.5)", "got 0.5; expected an integer"),
        ("torch:F.cross_entropy(weight=[1, 2])", "expected a name that stands for an array"),
        ("torch:F.cross_entropy(weight=__import__('os'))", "expected a name"),
        ("torch:F.cross_entropy(", "cannot be parsed"),
        ("torch:F.cross_entropy(**w)", "cannot be parsed"),
        ("torch:F.cross_entropy(1)", "cannot be parsed"),
    ],
)
def test_errors_name_the_call_and_similar_ones(text, words):
    with pytest.raises(CallError) as caught:
        parse(text)
    assert words in str(caught.value)


# Differences.


def rows(comparison):
    return {found.aspect: found for found in comparison.differences}


def test_the_records_differences_need_no_framework():
    found = diff(
        "torch:F.cross_entropy(label_smoothing=0.1, weight=w)",
        "keras:CategoricalCrossentropy(label_smoothing=0.1)",
        corners=False,
    )
    differences = rows(found)
    assert (differences["first argument"].a, differences["first argument"].b) == (
        "logits",
        "probabilities",
    )
    assert differences["weight"].a == "weight = w"
    assert differences["weight"].b == "none"
    assert "keras:CategoricalCrossentropy() does not have it" in differences["weight"].note
    assert differences["ignore_index"].a == "ignore_index, -100 by default"
    assert differences["divides by"].a == "the sum over the rows of the target's class weight"
    assert differences["divides by"].b == "the number of rows"
    assert "label_smoothing" not in differences


@pytest.mark.parametrize(
    ("a", "b", "note"),
    [
        ("torch:F.cross_entropy(ignore_index=-100)", "torch:nn.CrossEntropyLoss", ""),
        (
            "torch:F.cross_entropy(ignore_index=0)",
            "torch:nn.CrossEntropyLoss",
            "The calls differ in its value.",
        ),
        (
            "torch:F.cross_entropy(ignore_index=0)",
            "sklearn:log_loss",
            "sklearn:log_loss does not have it.",
        ),
    ],
)
def test_the_value_of_an_option_counts_and_not_that_it_is_given(a, b, note):
    assert rows(diff(a, b, corners=False))["ignore_index"].note == note


def test_a_loss_does_not_differ_from_itself():
    found = diff("xentx:numpy", "xentx:numpy")
    assert not found.differences
    assert not found.corners
    assert found.corners_asked > 50


def test_the_kind_of_target_changes_the_mean():
    call = "torch:F.cross_entropy(weight=w)"
    by_kind = {
        kind: rows(diff(call, "sklearn:log_loss(sample_weight=s)", target=kind, corners=False))
        for kind in ("indices", "probabilities")
    }
    assert by_kind["indices"]["divides by"].a.endswith("class weight")
    assert by_kind["probabilities"]["divides by"].a == "the number of rows"


@pytest.fixture
def few_corners(monkeypatch):
    """Use only some of the corners: JAX compiles for each shape."""
    module = importlib.import_module("xentx.diff._diff")
    names = ("target-minus-one", "confident-20", "smoothing-negative", "weight-mean")
    dtypes = ("logits-float16", "logits-bfloat16", "logits-float64")
    few = {name: module.CORNERS[name] for name in (*names, *dtypes)}
    monkeypatch.setattr(module, "CORNERS", few)


@pytest.mark.usefixtures("few_corners")
def test_corners_are_those_that_get_different_answers(frameworks):
    needs(frameworks, "torch:F.cross_entropy")
    found = diff("torch:F.cross_entropy", "xentx:numpy")
    names = {corner.name: corner for corner in found.corners}
    assert names["confident-20"].differences == ("loss", "gradient")
    assert names["confident-20"].a.loss == (0.0,)
    assert names["smoothing-negative"].differences == ("error",)
    assert "weight-mean" not in names


@pytest.mark.usefixtures("few_corners")
def test_the_wrapped_label_is_found(frameworks):
    optax = "optax:softmax_cross_entropy_with_integer_labels"
    needs(frameworks, optax, "torch:F.cross_entropy")
    found = diff("torch:F.cross_entropy(reduction='none')", optax)
    corner = next(corner for corner in found.corners if corner.name == "target-minus-one")
    assert corner.a.error == "IndexError"
    assert corner.b.loss[0] == pytest.approx(1.964369, abs=1e-6)


# Measured divisors.


def measured_divisor(native, reduction):
    """Divisor of a mean: the sum of the weighted losses of the rows, divided by the mean."""
    ignored = -100 if "ignore_index" in native.options else None
    data = Data.random("indices", ignored)
    options = {
        name: value
        for name, value in {
            "weight": Symbol("w"),
            "sample_weight": Symbol("s"),
            "ignore_index": ignored,
        }.items()
        if name in native.options and value is not None
    }
    call = _plan.Call(text="", native=native, options=options, reduction="sum")
    total, _ = _plan.evaluate(call, data)
    mean, _ = _plan.evaluate(dataclasses.replace(call, reduction=reduction), data)
    kept = data.target != ignored
    factors = {
        "class weight": data.weight[np.where(kept, data.target, 0)],
        "sample weight": data.sample_weight,
        "kept": kept,
        "nonzero": data.sample_weight != 0.0,
    }
    return float(total / mean), {k: np.asarray(v, np.float64) for k, v in factors.items()}, options


@pytest.mark.parametrize(
    ("native", "reduction"),
    [
        (native, reduction)
        for native in natives()
        for reduction in native.reductions
        if reduction not in ("none", "sum") and not native.compiled and not native.caveat
    ],
    ids=lambda value: value if isinstance(value, str) else value.id,
)
def test_divisors_are_as_declared(native, reduction, frameworks):
    if not usable(native, frameworks):
        pytest.skip("not in this run")
    declared = _full_divisor(native, reduction, "indices")
    if declared is None:
        pytest.skip("takes one-hot rows, which have no class indices to weigh by")
    divisor, factors, options = measured_divisor(native, reduction)
    present = {
        "class weight": "weight" in options,
        "sample weight": "sample_weight" in options,
        "nonzero": "sample_weight" in options,
        "kept": "ignore_index" in options,
    }
    candidates = {
        frozenset(chosen): np.prod([factors[name] for name in chosen], axis=0).sum()
        if chosen
        else ROWS
        for size in range(4)
        for chosen in itertools.combinations([name for name in factors if present[name]], size)
    }
    expected = frozenset(name for name in declared if present[name])
    assert divisor == pytest.approx(candidates[expected], rel=1e-5)


# Equal calls.

PAIRS = [
    (
        "torch:F.cross_entropy(label_smoothing=0.1, weight=w)",
        "keras:CategoricalCrossentropy(label_smoothing=0.1)",
    ),
    ("torch:F.cross_entropy", "optax:softmax_cross_entropy_with_integer_labels"),
    (
        "torch:F.cross_entropy(weight=w, ignore_index=3)",
        "optax:softmax_cross_entropy_with_integer_labels",
    ),
    (
        "torch:F.cross_entropy(weight=w, label_smoothing=0.2, ignore_index=-1)",
        "tf:nn.softmax_cross_entropy_with_logits",
    ),
    (
        "torch:F.cross_entropy(reduction='none', label_smoothing=0.2)",
        "optax:softmax_cross_entropy",
    ),
    (
        "keras:SparseCategoricalCrossentropy(from_logits=True, sample_weight=s)",
        "torch:F.cross_entropy",
    ),
    (
        "keras:SparseCategoricalCrossentropy(from_logits=True, sample_weight=s, ignore_class=-100, "
        "reduction='mean_with_sample_weight')",
        "tf:nn.sparse_softmax_cross_entropy_with_logits",
    ),
    (
        "tf:compat.v1.losses.sparse_softmax_cross_entropy(weights=s)",
        "jax:nn.log_softmax + take_along_axis",
    ),
    ("sklearn:log_loss(sample_weight=s)", "scipy:log_softmax + gather"),
    ("torch:nn.CrossEntropyLoss(weight=w)", "torch:nn.LogSoftmax + nn.NLLLoss"),
    ("xentx:numpy(reduction='weighted_mean', weight=w, label_smoothing=0.1)", "xentx:torch"),
    (
        "xentx:numpy(weight=w, sample_weight=s, label_smoothing=0.1, ignore_index=2)",
        "torch:F.cross_entropy",
    ),
    ("optax:softmax_cross_entropy", "torch:F.cross_entropy"),
    ("optax:softmax_cross_entropy(axis=1)", "keras:CategoricalCrossentropy(from_logits=True)"),
    ("jax:nn.log_softmax(axis=1) + take_along_axis", "scipy:log_softmax + gather"),
    ("scipy:log_softmax(axis=-1) + gather", "jax:nn.log_softmax + take_along_axis"),
    ("xentx:numpy(axis=1, weight=w)", "optax:softmax_cross_entropy_with_integer_labels"),
    ("xentx:numpy(axis=1)", "tf:nn.sparse_softmax_cross_entropy_with_logits"),
]


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_the_equal_call_is_equal(a, b, frameworks):
    needs(frameworks, a, b)
    found = diff(a, b, corners=False)
    for suggestion in found.suggestions:
        assert suggestion.code, suggestion.reason
        assert suggestion.verification is not None, suggestion.reason
        assert suggestion.verification.equal, suggestion
        assert suggestion.verification.rows == ROWS


def namespace(native, data):
    """Names that the suggested code uses."""
    names = {"C": CLASSES, "np": np}
    for module, alias in {
        "xentx": "xentx",
        "torch": "torch",
        "torch.nn": "nn",
        "torch.nn.functional": "F",
        "jax": "jax",
        "jax.numpy": "jnp",
        "optax": "optax",
        "tensorflow": "tf",
        "keras": "keras",
        "scipy.special": "special",
        "sklearn.metrics": "metrics",
    }.items():
        root = module.partition(".")[0]
        if root in {"xentx", *(requirement.module for requirement in native.needs)} or (
            root == "jax" and native.framework == "jax"
        ):
            names[alias] = importlib.import_module(module)
    runtime = runtime_of(native.framework)
    return names | {
        "logits": runtime.array(data.logits, "float32"),
        "target": runtime.array(
            data.target, "float32" if data.kind == "probabilities" else "int64"
        ),
        "w": runtime.array(data.weight, "float32"),
        "s": runtime.array(data.sample_weight, "float32"),
    }


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_the_code_computes_what_was_verified(a, b, frameworks):
    needs(frameworks, a, b)
    call = parse(a)
    plan = _plan.plan(call, parse(b).native, call.native.targets[0])
    data = Data.random(plan.kind, plan.wanted.ignored)
    names = namespace(plan.native, data)
    exec(_plan.code(plan), names)  # noqa: S102 -- the suggested code has to run
    loss = runtime_of(plan.native.framework).values(names["loss"])
    expected, _ = _plan.evaluate(call, data)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "code"),
    [
        (
            "optax:softmax_cross_entropy(axis=1)",
            "tf:nn.softmax_cross_entropy_with_logits",
            "loss = tf.nn.softmax_cross_entropy_with_logits(labels=target, logits=logits, axis=1)",
        ),
        (
            "xentx:numpy(axis=1, reduction='none')",
            "jax:nn.log_softmax + take_along_axis",
            "loss = -jnp.take_along_axis(jax.nn.log_softmax(logits, axis=1), "
            "jnp.expand_dims(target, 1), axis=1).squeeze(1)",
        ),
        (
            "xentx:numpy(axis=1, weight=w, reduction='none')",
            "optax:softmax_cross_entropy_with_integer_labels",
            "loss = w[target] * "
            "optax.softmax_cross_entropy_with_integer_labels(logits, target, axis=1)",
        ),
        # torch:F.cross_entropy has the classes on axis 1 by default.
        ("xentx:numpy(axis=1)", "torch:F.cross_entropy", "cross_entropy(logits, target, reduction"),
        (
            "xentx:numpy",
            "xentx:jax",
            "loss = xentx.cross_entropy(logits, target, reduction='mean')",
        ),
    ],
)
def test_an_axis_that_is_given_is_in_the_code(a, b, code):
    call = parse(a)
    plan = _plan.plan(call, parse(b).native, call.native.targets[0])
    assert code in _plan.code(plan)


def test_a_wrong_suggestion_would_be_detected(frameworks):
    needs(frameworks, "torch:F.cross_entropy")
    call = parse("torch:F.cross_entropy(weight=w)")
    plan = _plan.plan(call, parse("xentx:torch").native, "indices")
    assert _plan.verify(call, plan).equal
    wrong = dataclasses.replace(plan, options={})
    assert not _plan.verify(call, wrong).equal


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        (
            "torch:F.cross_entropy(label_smoothing=0.1)",
            "optax:softmax_cross_entropy_with_integer_labels",
            "takes class indices only, and has no label smoothing",
        ),
        (
            "keras:CategoricalCrossentropy()",
            "tf:nn.sparse_softmax_cross_entropy_with_logits",
            "takes class indices only",
        ),
        ("torch:F.cross_entropy(weight=w)", "sklearn:log_loss", "has no option for weight"),
        ("torch:F.cross_entropy", "numpy:naive softmax, then log", "is a bad example"),
    ],
)
def test_the_reason_if_there_is_no_equal_call(a, b, reason):
    found = diff(a, b, corners=False).suggestions
    assert not found[0].code
    assert reason in found[0].reason
    assert found[1].loss.startswith("xentx:")
    assert found[1].code.startswith("loss = xentx.cross_entropy(")


def test_classes_on_another_axis_have_no_code():
    found = diff("optax:softmax_cross_entropy(axis=0)", "xentx:numpy", corners=False).suggestions
    assert not found[0].code
    assert found[0].reason == (
        "the classes are on axis 0; the suggested code is for logits of shape (rows, C)"
    )


def test_missing_frameworks_are_reported_and_not_run(monkeypatch):
    from xentx.natives import Native

    missing = "needs torch: pip install torch"
    monkeypatch.setattr(
        Native, "missing", lambda self: missing if self.framework == "torch" else None
    )
    found = diff("torch:F.cross_entropy(weight=w)", "xentx:numpy")
    assert found.a.problem == missing
    assert found.suggestions[0].code
    assert found.suggestions[0].reason == f"not verified: {missing}"
    assert found.suggestions[0].verification is None
    assert found.corners_asked == 0


def test_a_target_that_the_first_loss_does_not_take():
    with pytest.raises(CallError, match="expected 'indices', the only kind that sklearn:log_loss"):
        diff("sklearn:log_loss", "xentx:numpy", target="probabilities")


def test_ignore_index_has_no_meaning_for_probabilities():
    found = diff(
        "xentx:numpy(ignore_index=1)",
        "torch:F.cross_entropy",
        target="probabilities",
        corners=False,
    )
    assert found.suggestions[0].reason == "ignore_index is for class indices only"


# The command.


@pytest.fixture
def invoke():
    testing = pytest.importorskip("typer.testing")
    app = importlib.import_module("xentx.cli._app").app
    return lambda *args: testing.CliRunner().invoke(app, ["diff", *args])


def test_json_has_what_the_table_has(invoke):
    a, b = "scipy:log_softmax + gather", "xentx:numpy"
    if importlib.util.find_spec("scipy") is None:
        pytest.skip("needs SciPy")
    found = json.loads(invoke(a, b, "--json").stdout)
    table = invoke(a, b).stdout
    assert found["schema"] == SCHEMA_VERSION
    assert found["a"]["loss"] == a
    assert found["suggestions"][0]["verification"]["equal"] is True
    assert "equal up to rounding" in table
    assert f"{len(found['corners'])} of the {found['corners_asked']} corner cases" in table
    confident = next(c for c in found["corners"] if c["name"] == "confident-20")
    assert confident["a"]["loss"] == [0.0]


def test_a_call_that_can_t_be_read_is_an_error_of_usage(invoke):
    result = invoke("torch:F.cros_entropy()", "xentx:numpy")
    assert result.exit_code == 2
    assert "Did you mean" in result.output
