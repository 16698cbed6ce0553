"""PyTorch's own test cases for its losses, run with xentx's functions and modules.

The cases are in torch.testing._internal: samples for operators and modules, and calls that must
fail. Values and gradients for a non-uniform cotangent must be those of PyTorch, except for
deviations by a rule of xentx. Each of these rules must occur.
"""

import importlib
import os
import random
import re

import pytest

from xentx.testing import requested_frameworks

if "torch" not in requested_frameworks():
    pytest.skip("PyTorch is not requested", allow_module_level=True)

import torch

import xentx_torch
from xentx_torch import functional

pytestmark = [
    pytest.mark.pinned,
    pytest.mark.filterwarnings("ignore:linear_cross_entropy. ``options`` ignored"),
    pytest.mark.filterwarnings("ignore:Casting complex values"),
]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OPERATORS = ("log_softmax", "nll_loss", "cross_entropy", "linear_cross_entropy")
MODULES = ("LogSoftmax", "NLLLoss", "CrossEntropyLoss", "LinearCrossEntropyLoss")

# PyTorch has hundreds of samples of its linear loss. Here only some of them are run, with one dtype
# of each size. `nox -s drop_in` runs all of them.
EVERY = os.environ.get("XENTX_DROP_IN") == "all"
STEP = 1 if EVERY else 29
DTYPES = FLOATS if EVERY else (torch.bfloat16, torch.float32)

# Errors that only xentx raises: the case in the table of its rules, and the start of the message.
DEVIATIONS = {
    "shapes": "logits: got a 0-dimensional array",
    "C = 0": "logits: got shape .* with 0 classes",
}
MET = {
    "log_softmax": {"shapes", "C = 0"},
    "LogSoftmax": {"shapes"},
}


def samples(name):
    """Return the inputs of PyTorch's own tests for an operator or a module."""
    module = name in MODULES
    kind = "modules" if module else "methods_invocations"
    found = importlib.import_module(f"torch.testing._internal.common_{kind}")
    if module:
        return [m for m in found.module_db if m.module_cls.__name__ == name]
    return [op for op in found.op_db if op.name.removeprefix("nn.functional.") == name]


def calls_of_operator(name, dtype):
    for op in samples(name):
        if dtype not in op.dtypes:
            continue
        given = op.sample_inputs("cpu", dtype, requires_grad=dtype in FLOATS)
        for sample in list(given)[:: STEP if name.startswith("linear") else 1]:
            args = (sample.input, *sample.args)
            yield getattr(functional, name), op.op, args, sample.kwargs


def calls_of_module(name, dtype):
    (info,) = samples(name)
    given = info.module_inputs_func(
        info, "cpu", dtype, requires_grad=dtype in FLOATS, training=True
    )
    for sample in given[:: STEP if name.startswith("Linear") else 1]:
        yield *both_modules(name, sample, dtype), sample.forward_input.args, {}


def both_modules(name, sample, dtype):
    options = dict(sample.constructor_input.kwargs)
    if name.startswith("Linear"):
        options["dtype"] = dtype
    made = []
    for library in (xentx_torch, torch.nn):
        torch.manual_seed(0)
        made.append(getattr(library, name)(*sample.constructor_input.args, **options))
    return made


def derived(function, args, kwargs, dtype=None):
    """Value and gradients of all arguments that require one, possibly in another dtype."""

    def leaf(value):
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        return value.detach().clone().to(dtype).requires_grad_(value.requires_grad)

    args = [leaf(a) for a in args]
    kwargs = {k: leaf(v) for k, v in kwargs.items()}
    value = function(*args, **kwargs)
    leaves = [
        a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor) and a.requires_grad
    ]
    if isinstance(function, torch.nn.Module):
        leaves += function.parameters()
    if not leaves:
        return [value]
    seed = torch.linspace(1, 2, value.numel(), dtype=value.dtype).reshape(value.shape)
    return [value.detach(), *torch.autograd.grad(value, leaves, seed)]


def assert_as_good(found, native, truth):
    """Check that errors of narrow results are at most those of PyTorch, plus one rounding error."""
    eps = torch.finfo(native[0].dtype).eps
    for ours, theirs, true in zip(found, native, truth, strict=True):
        assert ours.shape == theirs.shape == true.shape
        assert torch.equal(ours.isnan(), true.isnan())
        if true.numel():
            error, native_error = (
                (x.double() - true).nan_to_num().abs().max() for x in (ours, theirs)
            )
            assert error <= native_error + eps * true.nan_to_num().abs().max()


def compare(calls, dtype):
    """Compare all calls. Return the rules by which only xentx fails, and the number of calls."""
    rules, count = set(), 0
    for ours, theirs, args, kwargs in calls:
        native = derived(theirs, args, kwargs)
        try:
            found = derived(ours, args, kwargs)
        except ValueError as error:
            rules.add(next(k for k, words in DEVIATIONS.items() if re.match(words, str(error))))
            continue
        count += 1
        if native[0].dtype.itemsize == 2:
            exact = theirs.double() if isinstance(theirs, torch.nn.Module) else theirs
            # PyTorch's options select narrow dtypes.
            given = {k: v for k, v in kwargs.items() if k != "options"}
            assert_as_good(found, native, derived(exact, args, given, torch.float64))
        else:
            torch.testing.assert_close(found, native, equal_nan=True)
        # The linear loss of narrow arguments is float32, as in linear_cross_entropy.
        linear = "inear" in repr(ours)
        assert found[0].dtype == (native[0].dtype if not linear else wide(native[0].dtype))
    return rules, count


def wide(dtype):
    return torch.promote_types(dtype, torch.float32)


@pytest.fixture(autouse=True)
def seeds():
    random.seed(0)
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_samples_of_operators(name, dtype):
    rules, count = compare(calls_of_operator(name, dtype), dtype)
    assert rules == MET.get(name, set())
    assert count >= 5


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_samples_that_name_a_dtype(dtype):
    rules, count = compare(calls_of_operator("log_softmax", dtype), dtype)
    assert rules == MET["log_softmax"]
    assert count >= 5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_samples_of_modules(name, dtype):
    rules, count = compare(calls_of_module(name, dtype), dtype)
    assert rules == MET.get(name, set())
    assert count >= 3


def fails(call):
    with pytest.raises((TypeError, ValueError, IndexError, RuntimeError)) as caught:
        call()
    return caught.value


@pytest.mark.parametrize("name", ["linear_cross_entropy"])  # the others have none
def test_calls_of_operators_that_must_fail(name):
    """Both functions fail. The message of xentx is its own."""
    errors = [(op.op, e) for op in samples(name) for e in op.error_inputs("cpu")]
    assert len(errors) >= 6
    for theirs, error in errors:
        sample = error.sample_input
        for function in (theirs, getattr(functional, name)):
            failure = fails(lambda f=function, s=sample: f(s.input, *s.args, **s.kwargs))
            if function is theirs:
                assert re.search(error.error_regex, str(failure))
            else:
                assert type(failure) in (TypeError, ValueError)


@pytest.mark.parametrize("name", MODULES[1:])
def test_calls_of_modules_that_must_fail(name):
    (info,) = samples(name)
    made = info.module_error_inputs_func(
        info, "cpu", torch.float32, requires_grad=False, training=True
    )
    assert made
    for error in made:
        sample = error.module_error_input
        for library in (torch.nn, xentx_torch):

            def call(library=library, sample=sample):
                inputs = sample.constructor_input
                module = getattr(library, name)(*inputs.args, **inputs.kwargs)
                module(*sample.forward_input.args, **sample.forward_input.kwargs)

            fails(call)
