"""The contract between the core and an adapter: what a backend implements.

A backend contains no mathematics. It answers questions about arrays, and attaches the derivatives
of the core to its framework's autodiff. `ArrayAPIBackend` supports any Array API library. The
adapters under backends/ support the frameworks with autodiff.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from xentx._core._spec import LossSpec
from xentx._core.tiles import Tiles
from xentx._namespace import array_namespace, device, is_array_api_obj, is_lazy_array
from xentx._types import Array, Namespace


def plain(value: Any) -> np.ndarray[Any, Any]:
    """Return NumPy's values as an ndarray proper, in the byte order of this machine.

    Subclasses and scalars become arrays, big-endian arrays are copied. No framework takes those.
    """
    array = np.asarray(value)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


# What public functions compute, by name: graphs of compilers hold names. Filled by `xentx._public`.
FUNCTIONS: dict[str, Any] = {}


class Operation(Protocol):
    """A module of `xentx._core`: a value, and its derivatives in both directions."""

    @property
    def NAME(self) -> str:  # noqa: N802 -- a module's constant
        """Of the function that it computes."""

    @property
    def IS_ROWWISE(self) -> bool:  # noqa: N802
        """Whether there is one value a row, to reduce; else one for each logit."""

    @property
    def forward(self) -> Callable[..., tuple[Array, tuple[Array, ...]]]:
        """``(xp, spec, *arrays) -> (value, residuals)``."""

    @property
    def pullback(self) -> Callable[..., tuple[Array | None, ...]]:
        """``(xp, spec, arrays, residuals, cotangent, needs) -> gradients``."""

    @property
    def jvp(self) -> Callable[..., Array]:
        """``(xp, spec, arrays, residuals, tangents) -> tangent``."""


class EngineAdapter(Protocol):
    """An adapter's module that hands its framework's arrays to an engine.

    ``kind`` is a `xentx._calls.Kind`. A method returns its result, or None to decline a call that
    the engine does not support. Then the next engine or the portable core computes.
    """

    def unusable(self) -> str | None:
        """Return why the engine cannot be used with the installed framework; None if it can.

        A clause that follows "because", such as "JAX 0.6.0 is older than 0.7 (hint: upgrade it)".
        """

    def declines(self, array: Array) -> str | None:
        """Return why a usable engine computes no loss of `array`; None if it does."""

    def solve(self, kind: Any, arrays: tuple[Array | None, ...]) -> Array | None:
        """Return the value, differentiable by the framework to any order; None to decline."""

    def solve_with_gradient(
        self,
        kind: Any,
        arrays: tuple[Array | None, ...],
        cotangent: Array | None,
        *,
        overwrite: bool = False,
    ) -> tuple[Array, Array] | None:
        """Return the value, and the gradient with respect to the logits; None to decline.

        The gradient is the pullback of `cotangent`, by default ones. With `overwrite`, it may be
        written to the memory of the logits.
        """

    def row_stats(self, kind: Any, arrays: tuple[Array | None, ...]) -> tuple[Array, ...] | None:
        """Return the fields of `xentx.RowStats`; None to decline.

        The framework can differentiate the first four. ``kind`` is that of the loss.
        """


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine, which computes losses of logits instead of the portable core.

    Parameters
    ----------
    name
        The name in XENTX_ENGINE and `xentx.backend_of`.
    adapter
        The adapter's module that passes arrays to the engine.
    takes
        Returns whether the engine supports a loss. The arguments are its `LossSpec`, the name of
        the target's dtype (None without a target), and whether the framework has float64.
    details
        Shown by `xentx.backend_of` after the name: the instruction set, or the device.
    """

    name: str
    adapter: EngineAdapter
    takes: Callable[[LossSpec, str | None, bool], bool]
    details: str


class LinearAdapter(Protocol):
    """An adapter's module for `linear_cross_entropy`: tiles of its arrays, and its autodiff.

    ``linear`` is a `xentx._calls.Linear`.
    """

    def tiles(self, array: Array) -> Tiles:
        """Return how arrays like this one are taken by tiles."""

    def view(self, array: Array) -> np.ndarray[Any, Any] | None:
        """Return an array's memory as NumPy sees it; None where it can't be seen."""

    def threads(self) -> int:
        """Return how many threads the framework was told to use; 0 where it was told nothing."""

    def attach(self, linear: Any, arrays: tuple[Array | None, ...]) -> Array:
        """Value of the problem, differentiable by every array and to any order."""

    def solve_with_gradients(
        self,
        linear: Any,
        arrays: tuple[Array | None, ...],
        cotangent: Array | None,
        needs: Sequence[bool],
    ) -> tuple[Array, Any]:
        """Value, and the gradients by hidden, head, bias and target that are needed."""

    def by_chunks(
        self,
        function: Callable[..., tuple[Array, ...]],
        size: int,
        mapped: tuple[Array, ...],
        whole: tuple[Array | None, ...],
    ) -> tuple[Array, ...]:
        """Join ``function(*chunks of mapped, *whole)``, to be differentiated chunk by chunk."""


