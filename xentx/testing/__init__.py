"""The conformance suite: what xentx promises, as tests that run on any backend.

It is the suite that xentx runs on its own four, and it is one command for another package's::

    XENTX_TEST_BACKENDS=mlx python -m pytest --pyargs xentx.testing

That package says how its framework is entered, in a module ``testing`` beside its backend: a tuple
``ROUTES`` of `Route`. ``pip install "xentx[testing]"`` brings what the tests need, and
`xentx.extending` says how a backend is written.
"""

from xentx.testing._routes import FRAMEWORKS, Route, requested_frameworks, routes

__all__ = ["FRAMEWORKS", "Route", "requested_frameworks", "routes"]
