"""All conversions between dtypes in the kernel, over the whole range of the source dtype.

A conversion must round once, to nearest with ties to even. It must support subnormal numbers and
the sign of zero. NumPy and ml_dtypes do the same, except that ml_dtypes rounds twice from float64
to bfloat16. The expected results are therefore computed from the definition, in long double.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from xentx import _kernel_engine
from xentx.testing import _oracle as oracle
from xentx.testing import requested_frameworks

pytestmark = [
    pytest.mark.skipif(_kernel_engine.KERNEL is None, reason="xentx is without a kernel here"),
    pytest.mark.skipif("numpy" not in requested_frameworks(), reason="NumPy was not requested"),
]

PAIRS = list(itertools.product(oracle.DTYPES, repeat=2))
# Conversions with vector instructions, for 16 numbers at a time.
BY_VECTORS = {
    ("float16", "float32"),
    ("bfloat16", "float32"),
    ("float32", "float16"),
    ("float32", "bfloat16"),
    ("float32", "float32"),
    ("float32", "float64"),
    ("float64", "float32"),
}
SIZES = {"float32": (23, 8), "float64": (52, 11)}


def numbers(name):
    """All 16-bit numbers. For wider dtypes all signs and exponents, with selected mantissas."""
    dtype = oracle.DTYPES[name]
    if dtype.itemsize == 2:
        return np.arange(1 << 16, dtype=np.uint16).view(dtype)
    bits, exponent_bits = SIZES[name]
    every = (1 << bits) - 1
    mantissas = {0, 1, every, every - 1, *np.random.default_rng(0).integers(0, every, 40).tolist()}
    for low in range(bits):
        # A single bit, which is a tie for a shorter mantissa, and its neighbours. Above it an odd
        # bit, or all bits set, which round up to even.
        for high in (0, 2 << low, every ^ ((2 << low) - 1)):
            tie = high | 1 << low
            mantissas |= {tie & every, (tie - 1) & every, (tie + 1) & every}
    exponents = np.arange(2 << exponent_bits, dtype=np.uint64) << np.uint64(bits)
    whole = exponents[:, None] | np.array(sorted(mantissas), np.uint64)
    found = whole.ravel().astype(f"u{dtype.itemsize}").view(dtype)
    return found[: len(found) // 16 * 16]


def rounded(values, name):
    """Round to the nearest multiple of the unit in the last place, with ties to even."""
    info = ml_dtypes.finfo(oracle.DTYPES[name])
    x = np.abs(values.astype(oracle.LONG))
    finite = np.where(np.isfinite(x), x, 0)
    _, exponent = np.frexp(np.maximum(finite, oracle.LONG(info.smallest_normal)))
    unit = np.ldexp(oracle.LONG(1), exponent - 1 - info.nmant)
    nearest = np.rint(finite / unit) * unit
    nearest = np.where(nearest > oracle.LONG(info.max), np.inf, nearest)
    return np.copysign(np.where(np.isfinite(x), nearest, x), values.astype(oracle.LONG))


def converted(values, name, *, vectors):
    """Convert numbers with the kernel. Return None if it does not have the conversion."""
    to = np.zeros(values.shape, oracle.DTYPES[name])
    there = _kernel_engine.KERNEL.convert(
        source=values.dtype.name,
        from_=values,
        destination=name,
        to=to,
        count=values.size,
        vectors=vectors,
    )
    return to if there else None


def check_all():
    """Check all conversions with the instruction set in use."""
    known = {source: numbers(source) for source in oracle.DTYPES}
    for source, destination in PAIRS:
        values = known[source]
        truth = rounded(values, destination)
        for vectors in (False, True):
            found = converted(values, destination, vectors=vectors)
            if vectors and (source, destination) not in BY_VECTORS:
                assert found is None
                continue
            wide = found.astype(oracle.LONG)
            same = (wide == truth) & (np.signbit(wide) == np.signbit(truth))
            same |= np.isnan(wide) & np.isnan(truth)
            wrong = np.flatnonzero(~same)
            assert not wrong.size, (
                f"{source} to {destination}, vectors={vectors}: {wrong.size} are wrong, such as "
                f"{values[wrong[0]]!r}: got {found[wrong[0]]!r}; expected {truth[wrong[0]]!r}"
            )


@pytest.mark.skipif(np.finfo(oracle.LONG).nmant < 60, reason="long double is no wider here")
@pytest.mark.parametrize("asked", ["avx512", "avx2", "neon", "baseline"])
def test_every_conversion_rounds_once(asked):
    program = """
from xentx import _kernel_engine
import test_conversions
print(_kernel_engine.KERNEL.instruction_set(), flush=True)
test_conversions.check_all()
"""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    env = {**os.environ, "PYTHONPATH": path, "XENTX_ENGINE": "kernel", "XENTX_ISA": asked}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    if done.stdout.split() != [asked]:
        pytest.skip(f"this processor has no {asked}")


@pytest.mark.parametrize(("source", "destination"), PAIRS)
def test_the_definition_is_that_of_numpy(source, destination):
    """NumPy rounds once, except in one conversion."""
    if (source, destination) == ("float64", "bfloat16"):
        pytest.skip("ml_dtypes rounds to float32 first")
    values = numbers(source)
    with np.errstate(all="ignore"):  # signalling NaNs, and overflow
        theirs = values.astype(oracle.DTYPES[destination]).astype(oracle.LONG)
        expected = rounded(values, destination)
    np.testing.assert_array_equal(theirs, expected)
