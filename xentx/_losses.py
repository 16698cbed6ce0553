"""The losses. Each function states its arguments and validates them; `_public` does the rest.

The way on: `_validation` checks the arguments, `_evaluate` computes, `_core` holds the mathematics.
"""

from collections.abc import Callable
from typing import Literal

from xentx import _validation
from xentx._backend import Backend
from xentx._calls import Counted, LinearProblem, Problem
from xentx._checks import Accuracy, Reduction
from xentx._core import binary_cross_entropy as _binary_cross_entropy
from xentx._core import cross_entropy as _cross_entropy
from xentx._core import log_softmax as _log_softmax
from xentx._core import nll_loss as _nll_loss
from xentx._public import Loss, binary_loss, linear_loss, loss
from xentx._types import Array


@loss
def log_softmax(
    backend: Backend, logits: Array, /, *, axis: int = -1, precision: Accuracy = "default"
) -> Problem:
    r"""Logarithm of the softmax over the class axis.

    .. math:: y_k = x_k - \log \sum_j e^{x_j}

    computed as :math:`(x_k - m) - \mathrm{log1p}(\sum_{x_j < m} e^{x_j - m} + (\text{ties} - 1))`
    with :math:`m = \max x`, which keeps full relative precision where one class dominates.

    Parameters
    ----------
    logits : array
        Unnormalised scores in any shape, of dtype float16, bfloat16, float32 or float64.
    axis : int, default: -1
        The axis that holds the classes.
    precision : {"default", "exact"}, default: "default"
        As in `cross_entropy`.

    Returns
    -------
    array
        Log-probabilities, in the shape and dtype of `logits`. A row that holds NaN or +inf, or
        nothing but -inf, is NaN.

    Raises
    ------
    TypeError
        If `logits` is no array of floats.
    ValueError
        If `axis` is out of range, there are no classes, or `precision` is "exact" where there is
        no float64.

    See Also
    --------
    nll_loss : The other half: ``cross_entropy`` is ``nll_loss`` of ``log_softmax``.

    Notes
    -----
    The gradient for a cotangent ``g`` is ``g - softmax(x) * sum(g)``. float16 and bfloat16 are
    computed in float32 and rounded once. Leaving the maximum out of the sum is the method of
    [1]_; its accuracy is shown there.

    References
    ----------
    .. [1] P. Blanchard, D. J. Higham and N. J. Higham, "Accurately computing the log-sum-exp and
       softmax functions", IMA Journal of Numerical Analysis 41 (4), 2021.
       https://doi.org/10.1093/imanum/draa038

    Examples
    --------
    >>> import numpy as np
    >>> import xentx
    >>> xentx.log_softmax(np.asarray([1.0, 2.0, 0.5])).round(6)
    array([-1.464369, -0.464369, -1.964369])
    """
    return _validation.elementwise(backend, _log_softmax, logits, axis=axis, precision=precision)


@loss
def nll_loss(
    backend: Backend,
    log_probs: Array,
    target: Array,
    /,
    *,
    axis: int | None = None,
    weight: Array | None = None,
    ignore_index: int | None = -100,
    reduction: Reduction = "mean",
) -> Problem:
    r"""Negative log-likelihood of log-probabilities.

    .. math:: \ell = -\sum_k q_k y_k

    with :math:`q_k = w_t [k = t]` for an integer target and :math:`q_k = w_k \, \text{target}_k`
    for a soft one.

    Parameters
    ----------
    log_probs : array
        Log-probabilities, as `log_softmax` returns them, of dtype float16, bfloat16, float32 or
        float64.
    target : array or list of int
        Class indices of any integer dtype, in the shape of `log_probs` without the class axis; or
        class probabilities of any float dtype, in the shape of `log_probs`.
    axis : int, optional
        The axis that holds the classes. The last by default; `log_probs` of 3 or more dimensions
        need it said.
    weight : array, optional
        A weight for each class, of any real dtype.
    ignore_index : int or None, default: -100
        Class index of the rows to ignore: their loss is 0 and their gradient exactly 0. None
        ignores no row.
    reduction : {"mean", "sum", "none", "weighted_mean"}, default: "mean"
        As in `cross_entropy`.

    Returns
    -------
    array
        The loss, in the dtype of `log_probs`: 0-d, or one for each row with ``reduction="none"``.

    Raises
    ------
    TypeError
        If a dtype is none of those above, a framework differs from that of `log_probs`, or an
        integer target has the shape of a soft one or the reverse.
    ValueError
        If a shape or an option is out of range.
    IndexError
        If a class index is out of range, where its value can be seen. Under a tracing compiler
        that row's loss and gradient are NaN.

    See Also
    --------
    cross_entropy : Both steps in one, with more options and more accurate.

    Examples
    --------
    >>> import numpy as np
    >>> import xentx
    >>> log_probs = xentx.log_softmax(np.asarray([[1.0, 2.0, 0.5], [0.1, 0.5, 2.0]]))
    >>> round(float(xentx.nll_loss(log_probs, [1, 2])), 6)
    0.390574
    """
    return _validation.rowwise(
        backend,
        _nll_loss,
        log_probs,
        target,
        first="log_probs",
        axis=axis,
        weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
    )


