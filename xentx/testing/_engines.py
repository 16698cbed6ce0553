"""Select an engine for tests that do not use the default one."""

import contextlib
from collections.abc import Iterator

import pytest

from xentx import _validation
from xentx._backend import Backend


@contextlib.contextmanager
def portable_core(backend: Backend) -> Iterator[None]:
    """Compute all losses of a backend's arrays with the portable core."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "engines", ())
        # The cache of earlier calls contains their engines.
        patch.setattr(_validation, "_KINDS", {})
        if hasattr(backend.cache, "_calls"):
            patch.setattr(backend.cache, "_calls", None)
        yield
