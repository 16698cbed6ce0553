"""``kl_divergence``: its arguments, and how they become a checked call.

The mathematics is in `xentx._core.kl_divergence`, where the reference logits stand for the target.
"""

from typing import Any, Literal

from xentx._backend import Backend
from xentx._calls import Kind, Problem, precision_of, shape_of, widest
from xentx._checks import (
    FLOATS,
    Accuracy,
    Reduction,
    as_array,
    check_accuracy,
    check_dtype,
    check_logits,
    check_normalizer,
    check_options,
    check_real,
    check_reduction,
    check_sample_weight,
    convert,
    shapes_agree,
    split_options,
)
from xentx._core import kl_divergence as _kl_divergence
from xentx._core._spec import LossSpec
from xentx._public import loss
from xentx._types import Array, ArrayT

Direction = Literal["forward", "reverse"]
_BETAS = {"forward": 0.0, "reverse": 1.0}


@loss
def kl_divergence(
    backend: Backend,
    logits: ArrayT,
    reference_logits: Array,
    /,
    *,
    axis: int | None = None,
    direction: Direction = "forward",
    beta: float | None = None,
    temperature: float | Array = 1.0,
    sample_weight: Array | None = None,
    where: Array | None = None,
    reduction: Reduction = "mean",
    normalizer: float | Array | None = None,
    precision: Accuracy = "default",
) -> Problem:
    r"""Kullback-Leibler or Jensen-Shannon divergence of two softmax distributions.

    With :math:`p = \mathrm{softmax}(x / T)` of the logits :math:`x`, those of a student or a
    policy, and :math:`q = \mathrm{softmax}(y / T)` of the reference logits :math:`y`, those of a
    teacher:

    .. math::

       \text{forward:} \quad & D = \mathrm{KL}(q \| p) = \sum_k q_k (\log q_k - \log p_k) \\
       \text{reverse:} \quad & D = \mathrm{KL}(p \| q) \\
       0 < \beta < 1: \quad & D = \beta \, \mathrm{KL}(q \| m) + (1 - \beta) \, \mathrm{KL}(p \| m),
       \quad m = \beta q + (1 - \beta) p

    Parameters
    ----------
    logits : array
        Unnormalised scores in any shape, of dtype float16, bfloat16, float32 or float64.
    reference_logits : array
        Unnormalised scores of the reference, in the shape of `logits`, of any of these dtypes.
    axis : int, optional
        The axis that holds the classes. The last by default. Required if `logits` has 3 or more
        dimensions.
    direction : {"forward", "reverse"}, default: "forward"
        Which of the two distributions the logarithms are averaged over: that of the reference, or
        that of the logits.
    beta : float, optional
        At least 0 and at most 1. Computes the generalised Jensen-Shannon divergence of [1]_ in
        place of `direction`. As there, 0 is the forward divergence and 1 the reverse one.
    temperature : float or array, default: 1.0
        A positive number that both logits are divided by, :math:`T`. The value is not multiplied by
        :math:`T^2`, which [2]_ advises for distillation.
    sample_weight : array, optional
        A weight for each row, of any real dtype, in the shape of `logits` without the class axis.
    where : array of bool, optional
        Which rows count, in the same shape. The value of the others is 0, their gradients are
        exactly 0 whatever the logits hold, and a mean does not count them.
    reduction : {"mean", "sum", "none", "weighted_mean"}, default: "mean"
        "mean" and "weighted_mean" divide the sum by the number of rows, or by the sum of
        `sample_weight`.
    normalizer : float or array, optional
        What "mean" divides by in place of that.
    precision : {"default", "exact"}, default: "default"
        As in `cross_entropy`.

    Returns
    -------
    array
        The divergence, in the dtype of `logits`: 0-d, or one for each row with
        ``reduction="none"``. It is never negative.

    Raises
    ------
    TypeError
        If a dtype is none of those above, or an array is of another framework than `logits`.
    ValueError
        If a shape or an option is out of range.

    See Also
    --------
    cross_entropy : With probabilities as the target, it differs by the entropy of the target.

    Notes
    -----
    The value and both gradients keep their relative precision where the distributions are nearly
    equal, where a textbook sum cancels. A class at -inf in both logits has no part in the
    divergence. A class at -inf in the logits alone makes the forward divergence infinite, one at
    -inf in the reference logits alone the reverse one. For 0 < beta < 1 both are finite.

    It is differentiable with respect to both logits; stop the gradient of a teacher with the
    framework's own function (``detach``, ``stop_gradient``).

    References
    ----------
    .. [1] R. Agarwal et al., "On-Policy Distillation of Language Models: Learning from
       Self-Generated Mistakes", ICLR 2024. https://arxiv.org/abs/2306.13649
    .. [2] G. Hinton, O. Vinyals and J. Dean, "Distilling the Knowledge in a Neural Network", 2015.
       https://arxiv.org/abs/1503.02531

    Examples
    --------
    >>> import numpy as np
    >>> import xentx
    >>> student, teacher = np.asarray([[1.0, 2.0, 0.5]]), np.asarray([[1.5, 1.0, 0.5]])
    >>> print(xentx.kl_divergence(student, teacher).round(6))
    0.230143
    >>> print(xentx.kl_divergence(student, teacher, beta=0.5).round(6))
    0.056096
    """
    logits = as_array(backend, "logits", logits, logits)
    reference = convert(backend, "reference_logits", reference_logits, logits, "logits")
    exact = check_accuracy(backend, precision, logits)
    place, classes, dtypes = check_logits(backend, logits, axis, "logits", exact=exact)
    shape = shape_of(logits)
    dtype = check_dtype(backend, "reference_logits", reference, FLOATS)
    if not shapes_agree(shape_of(reference), shape):
        msg = (
            f"reference_logits: got shape {shape_of(reference)}; expected {shape}, the shape of "
            "logits"
        )
        raise ValueError(msg)
    wide = widest((backend.dtype_name(logits), dtype))
    if wide == dtype:
        dtypes = precision_of(backend, logits, wide, exact=exact)
    numbers, operands = split_options(backend, {"temperature": temperature}, logits, "logits")
    chosen = check_reduction(reduction)
    if sample_weight is not None:
        sample_weight = convert(backend, "sample_weight", sample_weight, logits, "logits")
        check_sample_weight(backend, sample_weight, logits, place, "logits")
    if normalizer is not None:
        normalizer = convert(backend, "normalizer", normalizer, logits, "logits")
        check_normalizer(backend, normalizer, chosen)
    spec = LossSpec(
        _kl_divergence.NAME,
        place,
        classes,
        dtypes,
        soft=True,
        reduction="mean" if chosen == "weighted_mean" else chosen,
        exact=exact,
        beta=_beta(direction, beta),
        **check_options(numbers),
    )
    if where is not None:
        where = _rows(backend, where, logits, place)
        logits, reference, sample_weight = _kept(
            backend, spec, where, logits, reference, sample_weight
        )
    arrays = (logits, reference, None, sample_weight, normalizer, *operands)
    return Problem(Kind(backend, spec), arrays)