@loss
def cross_entropy(
    backend: Backend,
    logits: Array,
    target: Array,
    /,
    *,
    axis: int | None = None,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float | Array = 0.0,
    z_loss: float | Array = 0.0,
    logit_softcap: float | Array | None = None,
    temperature: float | Array = 1.0,
    reduction: Reduction = "mean",
    normalizer: float | Array | None = None,
    return_normalizer: bool = False,
    precision: Accuracy = "default",
) -> Problem | Counted:
    r"""Cross-entropy of logits against class indices or class probabilities.

    For one row of logits :math:`x` with :math:`C` classes

    .. math:: \ell = \sum_k q_k \left( \log \sum_j e^{x_j} - x_k \right) + z \, \mathrm{lse}^2

    where, with class weights :math:`w`, label smoothing :math:`s` and z-loss :math:`z`,

    .. math::
        q_k = (1 - s) \, w_t \, [k = t] + \tfrac{s}{C} w_k \quad\text{(integer target } t) \qquad
        q_k = w_k \left( (1 - s) \, y_k + \tfrac{s}{C} \right) \quad\text{(soft target } y)

    Parameters
    ----------
    logits : array
        Unnormalised scores of dtype float16, bfloat16, float32 or float64.
    target : array or list of int
        Class indices of any integer dtype, in the shape of `logits` without the class axis; or
        class probabilities of any float dtype, in the shape of `logits`. Probabilities need not
        sum to 1, and the loss is differentiable in them too.
    axis : int, optional
        The axis that holds the classes. The last by default; `logits` of 3 or more dimensions
        need it said.
    weight : array, optional
        A weight for each class, of any real dtype. Differentiable, as far as the framework is.
    sample_weight : array, optional
        A weight for each row, of any real dtype, in the shape of `logits` without the class axis.
        It multiplies the row's loss, z-loss included, so that a weight of 2 equals repeating the
        row.
    ignore_index : int or None, default: -100
        Class index of the rows to ignore: their loss is 0 and their gradient exactly 0, even
        where their logits are NaN or infinite. None ignores no row. For integer targets only.
    label_smoothing : float or array, default: 0.0
        How much of the target to spread evenly over all classes, from 0 to 1.
    z_loss : float or array, default: 0.0
        Factor of the squared log-sum-exp that is added to the loss of each row.
    logit_softcap : float or array, optional
        Cap ``c`` to which the logits are first squashed, as ``c * tanh(logits / c)``.
    temperature : float or array, default: 1.0
        What the logits are divided by, after the cap. Positive and finite.
    reduction : {"mean", "sum", "none", "weighted_mean"}, default: "mean"
        "mean" divides the sum by that of the target classes' weights for an integer target, also
        with smoothing, and by the number of rows for a soft one, sample weights multiplied in and
        ignored rows left out. "weighted_mean" divides by the sum of :math:`q` in both cases.
    normalizer : float or 0-d array, optional
        Replaces the divisor of "mean": for example the number of items in all micro-batches.
    return_normalizer : bool, default: False
        Whether to return the divisor too: that of "mean" where the reduction has none. Sums over
        micro-batches, divided by the sum of their normalizers, are the mean over all of them.
    precision : {"default", "exact"}, default: "default"
        "exact" computes in float64 inside, for results that are correctly rounded but for one case
        in thousands. It takes about three times as long. JAX needs its 64-bit mode for it.

    Returns
    -------
    array
        The loss, in the dtype of `logits`: 0-d, or one for each row with ``reduction="none"``.
    array
        With `return_normalizer`, the 0-d divisor, in float64 where there is one.

    Raises
    ------
    TypeError
        If a dtype is none of those above, a framework differs from that of `logits`, an integer
        target has the shape of a soft one or the reverse, or `ignore_index` comes with a soft
        target.
    ValueError
        If a shape or an option is out of range, `normalizer` comes without "mean", or `precision`
        is "exact" where there is no float64.
    IndexError
        If a class index is out of range, where its value can be seen. Under a tracing compiler
        that row's loss and gradient are NaN.

    See Also
    --------
    log_softmax, nll_loss : The two steps that this one equals.
    value_and_grad : The loss and its gradient, in every framework.

    Notes
    -----
    The gradient is ``A * softmax(x) - q`` with ``A`` the sum of ``q``. Loss and gradient are formed
    without subtracting nearly equal numbers [1]_: for logits ``[20, 0]``, target 0, in float32 the
    loss is 2.06e-09, and the gradient's row sums to 0.

    `label_smoothing`, `z_loss`, `logit_softcap` and `temperature` may be 0-d arrays of the
    framework of `logits`. They may be traced, so that a schedule compiles once, and the loss can be
    differentiated with respect to them. A concrete value out of range raises; a traced one makes
    the loss NaN. The CPU kernel takes numbers only: with an array the loss runs on the portable
    engine.

    An empty mean, of no rows, of ignored rows only, or over weights that sum to 0, is NaN, with a
    gradient of exactly 0. A class at -inf adds nothing where its ``q`` is 0, and makes the loss
    +inf where it isn't. Results are accumulated wide and rounded once to the dtype of `logits`.

    References
    ----------
    .. [1] P. Blanchard, D. J. Higham and N. J. Higham, "Accurately computing the log-sum-exp and
       softmax functions", IMA Journal of Numerical Analysis 41 (4), 2021.
       https://doi.org/10.1093/imanum/draa038

    Examples
    --------
    >>> import numpy as np
    >>> import xentx
    >>> logits = np.asarray([[1.0, 2.0, 0.5], [0.1, 0.5, 2.0]])
    >>> round(float(xentx.cross_entropy(logits, [1, 2])), 6)
    0.390574
    >>> xentx.cross_entropy(logits, [1, -100], reduction="none").round(6)
    array([0.464369, 0.      ])
    """
    problem = _validation.rowwise(
        backend,
        _cross_entropy,
        logits,
        target,
        axis=axis,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_softcap=logit_softcap,
        temperature=temperature,
        reduction=reduction,
        normalizer=normalizer,
        precision=precision,
    )
    return Counted(problem) if return_normalizer else problem


