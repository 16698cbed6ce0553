"""MLX for xentx. `_backend` is the backend, and `testing` defines the routes for the tests."""

from xentx_mlx._backend import BACKEND

__all__ = ["BACKEND"]
