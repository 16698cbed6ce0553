"""Upper bounds for the bytes that the portable core moves, on this CPU with XLA.

The bounds hold for the pinned version of JAX, since they depend on what its compiler fuses. Lower
them when the core or JAX moves fewer bytes.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.pinned

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PASSES = ("forward", "forward + backward")

# Bytes read and written for each float32 logit, without and with the gradient.
BOUNDS = {
    "cross_entropy": ((16, 8), (20, 12)),
    "weight": ((16, 8), (20, 12)),
    "label_smoothing": ((24, 12), (28, 16)),
    "soft targets": ((48, 16), (80, 29)),
    "z_loss": ((16, 8), (20, 12)),
    "logit_softcap": ((16, 8), (24, 12)),
    "temperature": ((16, 8), (20, 12)),
    "log_softmax": ((44, 20), (76, 33)),
    "nll_loss": ((0, 0), (0, 4)),
}


@pytest.fixture(scope="module", autouse=True)
def _jax(frameworks):
    if "jax" not in frameworks:
        pytest.skip("not requested")


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    """Results of the benchmark, in a process that uses the portable core."""
    path = tmp_path_factory.mktemp("bytes") / "moved.json"
    program = (sys.executable, BENCHMARKS / "bytes_moved.py")
    # The program imports modules from its own folder.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    chosen = ("--targets", "cpu", "--dtypes", "float32", "--libraries", "xentx")
    command = (*program, *chosen, "--json", path)
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    return json.loads(path.read_text("utf-8"))["targets"]["cpu"]["float32"]["xentx"]


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("loss", BOUNDS)
def test_no_more_bytes_are_moved(counts, loss, passes):
    found = counts[loss][passes]
    read, written = BOUNDS[loss][PASSES.index(passes)]
    assert found["read"] < read + 0.5
    assert found["written"] < written + 0.5


def test_every_loss_is_bounded(counts):
    assert list(counts) == list(BOUNDS)


def test_no_array_but_one_has_the_size_of_the_logits(counts):
    # XLA stores the exponentials, since its sum on CPUs reads them from memory. With the gradient,
    # they are stored in the gradient's buffer.
    plain = counts["cross_entropy"]
    assert plain["forward"]["temporary"] < 4.5
    assert plain["forward + backward"]["temporary"] < 0.5


def moved(function, *arrays):
    """Bytes that the program compiled by JAX reads and writes."""
    import jax

    spec = importlib.util.spec_from_file_location("_hlo", BENCHMARKS / "_hlo.py")
    hlo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hlo)
    return hlo.Program(jax.jit(function).lower(*arrays).compile().as_text()).moved()


def test_each_array_in_memory_is_counted():
    import jax
    import jax.numpy as jnp

    x = jax.ShapeDtypeStruct((512, 1024), jnp.float32)
    narrow = jax.ShapeDtypeStruct(x.shape, jnp.bfloat16)
    index = jax.ShapeDtypeStruct((512, 1), jnp.int32)
    size, row = 4 * 512 * 1024, 4 * 512
    assert moved(lambda x: jnp.exp(x + 1.0), x) == (size, size)
    assert moved(lambda x, y: x * y, x, x) == (2 * size, size)
    assert moved(lambda x: x.astype(jnp.float32), narrow) == (size / 2, size)
    read, written = moved(lambda x: x.max(-1), x)
    assert (read, written) == (pytest.approx(size, abs=row), row)
    # A gather reads only the elements that it returns, also inside a fusion.
    read, _ = moved(lambda x, i: jnp.take_along_axis(jnp.tanh(x), i, -1) + 1.0, x, index)
    assert read < 4 * row
