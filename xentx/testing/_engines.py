"""Which engine computes, for tests that need another than this run's."""

import contextlib
from collections.abc import Iterator

import pytest

from xentx import _validation
from xentx._backend import Backend


@contextlib.contextmanager
def portable_core(backend: Backend) -> Iterator[None]:
    """Let the portable core compute all losses of a backend's arrays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "engines", ())
        # What was found out about earlier calls holds their engines.
        patch.setattr(_validation, "_KINDS", {})
        if hasattr(backend.cache, "_calls"):
            patch.setattr(backend.cache, "_calls", None)
        yield
