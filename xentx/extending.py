"""The interface for packages that add a backend for another framework.

A backend is an object that implements `Backend`. `ArrayAPIBackend` implements it for any library
that follows the Array API standard. A subclass only defines which arrays it owns, and how to attach
a derivative to the framework's autodiff. An entry point in the group ``xentx.backends`` registers
the backend, and `xentx.testing` tests it. ``examples/mlx_backend`` is a complete example.
"""

from xentx._backend import ArrayAPIBackend, Backend, Engine, EngineAdapter, Operation
from xentx._core._spec import LossSpec
from xentx._public import bind

__all__ = [
    "ArrayAPIBackend",
    "Backend",
    "Engine",
    "EngineAdapter",
    "LossSpec",
    "Operation",
    "bind",
]
