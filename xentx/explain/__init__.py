"""Why cross-entropy is log-softmax followed by negative log-likelihood, on the user's own rows.

Read `_explanation` first: all that is explained, as a tree of frozen records. `explain` builds it,
in `_steps` the prose and in `_measure` the numbers; each renderer shows one and adds nothing.
"""

from xentx.explain._explanation import Correction, Explanation, Figure, LeftOut, Snippet, Step
from xentx.explain._markdown import markdown
from xentx.explain._steps import explain

__all__ = [
    "Correction",
    "Explanation",
    "Figure",
    "LeftOut",
    "Snippet",
    "Step",
    "explain",
    "markdown",
]
