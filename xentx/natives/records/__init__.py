"""The tables: one module a library, data only. None of them imports its library."""

from xentx.natives.records import jax, keras, numpy, tensorflow, torch, xentx

XENTX = xentx.RECORDS
NATIVES = (
    *numpy.RECORDS,
    *torch.RECORDS,
    *jax.RECORDS,
    *tensorflow.RECORDS,
    *keras.RECORDS,
)

__all__ = ["NATIVES", "XENTX"]
