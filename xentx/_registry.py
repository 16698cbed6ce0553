"""Find the backend that owns an array, without importing a framework.

A framework that is not imported cannot have made an array. So the root modules of the array's type
and of its base classes are looked up in a table. The adapter, which imports the framework, is
loaded when the first array of the framework is received. The base classes are needed for users'
subclasses.

Another package adds its framework with an entry point in the group ``xentx.backends``. Its name is
the module that defines the arrays, and its object is the backend::

    [project.entry-points."xentx.backends"]
    mlx = "xentx_mlx:BACKEND"
"""

import functools
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xentx import _backend
from xentx._backend import Backend
from xentx._kernel_engine import KERNEL, NAME, NO_KERNEL
from xentx._namespace import is_array_api_obj

ENTRY_POINT_GROUP = "xentx.backends"


def installed_version(module: str, distributions: tuple[str, ...]) -> str | None:
    """Return a library's version, without importing it. None if it is not installed."""
    if importlib.util.find_spec(module) is None:
        return None
    for distribution in distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


@dataclass(frozen=True, slots=True)
class BackendSpec:
    """A row of the table.

    Parameters
    ----------
    name
        The name of the framework in error messages and in `xentx.backends`.
    framework
        Root of the modules that define its array types, which is the import name.
    package
        The adapter's import name.
    load
        Imports the adapter and its framework.
    distributions
        Names of the distributions of the framework, for its version.
    """

    name: str
    framework: str
    package: str
    load: Callable[[], Backend]
    distributions: tuple[str, ...]

    def __post_init__(self) -> None:
        for field in (self.name, self.framework):
            if not field.isidentifier():
                msg = f"BackendSpec: got {field!r}; expected an identifier"
                raise ValueError(msg)

    def version(self) -> str | None:
        """Version of the framework. It is not imported. None if it is not installed."""
        return installed_version(self.framework, self.distributions)


# Import statements instead of importlib: torch.compile can trace these if the first call of xentx
# is inside a compiled function.
def _numpy() -> Backend:
    from xentx_numpy._backend import BACKEND

    return BACKEND


def _torch() -> Backend:
    from xentx_torch._backend import BACKEND

    return BACKEND


def _jax() -> Backend:
    from xentx_jax._backend import BACKEND

    return BACKEND


def _tensorflow() -> Backend:
    from xentx_tensorflow._backend import BACKEND

    return BACKEND


BACKENDS = (
    BackendSpec("numpy", "numpy", "xentx_numpy", _numpy, ("numpy",)),
    BackendSpec("torch", "torch", "xentx_torch", _torch, ("torch",)),
    BackendSpec("jax", "jax", "xentx_jax", _jax, ("jax",)),
    BackendSpec(
        "tensorflow",
        "tensorflow",
        "xentx_tensorflow",
        _tensorflow,
        ("tensorflow", "tensorflow-cpu", "tensorflow-macos", "tf-nightly"),
    ),
)
_BY_ROOT = {spec.framework: spec for spec in BACKENDS} | {"jaxlib": BACKENDS[2]}


@functools.cache
def _third_parties() -> tuple[BackendSpec, ...]:
    """Rows for the backends of other packages, which are not imported."""
    return tuple(
        BackendSpec(point.name, point.name, point.module, point.load, (point.name,))
        for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    )


def specs() -> tuple[BackendSpec, ...]:
    """All rows: those of xentx, and those of other packages."""
    return (*BACKENDS, *_third_parties())


def _spec_of_type(cls: type) -> BackendSpec | None:
    roots = [ancestor.__module__.partition(".")[0] for ancestor in cls.__mro__]
    for root in roots:
        if root in _BY_ROOT:
            return _BY_ROOT[root]
    # Python's own types occur in every call. Reading entry points takes milliseconds, and
    # torch.compile would try to trace it.
    if set(roots) == {"builtins"}:
        return None
    return next((spec for spec in _third_parties() if spec.framework in roots), None)


# Rows of the table with their adapters, after these are loaded. Those of xentx come first.
_LOADED: list[tuple[BackendSpec, Backend] | None] = [None for _ in BACKENDS]
# The place in that list of the backend of a type. -1 if it is not a type of a framework.
_PLACES: dict[type, int] = {}


def _place_of_type(cls: type) -> int:
    try:
        return _PLACES[cls]
    except KeyError:
        place = _PLACES[cls] = _load_for_type(cls)
        return place


# torch.compile calls this function while it traces and keeps the number that it returns: a table
# that other calls fill in the meantime can't be a condition of what is compiled. This is the mark
# that torch.compiler.assume_constant_result leaves. PyTorch may not be imported yet.
_place_of_type._dynamo_marked_constant = True  # type: ignore[attr-defined]  # noqa: SLF001


def _load_for_type(cls: type) -> int:
    spec = _spec_of_type(cls)
    if spec is None:
        return -1
    known = [None if owner is None else owner[0] for owner in _LOADED]
    if spec in known:
        return known.index(spec)
    owner = spec, spec.load()
    if spec not in BACKENDS:
        _LOADED.append(owner)
        return len(_LOADED) - 1
    place = BACKENDS.index(spec)
    _LOADED[place] = owner
    return place


def _owner_of_type(cls: type) -> tuple[BackendSpec, Backend] | None:
    place = _place_of_type(cls)
    return None if place < 0 else _LOADED[place]


