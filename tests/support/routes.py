"""The ways into xentx that every test of behaviour runs: a framework, eager or traced.

A route turns NumPy arrays into its framework's, calls a function of xentx there, differentiates it
with the framework's own autodiff (NumPy and array-api-strict have none: `xentx.value_and_grad`),
and turns the results back. On a traced route every array is an argument of the compiled function,
so that xentx sees no values.
"""

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

import xentx

Function = Callable[..., Any]

FRAMEWORKS = ("numpy", "torch", "jax", "tensorflow")
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

# Compilers key on the function object, and a test's is new each time: these are kept by what they
# compute. Only for functions of a module: the repr of another may come again as another's.
COMPILED: dict[tuple[str, ...], Function] = {}


def requested_frameworks() -> tuple[str, ...]:
    """What XENTX_TEST_BACKENDS names, which must be there; without it, whatever is installed."""
    names = os.environ.get("XENTX_TEST_BACKENDS")
    if names is None:
        return tuple(name for name in FRAMEWORKS if importlib.util.find_spec(name))
    chosen = tuple(names.split(","))
    if unknown := set(chosen) - set(FRAMEWORKS):
        msg = f"XENTX_TEST_BACKENDS: got {sorted(unknown)}; expected some of {FRAMEWORKS}"
        raise ValueError(msg)
    for name in chosen:
        importlib.import_module(name)
    return chosen


def enable_x64(enabled: bool = True) -> contextlib.AbstractContextManager[Any]:  # noqa: FBT
    """Context in which JAX has float64, wherever this version keeps the switch."""
    jax = importlib.import_module("jax")
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(enabled)
    return importlib.import_module("jax.experimental").enable_x64(enabled)


