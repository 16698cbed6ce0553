"""The comparison of every framework's own losses with the truth and with xentx's rules.

Read `report` first: all that is found. `regimes` and `corners` are the tables of what is asked,
`truth` says what is right, `compare` runs a `Plan`, and each renderer shows a `Report`.
"""

from xentx.compare._run import Plan, compare, user_regime
from xentx.compare.corners import BINARY_CORNERS, CORNERS, RULES, Corner
from xentx.compare.regimes import DEFAULT_REGIMES, REGIMES, Regime
from xentx.compare.report import Report

__all__ = [
    "BINARY_CORNERS",
    "CORNERS",
    "DEFAULT_REGIMES",
    "REGIMES",
    "RULES",
    "Corner",
    "Plan",
    "Regime",
    "Report",
    "compare",
    "user_regime",
]
