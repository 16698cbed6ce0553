"""JAX's log_softmax and Optax's losses, each eager and under jit."""

from dataclasses import replace

from xentx.natives._native import Native, Requirement

_OPTAX_DOCS = "https://optax.readthedocs.io/en/latest/api/losses.html"
_JAX = Requirement(module="jax", distributions=("jax",))
_OPTAX = Requirement(module="optax", distributions=("optax",))

_LOG_SOFTMAX = Native(
    id="jax:nn.log_softmax + take_along_axis",
    name="jax.nn.log_softmax, jax.numpy.take_along_axis",
    framework="jax",
    call="xentx.natives.calls.jax:log_softmax_gather",
    needs=(_JAX,),
    class_axis="axis, the last by default",
    options={"axis": "axis"},
    reductions={"none": "(as it is)", "mean": "(jnp.mean(loss))", "sum": "(jnp.sum(loss))"},
    documentation="https://docs.jax.dev/en/latest/_autosummary/jax.nn.log_softmax.html",
)

_SOFT = replace(
    _LOG_SOFTMAX,
    id="optax:softmax_cross_entropy",
    name="optax.softmax_cross_entropy",
    call="xentx.natives.calls.optax:softmax_cross_entropy",
    needs=(_OPTAX, _JAX),
    targets=("probabilities",),
    documentation=f"{_OPTAX_DOCS}#optax.losses.softmax_cross_entropy",
)

_INTEGER = replace(
    _SOFT,
    id="optax:softmax_cross_entropy_with_integer_labels",
    name="optax.softmax_cross_entropy_with_integer_labels",
    call="xentx.natives.calls.optax:softmax_cross_entropy_with_integer_labels",
    targets=("indices",),
    documentation=f"{_OPTAX_DOCS}#optax.losses.softmax_cross_entropy_with_integer_labels",
)

_SAFE = replace(
    _SOFT,
    id="optax:safe_softmax_cross_entropy",
    name="optax.safe_softmax_cross_entropy",
    call="xentx.natives.calls.optax:safe_softmax_cross_entropy",
    class_axis="fixed: the last",
    options={},
    documentation=f"{_OPTAX_DOCS}#optax.losses.safe_softmax_cross_entropy",
)

_BINARY = replace(
    _SOFT,
    id="optax:sigmoid_binary_cross_entropy",
    name="optax.sigmoid_binary_cross_entropy",
    loss="binary_cross_entropy",
    call="xentx.natives.calls.optax:sigmoid_binary_cross_entropy",
    class_axis="none: each logit is a problem of its own",
    options={},
    documentation=f"{_OPTAX_DOCS}#optax.losses.sigmoid_binary_cross_entropy",
)

RECORDS = tuple(
    record
    for eager in (_LOG_SOFTMAX, _INTEGER, _SOFT, _SAFE, _BINARY)
    for record in (eager, eager.under_compiler("jit"))
)
