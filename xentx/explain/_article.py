"""The article that many learn this from, where it rounds wrongly.

Its figures are quoted; what they should be is computed. `Correction` puts the two side by side.
"""

from typing import Any

import numpy as np

from xentx.compare.regimes import WORKED_EXAMPLE
from xentx.explain._explanation import Correction

Array = np.ndarray[Any, Any]

LOG_SOFTMAX = ("-1.47", "-0.47", "-1.97")
"""Printed for the log-softmax of the first row."""

NLL = "0.47"
"""Printed for its negative log-likelihood."""

MEAN = "0.75"
"""Printed for the mean of both rows."""


def corrections(
    logits: Array, target: Array, log_probs: Array, losses: Array
) -> tuple[Correction, ...]:
    """Check the article's figures, where the rows are the article's.

    Parameters
    ----------
    logits, target
        The rows, before they are rounded to a dtype.
    log_probs, losses
        The true log-softmax and the true losses of the rows.

    Returns
    -------
    tuple of Correction
        Those of the first row where the user's first row is it, and that of the mean where the
        user's rows are the article's two.
    """
    rows, classes = WORKED_EXAMPLE
    found: list[Correction] = []
    if tuple(logits[0]) == rows[0] and target[0] == classes[0]:
        found.extend(
            Correction(quantity=f"log-softmax of class {k}", printed=printed, value=float(value))
            for k, (printed, value) in enumerate(zip(LOG_SOFTMAX, log_probs[0], strict=True))
        )
        found.append(
            Correction(quantity="the NLL of the first row", printed=NLL, value=float(losses[0]))
        )
    if np.array_equal(logits, rows) and np.array_equal(target, classes):
        found.append(
            Correction(quantity="the mean of both rows", printed=MEAN, value=float(np.mean(losses)))
        )
    return tuple(found)
