"""The tables of records: one module per library, which does not import the library."""

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
