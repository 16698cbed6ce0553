"""Arrays of a framework, and gradients by its autodiff.

Arguments and results are NumPy arrays and names of dtypes, so that the tools do not depend on a
framework. Values are float64, which holds all values of narrower floats exactly. NumPy has no
bfloat16, so the name of the dtype is passed separately.
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
    """A framework. Each module of `runtimes` implements it as ``RUNTIME``."""

    def array(self, values: np.ndarray[Any, Any], dtype: str) -> Array:
        """Make an array with these values, which the dtype can represent."""

    def values(self, array: Array) -> np.ndarray[Any, Any]:
        """Return the values of an array as float64, complex128 or integers."""

    def dtype(self, array: Array) -> str:
        """Return the name of the dtype without the framework."""

    def one_hot(self, indices: Array, classes: int, dtype: str, axis: int) -> Array:
        """Return one-hot rows, by the framework's own function."""

    def configured(self, dtype: str) -> AbstractContextManager[Any]:
        """Return a context in which the framework supports the dtype."""

    def differentiate(self, loss: Loss, *, compiled: bool) -> LossAndGradient:
        """Make a function of ``(logits, target)`` that returns the loss and a gradient.

        It is the gradient of the sum with respect to the logits. None if these are not floats.
        """

    def wait(self, array: Array) -> None:
        """Wait until the array has been computed."""


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
        "numpy", "torch", "jax", "tensorflow" or "keras". Keras uses the backend that it selected
        when it was imported.

    Raises
    ------
    ValueError
        If there is no such runtime.
    ImportError
        If the framework cannot be imported.
    """
    if framework not in RUNTIMES:
        msg = f"framework: got {framework!r}; expected one of {', '.join(RUNTIMES)}"
        raise ValueError(msg)
    runtime: Runtime = resolve(RUNTIMES[framework])
    return runtime
