"""Which engine computes, for tests that need another than this run's."""

import contextlib
from collections.abc import Iterator

from xentx import _validation
from xentx._backend import Backend


@contextlib.contextmanager
def portable_core(backend: Backend) -> Iterator[None]:
    """Let the portable core compute all losses of a backend's arrays."""
    known = backend.engines, backend.cache, _validation._KINDS  # noqa: SLF001 -- it holds engines
    backend.engines, backend.cache, _validation._KINDS = (), None, {}  # noqa: SLF001
    try:
        yield
    finally:
        backend.engines, backend.cache, _validation._KINDS = known  # noqa: SLF001
