"""The public losses. Each function here validates its arguments; the decorators add dispatch.

`_validation` checks the arguments, `_evaluate` computes, `_core` has the mathematics.
"""

from collections.abc import Callable
from typing import Any, Literal, Protocol, Unpack, overload

from xentx import _validation
from xentx._backend import Backend
from xentx._calls import Counted, LinearProblem, Problem
from xentx._checks import Accuracy, LossOptions, Reduction
from xentx._core import binary_cross_entropy as _binary_cross_entropy
from xentx._core import cross_entropy as _cross_entropy
from xentx._core import log_softmax as _log_softmax
from xentx._core import nll_loss as _nll_loss
from xentx._linear import LinearGradients
from xentx._public import Loss, binary_loss, linear_loss, loss
from xentx._types import Array, ArrayT


@loss
def log_softmax(
    backend: Backend, logits: ArrayT, /, *, axis: int = -1, precision: Accuracy = "default"
) -> Problem:
    r"""Logarithm of the softmax over the class axis.

    .. math:: y_k = x_k - \log \sum_j e^{x_j}

    It is computed as
    :math:`(x_k - m) - \mathrm{log1p}(\sum_{x_j < m} e^{x_j - m} + (\text{ties} - 1))` with
    :math:`m = \max x`, which has full relative precision, even if one class dominates.

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
        Log-probabilities, in the shape and dtype of `logits`. A row that contains NaN or +inf, or
        only -inf, is NaN.

    Raises
    ------
    TypeError
        If `logits` is not an array of floats.
    ValueError
        If `axis` is out of range, there are no classes, or `precision` is "exact" and float64 is
        not available.

    See Also
    --------
    nll_loss : The second step: ``cross_entropy`` is ``nll_loss`` of ``log_softmax``.

    Notes
    -----
    The gradient for a cotangent ``g`` is ``g - softmax(x) * sum(g)``. float16 and bfloat16 are
    computed in float32 and rounded once. The method leaves the maximum out of the sum; [1]_ has
    an analysis of its accuracy.

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
    log_probs: ArrayT,
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
    for a soft target.

    Parameters
    ----------
    log_probs : array
        Log-probabilities, as `log_softmax` returns them, of dtype float16, bfloat16, float32 or
        float64.
    target : array or list of int
        Class indices of any integer dtype, in the shape of `log_probs` without the class axis; or
        class probabilities of any float dtype, in the shape of `log_probs`.
    axis : int, optional
        The axis that holds the classes. The default is the last axis. Required if `log_probs` has
        3 or more dimensions.
    weight : array, optional
        A weight for each class, of any real dtype.
    ignore_index : int or None, default: -100
        Rows with this target are ignored: their loss and their gradient are exactly 0. With None,
        no row is ignored.
    reduction : {"mean", "sum", "none", "weighted_mean"}, default: "mean"
        As in `cross_entropy`.

    Returns
    -------
    array
        The loss, in the dtype of `log_probs`: 0-d, or one for each row with ``reduction="none"``.

    Raises
    ------
    TypeError
        If a dtype is not supported, an array belongs to another framework than `log_probs`, or an
        integer target has the shape of a soft target or the reverse.
    ValueError
        If a shape is wrong or an option is out of range.
    IndexError
        If a class index is out of range and its value is concrete. If it is traced, the loss and
        the gradient of its row are NaN.

    See Also
    --------
    cross_entropy : Both steps in one function, with more options.

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


@overload
def cross_entropy(
    logits: ArrayT,
    target: Array,
    /,
    *,
    axis: int | None = None,
    precision: Accuracy = "default",
    return_normalizer: Literal[False] = False,
    **options: Unpack[LossOptions],
) -> ArrayT: ...
@overload
def cross_entropy(
    logits: ArrayT,
    target: Array,
    /,
    *,
    axis: int | None = None,
    precision: Accuracy = "default",
    return_normalizer: Literal[True],
    **options: Unpack[LossOptions],
) -> tuple[ArrayT, ArrayT]: ...
@loss
def cross_entropy(
    backend: Backend,
    logits: ArrayT,
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
        sum to 1. The loss is also differentiable with respect to them.
    axis : int, optional
        The axis that holds the classes. The default is the last axis. Required if `logits` has 3
        or more dimensions.
    weight : array, optional
        A weight for each class, of any real dtype. In frameworks with autodiff, the loss is
        differentiable with respect to it.
    sample_weight : array, optional
        A weight for each row, of any real dtype, in the shape of `logits` without the class axis.
        It multiplies the loss of the row, including the z-loss. A weight of 2 is equivalent to
        repeating the row.
    ignore_index : int or None, default: -100
        Rows with this target are ignored: their loss and their gradient are exactly 0, even if
        their logits are NaN or infinite. With None, no row is ignored. For integer targets only.
    label_smoothing : float or array, default: 0.0
        The part of the target that is distributed evenly over all classes, from 0 to 1.
    z_loss : float or array, default: 0.0
        Factor of the squared log-sum-exp that is added to the loss of each row.
    logit_softcap : float or array, optional
        If given, the logits are replaced by ``c * tanh(logits / c)``, where ``c`` is this number.
    temperature : float or array, default: 1.0
        Positive, finite divisor of the logits. It is applied after `logit_softcap`.
    reduction : {"mean", "sum", "none", "weighted_mean"}, default: "mean"
        For an integer target, "mean" divides the sum of the losses by the sum of the target
        classes' weights, also with smoothing. For a soft target, it divides by the number of rows.
        In both cases, sample weights are multiplied in, and ignored rows do not count.
        "weighted_mean" divides by the sum of :math:`q`.
    normalizer : float or 0-d array, optional
        Replaces the divisor of "mean", for example by the number of items in all micro-batches.
    return_normalizer : bool, default: False
        Whether to return the divisor too. For "none" and "sum", it is the divisor that "mean"
        would use. The mean over several micro-batches is the sum of their "sum" losses, divided by
        the sum of their normalizers.
    precision : {"default", "exact"}, default: "default"
        "exact" computes in float64; nearly all results are correctly rounded. It takes about three
        times as long. In JAX it requires the 64-bit mode.

    Returns
    -------
    array
        The loss, in the dtype of `logits`: 0-d, or one for each row with ``reduction="none"``.
    array
        With `return_normalizer`, the 0-d divisor, in float64 if the framework has it.

    Raises
    ------
    TypeError
        If a dtype is not supported, an array belongs to another framework than `logits`, an
        integer target has the shape of a soft target or the reverse, or `ignore_index` is given
        with a soft target.
    ValueError
        If a shape is wrong, an option is out of range, `normalizer` is given without "mean", or
        `precision` is "exact" and float64 is not available.
    IndexError
        If a class index is out of range and its value is concrete. If it is traced, the loss and
        the gradient of its row are NaN.

    See Also
    --------
    log_softmax, nll_loss : The two steps of this function.
    value_and_grad : The loss and its gradient, in every framework.

    Notes
    -----
    The gradient is ``A * softmax(x) - q``, where ``A`` is the sum of ``q``. Loss and gradient are
    computed without subtracting nearly equal numbers [1]_. For the logits ``[20, 0]`` in float32
    and the target 0, the loss is 2.06e-09, and the row of the gradient sums to 0.

    `label_smoothing`, `z_loss`, `logit_softcap` and `temperature` can be 0-d arrays of the
    framework of `logits`. They can be traced, so that a schedule does not recompile. The loss can
    be differentiated with respect to them. A concrete value out of range raises an error, and a
    traced one makes the loss NaN. The CPU kernel supports numbers only: with an array, the portable
    core computes.

    The mean is NaN if there are no rows, if all rows are ignored, or if the weights sum to 0. Its
    gradient is then exactly 0. A class at -inf contributes nothing if its ``q`` is 0. Otherwise it
    makes the loss +inf. Results are accumulated in a wider dtype and rounded once to the dtype of
    `logits`.

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
    logits: ArrayT,
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

    Each logit is an independent binary problem, as in multi-label classification. Neither the loss
    nor its gradient subtracts nearly equal numbers, for logits of any size.

    Parameters
    ----------
    logits : array
        An array of any shape, of dtype float16, bfloat16, float32 or float64.
    target : array
        Probability :math:`y` of the positive class, in the shape of `logits`, floats or integers.
    weight : array, optional
        Factor of each loss. It broadcasts to the shape of `logits`.
    pos_weight : array, optional
        Factor :math:`p` of the loss of the positive class. It broadcasts to the shape of `logits`.
    label_smoothing : float or array, default: 0.0
        The part :math:`s` of the target that is distributed evenly over both classes. The target
        becomes :math:`(1 - s) y + s / 2`. From 0 to 1.
    reduction : {"none", "mean", "sum", "weighted_mean"}, default: "mean"
        "mean" divides the sum of the losses by their number, "weighted_mean" by the sum of
        `weight`.
    precision : {"default", "exact"}, default: "default"
        As in `cross_entropy`.

    Returns
    -------
    array
        The loss, in the dtype of `logits`. It is 0-d, or has the shape of `logits` if `reduction`
        is "none".

    Raises
    ------
    TypeError
        If an argument has the wrong type or dtype, or is an array of another framework.
    ValueError
        If a shape or the value of an option is wrong.

    See Also
    --------
    cross_entropy : The loss for classes that exclude each other.

    Notes
    -----
    It equals ``torch.nn.functional.binary_cross_entropy_with_logits``,
    ``optax.sigmoid_binary_cross_entropy`` and
    ``tf.nn.sigmoid_cross_entropy_with_logits`` up to rounding. The portable core computes it; the
    CPU kernel does not support it.

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


@overload
def linear_cross_entropy(
    hidden: ArrayT,
    head: Array,
    target: Array,
    /,
    *,
    bias: Array | None = None,
    precision: Accuracy = "default",
    chunk: int | str = "auto",
    return_normalizer: Literal[False] = False,
    **options: Unpack[LossOptions],
) -> ArrayT: ...
@overload
def linear_cross_entropy(
    hidden: ArrayT,
    head: Array,
    target: Array,
    /,
    *,
    bias: Array | None = None,
    precision: Accuracy = "default",
    chunk: int | str = "auto",
    return_normalizer: Literal[True],
    **options: Unpack[LossOptions],
) -> tuple[ArrayT, ArrayT]: ...
@linear_loss
def linear_cross_entropy(
    backend: Backend,
    hidden: ArrayT,
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
    chunk: int | str = "auto",
) -> LinearProblem | Counted:
    r"""Cross-entropy of the logits ``hidden @ head.T + bias``, without storing all of them.

    .. math:: \ell = \mathrm{cross\_entropy}(H W^\top + b, \text{target})

    The logits of a language model have one entry for each token and each entry of the vocabulary.
    They take more memory than anything else in the last layer. This function computes them and
    their gradient for a chunk of the rows at a time. Ignored rows are left out of the products.

    Parameters
    ----------
    hidden : array
        The input of the last layer, with the features on the last axis, of dtype float16,
        bfloat16, float32 or float64.
    head : array
        The weights of the last layer, in shape ``(classes, features)``, of one of these dtypes.
    target : array or list of int
        Class indices of any integer dtype, in the shape of `hidden` without its last axis; or
        class probabilities of any float dtype, with the classes on the last axis.
    bias : array, optional
        The bias of the last layer, one number for each class.
    weight, sample_weight : array, optional
        As in `cross_entropy`, for logits whose last axis holds the classes.
    ignore_index : int or None, default: -100
        As in `cross_entropy`. If the target is concrete, ignored rows are left out of the products.
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
        "exact" also computes the logits in float64.
    chunk : int or str, default: "auto"
        The number of rows that are computed at a time, or the memory of their logits in the compute
        dtype, as in "256MB" or "1.5 GiB" (units: kB, MB, GB, KiB, MiB, GiB). At least one row is
        computed. A larger chunk needs more memory and can be faster.

    Returns
    -------
    array
        The loss: 0-d, or one for each row with ``reduction="none"``. Its dtype is float32, or
        float64 if one of the operands is float64.
    array
        With `return_normalizer`, the 0-d divisor, in float64 if the framework has it.

    Raises
    ------
    TypeError
        If a dtype is not supported, an array belongs to another framework than `hidden`, an
        integer target has the shape of a soft target or the reverse, or `ignore_index` is given
        with a soft target.
    ValueError
        If a shape is wrong, an option is out of range, `normalizer` is given without "mean", or
        `precision` is "exact" and float64 is not available.
    IndexError
        If a class index is out of range and its value is concrete. If it is traced, the loss and
        the gradient of its row are NaN.

    See Also
    --------
    cross_entropy : The same loss of logits.
    value_and_grad : The loss and its gradients with respect to hidden, head and bias.

    Notes
    -----
    float16 and bfloat16 operands are multiplied and accumulated in float32. Each gradient is
    rounded once to the dtype of its operand. The gradient of a reduced loss is computed together
    with its value [1]_. Both take three matrix products, as without chunks. The logits are computed
    a second time, with one more product, for ``reduction="none"`` and for narrow operands. They are
    also computed again for derivatives of second order; some frameworks then store all logits.

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


