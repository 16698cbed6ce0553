"""NumPy has no autodiff: a value is a value, and `xentx.value_and_grad` gives the gradient."""

from typing import Any

from xentx._backend import Operation
from xentx._core._spec import Spec
from xentx._namespace import numpy_namespace

Array = Any
NAMESPACE = numpy_namespace()


def attach(operation: Operation, spec: Spec, arrays: tuple[Array | None, ...]) -> Array:
    """Evaluate the operation."""
    return operation.forward(NAMESPACE, spec, *arrays)[0]
