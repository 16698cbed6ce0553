"""The differences between two calls of losses, and the call that makes them equal.

Read `_comparison` first: it has the dataclasses of the result. `_call` parses what the user wrote,
`_meaning` states what it computes, `_plan` finds the equal call, and `_diff` combines them.
"""

from xentx.diff._call import Call, CallError, parse
from xentx.diff._comparison import Comparison, CornerDifference, Difference, Side, Suggestion
from xentx.diff._diff import diff

__all__ = [
    "Call",
    "CallError",
    "Comparison",
    "CornerDifference",
    "Difference",
    "Side",
    "Suggestion",
    "diff",
    "parse",
]