@binary_loss
def binary_cross_entropy(
    backend: Backend,
    logits: Array,
    target: Array,
    /,
    *,
    weight: Array | None = None,
    pos_weight: Array | None = None,
    label_smoothing: float | Array = 0.0,
    reduction: Reduction = "mean",
    precision: Accuracy = "default",
) -> Problem:
    r"""Binary cross-entropy of each logit with the probability of the positive class.

    .. math:: \ell = p \, y \log(1 + e^{-x}) + (1 - y) \log(1 + e^{x})

    Each logit is a problem of its own, as in classification with several labels. Neither the loss
    nor its gradient subtracts nearly equal numbers, however large or small the logits are.

    Parameters
    ----------
    logits : array
        Of any shape, of dtype float16, bfloat16, float32 or float64.
    target : array
        Probability :math:`y` of the positive class, in the shape of `logits`, floats or integers.
    weight : array, optional
        What each loss is multiplied by. It broadcasts to the shape of `logits`.
    pos_weight : array, optional
        What the loss of the positive class is multiplied by, :math:`p`. It broadcasts to the shape
        of `logits`.
    label_smoothing : float or array, default: 0.0
        The share :math:`s` of the target that is spread evenly over both classes:
        :math:`(1 - s) y + s / 2`. At least 0 and at most 1.
    reduction : {"none", "mean", "sum", "weighted_mean"}, default: "mean"
        "mean" divides the sum of the losses by their number, "weighted_mean" by the sum of
        `weight`.
    precision : {"default", "exact"}, default: "default"
        As in `cross_entropy`.

    Returns
    -------
    array
        The loss, in the dtype of `logits`, with their shape if `reduction` is "none".

    Raises
    ------
    TypeError
        If an argument has the wrong type or dtype, or is an array of another framework.
    ValueError
        If a shape or the value of an option is wrong.

    See Also
    --------
    cross_entropy : The loss of one class of several.

    Notes
    -----
    It equals ``torch.nn.functional.binary_cross_entropy_with_logits``,
    ``optax.sigmoid_binary_cross_entropy`` and
    ``tf.nn.sigmoid_cross_entropy_with_logits`` up to rounding. The portable core computes it.

    Examples
    --------
    >>> import numpy as np
    >>> import xentx
    >>> logits = np.asarray([[2.0, -1.0], [0.0, 30.0]])
    >>> target = np.asarray([[1, 0], [1, 1]])
    >>> xentx.binary_cross_entropy(logits, target, reduction="none").round(6)
    array([[0.126928, 0.313262],
           [0.693147, 0.      ]])
    """
    return _validation.binary(
        backend,
        _binary_cross_entropy,
        logits,
        target,
        weight=weight,
        pos_weight=pos_weight,
        label_smoothing=label_smoothing,
        reduction=reduction,
        precision=precision,
    )


