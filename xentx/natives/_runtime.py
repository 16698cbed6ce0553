"""How to make arrays of a framework, and gradients with its own autodiff.

Everything is handed over as NumPy arrays and dtype names, so that the tools built on records name
no framework. Values travel as float64, which holds every value of the narrower floats exactly, and
with the dtype's name beside them, since NumPy has no bfloat16.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from xentx._types import Array
from xentx.natives._native import resolve

Loss = Callable[[Array, Array], Array]
LossAndGradient = Callable[[Array, Array], tuple[Array, Array | None]]


class Runtime(Protocol):
    """One framework. Implemented by a singleton named ``RUNTIME`` in each of `runtimes`."""

    def array(self, values: np.ndarray[Any, Any], dtype: str) -> Array:
        """Array of the framework with these values, which the dtype can represent."""

    def values(self, array: Array) -> np.ndarray[Any, Any]:
        """Values of an array: float64, complex128 or integers."""

    def dtype(self, array: Array) -> str:
        """Name of the dtype without its framework."""

    def one_hot(self, indices: Array, classes: int, dtype: str, axis: int) -> Array:
        """Return what the framework's own one-hot function makes of indices."""

    def configured(self, dtype: str) -> AbstractContextManager[Any]:
        """Context in which the framework has the dtype, where it has to be switched on."""

    def differentiate(self, loss: Loss, *, compiled: bool) -> LossAndGradient:
        """Make a function of ``(logits, target)`` that returns the loss and its sum's gradient.

        The gradient is by the logits; None for logits that are no floats.
        """

    def wait(self, array: Array) -> None:
        """Return once the array has been computed."""


RUNTIMES = {
    "numpy": "xentx.natives.runtimes.numpy:RUNTIME",
    "torch": "xentx.natives.runtimes.torch:RUNTIME",
    "jax": "xentx.natives.runtimes.jax:RUNTIME",
    "tensorflow": "xentx.natives.runtimes.tensorflow:RUNTIME",
    "keras": "xentx.natives.runtimes.keras:RUNTIME",
}


def runtime_of(framework: str) -> Runtime:
    """Import a framework and return its runtime.

    Parameters
    ----------
    framework
        "numpy", "torch", "jax", "tensorflow" or "keras". Keras runs on the backend that it chose
        when it was first imported.

    Raises
    ------
    ValueError
        If there is no such runtime.
    ImportError
        If the framework can't be imported.
    """
    if framework not in RUNTIMES:
        msg = f"framework: got {framework!r}; expected one of {', '.join(RUNTIMES)}"
        raise ValueError(msg)
    runtime: Runtime = resolve(RUNTIMES[framework])
    return runtime