class ValueAndGrad(Protocol):
    """What `value_and_grad` makes of a loss of one or two arrays."""

    @overload
    def __call__(
        self,
        logits: ArrayT,
        /,
        *arrays: Array,
        cotangent: Array | None = None,
        return_normalizer: Literal[False] = False,
        **options: Any,
    ) -> tuple[ArrayT, ArrayT]: ...
    @overload
    def __call__(
        self,
        logits: ArrayT,
        /,
        *arrays: Array,
        cotangent: Array | None = None,
        return_normalizer: Literal[True],
        **options: Any,
    ) -> tuple[tuple[ArrayT, ArrayT], ArrayT]: ...


class LinearValueAndGrad(Protocol):
    """What `value_and_grad` makes of a loss of three arrays: hidden, head and target."""

    @overload
    def __call__(
        self,
        hidden: ArrayT,
        head: Array,
        target: Array,
        /,
        *,
        cotangent: Array | None = None,
        return_normalizer: Literal[False] = False,
        **options: Any,
    ) -> tuple[ArrayT, LinearGradients[ArrayT]]: ...
    @overload
    def __call__(
        self,
        hidden: ArrayT,
        head: Array,
        target: Array,
        /,
        *,
        cotangent: Array | None = None,
        return_normalizer: Literal[True],
        **options: Any,
    ) -> tuple[tuple[ArrayT, ArrayT], LinearGradients[ArrayT]]: ...