@linear_loss
def linear_cross_entropy(
    backend: Backend,
    hidden: Array,
    head: Array,
    target: Array,
    /,
    *,
    bias: Array | None = None,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float | Array = 0.0,
    z_loss: float | Array = 0.0,
    logit_softcap: float | Array | None = None,
    temperature: float | Array = 1.0,
    reduction: Reduction = "mean",
    normalizer: float | Array | None = None,
    return_normalizer: bool = False,
    precision: Accuracy = "default",
    chunk: int | Literal["auto"] = "auto",
) -> LinearProblem | Counted:
    r"""Cross-entropy of the logits ``hidden @ head.T + bias``, which are never all in memory.

    .. math:: \ell = \mathrm{cross\_entropy}(H W^\top + b, \text{target})

    A language model's logits, one for each token and entry of the vocabulary, take more memory than
    all else in its last layer. Here they, and their gradient, exist for a chunk of the rows at a
    time; rows to ignore are left out of the products.

    Parameters
    ----------
    hidden : array
        The last layer's input, features on the last axis, of dtype float16, bfloat16, float32 or
        float64.
    head : array
        The last layer's weights in shape ``(classes, features)``, of one of these dtypes.
    target : array or list of int
        Class indices of any integer dtype, in the shape of `hidden` without its last axis; or
        class probabilities of any float dtype, with an axis of classes in its place.
    bias : array, optional
        The last layer's bias, one number for each class.
    weight, sample_weight : array, optional
        As in `cross_entropy`, for logits whose last axis holds the classes.
    ignore_index : int or None, default: -100
        As in `cross_entropy`. Rows to ignore are left out of the products where they can be seen.
    label_smoothing, z_loss : float or array, default: 0.0
        As in `cross_entropy`.
    logit_softcap : float or array, optional
        As in `cross_entropy`.
    temperature : float or array, default: 1.0
        As in `cross_entropy`.
    reduction : {"mean", "sum", "none", "weighted_mean"}, default: "mean"
        As in `cross_entropy`.
    normalizer : float or 0-d array, optional
        As in `cross_entropy`.
    return_normalizer : bool, default: False
        As in `cross_entropy`.
    precision : {"default", "exact"}, default: "default"
        "exact" forms the logits in float64 too.
    chunk : int or "auto", default: "auto"
        How many rows to take at a time. More are faster up to a point, and need more memory.

    Returns
    -------
    array
        The loss: 0-d, or one for each row with ``reduction="none"``. It is float32, and float64
        where one of the operands is.
    array
        With `return_normalizer`, the 0-d divisor, in float64 where there is one.

    Raises
    ------
    TypeError
        If a dtype is none of those above, a framework differs from that of `hidden`, an integer
        target has the shape of a soft one or the reverse, or `ignore_index` comes with a soft
        target.
    ValueError
        If a shape or an option is out of range, `normalizer` comes without "mean", or `precision`
        is "exact" where there is no float64.
    IndexError
        If a class index is out of range, where its value can be seen. Under a tracing compiler
        that row's loss and gradient are NaN.

    See Also
    --------
    cross_entropy : The same loss of logits.
    value_and_grad : The loss and its gradients by hidden, head and bias, in every framework.

    Notes
    -----
    float16 and bfloat16 operands are multiplied and summed up in float32; each gradient is rounded
    once to the dtype of its operand. The gradient of a reduced loss is formed beside its value
    [1]_, at the price of three matrix products for both, as without chunks. With
    ``reduction="none"``, narrow operands, or derivatives of second order the logits are formed
    again: a product more, or, for second order, all logits at once in some frameworks.

    References
    ----------
    .. [1] P.-L. Hsu et al., "Liger Kernel: Efficient Triton Kernels for LLM Training", 2024.
       https://arxiv.org/abs/2410.10989
    .. [2] E. Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", ICLR 2025.
       https://arxiv.org/abs/2411.09009

    Examples
    --------
    >>> import numpy as np
    >>> import xentx
    >>> hidden = np.asarray([[1.0, 2.0], [0.5, -1.0]])
    >>> head = np.asarray([[0.5, 0.5], [1.0, 0.0], [0.0, -1.0]])
    >>> round(float(xentx.linear_cross_entropy(hidden, head, [0, 2])), 6)
    0.56544
    >>> round(float(xentx.cross_entropy(hidden @ head.T, [0, 2])), 6)
    0.56544
    """
    problem = _validation.linear(
        backend,
        _cross_entropy,
        hidden,
        head,
        target,
        bias=bias,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_softcap=logit_softcap,
        temperature=temperature,
        reduction=reduction,
        normalizer=normalizer,
        precision=precision,
        chunk=chunk,
    )
    return Counted(problem) if return_normalizer else problem


