"""The example has nearly equal losses with each framework's own loss and with xentx."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from xentx.testing import requested_frameworks

FOLDER = Path(__file__).parents[2] / "examples" / "language_model"
FRAMEWORKS = [name for name in requested_frameworks() if name != "numpy"]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_curves_coincide(framework, monkeypatch, tmp_path):
    pytest.importorskip("plotly")
    monkeypatch.syspath_prepend(FOLDER)
    train = importlib.import_module("train")
    native, ours = (train.curve(framework, loss, steps=6, rows=300) for loss in train.LOSSES)
    assert native[-1] < native[0] - 0.1
    np.testing.assert_allclose(ours, native, rtol=1e-5)
    train.draw({(framework, "xentx"): ours}, tmp_path / "curves.html")
    assert f"{framework}, xentx" in (tmp_path / "curves.html").read_text()
