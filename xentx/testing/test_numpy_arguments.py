"""NumPy arrays as arguments together with logits of another framework, in every memory layout."""

import re

import numpy as np
import pytest

import xentx
from xentx.testing.test_rows import stacked

RNG = np.random.default_rng(12)
LOGITS = RNG.normal(0, 3, (4, 3)).astype(np.float32)
HIDDEN = RNG.normal(size=(4, 5)).astype(np.float32)
TARGET = np.array([0, 2, -100, 1])
ARGUMENTS = {
    "target": TARGET,
    "soft target": RNG.dirichlet(np.ones(3), 4).astype(np.float32),
    "weight": np.array([0.5, 1.0, 2.0]),
    "sample_weight": RNG.uniform(0.5, 2, 4).astype(np.float32),
    "normalizer": np.array(7.5),
    "cotangent": RNG.normal(size=4).astype(np.float32),
    "head": RNG.normal(size=(3, 5)).astype(np.float32),
    "bias": RNG.normal(size=3).astype(np.float32),
}


class Subclass(np.ndarray):
    """A subclass of NumPy's array."""


def read_only(array):
    """Return a read-only copy."""
    array = array.copy()
    array.flags.writeable = False
    return array


def big_endian(array):
    """Return an array with the other byte order."""
    return array.astype(array.dtype.newbyteorder(">"))


def unaligned(array):
    """Return an array whose elements are not aligned in memory."""
    record = np.zeros(array.shape, [("odd", np.int8), ("value", array.dtype)])
    record["value"] = array
    return record["value"]


def strided(array):
    """Return an array with gaps between its elements."""
    return np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array


def memory_mapped(array):
    """Return an array of the class of memory-mapped files."""
    return array.copy().view(np.memmap)


FORMS = {
    "big-endian": big_endian,
    "read-only": read_only,
    "read-only, big-endian": lambda array: read_only(big_endian(array)),
    "reversed": lambda array: np.flip(np.flip(array).copy()),
    "strided": strided,
    "unaligned": unaligned,
    "subclass": lambda array: array.view(Subclass),
    "memory-mapped": memory_mapped,
    "scalar": lambda array: array[()],
}


def beside_logits(logits, *, argument, form):
    """Losses of `cross_entropy` with one NumPy argument."""
    value = ARGUMENTS[argument] if form is None else FORMS[form](ARGUMENTS[argument])
    if "target" in argument:
        return xentx.cross_entropy(logits, value, reduction="none")
    reduction = "mean" if argument == "normalizer" else "none"
    return xentx.cross_entropy(logits, TARGET, reduction=reduction, **{argument: value})


CALLS = {
    "nll_loss": lambda x, _, a: xentx.nll_loss(x, a("target"), weight=a("weight")),
    "per_row": lambda x, _, a: stacked(xentx.per_row(x, a("target"), weight=a("weight"))),
    "partials": lambda x, _, a: stacked(
        xentx.partials(x, a("target"), classes=3, weight=a("weight"), start=a("start"))
    ),
    "linear_partials": lambda _, h, a: stacked(
        xentx.linear_partials(
            h, a("head"), a("target"), classes=3, bias=a("bias"), weight=a("weight")
        )
    ),
    "linear_cross_entropy": lambda _, h, a: xentx.linear_cross_entropy(
        h,
        a("head"),
        a("target"),
        bias=a("bias"),
        weight=a("weight"),
        sample_weight=a("sample_weight"),
        normalizer=a("normalizer"),
    ),
    "linear_per_row": lambda _, h, a: stacked(
        xentx.linear_per_row(h, a("head"), a("target"), bias=a("bias"), weight=a("weight"))
    ),
    "value": lambda x, _, a: xentx.value_and_grad(xentx.cross_entropy)(
        x, a("target"), weight=a("weight"), reduction="none", cotangent=a("cotangent")
    )[1],
    "linear value": lambda _, h, a: (
        xentx.value_and_grad(xentx.linear_cross_entropy)(
            h, a("head"), a("soft target"), reduction="none", cotangent=a("cotangent")
        )[1].head
    ),
}


