"""The routes of the tests: one for each framework, eager and traced.

A route converts NumPy arrays to arrays of its framework, calls a function of xentx, and converts
the results back. It differentiates with the framework's autodiff, or with `xentx.value_and_grad` if
there is none. On a traced route all arrays are arguments of the compiled function, so that xentx
does not know their values.
"""

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

import xentx
from xentx._registry import BACKENDS, specs
from xentx._types import Array

Function = Callable[..., Any]
NumPyArray = np.ndarray[Any, Any]

FRAMEWORKS = tuple(spec.name for spec in BACKENDS)

# Compilers use the function object as a cache key, and each test creates a new one. Compiled
# functions are therefore cached by the repr of what they compute. This is correct only for
# functions of a module, since different local functions can have the same repr.
_COMPILED: dict[tuple[str, ...], Function] = {}


class Route:
    """A way to call xentx in tests: a framework, eager or traced.

    A package that adds a backend derives one class for each way that its users call xentx. It
    overrides the conversions, `differentiate` if the framework has autodiff, and `compile` if it
    traces.

    Attributes
    ----------
    name : str
        The name of the route in the names of tests.
    framework : str
        The name of the backend, as in XENTX_TEST_BACKENDS.
    traced : bool
        Whether `compile` traces, so that xentx does not know the values of arrays.
    compiles : bool
        Whether other calls are compiled too, for each shape. Tests with random shapes then use
        fewer of them.
    dtypes : tuple of str
        The dtypes of logits to test.
    gaps : mapping of str to str
        Tests that the route cannot pass, and the reason. A key is a pattern with ``*`` and ``?``,
        such as ``"test_values.py::test_dtypes[*bfloat16*]"``. These tests are expected to fail. If
        one passes, it is an error.
    has_float64 : bool
        Whether float64 is available together with narrower arrays. `precision` may enable it for
        float64 arrays.

    Examples
    --------
    >>> import numpy as np
    >>> import xentx
    >>> from xentx.testing import routes
    >>> route = routes("numpy")[0]()
    >>> print(route.value(xentx.cross_entropy, np.array([[2.0, 0.0]]), np.array([0])).round(6))
    0.126928
    """

    name: ClassVar[str]
    framework: ClassVar[str]
    traced: ClassVar[bool] = False
    compiles: ClassVar[bool] = False
    dtypes: ClassVar[tuple[str, ...]] = ("float16", "bfloat16", "float32", "float64")
    gaps: ClassVar[Mapping[str, str]] = {}
    has_float64: ClassVar[bool] = True

    def __repr__(self) -> str:
        return self.name

    # Methods to override for a framework:

    def array(self, value: NumPyArray) -> Array:
        """Convert a NumPy array to the framework."""
        return value

    def numpy(self, value: Array) -> NumPyArray:
        """Convert an array of the framework to NumPy."""
        return np.asarray(value)

    def precision(self, *arrays: NumPyArray) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which the framework has the dtypes of `arrays`."""
        return contextlib.nullcontext()

    def compile(self, function: Function) -> Function:
        """Compile a function whose arguments are all arrays."""
        return function

    def differentiate(
        self, function: Function, variables: Sequence[Array], cotangent: Array | None
    ) -> tuple[Array, Sequence[Array]]:
        """Value of ``function(*variables)``, and its gradients for `cotangent` (default: ones)."""
        raise NotImplementedError

    # Methods for the tests:

    @property
    def has_autodiff(self) -> bool:
        """Whether the framework has autodiff."""
        return type(self).differentiate is not Route.differentiate

    def compiled(self, function: Function, keys: Sequence[Any]) -> Function:
        """Convert ``function(arrays)`` to a compiled function of the arrays' values."""
        return self.compile(lambda *values: function(dict(zip(keys, values, strict=True))))

    def value(self, function: Function, *args: Any, **options: Any) -> NumPyArray:
        """Compute ``function(*args, **options)``."""
        arrays, rest = _split(args, options)
        with self.precision(*arrays.values()):
            converted = {key: self.array(value) for key, value in arrays.items()}
            static = (function, [a for i, a in enumerate(args) if i not in arrays], rest)
            result = self._run(
                lambda given: _call(function, given, args, rest), converted, "value", static
            )
            return self.numpy(result)

    def pull(
        self,
        function: Function,
        *args: Any,
        cotangent: NumPyArray | None = None,
        wrt: Any = 0,
        **options: Any,
    ) -> tuple[NumPyArray, Any]:
        """Compute the value, and the gradient with respect to the argument or option `wrt`.

        The cotangent is ones by default. If `wrt` is a tuple, the gradients are a tuple. Without
        autodiff it contains all gradients that the function has.
        """
        arrays, rest = _split(args, options)
        if cotangent is not None:
            arrays["cotangent"] = cotangent
        with self.precision(*arrays.values()):
            converted = {key: self.array(value) for key, value in arrays.items()}

            def both(given: dict[Any, Any]) -> tuple[Any, Any]:
                given = dict(given)
                seed = given.pop("cotangent", None)
                if not self.has_autodiff:
                    own: Function = xentx.value_and_grad(function)
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
            value, gradient = self._run(both, converted, "pull", wrt, static)
            if isinstance(wrt, tuple):
                return self.numpy(value), tuple(self.numpy(g) for g in gradient)
            return self.numpy(value), self.numpy(gradient)

    def _run(self, function: Function, arrays: dict[Any, Any], *key: Any) -> Any:
        """Call ``function(arrays)``, which is compiled once for each `key`."""
        keys = list(arrays)
        key = (self.name, *map(repr, keys), *map(repr, key))
        if key not in _COMPILED:
            _COMPILED[key] = self.compiled(function, keys)
        return _COMPILED[key](*arrays.values())


