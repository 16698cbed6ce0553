"""Every framework's own cross-entropy, as records that can be listed, called and compared.

A record is data: its options in the native's own spelling, where its documentation is, what it
needs installed. Listing records imports no framework. Only `Native.load` and `runtime_of` do.

Start with `_native`, which holds the record; `records` holds the tables, `calls` what they call,
and `runtimes` how each framework makes arrays and gradients.
"""

from xentx.natives._native import Native, Requirement
from xentx.natives._registry import ENTRY_POINT_GROUP, BrokenPlugin, natives, plugins, xentx_records
from xentx.natives._runtime import LossAndGradient, Runtime, runtime_of

__all__ = [
    "ENTRY_POINT_GROUP",
    "BrokenPlugin",
    "LossAndGradient",
    "Native",
    "Requirement",
    "Runtime",
    "natives",
    "plugins",
    "runtime_of",
    "xentx_records",
]
