"""xentx for MLX. `_backend` answers for its arrays, `testing` lets `xentx.testing` prove it."""

from xentx_mlx._backend import BACKEND

__all__ = ["BACKEND"]
