"""Errors in units in the last place, against true values and against native losses.

The first tests check the bounds that the documentation states. The last test compares with the
native losses: the error of xentx may be larger by at most one unit.
"""

import functools

import numpy as np
import pytest

import xentx
from xentx.compare.case import prepare
from xentx.compare.regimes import REGIMES
from xentx.natives import natives
from xentx.testing import _oracle as oracle
from xentx.testing import requested_frameworks, routes

SEED = 20261123
LOSS_ULPS, GRADIENT_ULPS = 4, 8
NAMES = [name for name, regime in REGIMES.items() if regime.needs is None and name != "gap"]
# float64 and the narrow dtypes, for sizes for which true values are computed quickly.
OTHER_DTYPES = [
    (name, dtype)
    for name in NAMES
    if REGIMES[name].case("float32", SEED).logits.shape[1] <= 1000
    for dtype in ("float16", "bfloat16", "float64")
]


@functools.cache
def problem(name, dtype):
    """Logits, target, and the true losses and gradients of their sum."""
    case = REGIMES[name].case(dtype, SEED)
    logits = case.logits.astype(oracle.DTYPES[dtype])
    target = case.target.astype(np.int32)
    truth = oracle.cross_entropy(logits, target, reduction="none")
    return case, logits, target, truth


def errors(loss, gradient, truth, dtype):
    """Largest errors of the losses and of the gradient. Entries that underflow are not counted."""
    normal = np.abs(truth.gradient) >= oracle.tiny(dtype)
    normal_loss = np.abs(truth.value) >= oracle.tiny(dtype)
    return (
        oracle.ulps(loss, truth.value)[normal_loss].max(initial=0),
        oracle.ulps(gradient, truth.gradient)[normal].max(initial=0),
    )


@functools.cache
def errors_of(make, name, dtype):
    """Largest errors of xentx on a route."""
    _, logits, target, truth = problem(name, dtype)
    loss, gradient = make().pull(xentx.cross_entropy, logits, target, reduction="none")
    return errors(loss, gradient, truth, logits.dtype)


def ours(route, name, dtype):
    return errors_of(type(route), name, dtype)


@pytest.mark.parametrize("name", NAMES)
def test_float32(route, name):
    loss, gradient = ours(route, name, "float32")
    assert loss <= LOSS_ULPS
    assert gradient <= GRADIENT_ULPS


@pytest.mark.parametrize(("name", "dtype"), OTHER_DTYPES)
def test_other_dtypes(route, name, dtype):
    """Results of the narrow dtypes are rounded once, so they are nearly correctly rounded."""
    if dtype not in route.dtypes:
        pytest.skip(f"{route} has no {dtype}")
    loss, gradient = ours(route, name, dtype)
    assert loss <= (LOSS_ULPS if dtype == "float64" else 0.51)
    assert gradient <= (GRADIENT_ULPS if dtype == "float64" else 0.51)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("framework", requested_frameworks())
def test_no_native_is_more_accurate(framework, name):
    """For the least accurate route of each framework."""
    case, logits, _, truth = problem(name, "float32")
    found = [errors_of(make, name, "float32") for make in routes(framework)]
    loss, gradient = (max(error) for error in zip(*found, strict=True))
    peers = 0
    for native in natives():
        if native.framework != framework or native.slow or native.missing():
            continue
        if native.takes != "logits" or native.caveat or case.refusal(native):
            continue
        answer = prepare(native, case)[1]()
        theirs = errors(
            answer.loss.astype(np.float32), answer.gradient.astype(np.float32), truth, logits.dtype
        )
        assert loss <= theirs[0] + 1, native.id
        assert gradient <= theirs[1] + 1, native.id
        peers += 1
    assert peers
