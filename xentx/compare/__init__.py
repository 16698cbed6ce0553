"""Compare the frameworks' own losses with the true values and with xentx's rules.

Read `report` first: it has the dataclasses of the result. `regimes` and `corners` are the tables
of the inputs. `truth` computes the true values. `compare` runs a `Plan`. Renderers show a `Report`.
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
