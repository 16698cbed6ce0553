"""Records of the frameworks' own cross-entropies, which can be listed, called and compared.

A record is data: the names of its options, the address of its documentation, its requirements.
Listing records does not import a framework. Only `Native.load` and `runtime_of` do.

Read `_native` first: it has the class of a record. `records` has the tables, `calls` the functions
that they call, and `runtimes` the arrays and gradients of each framework.
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
