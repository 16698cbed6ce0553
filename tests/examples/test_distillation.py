"""The example of distillation has the same curves of losses in each framework."""

from pathlib import Path

import numpy as np
import pytest

from xentx.testing import requested_frameworks

FOLDER = Path(__file__).parents[2] / "examples" / "distillation"
FRAMEWORKS = [name for name in requested_frameworks() if name != "numpy"]
DOCUMENT = "the quick brown fox jumps over the lazy dog. " * 20
# The losses of the teacher and the student at the first, the fourth and the last step.
CURVES = ([3.599039, 0.396218, 0.113026], [0.892922, 0.768108, 0.648717])


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_same_curves(framework, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import distil

    curves = distil.run(framework, steps=8, document=DOCUMENT)
    for curve, expected in zip(curves, CURVES, strict=True):
        np.testing.assert_allclose([curve[0], curve[3], curve[-1]], expected, rtol=1e-5)
