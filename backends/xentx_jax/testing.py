"""JAX's ways into xentx, for `xentx.testing`: call by call, and under jit."""

import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentx._types import Array
from xentx.testing import Route


def enable_x64(enabled: bool = True) -> AbstractContextManager[Any]:  # noqa: FBT001, FBT002 -- as JAX's
    """Context in which JAX has float64, wherever this version keeps the switch."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(enabled)
    return importlib.import_module("jax.experimental").enable_x64(enabled)


class JAX(Route):
    """JAX, call by call."""

    name = framework = "jax"
    compiles = True
    has_float64 = False

    def array(self, value: Any) -> Array:
        # jnp.asarray would compile a program for each new shape. device_put may share memory with
        # its argument, hence the copy.
        return jax.device_put(np.array(value))

    def precision(self, *arrays: Any) -> AbstractContextManager[Any]:
        return enable_x64(any(array.dtype == np.float64 for array in arrays))

    def differentiate(
        self, function: Callable[..., Array], variables: Sequence[Array], cotangent: Array | None
    ) -> tuple[Array, Sequence[Array]]:
        value, pullback = jax.vjp(function, *variables)
        return value, pullback(jnp.ones_like(value) if cotangent is None else cotangent)


class JAXJit(JAX):
    """JAX under jit."""

    name = "jax:jit"
    traced = True

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(function)


ROUTES = (JAX, JAXJit)
