"""What a package needs that brings another framework to xentx.

A backend is an object with the answers of `Backend`. `ArrayAPIBackend` has those of a library that
follows the Array API standard; deriving from it leaves little to say: whose arrays, and how a
derivative is attached to the framework's autodiff. An entry point in the group ``xentx.backends``
registers it, as `xentx._registry` shows, and `xentx.testing` proves it. ``examples/mlx_backend`` is
a whole one.
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
