"""A comparison in several processes gives the same report, also if a process fails."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

from xentx.compare import (
    BINARY_CORNERS,
    CORNERS,
    REGIMES,
    Plan,
    _apart,
    _json,
    _worker,
    compare,
    user_regime,
)
from xentx.compare._apart import Crash, compare_apart, merge, split
from xentx.compare._evaluate import Availability
from xentx.compare._run import compare_some

PLAN = Plan(
    frameworks=("numpy",),
    regimes=(REGIMES["worked-example"], REGIMES["gap"]),
    corners=(CORNERS["target-too-high"], CORNERS["nan-logit"]),
    timed=False,
)


def test_a_merged_report_is_that_of_one_process():
    chosen = PLAN.chosen()
    found = {
        name: compare_some(PLAN, part, Availability(), lambda *_: None)
        for name, part in (("odd", chosen[1::2]), ("even", chosen[::2]))
    }
    assert len(chosen) > 2
    assert _json.dumps(merge(PLAN, chosen, found)) == _json.dumps(compare(PLAN))


def test_a_plan_of_the_binary_loss_travels_as_json(tmp_path):
    corners = (BINARY_CORNERS["binary-nan"],)
    plan = dataclasses.replace(PLAN, loss="binary_cross_entropy", corners=corners)
    assert _worker.restore(json.loads(json.dumps(_worker.describe(plan, tmp_path)))) == plan


def test_a_plan_travels_as_json(tmp_path):
    mine = user_regime("mine.npz", np.asarray([[0.1, np.inf]]), np.asarray([1]))
    plan = dataclasses.replace(
        PLAN, losses=("numpy:*",), dtypes=("float16",), seed=3, keras_backends=("jax",)
    )
    described = _worker.describe(dataclasses.replace(plan, regimes=(*plan.regimes, mine)), tmp_path)
    back = _worker.restore(json.loads(json.dumps(described)))
    *known, restored = back.regimes
    assert dataclasses.replace(back, regimes=tuple(known)) == plan
    assert (restored.name, restored.description) == (mine.name, mine.description)
    for got, wanted in zip(
        restored.generate(np.random.default_rng(0)), ([[0.1, np.inf]], [1]), strict=True
    ):
        np.testing.assert_array_equal(got, wanted)


def test_a_fitted_regime_is_fitted_once(tmp_path):
    regime = dataclasses.replace(REGIMES["gap"], name="fitted", needs="numpy")
    (described,) = _worker.describe(Plan(regimes=(regime,)), tmp_path)["regimes"]
    assert described["path"].startswith(str(tmp_path))


def test_several_processes_give_the_same_report():
    plan = dataclasses.replace(PLAN, frameworks=("numpy", "torch"), losses=("scipy:*",))
    steps = []
    report = compare_apart(plan, lambda *step: steps.append(step), jobs=2)
    assert _json.dumps(report) == _json.dumps(compare(plan))
    assert [done for done, _, _ in steps] == sorted(done for done, _, _ in steps)
    assert steps[-1][0] == steps[-1][1]


def test_a_crash_costs_a_framework_its_own_rows(tmp_path, monkeypatch):
    (tmp_path / "jax.py").write_text(
        "import os, sys\nprint('no luck', file=sys.stderr)\nos._exit(7)"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plan = dataclasses.replace(PLAN, frameworks=("numpy", "jax"), losses=("scipy:*",))
    report = compare_apart(plan, jobs=2)
    verdicts = {found.loss: found.verdict for found in report.regimes[0].measurements}
    assert verdicts["xentx:numpy"] == "accurate"
    assert verdicts["xentx:jax"] == "unavailable"
    problems = {loss.id: loss.problem for loss in report.losses}
    assert problems["xentx:jax"] == "its process ended with exit status 7: no luck"
    assert report.failures == ("jax: its process ended with exit status 7: no luck",)
    assert not report.passed


@pytest.mark.skipif(sys.platform == "win32", reason="has no signals")
def test_a_signal_is_named(monkeypatch):
    command = (sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    monkeypatch.setattr(_apart, "_COMMAND", command)
    plan = dataclasses.replace(PLAN, frameworks=("numpy", "torch"), losses=("scipy:*",))
    report = compare_apart(plan, jobs=1)
    assert {loss.problem for loss in report.losses} == {"its process ended by signal 9, Killed"}


@pytest.mark.parametrize(
    ("fail_on", "crashed", "failing"),
    [
        ("none", "numpy", ()),
        ("xentx", "numpy", ("numpy: gone",)),
        ("xentx", "keras[jax]", ()),
        ("any", "keras[jax]", ("keras[jax]: gone",)),
    ],
)
def test_which_crashes_are_failures(fail_on, crashed, failing):
    plan = Plan(
        frameworks=("numpy", "keras"),
        losses=("scipy:*", "keras:ops.*"),
        regimes=(REGIMES["worked-example"],),
        keras_backends=("jax",),
        timed=False,
        fail_on=fail_on,
    )
    shares = split(plan.chosen())
    assert list(shares) == ["numpy", "keras[jax]"]
    found = {
        name: Crash("gone")
        if name == crashed
        else compare_some(plan, share, Availability(), lambda *_: None)
        for name, share in shares.items()
    }
    assert merge(plan, plan.chosen(), found).failures == failing


def test_patterns_mean_every_backend_or_one():
    backends = ("jax", "torch")

    def ids(pattern):
        plan = Plan(frameworks=("keras",), losses=(pattern,), keras_backends=backends)
        return [native.id for native in plan.chosen()]

    name = "ops.categorical_crossentropy"
    assert ids(f"keras:{name}") == [f"keras[jax]:{name}", f"keras[torch]:{name}"]
    assert ids(f"keras[torch]:{name}") == [f"keras[torch]:{name}"]
    with pytest.raises(ValueError, match="numpy"):
        ids("keras[numpy]:*")


def test_keras_is_measured_on_each_backend(frameworks):
    backends = tuple(name for name in ("jax", "torch", "tensorflow") if name in frameworks)[:2]
    if importlib.util.find_spec("keras") is None or len(backends) < 2:
        pytest.skip("needs Keras and two of its backends")
    name = "ops.sparse_categorical_crossentropy"
    plan = Plan(
        frameworks=("keras",),
        losses=(f"keras:{name}",),
        regimes=(REGIMES["worked-example"],),
        keras_backends=backends,
        timed=False,
    )
    report = compare_apart(plan, jobs=2)
    assert report.keras_backends == backends
    rows = {found.loss: found for found in report.regimes[0].measurements}
    assert list(rows) == [f"keras[{backend}]:{name}" for backend in backends]
    assert {row.verdict for row in rows.values()} == {"accurate"}
    # A process has one Keras backend. In the report, losses of other backends have a problem.
    alone = compare(plan)
    assert len(alone.keras_backends) <= 1
    assert any(
        "needs a process with KERAS_BACKEND=" in (loss.problem or "") for loss in alone.losses
    )


def test_a_worker_ends_with_its_parent(tmp_path):
    plan = dataclasses.replace(PLAN, regimes=(REGIMES["normal-50257"],) * 9)
    ids = [native.id for native in plan.chosen()]
    command = (sys.executable, "-P", "-m", "xentx.compare._worker")
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=_apart.environment_of(None),
        encoding="utf-8",
    ) as worker:
        worker.stdin.write(_worker.question(_worker.describe(plan, tmp_path), ids))
        worker.stdin.flush()
        assert "done" in json.loads(worker.stdout.readline())
        worker.stdin.close()
        assert worker.wait(timeout=60) == 1
        assert "report" not in worker.stdout.read()
