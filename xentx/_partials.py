"""The loss as an algebra: `partials`, `align`, `combine`, `finish` and `block_gradient`.

A block of the classes is reduced to a state of each row. States are combined in any order, or
aligned and added. The loss, and the gradient of each block, are computed from the state of all
blocks. Therefore the classes can be distributed over chunks, machines or tasks. The caller sends
the states between them. `linear_partials` and `linear_block_gradient` do the same for the logits of
a last layer, without storing them.
"""

from xentx import _blocks, _checks, _linear_blocks, _registry, _validation
from xentx._backend import Backend
from xentx._calls import shape_of
from xentx._core import cross_entropy as _cross_entropy
from xentx._core import partials as _monoid
from xentx._core.partials import Partials
from xentx._linear import LinearGradients
from xentx._public import public
from xentx._types import Array, ArrayT


@public
def partials(
    backend: Backend,
    logits: ArrayT,
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
) -> Partials[ArrayT]:
    r"""Reduce a block of the classes to the state that a cross-entropy needs.

    With :math:`q` the target distribution of `cross_entropy` and :math:`m` the block's maximum

    .. math::
        m = \max_k x_k \qquad S = \sum_k e^{x_k - m} \qquad A = \sum_k q_k \qquad
        g = \sum_k q_k (m - x_k)

    The terms of :math:`S` that equal 1 are summed separately.

    Parameters
    ----------
    logits : array
        The block's part of the logits.
    target : array or list of int
        Class indices, counted from the first class of all blocks, in the shape of `logits` without
        the class axis; or the block's part of class probabilities.
    classes : int
        The number of classes of all blocks.
    start : int or array, default: 0
        Index of the block's first class. A 0-d array may be traced, such as the index of a device.
        Then it is not checked that the block lies within `classes`.
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
        elsewhere, stacked, and differentiated through; `block_gradient` is more accurate, and
        cheaper.

    Raises
    ------
    TypeError, IndexError
        As `cross_entropy`.
    ValueError
        As `cross_entropy`, and if the block does not lie within `classes`.

    See Also
    --------
    combine, align, finish : What is done with the states.
    block_gradient : The accurate gradient of a block.

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
    first = _checks.check_block(backend, start, problem.kind.spec.classes, classes)
    with backend.evaluating():
        return _blocks.state(backend, _blocks.prepare(problem, classes), first)


def align(state: Partials[ArrayT], top: Array, /) -> Partials[ArrayT]:
    """Make a state relative to the rows' maxima over several blocks.

    The fields ``rest``, ``ties``, ``mass`` and ``gaps`` of states relative to the same maxima can
    be added. So two reductions replace calls of `combine`: the maximum of the blocks' ``top``, and
    the sums of these fields. Every framework has them, such as MAX and SUM of an all-reduce, or
    ``pmax`` and ``psum``.

    Parameters
    ----------
    state : Partials
        A state that `partials` or `combine` returned.
    top : array
        The largest ``top`` of all blocks, in the shape of that of `state`.

    Returns
    -------
    Partials
        The state of the same classes, relative to `top`. The loss does not depend on `top`, so no
        derivative is taken through it.

    Raises
    ------
    TypeError
        If `state` is not a state, or `top` is not an array of its framework.
    ValueError
        If `top` has another shape than that of `state`.

    See Also
    --------
    combine : Joins two states with different maxima.
    block_gradient : The gradient, from the state of all classes.

    Examples
    --------
    >>> import numpy as np
    >>> import xentx
    >>> logits, target = np.asarray([[1.0, 2.0, 0.5]]), [1]
    >>> a = xentx.partials(logits[:, :1], target, classes=3)
    >>> b = xentx.partials(logits[:, 1:], target, classes=3, start=1)
    >>> top = np.maximum(a.top, b.top)
    >>> a, b = xentx.align(a, top), xentx.align(b, top)
    >>> sums = (x + y for x, y in zip(a[1:5], b[1:5]))  # rest, ties, mass and gaps
    >>> xentx.finish(xentx.Partials(top, *sums, a.kept)).round(6)
    array([0.464369])
    """
    backend = _backend_of("state", state)
    like: Array = state.top
    top = _checks.convert(backend, "top", top, like, "state")
    _check_rows("top", top, state)
    with backend.evaluating():
        xp = backend.namespace(like)
        top = backend.constant(xp.astype(top, like.dtype, copy=False))
        return _monoid.align(xp, state, top)


def combine(a: Partials[ArrayT], b: Partials[ArrayT], /) -> Partials[ArrayT]:
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
        If one of them is not a state.

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


def finish(state: Partials[ArrayT], /, *, z_loss: float | Array = 0.0) -> ArrayT:
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
        If `state` is not a state.
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


def block_gradient(
    state: Partials[ArrayT],
    logits: ArrayT,
    target: Array,
    /,
    *,
    classes: int,
    start: int | Array = 0,
    cotangent: Array | None = None,
    axis: int | None = None,
    weight: Array | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float | Array = 0.0,
    z_loss: float | Array = 0.0,
    logit_softcap: float | Array | None = None,
    temperature: float | Array = 1.0,
) -> ArrayT:
    r"""Gradient of each row's loss with respect to a block of its logits.

    .. math:: g_k = c \, (A p_k - q_k + 2 z \, \mathrm{lse} \, p_k)

    It keeps full precision if one class has nearly all of the probability. Derivatives through
    `finish` would then subtract nearly equal numbers.

    Parameters
    ----------
    state : Partials
        The state of all classes, from `partials` with the same options.
    logits, target : array
        Logits and target of the block, as in `partials`.
    classes : int
        As in `partials`.
    start : int or array, default: 0
        As in `partials`.
    cotangent : array, optional
        Factor of each row's gradient, in the shape of the rows: for the mean of N rows, 1 / N each.
        The default is ones.
    axis : int, optional
        As in `partials`.
    weight : array, optional
        As in `partials`.
    ignore_index : int or None, default: -100
        As in `partials`.
    label_smoothing : float or array, default: 0.0
        As in `partials`.
    z_loss : float or array, default: 0.0
        As in `finish`.
    logit_softcap : float or array, optional
        As in `partials`.
    temperature : float or array, default: 1.0
        As in `partials`.

    Returns
    -------
    array
        The gradient, in the shape and dtype of `logits`. It is exactly 0 in ignored rows.

    Raises
    ------
    TypeError, IndexError
        As `partials`, and if `state` is not a state.
    ValueError
        As `partials`, and if `state` or `cotangent` has other rows than `logits`.

    See Also
    --------
    partials, align, combine, finish : Compute the state and the loss.

    Examples
    --------
    >>> import numpy as np
    >>> import xentx
    >>> logits, target = np.asarray([[1.0, 2.0, 0.5], [0.1, 0.5, 2.0]]), [1, 2]
    >>> left, right = logits[:, :2], logits[:, 2:]
    >>> a = xentx.partials(left, target, classes=3)
    >>> b = xentx.partials(right, target, classes=3, start=2)
    >>> state = xentx.combine(a, b)
    >>> xentx.block_gradient(state, right, target, classes=3, start=2).round(6)
    array([[ 0.140244],
           [-0.271508]])
    """
    backend = _backend_of("state", state)
    _check_framework(backend, "logits", logits, state)
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
    first = _checks.check_block(backend, start, problem.kind.spec.classes, classes)
    shape, own = shape_of(logits), problem.kind.spec.axis
    rows = shape[:own] + shape[own + 1 :]
    _check_state(state, rows, "logits", shape)
    if cotangent is not None:
        cotangent = _validation.cotangent(backend, cotangent, logits, rows)
    with backend.evaluating():
        prepared = _blocks.prepare(problem, classes)
        return _blocks.gradient(backend, prepared, state, cotangent, first)


@public
def linear_partials(
    backend: Backend,
    hidden: ArrayT,
    head: Array,
    target: Array,
    /,
    *,
    classes: int,
    start: int | Array = 0,
    bias: Array | None = None,
    weight: Array | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float | Array = 0.0,
    logit_softcap: float | Array | None = None,
    temperature: float | Array = 1.0,
    chunk: int | str = "auto",
) -> Partials[ArrayT]:
    """Return `partials` of the logits ``hidden @ head.T + bias``, computed chunk by chunk.

    Parameters
    ----------
    hidden : array
        As in `linear_cross_entropy`, the same for all blocks.
    head : array
        The block's part of the last layer's weights, in shape ``(block, features)``.
    target : array or list of int
        As in `partials`.
    classes : int
        As in `partials`.
    start : int or array, default: 0
        As in `partials`.
    bias, weight : array, optional
        The block's part of the last layer's bias, and of the class weights.
    ignore_index : int or None, default: -100
        As in `partials`.
    label_smoothing : float or array, default: 0.0
        As in `partials`.
    logit_softcap : float or array, optional
        As in `partials`.
    temperature : float or array, default: 1.0
        As in `partials`.
    chunk : int or str, default: "auto"
        As in `linear_cross_entropy`.

    Returns
    -------
    Partials
        The state of the block, in the rows' shape, as `partials` returns it. It can be
        differentiated through; `linear_block_gradient` is more accurate, and cheaper.

    Raises
    ------
    TypeError, IndexError
        As `linear_cross_entropy`.
    ValueError
        As `linear_cross_entropy`, and if the block does not lie within `classes`.

    See Also
    --------
    combine, align, finish : What is done with the states.
    linear_block_gradient : The gradients of a block.

    Examples
    --------
    >>> import numpy as np
    >>> import xentx
    >>> hidden = np.asarray([[1.0, 2.0], [0.5, -1.0]])
    >>> head = np.asarray([[0.5, 0.5], [1.0, 0.0], [0.0, -1.0]])
    >>> a = xentx.linear_partials(hidden, head[:2], [0, 2], classes=3)
    >>> b = xentx.linear_partials(hidden, head[2:], [0, 2], classes=3, start=2)
    >>> xentx.finish(xentx.combine(a, b)).round(6)
    array([0.492699, 0.638182])
    """
    problem = _validation.linear(
        backend,
        _cross_entropy,
        hidden,
        head,
        target,
        bias=bias,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=0.0,
        logit_softcap=logit_softcap,
        temperature=temperature,
        reduction="none",
        chunk=chunk,
    )
    first = _checks.check_block(backend, start, problem.linear.kind.spec.classes, classes)
    with backend.evaluating():
        return _linear_blocks.state(problem, classes, first)


def linear_block_gradient(
    state: Partials[ArrayT],
    hidden: ArrayT,
    head: Array,
    target: Array,
    /,
    *,
    classes: int,
    start: int | Array = 0,
    cotangent: Array | None = None,
    bias: Array | None = None,
    weight: Array | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float | Array = 0.0,
    z_loss: float | Array = 0.0,
    logit_softcap: float | Array | None = None,
    temperature: float | Array = 1.0,
    chunk: int | str = "auto",
) -> LinearGradients[ArrayT]:
    """Gradient of each row's loss with respect to the operands of a block of the last layer.

    They are those of `block_gradient`, multiplied by the operands chunk by chunk. Add the gradients
    of `hidden` over all blocks.

    Parameters
    ----------
    state : Partials
        The state of all classes, from `linear_partials` with the same options.
    hidden, head, target : array
        The operands and the target of the block, as in `linear_partials`.
    classes : int
        As in `linear_partials`.
    start : int or array, default: 0
        As in `linear_partials`.
    cotangent : array, optional
        Factor of each row's gradient, in the shape of the rows: for the mean of N rows, 1 / N each.
        The default is ones.
    bias, weight : array, optional
        As in `linear_partials`.
    ignore_index : int or None, default: -100
        As in `linear_partials`.
    label_smoothing : float or array, default: 0.0
        As in `linear_partials`.
    z_loss : float or array, default: 0.0
        As in `finish`.
    logit_softcap : float or array, optional
        As in `linear_partials`.
    temperature : float or array, default: 1.0
        As in `linear_partials`.
    chunk : int or str, default: "auto"
        As in `linear_partials`.

    Returns
    -------
    LinearGradients
        A named tuple with the fields ``hidden``, ``head``, ``bias`` and ``target``. ``hidden`` is
        the contribution of the block. It is float32, or float64 if an operand is, so that a sum
        over many blocks is accurate. ``head`` and ``bias`` are in the shapes and dtypes of these.
        ``bias`` is None without a bias, and ``target`` is None. No derivative is taken of them.

    Raises
    ------
    TypeError, IndexError
        As `linear_partials`, and if `state` is not a state.
    ValueError
        As `linear_partials`, and if `state` or `cotangent` has other rows than `hidden`.

    See Also
    --------
    linear_partials, align, combine, finish : Compute the state and the loss.

    Examples
    --------
    >>> import numpy as np
    >>> import xentx
    >>> hidden, target = np.asarray([[1.0, 2.0], [0.5, -1.0]]), [0, 2]
    >>> head = np.asarray([[0.5, 0.5], [1.0, 0.0], [0.0, -1.0]])
    >>> a = xentx.linear_partials(hidden, head[:2], target, classes=3)
    >>> b = xentx.linear_partials(hidden, head[2:], target, classes=3, start=2)
    >>> state = xentx.combine(a, b)
    >>> right = xentx.linear_block_gradient(state, hidden, head[2:], target, classes=3, start=2)
    >>> right.head.round(6)
    array([[-0.217424,  0.508648]])
    """
    backend = _backend_of("state", state)
    _check_framework(backend, "hidden", hidden, state)
    problem = _validation.linear(
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
    first = _checks.check_block(backend, start, problem.linear.kind.spec.classes, classes)
    shape = shape_of(hidden)
    _check_state(state, shape[:-1], "hidden", shape)
    if cotangent is not None:
        cotangent = _validation.cotangent(backend, cotangent, hidden, shape[:-1])
    with backend.evaluating():
        return _linear_blocks.gradients(problem, classes, first, state, cotangent)


def _check_framework(backend: Backend, name: str, array: Array, state: Partials[Array]) -> None:
    if not backend.owns(array):
        msg = (
            f"{name}: got {_registry.describe(array)} where state is "
            f"{_registry.describe(state.top)}; expected both of one framework"
        )
        raise TypeError(msg)


def _check_state(
    state: Partials[Array],
    rows: tuple[int | None, ...],
    name: str,
    shape: tuple[int | None, ...],
) -> None:
    if not _checks.shapes_agree(shape_of(state.top), rows):
        msg = (
            f"state: got rows of shape {shape_of(state.top)}; expected {rows}, those of {name} of "
            f"shape {shape}"
        )
        raise ValueError(msg)


def _check_rows(name: str, array: Array, state: Partials[Array]) -> None:
    if not _checks.shapes_agree(shape_of(array), shape_of(state.top)):
        msg = (
            f"{name}: got shape {shape_of(array)}; expected {shape_of(state.top)}, the rows of "
            "state"
        )
        raise ValueError(msg)


def _backend_of(name: str, state: object) -> Backend:
    if not isinstance(state, Partials):
        msg = f"{name}: got {_registry.describe(state)}; expected what xentx.partials returns"
        raise TypeError(msg)
    return _registry.require(f"{name}.top", state.top)
