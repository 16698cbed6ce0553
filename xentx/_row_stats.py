"""Public functions of rows: `per_row` and `linear_per_row`; `partials`, `combine` and `finish`.

The first two return more than the loss of each row. The other three compute the loss of sharded
classes: `partials` reduces a block of the classes to a state of each row, `combine` combines states
in any order, and `finish` computes the loss from the state of all blocks. The blocks can be chunks,
or shards on several machines or tasks. Communication is left to the caller.
"""

from dataclasses import replace
from typing import Literal, NamedTuple

from xentx import _calls, _checks, _evaluate, _linear, _registry, _validation
from xentx._backend import Backend
from xentx._calls import Kind, Problem
from xentx._core import cross_entropy as _cross_entropy
from xentx._core import partials as _monoid
from xentx._core._spec import LossSpec, Precision
from xentx._core.partials import Partials
from xentx._public import public
from xentx._types import Array


class RowStats(NamedTuple):
    """The result of `per_row`: each field is an array with one entry for each row.

    Parameters
    ----------
    loss : array
        Bit-identical to `cross_entropy` with ``reduction="none"``. Exception: in a compiled
        function on the portable core, it may differ by two units in the last place.
    lse : array
        Logarithm of the sum of the exponentials of the logits.
    log_prob : array
        Log-probability of the target, without weights or smoothing. For class probabilities: the
        sum of their products with the log-probabilities.
    entropy : array
        Entropy of the softmax, in nats.
    correct : array of bool
        Whether `prediction` is the target. For class probabilities: whether it is the class with
        the largest probability.
    prediction : array of int
        Class of the largest logit. If several are equal, the first of them. In a row with NaN, the
        first NaN. In an ignored row, 0. The dtype is that of the framework's ``argmax``: int64, or
        int32 in JAX without the 64-bit mode.

    Examples
    --------
    >>> import numpy as np
    >>> import xentx
    >>> xentx.per_row(np.asarray([[1.0, 2.0, 0.5]]), [1]).correct
    array([ True])
    """

    loss: Array
    lse: Array
    log_prob: Array
    entropy: Array
    correct: Array
    prediction: Array


@public
def per_row(
    backend: Backend,
    logits: Array,
    target: Array,
    /,
    *,
    axis: int | None = None,
    weight: Array | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float | Array = 0.0,
    z_loss: float | Array = 0.0,
    logit_softcap: float | Array | None = None,
    temperature: float | Array = 1.0,
) -> RowStats:
    r"""Loss, log-sum-exp, log-probability of the target, entropy and prediction of each row.

    .. math::
        \mathrm{lse} = \log \sum_j e^{x_j} \qquad \log p_t = x_t - \mathrm{lse} \qquad
        H = \sum_k p_k (\mathrm{lse} - x_k)

    Parameters
    ----------
    logits : array
        As in `cross_entropy`.
    target : array or list of int
        As in `cross_entropy`.
    axis : int, optional
        As in `cross_entropy`.
    weight : array, optional
        As in `cross_entropy`. It affects ``loss`` only.
    ignore_index : int or None, default: -100
        As in `cross_entropy`.
    label_smoothing, z_loss : float or array, default: 0.0
        As in `cross_entropy`. They affect ``loss`` only.
    logit_softcap : float or array, optional
        As in `cross_entropy`.
    temperature : float or array, default: 1.0
        As in `cross_entropy`. It affects all fields.

    Returns
    -------
    RowStats
        A named tuple. Its fields have the dtype of `logits`, except ``correct`` and ``prediction``.
        In an ignored row they are 0 and False.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cross_entropy`.

    Notes
    -----
    All but ``correct`` and ``prediction`` are differentiable with respect to the logits, to any
    order.

    Examples
    --------
    >>> import numpy as np
    >>> import xentx
    >>> stats = xentx.per_row(np.asarray([[1.0, 2.0, 0.5], [0.1, 0.5, 2.0]]), [1, 0])
    >>> stats.entropy.round(6), stats.correct, stats.prediction
    (array([0.905959, 0.767625]), array([ True, False]), array([1, 2]))
    """
    problem = _validation.rowwise(
        backend,
        _cross_entropy,
        logits,
        target,
        axis=axis,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_softcap=logit_softcap,
        temperature=temperature,
        reduction="none",
    )
    return RowStats(*_evaluate.row_stats(problem))


