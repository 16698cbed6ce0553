"""Shared by the benchmarks: a new process, its memory, and the description of the machine."""

import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any


def apart(program: str, *arguments: str, env: Mapping[str, str] = MappingProxyType({})) -> Any:
    """Run a program in a new process, and return what it prints as JSON."""
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", **env}
    command = [sys.executable, program, *arguments]
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def added_peak(call: Callable[[], Any]) -> int:
    """Return the bytes that a call adds to the peak of the resident set, with its result."""

    def status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) << 10

    # JAX frees arrays that it has copied later, in another thread.
    time.sleep(1)
    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    kept = call()
    added = status("VmHWM") - before
    del kept
    return added


def machine() -> dict[str, Any]:
    """Return the machine and the versions that were measured."""
    import xentx

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.partition(":")[2].strip() for line in info.splitlines() if "model name" in line]
    names = ("numpy", "scipy", "torch", "jax", "optax", "tensorflow-cpu", "keras")
    return {
        "processor": models[0] if models else platform.processor(),
        "processors": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "engine": xentx.backends()[0].engine,
        "versions": {name: installed(name) for name in names if installed(name)},
    }
