"""The functions of each framework from logits to the loss, in two steps and in one.

They are named by records of `xentx.natives` and by references that are imported when called.
"""

from collections.abc import Callable
from dataclasses import dataclass

from xentx._types import Array
from xentx.explain._explanation import Snippet
from xentx.natives import Native, Requirement, natives
from xentx.natives._native import resolve

_TENSORFLOW_TWO_STEPS = Native(
    id="tf:nn.log_softmax + gather",
    name="tf.nn.log_softmax, tf.gather",
    framework="tensorflow",
    call="xentx.explain._ways:log_softmax_gather_tensorflow",
    needs=(Requirement(module="tensorflow", distributions=("tensorflow", "tensorflow-cpu")),),
    class_axis="axis, the last by default",
    reductions={"none": "(as it is)"},
    documentation="https://www.tensorflow.org/api_docs/python/tf/nn/log_softmax",
)


def log_softmax_gather_tensorflow(logits: Array, target: Array, *, reduction: str) -> Array:
    """``-tf.nn.log_softmax(x)[t]``: TensorFlow has no loss of log-probabilities."""
    if reduction != "none":
        msg = f"reduction: got {reduction!r}; expected 'none'"
        raise ValueError(msg)
    log_probs = resolve("tensorflow:nn.log_softmax")(logits, axis=-1)
    return -resolve("tensorflow:gather")(log_probs, target, batch_dims=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """The functions of one framework.

    Parameters
    ----------
    framework
        Its import name.
    title
        Its name.
    log_softmax
        ``"module:function"`` of its log-softmax.
    keyword
        Name of its argument for the class axis.
    shown
        The function as users write it.
    two_steps
        Id of the native that takes two steps.
    one_step
        Id of the native that takes one step, or None.
    imports, body
        The same as code. The body uses ``values``, nested lists of logits, and ``t``, class
        indices. It sets ``two_steps``, ``one_step``, ``ours`` and ``gradient``. ``DTYPE`` stands
        for the name of the dtype.
    """

    framework: str
    title: str
    log_softmax: str
    keyword: str
    shown: str
    two_steps: str
    one_step: str | None
    imports: str
    body: str

    def function(self) -> Callable[[Array], Array]:
        """Import the log-softmax, over the last axis."""
        function = resolve(self.log_softmax)
        return lambda logits: function(logits, **{self.keyword: -1})

    def natives(self) -> tuple[Native, Native | None]:
        """Find the records of the two-step and of the one-step loss."""
        known = {native.id: native for native in (*natives(), _TENSORFLOW_TWO_STEPS)}
        return known[self.two_steps], None if self.one_step is None else known[self.one_step]

    def snippet(self, dtype: str) -> Snippet:
        """Return the code, in a dtype."""
        body = self.body.strip().replace("DTYPE", dtype)
        if self.framework == "jax" and dtype == "float64":
            body = f'jax.config.update("jax_enable_x64", True)\n{body}'
        return Snippet(framework=self.title, imports=self.imports.strip(), body=body)


WAYS = {
    ways.framework: ways
    for ways in (
        Ways(
            framework="numpy",
            title="NumPy and SciPy",
            log_softmax="scipy.special:log_softmax",
            keyword="axis",
            shown="scipy.special.log_softmax",
            two_steps="scipy:log_softmax + gather",
            one_step=None,
            imports="from scipy import special",
            body="""
two_steps = -special.log_softmax(x, axis=-1)[rows, t]
one_step = None  # neither has a loss of logits
ours, gradient = xentx.value_and_grad(xentx.cross_entropy)(x, t, reduction="none")
""",
        ),
        Ways(
            framework="torch",
            title="PyTorch",
            log_softmax="torch.nn.functional:log_softmax",
            keyword="dim",
            shown="F.log_softmax",
            two_steps="torch:F.log_softmax + F.nll_loss",
            one_step="torch:F.cross_entropy",
            imports=(
                "import torch\nimport torch.nn.functional as F\n\n"
                "torch.set_printoptions(precision=17)"
            ),
            body="""
logits = torch.tensor(values, dtype=torch.DTYPE, requires_grad=True)
target = torch.tensor(t)
two_steps = F.nll_loss(F.log_softmax(logits, dim=1), target, reduction="none")
one_step = F.cross_entropy(logits, target, reduction="none")
ours = xentx.cross_entropy(logits, target, reduction="none")
(gradient,) = torch.autograd.grad(ours.sum(), logits)
""",
        ),
        Ways(
            framework="jax",
            title="JAX and Optax",
            log_softmax="jax.nn:log_softmax",
            keyword="axis",
            shown="jax.nn.log_softmax",
            two_steps="jax:nn.log_softmax + take_along_axis",
            one_step="optax:softmax_cross_entropy_with_integer_labels",
            imports="import jax\nimport jax.numpy as jnp\nimport optax",
            body="""
logits = jnp.asarray(values, jnp.DTYPE)
target = jnp.asarray(t)
log_probs = jax.nn.log_softmax(logits, axis=-1)
two_steps = -jnp.take_along_axis(log_probs, target[:, None], axis=-1).squeeze(-1)
one_step = optax.softmax_cross_entropy_with_integer_labels(logits, target)
ours = xentx.cross_entropy(logits, target, reduction="none")
gradient = jax.grad(lambda x: xentx.cross_entropy(x, target, reduction="sum"))(logits)
""",
        ),
        Ways(
            framework="tensorflow",
            title="TensorFlow",
            log_softmax="tensorflow:nn.log_softmax",
            keyword="axis",
            shown="tf.nn.log_softmax",
            two_steps=_TENSORFLOW_TWO_STEPS.id,
            one_step="tf:nn.sparse_softmax_cross_entropy_with_logits",
            imports="import tensorflow as tf",
            body="""
logits = tf.constant(values, tf.DTYPE)
target = tf.constant(t)
two_steps = -tf.gather(tf.nn.log_softmax(logits), target, batch_dims=1)
one_step = tf.nn.sparse_softmax_cross_entropy_with_logits(target, logits)
with tf.GradientTape() as tape:
    tape.watch(logits)
    ours = xentx.cross_entropy(logits, target, reduction="none")
gradient = tape.gradient(ours, logits)
""",
        ),
    )
}
"""The frameworks by their import names."""
