"""The examples for several ranks print the same losses on four ranks as on one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def losses(program, ranks):
    done = subprocess.run(
        [
            *(sys.executable, "-P", "-W", "ignore", "-m", "torch.distributed.run"),
            *("--standalone", "--nproc-per-node", str(ranks), str(program)),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [float(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("name", ["tensor_parallel", "data_parallel", "sequence_parallel"])
def test_four_ranks_learn_as_one(frameworks, name):
    if "torch" not in frameworks:
        pytest.skip("not asked for")
    alone, together = (losses(EXAMPLES / name / "train.py", ranks) for ranks in (1, 4))
    assert len(alone) == 20
    assert alone[-1] < 0.7 * alone[0]
    np.testing.assert_allclose(together, alone, rtol=1e-5)
