"""The test suite for backends. xentx runs the same tests on its own backends.

Another package runs it with one command::

    XENTX_TEST_BACKENDS=mlx python -m pytest --pyargs xentx.testing

The package defines a tuple ``ROUTES`` of `Route` in a module ``testing`` beside its backend.
``pip install "xentx[testing]"`` installs the requirements of the tests. `xentx.extending` describes
how to write a backend.
"""

from xentx.testing._routes import FRAMEWORKS, Route, requested_frameworks, routes

__all__ = ["FRAMEWORKS", "Route", "requested_frameworks", "routes"]
