"""Suppress messages that frameworks print when they start. Only the command does this.

TensorFlow and compilers write to file descriptor 2 from C++, also if environment variables disable
messages. Here the descriptor is redirected to a file, which is shown if the command fails.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TextIO

_STDERR = 2
_DEFAULTS = {"TF_CPP_MIN_LOG_LEVEL": "3", "GRPC_VERBOSITY": "ERROR"}
_KERAS_BACKENDS = ("tensorflow", "jax", "torch")


def _environment() -> None:
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    # Keras's default is TensorFlow, even if it is not installed.
    installed = [name for name in _KERAS_BACKENDS if find_spec(name) is not None]
    os.environ.setdefault("KERAS_BACKEND", [*installed, "numpy"][0])


@contextmanager
def quiet() -> Iterator[TextIO]:
    """Redirect descriptor 2, and return the original standard error."""
    _environment()
    sys.stderr.flush()
    true = os.dup(_STDERR)
    with tempfile.TemporaryFile() as noise, os.fdopen(true, "w", encoding="utf-8") as stderr:
        os.dup2(noise.fileno(), _STDERR)
        try:
            yield stderr
        except Exception:
            noise.seek(0)
            stderr.write(noise.read().decode(errors="replace"))
            raise
        finally:
            stderr.flush()
            os.dup2(true, _STDERR)
