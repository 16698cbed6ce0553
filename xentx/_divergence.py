"""``kl_divergence`` and ``linear_kl_divergence``: from their arguments to checked calls.

The mathematics is in `xentx._core.kl_divergence`, where the reference logits stand for the target.
"""

from dataclasses import replace
from typing import Any, Literal

from xentx._backend import Backend
from xentx._calls import (
    Kind,
    LinearProblem,
    Problem,
    linear_of,
    precision_of,
    shape_of,
    widest,
)
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
from xentx._core._spec import OPTIONS, LossSpec
from xentx._public import linear_loss, loss
from xentx._types import Array, ArrayT
from xentx._validation import StandIn, check_chunk, check_shapes

Direction = Literal["forward", "reverse"]
_BETAS = {"forward": 0.0, "reverse": 1.0}
_FACTORS = ("hidden", "head", "bias", "reference_hidden", "reference_head", "reference_bias")


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
    linear_kl_divergence : The same divergence of the logits of two last layers.

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
    spec, others, operands = _others(
        backend,
        logits,
        ("logits", logits),
        LossSpec(_kl_divergence.NAME, place, classes, dtypes, soft=True, exact=exact),
        {"direction": direction, "beta": beta},
        temperature=temperature,
        sample_weight=sample_weight,
        reduction=reduction,
        normalizer=normalizer,
    )
    sample_weight, normalizer = others
    if where is not None:
        where = _rows(backend, where, ("logits", logits), logits, place)
        (logits, reference), sample_weight = _kept(
            backend, spec, where, (logits, reference), sample_weight
        )
    arrays = (logits, reference, None, sample_weight, normalizer, *operands)
    return Problem(Kind(backend, spec), arrays)


@linear_loss
def linear_kl_divergence(
    backend: Backend,
    hidden: ArrayT,
    head: Array,
    reference_hidden: Array,
    reference_head: Array,
    /,
    *,
    bias: Array | None = None,
    reference_bias: Array | None = None,
    direction: Direction = "forward",
    beta: float | None = None,
    temperature: float | Array = 1.0,
    sample_weight: Array | None = None,
    where: Array | None = None,
    reduction: Reduction = "mean",
    normalizer: float | Array | None = None,
    precision: Accuracy = "default",
    chunk: int | str = "auto",
) -> LinearProblem:
    r"""Divergence of the distributions of two last layers, without storing all of their logits.

    .. math:: D = \mathrm{kl\_divergence}(H W^\top + b, \, H' W'^\top + b')

    Distillation compares a student with a teacher of the same vocabulary. The logits of each take
    more memory than anything else in its last layer. This function computes both, and the gradient,
    for a chunk of the rows at a time.

    Parameters
    ----------
    hidden : array
        The input of the last layer, with the features on the last axis, of dtype float16,
        bfloat16, float32 or float64.
    head : array
        The weights of the last layer, in shape ``(classes, features)``, of one of these dtypes.
    reference_hidden, reference_head : array
        The same of the reference. The number of its features may be another one.
    bias, reference_bias : array, optional
        The biases of both layers, one number for each class.
    direction : {"forward", "reverse"}, default: "forward"
        As in `kl_divergence`.
    beta : float, optional
        As in `kl_divergence`.
    temperature : float or array, default: 1.0
        As in `kl_divergence`.
    sample_weight : array, optional
        A weight for each row, of any real dtype, in the shape of `hidden` without its last axis.
    where : array of bool, optional
        Which rows count, in the same shape, as in `kl_divergence`.
    reduction : {"mean", "sum", "none", "weighted_mean"}, default: "mean"
        As in `kl_divergence`.
    normalizer : float or array, optional
        As in `kl_divergence`.
    precision : {"default", "exact"}, default: "default"
        "exact" also computes the logits in float64.
    chunk : int or str, default: "auto"
        As in `linear_cross_entropy`.

    Returns
    -------
    array
        The divergence: 0-d, or one for each row with ``reduction="none"``. Its dtype is float32, or
        float64 if one of the operands is float64.

    Raises
    ------
    TypeError
        If a dtype is none of those above, or an array is of another framework than `hidden`.
    ValueError
        If a shape or an option is out of range.

    See Also
    --------
    kl_divergence : The same divergence of logits.
    linear_cross_entropy : The loss of targets, computed in the same way.

    Notes
    -----
    The gradient of a reduced divergence with respect to `hidden`, `head` and `bias` is computed
    together with its value: four matrix products. The logits are computed a second time for
    ``reduction="none"`` and for narrow operands. They are also computed again for derivatives with
    respect to the reference and of second order; some frameworks then store all logits of the
    latter. Stop the gradient of a teacher with the framework's own function (``detach``,
    ``stop_gradient``).

    `value_and_grad` returns the gradients with respect to `hidden`, `head` and `bias`. Exchange the
    two layers for those of the reference: the forward divergence is then the reverse one, and
    `beta` is ``1 - beta``.

    Float16 and bfloat16 operands are converted to float32, the heads as a whole.

    Examples
    --------
    >>> import numpy as np
    >>> import xentx
    >>> hidden, head = np.asarray([[1.0, 2.0]]), np.asarray([[0.5, 0.5], [1.0, 0.0], [0.0, -1.0]])
    >>> teacher, teacher_head = np.asarray([[2.0]]), np.asarray([[1.0], [0.5], [-1.0]])
    >>> print(xentx.linear_kl_divergence(hidden, head, teacher, teacher_head).round(6))
    0.026836
    >>> print(xentx.kl_divergence(hidden @ head.T, teacher @ teacher_head.T).round(6))
    0.026836
    """
    hidden = as_array(backend, "hidden", hidden, hidden)
    factors = [hidden] + [
        None if value is None else convert(backend, name, value, hidden, "hidden")
        for name, value in (
            ("head", head),
            ("bias", bias),
            ("reference_hidden", reference_hidden),
            ("reference_head", reference_head),
            ("reference_bias", reference_bias),
        )
    ]
    dtypes = [
        check_dtype(backend, name, array, FLOATS)
        for name, array in zip(_FACTORS, factors, strict=True)
        if array is not None
    ]
    _, head, bias, other, other_head, other_bias = factors
    shape, classes = check_shapes(hidden, head, bias)
    other_shape, other_classes = check_shapes(other, other_head, other_bias, "reference_")
    if not shapes_agree(other_shape, shape):
        msg = (
            f"reference_hidden: got shape {shape_of(other)}; expected {shape} before the features, "
            f"the rows of hidden of shape {shape_of(hidden)}"
        )
        raise ValueError(msg)
    if other_classes != classes:
        msg = (
            f"reference_head: got shape {shape_of(other_head)}; expected {classes} classes, those "
            f"of head of shape {shape_of(head)}"
        )
        raise ValueError(msg)
    exact = check_accuracy(backend, precision, hidden)
    xp = backend.namespace(hidden)
    like = xp.zeros((), dtype=getattr(xp, widest(dtypes))).dtype
    logits = ("hidden @ head.T", StandIn(xp, hidden, (*shape, classes), like))
    wide = precision_of(backend, hidden, widest(dtypes), exact=exact)
    spec, others, operands = _others(
        backend,
        hidden,
        logits,
        LossSpec(_kl_divergence.NAME, len(shape), classes, wide, soft=True, exact=exact),
        {"direction": direction, "beta": beta},
        temperature=temperature,
        sample_weight=sample_weight,
        reduction=reduction,
        normalizer=normalizer,
    )
    sample_weight, normalizer = others
    if where is not None:
        where = _rows(backend, where, logits, hidden, len(shape))
        (hidden, other), sample_weight = _kept(backend, spec, where, (hidden, other), sample_weight)
    arrays = (hidden, head, bias, other, other_head, sample_weight, normalizer, other_bias)
    linear = linear_of(
        backend,
        arrays,
        {name: getattr(spec, name) for name in ("operation", "soft", "exact", "beta", *OPTIONS)},
        reduction=spec.reduction,
        chunk=check_chunk(xp, chunk, spec),
    )
    return LinearProblem(linear, (*arrays, *operands))