def _split(args: tuple[Any, ...], options: dict[str, Any]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """Separate the arrays from the other options. Keys are positions or names."""
    everything = dict(enumerate(args)) | options
    arrays = {key: v for key, v in everything.items() if isinstance(v, np.ndarray | np.generic)}
    return arrays, {key: v for key, v in options.items() if key not in arrays}


def _call(
    function: Function, arrays: dict[Any, Any], args: tuple[Any, ...], rest: dict[str, Any]
) -> Any:
    positional = [arrays.get(i, value) for i, value in enumerate(args)]
    named = {key: value for key, value in arrays.items() if isinstance(key, str)}
    return function(*positional, **named, **rest)


def clear_compiled() -> None:
    """Clear the cache of compiled functions."""
    _COMPILED.clear()


def requested_frameworks() -> tuple[str, ...]:
    """Read the frameworks from XENTX_TEST_BACKENDS. By default, all installed ones are tested.

    Returns
    -------
    tuple of str
        Names of backends: xentx's own, and those of other packages.
    """
    modules = {spec.name: spec.framework for spec in specs()}
    packages = {spec.name: spec.package for spec in specs()}
    names = os.environ.get("XENTX_TEST_BACKENDS")
    if names is None:
        return tuple(name for name in modules if importlib.util.find_spec(modules[name]))
    chosen = tuple(names.split(","))
    if unknown := set(chosen) - set(modules):
        msg = f"XENTX_TEST_BACKENDS: got {sorted(unknown)}; expected some of {tuple(modules)}"
        raise ValueError(msg)
    for name in chosen:
        importlib.import_module(modules[name])
        # Import the adapter first: PyTorch's compiler imports Triton, which crashes if it is
        # imported after TensorFlow.
        importlib.import_module(packages[name])
    return chosen


def routes(*frameworks: str) -> tuple[type[Route], ...]:
    """Collect the routes of frameworks: ``ROUTES`` of the module ``testing`` of each backend.

    Parameters
    ----------
    *frameworks : str
        Names of backends.

    Returns
    -------
    tuple of type
        Classes derived from `Route`.
    """
    packages = {spec.name: spec.package for spec in specs()}
    found: list[type[Route]] = []
    for framework in frameworks:
        found.extend(importlib.import_module(f"{packages[framework]}.testing").ROUTES)
    return tuple(found)