@public
def linear_per_row(
    backend: Backend,
    hidden: Array,
    head: Array,
    target: Array,
    /,
    *,
    bias: Array | None = None,
    weight: Array | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float | Array = 0.0,
    z_loss: float | Array = 0.0,
    logit_softcap: float | Array | None = None,
    temperature: float | Array = 1.0,
    chunk: int | Literal["auto"] = "auto",
) -> RowStats:
    """Return `per_row` of the logits ``hidden @ head.T + bias``, computed chunk by chunk.

    Parameters
    ----------
    hidden, head : array
        As in `linear_cross_entropy`.
    target : array or list of int
        As in `linear_cross_entropy`.
    bias, weight : array, optional
        As in `linear_cross_entropy`.
    ignore_index : int or None, default: -100
        As in `linear_cross_entropy`.
    label_smoothing, z_loss : float or array, default: 0.0
        As in `linear_cross_entropy`.
    logit_softcap : float or array, optional
        As in `linear_cross_entropy`.
    temperature : float or array, default: 1.0
        As in `per_row`.
    chunk : int or "auto", default: "auto"
        As in `linear_cross_entropy`.

    Returns
    -------
    RowStats
        A named tuple. Its fields are float32, or float64 if an operand is float64, except
        ``correct`` and ``prediction``.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `linear_cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> import xentx
    >>> hidden = np.asarray([[1.0, 2.0], [0.5, -1.0]])
    >>> head = np.asarray([[0.5, 0.5], [1.0, 0.0], [0.0, -1.0]])
    >>> xentx.linear_per_row(hidden, head, [0, 2]).lse.round(6)
    array([1.992699, 1.638182])
    """
    linear, arrays = _validation.linear(
        backend,
        _cross_entropy,
        hidden,
        head,
        target,
        bias=bias,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_softcap=logit_softcap,
        temperature=temperature,
        reduction="none",
        chunk=chunk,
    )

    def of_chunk(kind: Kind, *arrays: Array | None) -> tuple[Array, ...]:
        return _evaluate.row_stats(_linear.dense_problem(kind, *arrays))

    return RowStats(*_linear.of_rows(linear, arrays, of_chunk))


@public
def partials(
    backend: Backend,
    logits: Array,
    target: Array,
    /,
    *,
    classes: int,
    start: int | Array = 0,
    axis: int | None = None,
    weight: Array | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float | Array = 0.0,
    logit_softcap: float | Array | None = None,
    temperature: float | Array = 1.0,
) -> Partials:
    r"""Reduce a block of the classes to what a cross-entropy needs to know of it.

    With :math:`q` the target distribution of `cross_entropy` and :math:`m` the block's maximum

    .. math::
        m = \max_k x_k \qquad S = \sum_k e^{x_k - m} \qquad A = \sum_k q_k \qquad
        g = \sum_k q_k (m - x_k)

    where the terms of :math:`S` that equal 1 are summed apart from the rest.

    Parameters
    ----------
    logits : array
        The block's part of the logits.
    target : array or list of int
        Class indices, counted from the first class of all blocks, in the shape of `logits` without
        the class axis; or the block's part of class probabilities.
    classes : int
        How many classes all blocks have together.
    start : int or array, default: 0
        Index of the block's first class. An array of no dimensions may be traced, as the index of a
        device is; whether the block then lies within `classes` is left to the caller.
    axis : int, optional
        As in `cross_entropy`.
    weight : array, optional
        The block's part of the class weights.
    ignore_index : int or None, default: -100
        As in `cross_entropy`, the same for all blocks.
    label_smoothing : float or array, default: 0.0
        As in `cross_entropy`, the same for all blocks.
    logit_softcap : float or array, optional
        As in `cross_entropy`, the same for all blocks.
    temperature : float or array, default: 1.0
        As in `cross_entropy`, the same for all blocks.

    Returns
    -------
    Partials
        A named tuple of arrays in the rows' shape, in float64 where there is one. It can be sent
        elsewhere, stacked, and differentiated through.

    Raises
    ------
    TypeError, IndexError
        As `cross_entropy`.
    ValueError
        As `cross_entropy`, and if the block does not lie within `classes`.

    See Also
    --------
    combine, finish : What is done with the states.

    References
    ----------
    .. [1] M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax", 2018.
       https://arxiv.org/abs/1805.02867

    Examples
    --------
    >>> import numpy as np
    >>> import xentx
    >>> logits = np.asarray([[1.0, 2.0, 0.5], [0.1, 0.5, 2.0]])
    >>> left = xentx.partials(logits[:, :2], [1, 2], classes=3)
    >>> right = xentx.partials(logits[:, 2:], [1, 2], classes=3, start=2)
    >>> xentx.finish(xentx.combine(left, right)).round(6)
    array([0.464369, 0.316779])
    """
    problem = _validation.rowwise(
        backend,
        _cross_entropy,
        logits,
        target,
        axis=axis,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        logit_softcap=logit_softcap,
        temperature=temperature,
        reduction="none",
    )
    size = problem.kind.spec.classes
    start = _checks.check_block(backend, start, size, classes)
    kind = replace(problem.kind, spec=_wide(problem.kind.spec, logits, classes))
    prepared = _calls.prepare(Problem(kind, problem.arrays))
    with backend.evaluating():
        block, target, scale, *_ = prepared.arrays
        return _monoid.partials(
            backend.namespace(block), prepared.bound, block, target, scale, start
        )


