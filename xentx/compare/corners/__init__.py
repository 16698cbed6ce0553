"""Corner cases: what each loss is asked, and what xentx's rule says.

Tables of data, one for each group. The rules are those of the documentation; the numbers that they
come to are computed by `truth`, and where the rule is an error the corner names it.
"""

from xentx.compare.corners import (
    _binary,
    _class_indices,
    _dtypes,
    _extremes,
    _infinities,
    _shapes,
    _soft_targets,
    _weights,
)
from xentx.compare.corners._corner import RULES, Corner

__all__ = ["BINARY_CORNERS", "CORNERS", "RULES", "Corner"]

_GROUPS = (_class_indices, _infinities, _extremes, _soft_targets, _weights, _shapes, _dtypes)
CORNERS = {corner.name: corner for group in _GROUPS for corner in group.CORNERS}
"""Every corner case of cross-entropy by its name."""

BINARY_CORNERS = {corner.name: corner for corner in _binary.CORNERS}
"""Every corner case of binary cross-entropy by its name."""