def call_with_numpy(logits, hidden, *, name, form):
    """Value of a function with NumPy arrays for all arguments but the first."""
    arguments = {**ARGUMENTS, "start": np.array(0)}
    make = (lambda array: array) if form is None else FORMS[form]
    return CALLS[name](logits, hidden, lambda key: make(arguments[key]))


BESIDE_LOGITS = [name for name in ARGUMENTS if name not in ("head", "bias", "cotangent")]


@pytest.mark.parametrize("argument", BESIDE_LOGITS)
def test_forms_of_an_argument(route, argument):
    wanted = route.value(beside_logits, LOGITS, argument=argument, form=None)
    for form in FORMS:
        got = route.value(beside_logits, LOGITS, argument=argument, form=form)
        assert got.tobytes() == wanted.tobytes(), form


@pytest.mark.parametrize("name", CALLS)
def test_every_function_in_the_other_byte_order(route, name):
    wanted = route.value(call_with_numpy, LOGITS, HIDDEN, name=name, form=None)
    got = route.value(call_with_numpy, LOGITS, HIDDEN, name=name, form="read-only, big-endian")
    assert got.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_logits(route, form):
    if route.name != "numpy":
        pytest.skip("the arrays are NumPy's")
    make = FORMS[form]
    given = make(LOGITS)
    kept = given.tobytes()
    head = ARGUMENTS["head"]
    for function, *rest in (
        (xentx.log_softmax,),
        (xentx.nll_loss, TARGET),
        (xentx.cross_entropy, TARGET),
        (xentx.value_and_grad(xentx.log_softmax),),
        (xentx.value_and_grad(xentx.cross_entropy), TARGET),
        (xentx.per_row, TARGET),
    ):
        wanted, got = function(LOGITS, *rest), function(given, *rest)
        same_bits(got, wanted)
    same_bits(
        xentx.value_and_grad(xentx.linear_cross_entropy)(make(HIDDEN), make(head), TARGET)[1][:2],
        xentx.value_and_grad(xentx.linear_cross_entropy)(HIDDEN, head, TARGET)[1][:2],
    )
    assert given.tobytes() == kept


def same_bits(got, wanted):
    """Compare arrays, or tuples of arrays, bit by bit."""
    if not isinstance(wanted, tuple):
        got, wanted = (got,), (wanted,)
    for one, two in zip(got, wanted, strict=True):
        assert one.dtype == two.dtype
        assert one.tobytes() == two.tobytes()


def pulled_back(logits, cotangent, *, operation):
    """Gradient of a function that returns one value for each logit or for each row."""
    if operation == "log_softmax":
        return xentx.value_and_grad(xentx.log_softmax)(logits, cotangent=cotangent)[1]
    own = xentx.value_and_grad(xentx.cross_entropy)
    return own(logits, TARGET, reduction="none", cotangent=cotangent)[1]


@pytest.mark.parametrize("operation", ["log_softmax", "cross_entropy"])
def test_integer_cotangents(route, operation):
    cotangent = np.arange(12).reshape(4, 3) if operation == "log_softmax" else np.arange(4)
    wanted = route.value(pulled_back, LOGITS, cotangent.astype(np.float32), operation=operation)
    got = route.value(pulled_back, LOGITS, cotangent.astype(np.int32), operation=operation)
    assert got.tobytes() == wanted.tobytes()


def with_constants(logits, *, target, options):
    """Losses of `cross_entropy`, with a target of large integers and options from `LARGE`."""
    return xentx.cross_entropy(logits, np.array(target), **LARGE[options])


LARGE = {
    "normalizer": {"normalizer": 5_000_000_000},
    "NumPy's normalizer": {"normalizer": np.int64(5_000_000_000)},
    "weight": {"weight": np.array([1, 2**33, 2**34]), "reduction": "sum"},
    "sample weight": {"sample_weight": np.array([1, 2, 3, 2**33]), "reduction": "sum"},
    "ignored": {"ignore_index": 2**40},
    "indices": {},
}