def value_and_grad(loss_fn: Callable[..., Array], /) -> Callable[..., tuple[Array, Array]]:
    """Make a function that returns a loss and its gradient by the logits, in every framework.

    The gradient is the core's own, hand-written one, so NumPy and every other Array API library
    have it too; in a framework with autodiff it equals what that would give.

    Parameters
    ----------
    loss_fn : callable
        One of xentx's functions: `log_softmax`, `nll_loss`, `cross_entropy`,
        `binary_cross_entropy` or `linear_cross_entropy`, or the same of one backend, such as
        ``xentx_torch.cross_entropy``.

    Returns
    -------
    callable
        Takes the arguments of `loss_fn` and ``cotangent``, an array in the shape of the value
        (ones by default) which is pulled back; returns ``(value, gradient)``. The gradient has
        the shape and dtype of the first argument. That of `linear_cross_entropy` is a named tuple
        of those by ``hidden``, ``head``, ``bias`` and a soft ``target``.

    Raises
    ------
    TypeError
        If `loss_fn` is none of xentx's functions.

    Examples
    --------
    >>> import numpy as np
    >>> import xentx
    >>> logits = np.asarray([[1.0, 2.0, 0.5], [0.1, 0.5, 2.0]])
    >>> value, gradient = xentx.value_and_grad(xentx.cross_entropy)(logits, [1, 2])
    >>> gradient.round(6)
    array([[ 0.115612, -0.185734,  0.070122],
           [ 0.05448 ,  0.081274, -0.135754]])
    """
    if not isinstance(getattr(loss_fn, "computes", None), Loss):
        functions = (
            log_softmax,
            nll_loss,
            cross_entropy,
            binary_cross_entropy,
            linear_cross_entropy,
        )
        names = ", ".join(function.__name__ for function in functions)
        got = getattr(loss_fn, "__name__", repr(loss_fn))
        msg = f"loss_fn: got {got}; expected one of xentx's functions: {names}"
        raise TypeError(msg)
    known: Callable[..., tuple[Array, Array]] = loss_fn.value_and_grad  # type: ignore[attr-defined]
    return known