class CallCache(Protocol):
    """An adapter's way around the checks, for a call like one that has passed them.

    ``function`` is what a public function computes, a `xentx._public.Function`.
    """

    def lookup(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Array | None:
        """Value of the call; None where no call like it is stored."""

    def store(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], problem: Any
    ) -> None:
        """Keep what was found out about a call, which is a `xentx._calls.Problem`."""


class Backend(Protocol):
    """Interface of a backend. Each adapter has one object of this kind, named ``BACKEND``."""

    name: str
    engines: tuple[Engine, ...]  # in order of preference; then comes the portable core
    linear: LinearAdapter | None  # None where the core's `Tiles` will do, and there is no autodiff
    cache: CallCache | None  # None where looking a call up takes as long as checking it
    # A backend may also have
    # - `symbols`: types of integers that its compiler doesn't know yet;
    # - ``of_sizes(name, array, like, axes)`` where a graph doesn't know all sizes: `array`, whose
    #   sizes are those of the axes of `like` when the graph runs, or it raises.

    def owns(self, value: object) -> bool:
        """Whether `value` is an array of this framework."""

    def array(self, value: Array, like: Array) -> Array:
        """Convert an array of this framework, or a `plain` one of NumPy, to the device of `like`.

        Raise a TypeError of the form "got X; expected Y" for a value that is not supported.
        """

    def namespace(self, array: Array) -> Namespace:
        """Return the Array API namespace of `array`."""

    def dtype_name(self, array: Array) -> str:
        """Return the name of the dtype without the framework's name, as ``"bfloat16"``."""

    def is_concrete(self, array: Array) -> bool:
        """Whether the values are known. The values of traced arrays are not."""

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        """Return the values of a concrete array as a NumPy array."""

    def is_compiling(self) -> bool:
        """Whether a compiler traces this call. Shapes may then be symbolic."""

    def has_float64(self, array: Array) -> bool:
        """Whether the device of `array` supports float64."""

    def device(self, array: Array) -> Any:
        """Return the device for a new array that is combined with `array`.

        None if the framework moves arrays between devices itself.
        """

    def constant(self, array: Array) -> Array:
        """Return the same values, through which no derivative is taken."""

    def is_differentiated(self, array: Array) -> bool:
        """Whether a derivative may be taken through what is computed from an array."""

    def evaluating(self) -> AbstractContextManager[Any]:
        """Return a context manager in which the core computes."""

    def attach(
        self, operation: Operation, spec: LossSpec, arrays: tuple[Array | None, ...]
    ) -> Array:
        """Return the value of `operation`, with its derivatives attached to the autodiff."""


class ArrayAPIBackend:
    """The backend for any Array API library. `xentx.value_and_grad` returns gradients."""

    name = "array-api"
    engines: tuple[Engine, ...] = ()
    linear: LinearAdapter | None = None
    cache: CallCache | None = None

    def owns(self, value: object) -> bool:
        return is_array_api_obj(value) and not isinstance(value, np.ndarray | np.generic)

    def array(self, value: Array, like: Array) -> Array:
        if self.owns(value):
            return value
        xp = self.namespace(like)
        # Not every library has devices.
        place = {"device": device(like)} if hasattr(like, "device") else {}
        return xp.asarray(value.tolist(), dtype=getattr(xp, value.dtype.name), **place)

    def namespace(self, array: Array) -> Namespace:
        return array_namespace(array)

    def dtype_name(self, array: Array) -> str:
        return str(array.dtype).rpartition(".")[2]

    def is_concrete(self, array: Array) -> bool:
        # To ask a lazy library for values would compute its graph: Dask's and Cubed's arrays have a
        # method for that.
        if hasattr(array, "compute") or is_lazy_array(array):
            return False
        try:
            values = self.to_numpy(array)
        except Exception:  # noqa: BLE001 -- libraries refuse in as many ways as there are
            return False
        return values.dtype != object  # NumPy's array of what it doesn't know

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        return np.asarray(array)

    def is_compiling(self) -> bool:
        return False

    def has_float64(self, array: Array) -> bool:
        info = self.namespace(array).__array_namespace_info__()
        return "float64" in info.dtypes(kind="real floating")

    def device(self, array: Array) -> Any:  # noqa: ARG002
        return None

    def constant(self, array: Array) -> Array:
        return array

    def is_differentiated(self, array: Array) -> bool:  # noqa: ARG002
        return False

    def evaluating(self) -> AbstractContextManager[Any]:
        # Infinite logits make NaN and inf on purpose; NumPy, which may be underneath, would warn.
        return np.errstate(all="ignore")

    def attach(
        self, operation: Operation, spec: LossSpec, arrays: tuple[Array | None, ...]
    ) -> Array:
        return operation.forward(self.namespace(arrays[0]), spec, *arrays)[0]


BACKEND = ArrayAPIBackend()