@pytest.mark.parametrize("options", [name for name in LARGE if name not in ("ignored", "indices")])
def test_integers_of_more_than_32_bits(route, options):
    """A framework without 64-bit integers must not use only the low bits of NumPy's."""
    target = (0, 2, 1, 1)
    got = route.value(with_constants, LOGITS, target=target, options=options)
    wanted = with_constants(LOGITS.astype(np.float64), target=target, options=options)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize("index", [2**32 + 1, 2**40, -(2**32)])
def test_indices_of_more_than_32_bits(route, index):
    text = f"target: got {index} at position 2; expected 0 <= target < 3, or ignore_index=-100"
    if route.name == "tensorflow:function":  # where NumPy's arrays are traced
        got = route.value(with_constants, LOGITS, target=(0, 2, index, 1), options="indices")
        assert np.isnan(got)
        return
    with pytest.raises(IndexError, match=f"^{re.escape(text)}"):
        route.value(with_constants, LOGITS, target=(0, 2, index, 1), options="indices")


def test_ignored_indices_of_more_than_32_bits(route):
    target = (0, 2, 2**40, 1)
    wanted = with_constants(LOGITS, target=target, options="ignored")
    if route.has_float64:
        got = route.value(with_constants, LOGITS, target=target, options="ignored")
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
    else:
        with pytest.raises(ValueError, match=r"^ignore_index: got 1099511627776, "):
            route.value(with_constants, LOGITS, target=target, options="ignored")


@pytest.mark.parametrize("ignore_index", [2**63, -(2**63) - 1])
def test_ignore_index_of_more_than_64_bits(route, ignore_index):
    text = f"ignore_index: got {ignore_index}; expected -2**63 <= ignore_index < 2**63"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        route.value(xentx.cross_entropy, LOGITS, TARGET, ignore_index=ignore_index)


NO_NUMBERS = {
    "object": (np.array([0, 2, 1, 1], object), "object"),
    "text": (np.array(list("abcd")), "str32"),
    "long double": (np.ones((4, 3), np.longdouble), np.dtype(np.longdouble).name),
    "complex": (np.ones((4, 3), ">c8"), "complex64"),
    "records": (np.zeros(4, [("a", np.int32)]), "void32"),
    "dates": (np.zeros(4, "M8[s]"), "datetime64[s]"),
    "bool": (np.zeros(4, bool), "bool"),
}


def of_no_numbers(logits, *, kind, name):
    """`cross_entropy` with an argument that is not an array of numbers."""
    value, _ = NO_NUMBERS[kind]
    if name == "target":
        return xentx.cross_entropy(logits, value)
    return xentx.cross_entropy(logits, TARGET, **{name: value})


@pytest.mark.parametrize("name", ["target", "weight", "sample_weight", "normalizer"])
@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_arrays_of_no_numbers(route, kind, name):
    _, dtype = NO_NUMBERS[kind]
    with pytest.raises(TypeError, match=f"^{name}: got dtype {re.escape(dtype)}; expected "):
        route.value(of_no_numbers, LOGITS, kind=kind, name=name)


def with_numbers(logits, hidden, *, form):
    """Two losses whose integer options are Python's integers, or NumPy's with no dimensions."""
    make = {"int": int, "scalar": np.int64, "0-d": np.array, "0-d, big-endian": big_endian_0d}[form]
    rows = xentx.cross_entropy(
        logits, np.array([0, 2, 1, 1]), axis=make(1), ignore_index=make(1), reduction="none"
    )
    of_chunks = xentx.linear_cross_entropy(
        hidden, ARGUMENTS["head"], TARGET, ignore_index=make(-100), chunk=make(3), reduction="none"
    )
    return stacked((rows, of_chunks))


def big_endian_0d(value):
    """Return an array with no dimensions in the other byte order."""
    return np.array(value, ">i8")


@pytest.mark.parametrize("form", ["scalar", "0-d", "0-d, big-endian"])
def test_options_of_no_dimensions(route, form):
    wanted = route.value(with_numbers, LOGITS, HIDDEN, form="int")
    got = route.value(with_numbers, LOGITS, HIDDEN, form=form)
    assert got.tobytes() == wanted.tobytes()
