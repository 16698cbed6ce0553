"""Code for losses, and for the operations before and after them, in each framework."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from xentx.diff._call import keyword, setting
from xentx.natives import Native

_FORMS = {
    "torch:F.cross_entropy": "F.cross_entropy({x}, {t}{options})",
    "torch:nn.CrossEntropyLoss": "nn.CrossEntropyLoss({first})({x}, {t})",
    "torch:F.log_softmax + F.nll_loss": "F.nll_loss(F.log_softmax({x}, dim=1), {t}{options})",
    "torch:nn.LogSoftmax + nn.NLLLoss": "nn.NLLLoss({first})(nn.LogSoftmax(dim=1)({x}), {t})",
    "jax:nn.log_softmax + take_along_axis": (
        "-jnp.take_along_axis(jax.nn.log_softmax({x}, axis={axis}), "
        "jnp.expand_dims({t}, {axis}), axis={axis}).squeeze({axis})"
    ),
    "optax:softmax_cross_entropy": "optax.softmax_cross_entropy({x}, {t}{options})",
    "optax:softmax_cross_entropy_with_integer_labels": (
        "optax.softmax_cross_entropy_with_integer_labels({x}, {t}{options})"
    ),
    "optax:safe_softmax_cross_entropy": "optax.safe_softmax_cross_entropy({x}, {t})",
    "tf:nn.sparse_softmax_cross_entropy_with_logits": (
        "tf.nn.sparse_softmax_cross_entropy_with_logits(labels={t}, logits={x})"
    ),
    "tf:nn.softmax_cross_entropy_with_logits": (
        "tf.nn.softmax_cross_entropy_with_logits(labels={t}, logits={x}{options})"
    ),
    "tf:compat.v1.losses.sparse_softmax_cross_entropy": (
        "tf.compat.v1.losses.sparse_softmax_cross_entropy({t}, {x}{options})"
    ),
    "tf:compat.v1.losses.softmax_cross_entropy": (
        "tf.compat.v1.losses.softmax_cross_entropy({t}, {x}{options})"
    ),
    "keras:SparseCategoricalCrossentropy(from_logits=True)": (
        "keras.losses.SparseCategoricalCrossentropy(from_logits=True{options})({t}, {x}{called})"
    ),
    "keras:SparseCategoricalCrossentropy(from_logits=True, dtype=logits.dtype)": (
        "keras.losses.SparseCategoricalCrossentropy("
        "from_logits=True, dtype=logits.dtype{options})({t}, {x}{called})"
    ),
    "keras:CategoricalCrossentropy(from_logits=True)": (
        "keras.losses.CategoricalCrossentropy(from_logits=True{options})({t}, {x}{called})"
    ),
    "keras:ops.sparse_categorical_crossentropy": (
        "keras.ops.sparse_categorical_crossentropy({t}, {x}, from_logits=True)"
    ),
    "keras:ops.categorical_crossentropy": (
        "keras.ops.categorical_crossentropy({t}, {x}, from_logits=True{options})"
    ),
    "scipy:log_softmax + gather": (
        "-np.take_along_axis(special.log_softmax({x}, axis={axis}), "
        "np.expand_dims({t}, {axis}), axis={axis}).squeeze({axis})"
    ),
    "sklearn:log_loss": (
        "metrics.log_loss({t}, special.softmax({x}, axis=-1), labels=np.arange(C){options})"
    ),
}
"""Losses of logits by their ids. ``first`` is ``options`` without the leading comma. ``axis`` is
for calls that have it in several places."""

_XENTX = "xentx.cross_entropy({x}, {t}{options})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Idiom:
    """Code of a framework for the operations around a loss.

    Parameters
    ----------
    one_hot, take, where, sum, last_sum, number
        Templates: one-hot rows of ``{t}``; entries of ``{w}`` at ``{t}``; a choice; a sum of all;
        a sum over the last axis; truth values,
        a name or in brackets, as numbers.
    """

    one_hot: str
    take: str = "{w}[{t}]"
    where: str
    sum: str
    last_sum: str
    number: str


_NUMPY = Idiom(
    one_hot="np.eye(C, dtype=logits.dtype)[{t}]",
    where="np.where({c}, {a}, {b})",
    sum="np.sum({x})",
    last_sum="np.sum({x}, axis=-1)",
    number="{x}.astype(logits.dtype)",
)

IDIOMS = {
    "numpy": _NUMPY,
    "torch": Idiom(
        one_hot="F.one_hot({t}, C).to(logits.dtype)",
        where="torch.where({c}, {a}, {b})",
        sum="torch.sum({x})",
        last_sum="torch.sum({x}, dim=-1)",
        number="{x}.to(logits.dtype)",
    ),
    "jax": Idiom(
        one_hot="jax.nn.one_hot({t}, C, dtype=logits.dtype)",
        where="jnp.where({c}, {a}, {b})",
        sum="jnp.sum({x})",
        last_sum="jnp.sum({x}, axis=-1)",
        number="{x}.astype(logits.dtype)",
    ),
    "tensorflow": Idiom(
        one_hot="tf.one_hot({t}, C, dtype=logits.dtype)",
        take="tf.gather({w}, {t})",
        where="tf.where({c}, {a}, {b})",
        sum="tf.reduce_sum({x})",
        last_sum="tf.reduce_sum({x}, axis=-1)",
        number="tf.cast({x}, logits.dtype)",
    ),
    "keras": Idiom(
        one_hot="keras.ops.one_hot({t}, C, dtype=logits.dtype)",
        take="keras.ops.take({w}, {t})",
        where="keras.ops.where({c}, {a}, {b})",
        sum="keras.ops.sum({x})",
        last_sum="keras.ops.sum({x}, axis=-1)",
        number="keras.ops.cast({x}, logits.dtype)",
    ),
}
"""By framework."""


def eager_id(native: Native) -> str:
    """Return the id of the same loss without its compiler."""
    return native.id.rpartition("[")[0] if native.compiled else native.id


def is_spelled(native: Native) -> bool:
    """Whether the code of a native is known."""
    return native.is_xentx or eager_id(native) in _FORMS


def call(native: Native, x: str, t: str, options: Mapping[str, str], reduction: str) -> str:
    """Write a call.

    Parameters
    ----------
    native
        What is called.
    x, t
        Code of the logits and of the target.
    options
        Code of the options, by xentx's names.
    reduction
        By xentx's name.
    """
    inside: list[str] = []
    called: list[str] = []
    for name, value in options.items():
        spelling = native.options[name]
        where = called if spelling.endswith("when called") else inside
        where.append(f"{keyword(spelling)}={value}")
    chosen = setting(native, reduction)
    if chosen is not None:
        value = chosen[1]
        if value.startswith("Reduction."):
            value = f"tf.compat.v1.losses.{value}"
        inside.append(f"{chosen[0]}={value}")
    form = _XENTX if native.is_xentx else _FORMS[eager_id(native)]
    code = form.format(
        x=x,
        t=t,
        options=_tail(inside),
        first=", ".join(inside),
        called=_tail(called),
        axis=options.get("axis", "-1"),
    )
    by_hand = native.reductions[reduction][1:-1]
    if chosen is not None or by_hand == "as it is":
        return code
    return by_hand.replace("loss", f"({code})" if by_hand.startswith("loss.") else code)


def _tail(parts: Iterable[str]) -> str:
    return "".join(f", {part}" for part in parts)
