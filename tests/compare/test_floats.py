"""Formats of floats against NumPy's, and distances in units in the last place."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xentx.compare._floats import FORMATS, distance

DOUBLES = st.floats(allow_nan=False, width=64)


@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
def test_a_format_is_numpys(name):
    info = np.finfo(name)
    form = FORMATS[name]
    assert (form.eps, form.tiny, form.max) == (info.eps, info.tiny, info.max)


def test_bfloat16_is_that_of_ml_dtypes():
    info = pytest.importorskip("ml_dtypes").finfo("bfloat16")
    form = FORMATS["bfloat16"]
    assert (form.eps, form.tiny, form.max) == (info.eps, info.tiny, info.max)


@given(DOUBLES)
@pytest.mark.parametrize("name", ["float16", "float32"])
def test_rounding_is_ieee(name, value):
    with np.errstate(all="ignore"):
        wanted = np.float64(value).astype(name)
    np.testing.assert_array_equal(FORMATS[name].round(np.asarray(value)), np.float64(wanted))


@given(st.floats(allow_nan=False, width=32))
def test_rounding_to_bfloat16(value):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    with np.errstate(all="ignore"):
        wanted = np.float32(value).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(FORMATS["bfloat16"].round(np.asarray(value)), float(wanted))


def test_neighbours_are_one_apart():
    form = FORMATS["float32"]
    x = np.asarray([1.0, 1.5, 3.0e-5, -7.0e20], np.float32)
    up = np.nextafter(x, np.float32(np.inf))
    np.testing.assert_array_equal(distance(up.astype(float), x.astype(float), form), 1.0)


def test_numbers_that_hardware_may_flush_are_equal():
    form = FORMATS["float32"]
    truth = np.asarray([1e-40, 1e-40, 0.0, 1e-38 * 2])
    got = np.asarray([0.0, 1.0, 1e-30, 0.0])
    assert list(distance(got, truth, form) > 0.0) == [False, True, True, True]


def test_infinities_and_nan():
    form = FORMATS["float32"]
    inf, nan = np.inf, np.nan
    truth = np.asarray([inf, nan, 1.0, 1.0, inf, 1e39, 1.0])
    got = np.asarray([inf, nan, inf, nan, 1.0, inf, 1.0])
    np.testing.assert_array_equal(distance(got, truth, form), [0, 0, inf, inf, inf, 0, 0])
