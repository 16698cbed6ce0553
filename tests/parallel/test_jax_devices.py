"""`xentx_jax.parallel` on eight CPU devices. The cases are in `jax_devices.py`."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "support" / "jax_devices.py"
NAMES = re.findall(r"^@case\ndef (\w+)", PROGRAM.read_text("utf-8"), re.MULTILINE)


@pytest.fixture(scope="module", params=["0", "1"], ids=["float32", "float64"])
def wrong(request, frameworks):
    """Run all cases in one process, and return the error of each case."""
    if "jax" not in frameworks:
        pytest.skip("not asked for")
    done = subprocess.run(
        [sys.executable, "-P", str(PROGRAM)],
        env={**os.environ, "JAX_ENABLE_X64": request.param, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(map(ast.literal_eval, done.stdout.splitlines()))


@pytest.mark.parametrize("name", NAMES)
def test_case(wrong, name):
    assert wrong[name] == "", wrong[name]
