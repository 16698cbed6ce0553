"""All frameworks call the same kernel and get the same bits."""

import functools
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import xentx
from xentx import _kernel_engine
from xentx.testing import _oracle as oracle
from xentx.testing import requested_frameworks, routes
from xentx.testing._problems import OPTIONS, REDUCTIONS, draw_problem

pytestmark = [
    pytest.mark.skipif(_kernel_engine.KERNEL is None, reason="xentx is without a kernel here"),
    # A thousand problems take a minute. It is enough to run them once, with all frameworks.
    pytest.mark.skipif(len(requested_frameworks()) < 2, reason="only one framework is requested"),
]

PROBLEMS = 1000
AT_ONCE = 50  # problems in one compiled function
# Compiling is slow, so a route tests one of this many problems. The numbers are primes, so that
# each dtype, option and kind of target is tested.
EVERY = {"jax": 7, "jax:jit": 5, "tensorflow:function": 17}
DTYPES = list(oracle.DTYPES.values())
OTHERS = [
    route for route in routes(*requested_frameworks()) if route.name not in {"numpy", "strict"}
]
(REFERENCE, *_) = routes("numpy")


def problem(seed):
    """Draw a problem of random shape, dtype and options. Some use several threads."""
    rng = np.random.default_rng(seed)
    rows = tuple(rng.integers(1, 12, rng.integers(1, 3)))
    axis = int(rng.integers(len(rows) + 1))
    classes = int(rng.choice([1, 2, 10, 64, 65, 300, 2049]))
    logits, target, options, cotangent = draw_problem(
        rng,
        (*rows[:axis], classes, *rows[axis:]),
        axis,
        DTYPES[seed % 4],
        soft=seed % 3 == 0,
        reduction=REDUCTIONS[int(rng.integers(4))],
        options=list(OPTIONS.values())[seed % len(OPTIONS)],
    )
    logits = (logits * rng.choice([1, 30])).astype(logits.dtype)
    return logits, target, options, np.ones_like(cotangent) if seed % 2 else cotangent


def loss_of(target, options, logits):
    """Compute the loss as a function of the logits."""
    return xentx.cross_entropy(logits, target, **options)


def digests(route, seeds):
    """Digests of the losses and gradients of several problems, in one call of the framework."""
    arrays, static = {}, {}
    for seed in seeds:
        logits, target, options, cotangent = problem(seed)
        mine = {"logits": logits, "target": target, "cotangent": cotangent}
        mine |= {key: value for key, value in options.items() if isinstance(value, np.ndarray)}
        static[seed] = {key: value for key, value in options.items() if key not in mine}
        arrays |= {(seed, key): value for key, value in mine.items()}

    def all_of_them(given):
        results = []
        for seed in seeds:
            own = {key: value for (of, key), value in given.items() if of == seed} | static[seed]
            logits, target, cotangent = (own.pop(k) for k in ("logits", "target", "cotangent"))
            if route.has_autodiff:
                loss = functools.partial(loss_of, target, own)
                value, gradients = route.differentiate(loss, [logits], cotangent)
                results.extend((value, *gradients))
            else:
                both = xentx.value_and_grad(xentx.cross_entropy)
                results.extend(both(logits, target, cotangent=cotangent, **own))
        return tuple(results)

    with route.precision(*arrays.values()):
        values = [route.array(value) for value in arrays.values()]
        results = route.compiled(all_of_them, list(arrays))(*values)
        bits = [np.asarray(route.numpy(result)).tobytes() for result in results]
    pairs = zip(bits[::2], bits[1::2], strict=True)
    return {
        seed: hashlib.sha256(value + gradient).hexdigest()
        for seed, (value, gradient) in zip(seeds, pairs, strict=True)
    }


def many(route, count=PROBLEMS):
    """Digests of `count` problems. Problems with the same dtype are computed together."""
    found = {}
    step = EVERY.get(route.name, 1)
    for dtype in range(4):
        seeds = [seed for seed in range(0, count, step) if seed // step % 4 == dtype]
        for first in range(0, len(seeds), AT_ONCE):
            found |= digests(route, seeds[first : first + AT_ONCE])
    return found


@pytest.fixture(scope="module")
def expected():
    """Digests of NumPy's results."""
    return many(REFERENCE())


@pytest.mark.parametrize("make", OTHERS, ids=lambda route: route.name)
def test_eager_and_traced(make, expected):
    found = many(make())
    assert len(found) >= PROBLEMS // 20
    assert [seed for seed in found if found[seed] != expected[seed]] == []


PROGRAM = """
import test_bits
for make in (test_bits.REFERENCE, *test_bits.OTHERS):
    print(sorted(test_bits.many(make(), 100).items()))
"""


def test_with_one_thread(expected):
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    env = {**os.environ, "PYTHONPATH": path, "XENTX_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + len(OTHERS)
    for route, line in zip((REFERENCE, *OTHERS), lines, strict=True):
        seeds = range(0, 100, EVERY.get(route.name, 1))
        assert line == str([(seed, expected[seed]) for seed in seeds]), route.name
