"""What a backend has to say about its arrays: the contract between the core and an adapter.

A backend holds no mathematics. It answers questions about arrays and attaches a pullback that the
core wrote to its framework's automatic differentiation. `ArrayAPIBackend` is the one that serves
any Array API library; the adapters under backends/ serve the frameworks with autodiff.
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

    ``kind`` is a `xentx._calls.Kind`. It answers, or declines with None what the engine can't take:
    the next engine computes that, or the portable core.
    """

    def unusable(self) -> str | None:
        """Say why the engine serves no array of the framework as it is installed; None if it does.

        A clause that follows "because", such as "JAX 0.6.0 is older than 0.7 (hint: upgrade it)".
        """

    def declines(self, array: Array) -> str | None:
        """Say why the engine computes no loss of `array`, where it is usable; None if it does."""

    def solve(self, kind: Any, arrays: tuple[Array | None, ...]) -> Array | None:
        """Value, which the framework can differentiate to any order; None to decline."""

    def solve_with_gradient(
        self,
        kind: Any,
        arrays: tuple[Array | None, ...],
        cotangent: Array | None,
        *,
        overwrite: bool = False,
    ) -> tuple[Array, Array] | None:
        """Value, and gradient with respect to the logits, which may be overwritten by it.

        It is for a cotangent, ones if None. None to decline.
        """

    def row_stats(self, kind: Any, arrays: tuple[Array | None, ...]) -> tuple[Array, ...] | None:
        """Fields of `xentx.RowStats`, of which the framework can differentiate the first four.

        ``kind`` is that of the loss. None to decline.
        """


@dataclass(frozen=True, slots=True)
class Engine:
    """What computes dense losses of a framework's arrays, beside the portable core.

    Parameters
    ----------
    name
        As XENTX_ENGINE and `xentx.backend_of` name it.
    adapter
        What hands it the arrays.
    takes
        Whether it has a loss: takes its `LossSpec`, the name of the target's dtype, None without a
        target, and whether the framework has float64.
    details
        What `xentx.backend_of` says beside its name: the instruction set, or the device.
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
    """One framework's answers. Implemented by a singleton named ``BACKEND`` in each adapter."""

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
        """Make `value` an array beside `like`: an array of this framework, or `plain` of NumPy.

        What it can't take is a TypeError in the form "got X; expected Y".
        """

    def namespace(self, array: Array) -> Namespace:
        """Array API namespace of `array`."""

    def dtype_name(self, array: Array) -> str:
        """Name of the dtype without its framework: ``"bfloat16"``."""

    def is_concrete(self, array: Array) -> bool:
        """Whether the values can be seen: not under a tracing compiler or transformation."""

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        """Concrete values as a NumPy array."""

    def is_compiling(self) -> bool:
        """Whether a compiler is reading this call, whose shapes may be symbols."""

    def has_float64(self, array: Array) -> bool:
        """Whether float64 exists where `array` lives."""

    def device(self, array: Array) -> Any:
        """Where a new array must be made to meet `array`; None where the framework moves it."""

    def constant(self, array: Array) -> Array:
        """Return the same values, through which no derivative is taken."""

    def is_differentiated(self, array: Array) -> bool:
        """Whether a derivative may be taken through what is computed from an array."""

    def evaluating(self) -> AbstractContextManager[Any]:
        """Context in which the core computes."""

    def attach(
        self, operation: Operation, spec: LossSpec, arrays: tuple[Array | None, ...]
    ) -> Array:
        """Value of `operation`, differentiated by its own rules in this framework's autodiff."""


class ArrayAPIBackend:
    """Any library that follows the standard: forward, and gradients by `xentx.value_and_grad`."""

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