def _wide(spec: LossSpec, logits: Array, classes: int) -> LossSpec:
    """Compute in the widest dtype, for all classes."""
    accumulate = spec.precision.accumulate
    precision = Precision(
        compute=accumulate,
        accumulate=accumulate,
        recover=logits.dtype == accumulate,
        compensate=spec.precision.compensate,
    )
    return replace(spec, precision=precision, classes=classes)


def combine(a: Partials, b: Partials, /) -> Partials:
    """Join the states of two sets of classes of the same rows. The order does not matter.

    Parameters
    ----------
    a, b : Partials
        States that `partials` or `combine` returned.

    Returns
    -------
    Partials
        The state of both sets together.

    Raises
    ------
    TypeError
        If one of them is no state.

    Examples
    --------
    >>> import numpy as np
    >>> import xentx
    >>> logits, target = np.asarray([[1.0, 2.0, 0.5]]), [1]
    >>> a = xentx.partials(logits[:, :1], target, classes=3)
    >>> b = xentx.partials(logits[:, 1:], target, classes=3, start=1)
    >>> xentx.combine(b, a).top
    array([2.])
    """
    backend = _backend_of("a", a)
    _backend_of("b", b)
    with backend.evaluating():
        return _monoid.combine(backend.namespace(a.top), a, b)


def finish(state: Partials, /, *, z_loss: float | Array = 0.0) -> Array:
    """Return the loss of each row from the state of all classes.

    Parameters
    ----------
    state : Partials
        The state of all classes.
    z_loss : float or array, default: 0.0
        As in `cross_entropy`.

    Returns
    -------
    array
        What `cross_entropy` returns with ``reduction="none"``, in the dtype of the state.

    Raises
    ------
    TypeError
        If `state` is none.
    ValueError
        If `z_loss` is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> import xentx
    >>> xentx.finish(xentx.partials(np.asarray([[1.0, 2.0, 0.5]]), [1], classes=3)).round(6)
    array([0.464369])
    """
    backend = _backend_of("state", state)
    z = _checks.traced_z_loss(backend, z_loss, state.top)
    with backend.evaluating():
        return _monoid.finish(backend.namespace(state.top), state, z)


def _backend_of(name: str, state: object) -> Backend:
    if not isinstance(state, Partials):
        msg = f"{name}: got {_registry.describe(state)}; expected what xentx.partials returns"
        raise TypeError(msg)
    return _registry.require(f"{name}.top", state.top)
