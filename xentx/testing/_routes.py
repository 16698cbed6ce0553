"""The ways into xentx that every test of behaviour runs: a framework, eager or traced.

A route turns NumPy arrays into its framework's, calls a function of xentx there, differentiates it
with the framework's own autodiff (or by `xentx.value_and_grad`, where there is none), and turns the
results back. On a traced route every array is an argument of the compiled function, so that xentx
sees no values.
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

# Compilers key on the function object, and a test's is new each time: these are kept by what they
# compute. Only for functions of a module: the repr of another may come again as another's.
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

    # What a framework says of itself:

    def array(self, value: NumPyArray) -> Array:
        """Convert to the framework."""
        return value

    def numpy(self, value: Array) -> NumPyArray:
        """Convert from the framework."""
        return np.asarray(value)

    def precision(self, *arrays: NumPyArray) -> contextlib.AbstractContextManager[Any]:
        """Context in which the framework has the dtypes of `arrays`."""
        return contextlib.nullcontext()

    def compile(self, function: Function) -> Function:
        """Trace a function of arrays, and of nothing else."""
        return function

    def differentiate(
        self, function: Function, variables: Sequence[Array], cotangent: Array | None
    ) -> tuple[Array, Sequence[Array]]:
        """Value and gradients of ``function(*variables)``; of ones where there is no cotangent."""
        raise NotImplementedError

    # What the tests call:

    @property
    def has_autodiff(self) -> bool:
        """Whether the framework differentiates."""
        return type(self).differentiate is not Route.differentiate

    def compiled(self, function: Function, keys: Sequence[Any]) -> Function:
        """Make ``function(arrays)`` one of the arrays' values, traced where the route is."""
        return self.compile(lambda *values: function(dict(zip(keys, values, strict=True))))

    def value(self, function: Function, *args: Any, **options: Any) -> NumPyArray:
        """Value of ``function(*args, **options)``."""
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
        """Value, and gradient by argument or option `wrt`, for `cotangent` (ones by default).

        For a tuple of them, a tuple; without autodiff, of all that the function has a gradient by.
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
        """Call ``function(arrays)``, compiled once for each `key`."""
        keys = list(arrays)
        key = (self.name, *map(repr, keys), *map(repr, key))
        if key not in _COMPILED:
            _COMPILED[key] = self.compiled(function, keys)
        return _COMPILED[key](*arrays.values())


def _split(args: tuple[Any, ...], options: dict[str, Any]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """Separate the arrays, by position or name, from the other options."""
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
    """Drop the compiled functions, which serve no other problem."""
    _COMPILED.clear()


def requested_frameworks() -> tuple[str, ...]:
    """Read what XENTX_TEST_BACKENDS names, which must be there; else, whatever is installed.

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
        # At once, since PyTorch's compiler imports Triton, which crashes once TensorFlow is there.
        importlib.import_module(packages[name])
    return chosen


def routes(*frameworks: str) -> tuple[type[Route], ...]:
    """Collect the ways into frameworks: ``ROUTES`` of the module ``testing`` beside each backend.

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