@overload
def value_and_grad(
    loss_fn: Callable[[Array], object] | Callable[[Array, Array], object], /
) -> ValueAndGrad: ...
@overload
def value_and_grad(loss_fn: Callable[[Array, Array, Array], object], /) -> LinearValueAndGrad: ...
def value_and_grad(loss_fn: Callable[..., Any], /) -> Any:
    """Make a function that returns a loss and its gradient with respect to the logits.

    It works in every framework, including NumPy and other Array API libraries without autodiff. In
    a framework with autodiff, the gradient is equal to that of autodiff.

    Parameters
    ----------
    loss_fn : callable
        A loss of xentx: `log_softmax`, `nll_loss`, `cross_entropy`, `binary_cross_entropy`,
        `linear_cross_entropy`, or one that is bound to a backend, such as
        ``xentx_torch.cross_entropy``.

    Returns
    -------
    callable
        It takes the arguments of `loss_fn`, and ``cotangent``, an array in the shape of the value
        (ones by default). It returns ``(value, gradient)``. The gradient is the pullback of the
        cotangent and has the shape and dtype of the first argument. For `linear_cross_entropy` it
        is a named tuple of the gradients with respect to ``hidden``, ``head``, ``bias`` and a soft
        ``target``.

    Raises
    ------
    TypeError
        If `loss_fn` is not a loss of xentx.

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
    return loss_fn.value_and_grad  # type: ignore[attr-defined]
