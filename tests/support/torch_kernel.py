"""Data and functions for the tests of the CPU kernel with PyTorch tensors."""

import numpy as np
import pytest
import torch

import xentx
import xentx_numpy
import xentx_torch
from xentx import _kernel_engine
from xentx.testing._engines import portable_core
from xentx.testing._problems import RNG_SEED
from xentx_torch.testing import Torch

if _kernel_engine.KERNEL is None:
    pytest.skip("xentx is without a kernel here", allow_module_level=True)

from xentx_torch._kernel import OPERATOR_PAYS

BACKEND = xentx_torch.BACKEND
RNG = np.random.default_rng(RNG_SEED)
LOGITS = torch.tensor(RNG.normal(0, 2, (6, 5)))
TARGET = torch.tensor(RNG.integers(0, 5, 6))
SOFT = torch.tensor(RNG.gamma(1.0, size=(6, 5)))
WEIGHT, SAMPLE_WEIGHT = torch.tensor(RNG.uniform(0.5, 2, 5)), torch.tensor(RNG.uniform(0.5, 2, 6))
SEED = torch.tensor(RNG.normal(size=(6, 5)))
# Large enough that compiled graphs call the kernel.
LARGE = torch.tensor(RNG.normal(0, 2, (OPERATOR_PAYS // 1000 + 1, 1000)), dtype=torch.float32)
LARGE_TARGET = torch.tensor(RNG.integers(0, 1000, len(LARGE)))

to_torch, to_numpy = Torch().array, Torch().numpy
log_softmax = xentx_torch.log_softmax


def loss(logits, target=TARGET, **options):
    return xentx_torch.cross_entropy(logits, target, label_smoothing=0.1, **options)


def own(logits, target=TARGET, **options):
    """Value and gradient from `value_and_grad`, without autograd."""
    both = xentx.value_and_grad(xentx_torch.cross_entropy)
    return both(logits, target, label_smoothing=0.1, **options)


def portable(function):
    """Return the same function, computed by the portable core."""

    def by_the_core(*args, **kwargs):
        with portable_core(BACKEND):
            return function(*args, **kwargs)

    return by_the_core


def leaf(array):
    """Return a leaf with the same layout, which shares the memory of the array."""
    return array.detach().requires_grad_()


def both(function):
    """Return a function for the value, and the gradient with respect to the first argument."""

    def value_and_gradient(logits, *args, cotangent=None):
        logits = leaf(logits)
        value = function(logits, *args)
        value.backward(torch.ones_like(value) if cotangent is None else cotangent)
        return value.detach(), logits.grad

    return value_and_gradient


def expected_bits(logits, target, cotangent=None, **options):
    """NumPy's value and gradient, for PyTorch tensors."""
    arrays = {k: to_numpy(v) for k, v in options.items() if isinstance(v, torch.Tensor)}
    seed = None if cotangent is None else to_numpy(cotangent)
    args = [to_numpy(logits)] if target is None else [to_numpy(logits), to_numpy(target)]
    function = xentx_numpy.log_softmax if target is None else xentx_numpy.cross_entropy
    return xentx.value_and_grad(function)(*args, cotangent=seed, **{**options, **arrays})


def assert_bits(found, expected):
    for got, array in zip(found, expected, strict=True):
        wanted = array if isinstance(array, torch.Tensor) else to_torch(np.asarray(array))
        assert got.dtype == wanted.dtype
        assert torch.equal(got.isnan(), wanted.isnan())
        assert torch.equal(got.nan_to_num(), wanted.nan_to_num())


def assert_near(found, expected, rtol=1e-9, atol=1e-12):
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol, equal_nan=True)


def stacked(x):
    return torch.stack([x, 2.0 * x, x + 1.0])


def jvp(function):
    return lambda x: torch.func.jvp(function, (x,), (SEED,))[1]
