"""A few random problems for every public function: a short run of the fuzzer, with fixed seeds."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from xentx.testing._checks import CHECKS


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_any_problem(route, check):
    @settings(max_examples=4 if route.traced else 8 if route.compiles else 30)
    @given(st.data())
    def run(data):
        check(route, data.draw)

    run()
