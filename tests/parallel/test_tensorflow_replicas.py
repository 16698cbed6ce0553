"""Two replicas of TensorFlow. The cases are in `tensorflow_replicas.py`."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "support" / "tensorflow_replicas.py"
NAMES = re.findall(r"^@case\ndef (\w+)", PROGRAM.read_text("utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def wrong(frameworks):
    """Run all cases in one process, and return the error of each case."""
    if "tensorflow" not in frameworks:
        pytest.skip("not asked for")
    command = [sys.executable, "-P", "-W", "ignore", str(PROGRAM)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = (line for line in done.stdout.splitlines() if line.startswith("("))
    return dict(map(ast.literal_eval, lines))


@pytest.mark.parametrize("name", NAMES)
def test_case(wrong, name):
    assert wrong[name] == "", wrong[name]
