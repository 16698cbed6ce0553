"""Public functions of rows, `per_row` and `linear_per_row`: more of each row than its loss."""

from numbers import Integral
from typing import Any, Generic, NamedTuple

from xentx import _evaluate, _linear, _validation
from xentx._backend import Backend
from xentx._calls import Kind, Problem, replaced, shape_of
from xentx._checks import INTEGERS, as_array, convert, shapes_agree
from xentx._core import cross_entropy as _cross_entropy
from xentx._core._spec import is_given
from xentx._public import public
from xentx._types import Array, ArrayT


class RowStats(NamedTuple, Generic[ArrayT]):
    """The result of `per_row`: each field is an array with one entry for each row.

    If the target has several classes for each row, so have `loss`, `log_prob` and `correct`, on
    their last axis.

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

    loss: ArrayT
    lse: ArrayT
    log_prob: ArrayT
    entropy: ArrayT
    correct: ArrayT
    prediction: ArrayT


@public
def per_row(
    backend: Backend,
    logits: ArrayT,
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
) -> RowStats[ArrayT]:
    r"""Loss, log-sum-exp, log-probability of the target, entropy and prediction of each row.

    .. math::
        \mathrm{lse} = \log \sum_j e^{x_j} \qquad \log p_t = x_t - \mathrm{lse} \qquad
        H = \sum_k p_k (\mathrm{lse} - x_k)

    Parameters
    ----------
    logits : array
        As in `cross_entropy`.
    target : array or list of int
        As in `cross_entropy`; or several class indices for each row, on the last axis of an integer
        array that is not in the shape of `logits`. An entry that is `ignore_index` is ignored, and
        a row whose entries all are.
    axis : int, optional
        As in `cross_entropy`.
    weight : array, optional
        As in `cross_entropy`. It affects ``loss`` only. Not with several classes for each row.
    ignore_index : int or None, default: -100
        As in `cross_entropy`.
    label_smoothing, z_loss : float or array, default: 0.0
        As in `cross_entropy`. They affect ``loss`` only. Not with several classes for each row.
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
    logits = as_array(backend, "logits", logits, logits)
    target = convert(backend, "target", target, logits, "logits")
    shape = shape_of(logits)
    place = (axis if isinstance(axis, Integral) else -1) % max(1, len(shape))
    rows = shape[:place] + shape[place + 1 :]
    several = _is_several(backend, target, rows, shape)
    problem = _validation.rowwise(
        backend,
        _cross_entropy,
        logits,
        target[..., 0] if several else target,
        axis=axis,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_softcap=logit_softcap,
        temperature=temperature,
        reduction="none",
    )
    if several:
        _refuse(weight, label_smoothing, z_loss)
        problem = Problem(problem.kind, replaced(problem.arrays, [1], [target]))
        return RowStats(*_evaluate.several_row_stats(problem))
    return RowStats(*_evaluate.row_stats(problem))


def _is_several(
    backend: Backend,
    target: Array,
    rows: tuple[int | None, ...],
    logits: tuple[int | None, ...],
) -> bool:
    """Whether each row has several class indices; those of the logits' shape may be one-hot."""
    shape = shape_of(target)
    return (
        backend.dtype_name(target) in INTEGERS
        and shapes_agree(shape[:-1], rows)
        and len(shape) == len(rows) + 1
        and shape != logits
        and shape[-1] != 0
    )


def _refuse(weight: Any, label_smoothing: Any, z_loss: Any) -> None:
    """Raise for the options that belong to a loss of one target."""
    options = {"label_smoothing": label_smoothing, "z_loss": z_loss}
    given = [name for name, value in options.items() if is_given(value)]
    if weight is not None:
        given.append("weight")
    if given:
        msg = f"{given[0]}: got it with several classes for each row; expected one class, or none"
        raise ValueError(msg)


@public
def linear_per_row(
    backend: Backend,
    hidden: ArrayT,
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
    chunk: int | str = "auto",
) -> RowStats[ArrayT]:
    """Return `per_row` of the logits ``hidden @ head.T + bias``, computed chunk by chunk.

    Parameters
    ----------
    hidden, head : array
        As in `linear_cross_entropy`.
    target : array or list of int
        As in `linear_cross_entropy`; or several class indices for each row, as in `per_row`.
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
    chunk : int or str, default: "auto"
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
    hidden = as_array(backend, "hidden", hidden, hidden)
    target = convert(backend, "target", target, hidden, "hidden")
    rows = shape_of(hidden)[:-1]
    several = _is_several(backend, target, rows, (*rows, *getattr(head, "shape", ())[:1]))
    linear, arrays = _validation.linear(
        backend,
        _cross_entropy,
        hidden,
        head,
        target[..., 0] if several else target,
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

    of_rows = _evaluate.row_stats
    if several:
        _refuse(weight, label_smoothing, z_loss)
        of_rows, arrays = _evaluate.several_row_stats, replaced(arrays, [3], [target])

    def of_chunk(kind: Kind, *arrays: Array | None) -> tuple[Array, ...]:
        return of_rows(_linear.dense_problem(kind, *arrays))

    return RowStats(*_linear.of_rows(linear, arrays, of_chunk))