def _others(
    backend: Backend,
    like: Array,
    logits: tuple[str, Any],
    spec: LossSpec,
    divergence: dict[str, Any],
    *,
    temperature: object,
    sample_weight: Any,
    reduction: object,
    normalizer: Any,
) -> tuple[LossSpec, tuple[Array | None, Array | None], tuple[Array, ...]]:
    """Check the arguments that both functions have. Return the complete spec, and the arrays.

    The arrays are the sample weights, the normalizer, and the options that are arrays. `like` is
    the first argument. `logits` has the name and the shape of the logits.
    """
    name, shaped = logits
    first = "hidden" if name != "logits" else name
    numbers, operands = split_options(backend, {"temperature": temperature}, like, first)
    chosen = check_reduction(reduction)
    if sample_weight is not None:
        sample_weight = convert(backend, "sample_weight", sample_weight, like, first)
        check_sample_weight(backend, sample_weight, shaped, spec.axis, name)
    if normalizer is not None:
        normalizer = convert(backend, "normalizer", normalizer, like, first)
        check_normalizer(backend, normalizer, chosen)
    complete = replace(
        spec,
        reduction="mean" if chosen == "weighted_mean" else chosen,
        beta=_beta(**divergence),
        **check_options(numbers),
    )
    return complete, (sample_weight, normalizer), operands


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


def _rows(backend: Backend, where: Any, logits: tuple[str, Any], like: Array, axis: int) -> Array:
    """Check the mask of the rows that count."""
    name, shaped = logits
    where = convert(backend, "where", where, like, "hidden" if name != "logits" else name)
    check_dtype(backend, "where", where, ("bool",))
    full = shape_of(shaped)
    wanted = full[:axis] + full[axis + 1 :]
    if not shapes_agree(shape_of(where), wanted):
        msg = (
            f"where: got shape {shape_of(where)}; expected {wanted}, one entry for each row of "
            f"{name} of shape {full} with classes on axis {axis}"
        )
        raise ValueError(msg)
    return where


def _kept(
    backend: Backend,
    spec: LossSpec,
    where: Array,
    arrays: tuple[Array, Array],
    sample_weight: Array | None,
) -> tuple[list[Array], Array]:
    """Replace the rows that don't count by zeros, and give them a weight of 0."""
    xp = backend.namespace(arrays[0])
    rows = xp.expand_dims(where, axis=spec.axis)
    kept = [xp.where(rows, array, xp.zeros_like(array)) for array in arrays]
    if sample_weight is None:
        return kept, xp.astype(where, spec.precision.compute)
    weight = xp.astype(sample_weight, spec.precision.compute, copy=False)
    return kept, xp.where(where, weight, 0.0)
