"""Why cross-entropy is log-softmax followed by negative log-likelihood, on the user's own rows.

Read `_explanation` first: it has the frozen dataclasses that an explanation consists of. `_steps`
builds them from the prose and from the numbers of `_measure`. The renderers add no content.
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
