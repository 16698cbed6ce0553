"""Public functions: dispatch, the cache of an adapter, and the computation.

``xentx.cross_entropy(x, y)`` finds the backend by the type of ``x``. ``xentx_torch.cross_entropy``
is bound to one backend, and raises for an array of another. Both take the same steps:

1. The backend's call cache (`xentx._backend.CallCache`) returns the value of a cached call, or
None.
2. The arguments are validated, which returns a checked call (`xentx._validation`).
3. An engine evaluates the checked call (`xentx._evaluate`, `xentx._linear`).
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from xentx import _backend, _binary, _evaluate, _linear, _registry, _validation
from xentx._backend import Backend
from xentx._calls import Counted, LinearProblem, Problem
from xentx._types import Array, ArrayT

P = ParamSpec("P")
R = TypeVar("R")
AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])
Find = Callable[[object], Backend]


class Function:
    """The computation of a public function.

    Parameters
    ----------
    name
        A unique name, which graphs of compilers store.
    compute
        The function of the backend and the arguments.
    """

    def __init__(self, name: str, compute: Callable[..., Any]) -> None:
        self.name = name
        self.compute = compute
        self.public: Callable[..., Any] | None = None  # the function that dispatches
        _backend.FUNCTIONS[name] = self

    @property
    def like(self) -> Callable[..., Any]:
        """The function with the signature of the public function, and the backend before it."""
        return self.compute

    def function(self, find: Find) -> Callable[..., Any]:
        """Make a public function. Its attribute ``computes`` is this object."""
        made: Any = self.dispatched(find, self.like)
        made.computes = self
        return made

    def dispatched(self, find: Find, like: Callable[..., Any]) -> Callable[..., Any]:
        """Make the public function that finds the backend by its first argument.

        It has the docstring and the signature of `like`, without the backend.
        """
        compute = self.compute

        def evaluated(*args: Any, **kwargs: Any) -> Any:
            # Without arguments, Python raises an error that names the missing ones.
            backend = find(args[0]) if args else _backend.BACKEND
            cache = backend.cache
            value = None if cache is None else cache.lookup(self, args, kwargs)
            return compute(backend, *args, **kwargs) if value is None else value

        return _documented(evaluated, like)


class Loss(Function):
    """A loss. The arguments are validated, and a solver evaluates the checked call.

    Parameters
    ----------
    validate
        Takes a backend and the arguments, and returns a checked call.
    solver
        The module that evaluates it: `xentx._evaluate` or `xentx._linear`.
    """

    def __init__(self, validate: Callable[..., Any], solver: Any) -> None:
        super().__init__(validate.__name__, self.value)
        self.validate = validate
        self.solver = solver
        self.gradient = Function(f"{self.name} and its gradient", self.value_and_grad)

    @property
    def like(self) -> Callable[..., Any]:
        return self.validate

    def value(self, backend: Backend, *args: Any, **kwargs: Any) -> Any:
        """Value for the arguments, with its normalizer if that is requested."""
        return self.evaluate(self.validate(backend, *args, **kwargs))

    def evaluate(self, validated: Any) -> Any:
        """Value of a checked call, with its normalizer if that is requested."""
        if type(validated) is Counted:
            problem = validated.problem
            return self.solver.value(problem), self.solver.normalizer(problem)
        return self.solver.value(validated)

    def dispatched(self, find: Find, like: Callable[..., Any]) -> Callable[..., Any]:
        """Make the public function. It stores its calls in the adapter's cache."""
        validate, evaluate = self.validate, self.evaluate

        def evaluated(*args: Any, **kwargs: Any) -> Any:
            backend = find(args[0]) if args else _backend.BACKEND
            cache = backend.cache
            if cache is not None:
                value = cache.lookup(self, args, kwargs)
                if value is not None:
                    return value
            validated = validate(backend, *args, **kwargs)
            value = evaluate(validated)
            if cache is not None and type(validated) is Problem:
                cache.store(self, args, kwargs, validated)
            return value

        return _documented(evaluated, like)

    def value_and_grad(
        self, backend: Backend, /, *args: Any, cotangent: object | None = None, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Value for the arguments, and the cotangent pulled back to the first array."""
        validated = self.validate(backend, *args, **kwargs)
        counted = type(validated) is Counted
        problem = validated.problem if counted else validated
        seed = cotangent
        if seed is not None:
            shape = self.solver.value_shape(problem)
            seed = _validation.cotangent(backend, seed, problem.arrays[0], shape)
        value, gradient = self.solver.value_and_gradient(problem, seed)
        return ((value, self.solver.normalizer(problem)) if counted else value), gradient

    def function(self, find: Find) -> Callable[..., Any]:
        """Make a public function, and its variant that returns the gradient too."""
        evaluated: Any = super().function(find)
        signature = inspect.signature(evaluated)
        evaluated.__signature__ = signature.replace(return_annotation=Array)
        gradient: Any = self.gradient.dispatched(find, self.validate)
        cotangent = inspect.Parameter("cotangent", inspect.Parameter.KEYWORD_ONLY, default=None)
        gradient.__signature__ = signature.replace(
            parameters=[*signature.parameters.values(), cotangent],
            return_annotation=tuple[Array, Array],
        )
        evaluated.value_and_grad = gradient
        return evaluated


def _documented(evaluated: Any, like: Callable[..., Any]) -> Any:
    """Give a public function the name, docstring and signature of `like`, without the backend."""
    evaluated = functools.wraps(like, updated=())(evaluated)
    signature = inspect.signature(like)
    evaluated.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])
    # Without this attribute, TensorFlow's AutoGraph would convert all functions that are called
    # here. This is not needed, as they do not branch on values. do_not_convert sets it too.
    evaluated.autograph_info__ = None
    return evaluated


def _first(function: Callable[..., Any]) -> str:
    """Return the name of the argument that selects the backend."""
    return list(inspect.signature(function).parameters)[1]


def _published(made: Function) -> Callable[..., Any]:
    """Make the public function that finds the backend of its first array."""
    made.public = made.function(functools.partial(_registry.require, _first(made.like)))
    return made.public


def loss(
    validate: Callable[Concatenate[Backend, ArrayT, P], Problem | Counted],
) -> Callable[Concatenate[ArrayT, P], ArrayT]:
    """Make the public function from one that validates the arguments of a loss."""
    return _published(Loss(validate, _evaluate))


def linear_loss(
    validate: Callable[Concatenate[Backend, ArrayT, P], LinearProblem | Counted],
) -> Callable[Concatenate[ArrayT, P], ArrayT]:
    """Do the same for a loss of the last layer."""
    return _published(Loss(validate, _linear))


def binary_loss(
    validate: Callable[Concatenate[Backend, ArrayT, P], Problem],
) -> Callable[Concatenate[ArrayT, P], ArrayT]:
    """Do the same for a loss of each logit."""
    return _published(Loss(validate, _binary))


def public(compute: Callable[Concatenate[Backend, P], R]) -> Callable[P, R]:
    """Make the public function from one that computes. Its first argument is the backend."""
    return _published(Function(compute.__name__, compute))


def bind(function: AnyFunction, backend: Backend) -> AnyFunction:
    """Bind a public function to one backend.

    Parameters
    ----------
    function : callable
        A function of xentx whose first argument is an array, such as `xentx.cross_entropy` or
        `xentx.per_row`.
    backend : Backend
        The backend. The result accepts arrays of this backend only.

    Returns
    -------
    callable
        The same function, without dispatch. It raises a TypeError for an array of another library.

    Examples
    --------
    >>> import numpy as np
    >>> import xentx
    >>> import xentx_numpy
    >>> from xentx.extending import bind
    >>> log_softmax = bind(xentx.log_softmax, xentx_numpy.BACKEND)
    >>> log_softmax(np.asarray([[0.0, 0.0]])).round(6)
    array([[-0.693147, -0.693147]])
    """
    made: Function = function.computes  # type: ignore[attr-defined]
    first = _first(made.like)

    def find(array: object) -> Backend:
        if not backend.owns(array):
            msg = f"{first}: got {_registry.describe(array)}; expected a {backend.name} array"
            raise TypeError(msg)
        return backend

    bound: Any = made.function(find)
    return bound
