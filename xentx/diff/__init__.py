"""What differs between two losses as they are called, and the call that makes them equal.

Read `_comparison` first: all that is found. `_call` reads what the user wrote, `_meaning` says what
it computes, `_plan` finds the equal call in the other framework, and `diff` puts it together.
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