def _beta(direction: object, beta: object) -> float:
    """Return the number that stands for the divergence."""
    if direction not in _BETAS:
        msg = f"direction: got {direction!r}; expected 'forward' or 'reverse'"
        raise ValueError(msg)
    if beta is None:
        return _BETAS[direction]
    if direction != "forward":
        msg = f"direction: got {direction!r} with beta; expected one of the two"
        raise ValueError(msg)
    number = check_real("beta", beta, "a number or None")
    if not 0.0 <= number <= 1.0:
        msg = f"beta: got {number}; expected 0 <= beta <= 1"
        raise ValueError(msg)
    return number


def _rows(backend: Backend, where: Any, logits: Array, axis: int) -> Array:
    """Check which rows count."""
    where = convert(backend, "where", where, logits, "logits")
    check_dtype(backend, "where", where, ("bool",))
    full = shape_of(logits)
    wanted = full[:axis] + full[axis + 1 :]
    if not shapes_agree(shape_of(where), wanted):
        msg = (
            f"where: got shape {shape_of(where)}; expected {wanted}, one entry for each row of "
            f"logits of shape {full} with classes on axis {axis}"
        )
        raise ValueError(msg)
    return where


def _kept(
    backend: Backend,
    spec: LossSpec,
    where: Array,
    logits: Array,
    reference: Array,
    sample_weight: Array | None,
) -> tuple[Array, Array, Array]:
    """Replace the rows that don't count by zeros, which have no divergence, of weight 0."""
    xp = backend.namespace(logits)
    rows = xp.expand_dims(where, axis=spec.axis)
    logits, reference = (xp.where(rows, a, xp.zeros_like(a)) for a in (logits, reference))
    if sample_weight is None:
        return logits, reference, xp.astype(where, spec.precision.compute)
    weight = xp.astype(sample_weight, spec.precision.compute, copy=False)
    return logits, reference, xp.where(where, weight, 0.0)
