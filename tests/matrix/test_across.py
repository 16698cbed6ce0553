"""The arrays of a call must be of one framework and NumPy."""

import numpy as np
import pytest

import xentx
from xentx.testing import routes


def test_mixed_frameworks(route, frameworks):
    """Logits of one framework with a target of another, in both directions."""
    if route.traced or route.name == "strict":
        pytest.skip("its arrays are those of another route, or of no framework")
    others = [made() for made in routes("numpy", *(set(frameworks) - {"numpy"}))]
    for other in [each for each in others if not each.traced and each.name != "strict"]:
        for of_logits, of_target in ((route, other), (other, route)):
            logits = of_logits.array(np.array([[1.0, 2.0, 0.5], [0.1, 0.5, 2.0]], np.float32))
            target = of_target.array(np.array([1, 2], np.int32))
            if of_target.name in (of_logits.name, "numpy"):
                assert 0.39 < float(xentx.cross_entropy(logits, target)) < 0.4
                continue
            text = (
                f"target: got a {of_target.name} array where logits is a {of_logits.name} array; "
                "expected both of one framework, or target of NumPy"
            )
            with pytest.raises(TypeError, match=f"^{text}$"):
                xentx.cross_entropy(logits, target)