def find(value: object) -> Backend | None:
    """Return the backend that owns `value`. None if it is not an array."""
    owner = _owner_of_type(type(value))
    if owner is not None:
        return owner[1] if owner[1].owns(value) else None
    return _backend.BACKEND if is_array_api_obj(value) else None


def describe(value: object) -> str:
    """Describe a value in an error: its framework if it is an array, or its type."""
    backend = find(value)
    if backend is None:
        return f"a {type(value).__name__}"
    if backend is _backend.BACKEND:
        return f"a {type(value).__module__.partition('.')[0]} array"
    return f"a {backend.name} array"


def require(name: str, value: object) -> Backend:
    """Return the backend that owns the argument called `name`."""
    place = _place_of_type(type(value))
    owner = None if place < 0 else _LOADED[place]
    if owner is not None and owner[1].owns(value):
        return owner[1]
    backend = find(value)
    if backend is None:
        msg = (
            f"{name}: got {describe(value)}; expected an array of NumPy, PyTorch, JAX, "
            "TensorFlow or another Array API library"
        )
        raise TypeError(msg)
    return backend


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """Information about a backend on this machine.

    Parameters
    ----------
    name : str
        The name of the framework.
    version : str or None
        The version of the framework. None if it is not installed.
    engine : str or None
        The engine that computes. "kernel (avx2)" is the CPU kernel with its instruction set.
        "triton (3.8.0)" is the engine for PyTorch tensors on a GPU, with the version of Triton.
        "portable" is the portable core, which uses the framework's own functions. `xentx.backends`
        lists all engines that can be used, the one for the CPU first. None if the framework is not
        installed, or if its import fails.
    reason : str or None
        Why the engine is portable, with a hint. None if it is not, or if the framework is not
        installed.

    Examples
    --------
    >>> import numpy as np
    >>> import xentx
    >>> xentx.backend_of(np.zeros(3)).name
    'numpy'
    """

    name: str
    version: str | None
    engine: str | None
    reason: str | None = None


def backends(*, load: bool = False) -> tuple[BackendInfo, ...]:
    """List the backends, the versions of their frameworks and their engines.

    Parameters
    ----------
    load : bool
        Whether to import the installed frameworks. By default, no framework is imported. For a
        framework that is not imported yet, it is assumed that the CPU kernel supports its version.

    Returns
    -------
    tuple of BackendInfo
        One for each framework that xentx supports, installed or not, and for each backend of
        another package.

    Examples
    --------
    >>> import xentx
    >>> [backend.name for backend in xentx.backends()][:4]
    ['numpy', 'torch', 'jax', 'tensorflow']
    """
    return tuple(_installed(spec, load=load) for spec in specs())


def _installed(spec: BackendSpec, *, load: bool) -> BackendInfo:
    """Return the information for a row of the table, with the engine for arrays on the CPU."""
    version = spec.version()
    if version is None:
        return BackendInfo(spec.name, None, None)
    if load or spec.package in sys.modules:
        try:
            return _info(spec.name, version, spec.load())
        except Exception as error:  # noqa: BLE001 -- a framework may fail in any way
            reason = f"it fails to be imported: {type(error).__name__}: {error}"
            return BackendInfo(spec.name, version, None, reason)
    if spec not in BACKENDS:
        return _info(spec.name, version, _backend.BACKEND)
    # The adapter is not imported. The kernel supports all frameworks of the table.
    engine = "portable" if KERNEL is None else _described(NAME, KERNEL.instruction_set())
    return BackendInfo(spec.name, version, engine, NO_KERNEL)


def _info(name: str, version: str | None, backend: Backend, array: Any = None) -> BackendInfo:
    """Return the engine for an array. Without one, the engines of the CPU and other devices."""
    no_kernel = NO_KERNEL if name in _BY_ROOT else f"the CPU kernel takes no arrays of {name}"
    has_kernel = any(engine.name == NAME for engine in backend.engines)
    reasons = [] if has_kernel or no_kernel is None else [no_kernel]
    found = []
    for engine in backend.engines:
        adapter = engine.adapter
        reason = adapter.unusable() or (None if array is None else adapter.declines(array))
        if reason is None:
            found.append(_described(engine.name, engine.details))
        else:
            reasons.append(reason)
    if array is not None:
        found = found[:1]
    elif not has_kernel:
        found.insert(0, "portable")
    is_portable = not found or found[0] == "portable"
    reason = "; ".join(reasons) if is_portable else None
    return BackendInfo(name, version, ", ".join(found) or "portable", reason)


def _described(engine: str, details: str) -> str:
    return f"{engine} ({details})"


def backend_of(array: Any, /) -> BackendInfo:
    """Return the backend and the engine for a loss of `array`.

    Parameters
    ----------
    array : array
        An array of any supported framework.

    Returns
    -------
    BackendInfo
        The name and version of the framework, the engine, and the reason for a portable engine.

    Raises
    ------
    TypeError
        If `array` is not an array.

    Examples
    --------
    >>> import numpy as np
    >>> import xentx
    >>> xentx.backend_of(np.zeros(3)).name
    'numpy'
    """
    backend = require("array", array)
    owner = _owner_of_type(type(array))
    if owner is not None:
        return _info(backend.name, owner[0].version(), backend, array)
    library = type(array).__module__.partition(".")[0]
    return _info(library, getattr(sys.modules[library], "__version__", None), backend)
