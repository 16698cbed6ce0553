"""`xentx_torch.parallel` on four processes. The cases are in `torch_ranks.py`."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "support" / "torch_ranks.py"
RANKS = 4
NAMES = re.findall(r"^@case\ndef (\w+)", PROGRAM.read_text("utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def wrong(frameworks, tmp_path_factory):
    """Run all cases on four ranks, and return the errors of each case."""
    if "torch" not in frameworks:
        pytest.skip("not asked for")
    store = tmp_path_factory.mktemp("ranks") / "store"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", str(PROGRAM), str(rank), str(store)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    outputs = [rank.communicate(timeout=600) for rank in ranks]
    for rank, (_, error) in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0, error[-4000:]
    return [dict(map(ast.literal_eval, printed.splitlines())) for printed, _ in outputs]


@pytest.mark.parametrize("name", NAMES)
def test_case(wrong, name):
    for rank, cases in enumerate(wrong):
        assert cases[name] == "", f"on rank {rank}: {cases[name]}"