class Route:
    """NumPy, and what the others share."""

    name = "numpy"
    framework = "numpy"
    traced = False
    dtypes = ("float16", "bfloat16", "float32", "float64")

    def __init__(self) -> None:
        """Import the framework."""
        importlib.import_module(self.framework)

    def __repr__(self) -> str:
        return self.name

    def array(self, value: np.ndarray) -> Any:
        """Convert to the framework."""
        return value

    def numpy(self, value: Any) -> np.ndarray:
        """Convert from the framework."""
        return np.asarray(value)

    def precision(self, *arrays: Any) -> contextlib.AbstractContextManager[Any]:
        """Context in which the framework has the dtypes of `arrays`."""
        return contextlib.nullcontext()

    def compiled(self, function: Function, keys: list[Any]) -> Function:
        """Make ``function(arrays)`` one of the arrays' values, traced where the route is."""
        return lambda *values: function(dict(zip(keys, values, strict=True)))

    def run(self, function: Function, arrays: dict[Any, Any], *key: Any) -> Any:
        """Call ``function(arrays)``, compiled once for each `key`."""
        keys = list(arrays)
        key = (self.name, *map(repr, keys), *map(repr, key))
        if key not in COMPILED:
            COMPILED[key] = self.compiled(function, keys)
        return COMPILED[key](*arrays.values())

    def differentiate(self, function: Function, variables: Any, cotangent: Any) -> tuple[Any, Any]:
        """Value and gradients of ``function(*variables)``."""
        raise NotImplementedError

    # What tests call:

    def value(self, function: Function, *args: Any, **options: Any) -> np.ndarray:
        """Value of ``function(*args, **options)``."""
        arrays, rest = split(args, options)
        with self.precision(*arrays.values()):
            converted = {key: self.array(value) for key, value in arrays.items()}
            static = (function, [a for i, a in enumerate(args) if i not in arrays], rest)
            result = self.run(
                lambda given: _call(function, given, args, rest), converted, "value", static
            )
            return self.numpy(result)

    def pull(
        self,
        function: Function,
        *args: Any,
        cotangent: np.ndarray | None = None,
        wrt: Any = 0,
        **options: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Value, and gradient by argument or option `wrt`, for `cotangent` (ones by default).

        For a tuple of them, a tuple; without autodiff, of all that the function has a gradient by.
        """
        arrays, rest = split(args, options)
        if cotangent is not None:
            arrays["cotangent"] = cotangent
        with self.precision(*arrays.values()):
            converted = {key: self.array(value) for key, value in arrays.items()}

            def both(given: dict[Any, Any]) -> tuple[Any, Any]:
                given = dict(given)
                seed = given.pop("cotangent", None)
                if not self.has_autodiff:
                    own = xentx.value_and_grad(function)
                    value, gradient = _call(own, given, args, {**rest, "cotangent": seed})
                    if isinstance(wrt, tuple):
                        return value, tuple(g for g in gradient if g is not None)
                    assert wrt == 0
                    return value, gradient
                several = wrt if isinstance(wrt, tuple) else (wrt,)
                variables = [given.pop(key) for key in several]
                value, gradients = self.differentiate(
                    lambda *v: _call(
                        function, {**given, **dict(zip(several, v, strict=True))}, args, rest
                    ),
                    variables,
                    seed,
                )
                return value, tuple(gradients) if isinstance(wrt, tuple) else gradients[0]

            static = (function, [a for i, a in enumerate(args) if i not in arrays], rest)
            value, gradient = self.run(both, converted, "pull", wrt, static)
            if isinstance(wrt, tuple):
                return self.numpy(value), tuple(self.numpy(g) for g in gradient)
            return self.numpy(value), self.numpy(gradient)

    has_autodiff = False


def split(args: tuple[Any, ...], options: dict[str, Any]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """Separate the arrays, by position or name, from the other options."""
    everything = dict(enumerate(args)) | options
    arrays = {key: v for key, v in everything.items() if isinstance(v, np.ndarray | np.generic)}
    return arrays, {key: v for key, v in options.items() if key not in arrays}


def _call(function: Function, arrays: dict[Any, Any], args: tuple[Any, ...], rest: dict) -> Any:
    positional = [arrays.get(i, value) for i, value in enumerate(args)]
    named = {key: value for key, value in arrays.items() if isinstance(key, str)}
    return function(*positional, **named, **rest)


class Strict(Route):
    """array-api-strict: the standard and nothing but the standard."""

    name = "strict"
    dtypes = ("float32", "float64")

    def __init__(self) -> None:
        self.xp = importlib.import_module("array_api_strict")

    def array(self, value: np.ndarray) -> Any:
        return self.xp.asarray(value.copy())


class Torch(Route):
    name = framework = "torch"
    has_autodiff = True

    def __init__(self) -> None:
        self.torch = importlib.import_module("torch")

    def array(self, value: np.ndarray) -> Any:
        value = np.array(value, order="C")
        if value.dtype == BFLOAT16:
            return self.torch.from_numpy(value.view(np.int16)).view(self.torch.bfloat16)
        return self.torch.from_numpy(value)

    def numpy(self, value: Any) -> np.ndarray:
        value = value.detach()
        if value.dtype == self.torch.bfloat16:
            return value.view(self.torch.int16).numpy().view(BFLOAT16)
        return value.numpy()

    def differentiate(self, function: Function, variables: Any, cotangent: Any) -> tuple[Any, Any]:
        variables = [variable.detach().requires_grad_() for variable in variables]
        value = function(*variables)
        seed = self.torch.ones_like(value) if cotangent is None else cotangent
        value.backward(seed)
        return value, [variable.grad for variable in variables]


class JAX(Route):
    name = framework = "jax"
    has_autodiff = True

    def __init__(self) -> None:
        self.jax = importlib.import_module("jax")

    def array(self, value: np.ndarray) -> Any:
        return self.jax.numpy.asarray(value)

    def precision(self, *arrays: Any) -> contextlib.AbstractContextManager[Any]:
        return enable_x64(any(array.dtype == np.float64 for array in arrays))

    def differentiate(self, function: Function, variables: Any, cotangent: Any) -> tuple[Any, Any]:
        value, pullback = self.jax.vjp(function, *variables)
        seed = self.jax.numpy.ones_like(value) if cotangent is None else cotangent
        return value, pullback(seed)


class JAXJit(JAX):
    name = "jax:jit"
    traced = True

    def compiled(self, function: Function, keys: list[Any]) -> Function:
        return self.jax.jit(super().compiled(function, keys))


class TensorFlow(Route):
    name = framework = "tensorflow"
    has_autodiff = True

    def __init__(self) -> None:
        self.tf = importlib.import_module("tensorflow")

    def array(self, value: np.ndarray) -> Any:
        return self.tf.constant(value)

    def numpy(self, value: Any) -> np.ndarray:
        return np.asarray(value.numpy())  # np.asarray alone fails on a 0-d bfloat16

    def differentiate(self, function: Function, variables: Any, cotangent: Any) -> tuple[Any, Any]:
        with self.tf.GradientTape() as tape:
            tape.watch(variables)
            value = function(*variables)
        return value, tape.gradient(value, variables, output_gradients=cotangent)


class TensorFlowFunction(TensorFlow):
    name = "tensorflow:function"
    traced = True

    def compiled(self, function: Function, keys: list[Any]) -> Function:
        return self.tf.function(super().compiled(function, keys), autograph=False)


ROUTES = (Route, Strict, Torch, JAX, JAXJit, TensorFlow, TensorFlowFunction)
