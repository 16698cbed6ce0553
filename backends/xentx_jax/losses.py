"""Drop-in replacements for Optax's softmax losses.

The functions here translate Optax's arguments, including `where`. Optax is not imported.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentx._backend import plain
from xentx._bound import Functions
from xentx_jax._backend import BACKEND

__all__ = [
    "safe_softmax_cross_entropy",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
]

Array = jax.Array
Axis = int | tuple[int, ...]

_FUNCTIONS = Functions(BACKEND)


def softmax_cross_entropy(
    logits: Any, labels: Any, axis: Axis | None = -1, where: Any = None
) -> Array:
    r"""Drop-in replacement for optax.softmax_cross_entropy.

    .. math:: \ell = \sum_k y_k \left( \log \sum_j e^{x_j} - x_k \right)

    Parameters
    ----------
    logits : array
        Unnormalised scores of dtype float16, bfloat16, float32 or float64.
    labels : array
        Class probabilities in the shape of `logits`, of any real dtype. They need not sum to 1.
    axis : int or tuple of int, default: -1
        The axes that hold the classes. None means all axes.
    where : array of bool, optional
        The elements to include, in the shape of `logits` or of the result. An excluded class does
        not belong to the row. A row without classes has loss 0 and gradient exactly 0.

    Returns
    -------
    array
        A loss for each row, in the dtype of `logits` and their shape without `axis`.

    Raises
    ------
    TypeError, ValueError
        As `xentx.cross_entropy`.

    See Also
    --------
    softmax_cross_entropy_with_integer_labels : For class indices.
    xentx.cross_entropy : Describes all rules, has more options, and has reductions.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import xentx_jax
    >>> logits = jnp.array([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1]])
    >>> labels = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> [f"{loss:.4f}" for loss in xentx_jax.softmax_cross_entropy(logits, labels)]
    ['0.2761', '2.9518']
    """
    logits, labels = _array(logits), _array(labels)
    if not jnp.issubdtype(labels.dtype, jnp.floating):
        # These are class probabilities in any dtype, by the name of the function.
        labels = labels.astype(logits.dtype)
    mask = _mask(where, logits, axis)
    logits, labels, mask = (_one_axis(array, axis) for array in (logits, labels, mask))
    axis = axis if isinstance(axis, int) else -1
    if mask is not None:
        logits, labels = _excluding(logits, mask, axis), jnp.where(mask, labels, 0)
    return _FUNCTIONS.cross_entropy(logits, labels, axis=axis, reduction="none")


def softmax_cross_entropy_with_integer_labels(
    logits: Any, labels: Any, axis: Axis = -1, where: Any = None
) -> Array:
    r"""Drop-in replacement for optax.softmax_cross_entropy_with_integer_labels.

    .. math:: \ell = \log \sum_j e^{x_j} - x_t

    Parameters
    ----------
    logits : array
        Unnormalised scores of dtype float16, bfloat16, float32 or float64.
    labels : array
        Class indices of any integer dtype, in the shape of `logits` without `axis`. For several
        axes, an index counts the classes in the order of `axis`, and the last axis varies fastest.
    axis : int or tuple of int, default: -1
        The axes that hold the classes.
    where : array of bool, optional
        The elements to include, in the shape of `logits` or of the result. An excluded class does
        not belong to the row: if it is the label, the loss is +inf. A row without classes has loss
        0 and gradient exactly 0, for any label.

    Returns
    -------
    array
        A loss for each row, in the dtype of `logits` and the shape of `labels`.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `xentx.cross_entropy`.

    See Also
    --------
    softmax_cross_entropy : For class probabilities.
    xentx.cross_entropy : Describes all rules, has more options, and has reductions.

    Notes
    -----
    A row with the label -100 is ignored, as in `xentx.cross_entropy`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import xentx_jax
    >>> logits = jnp.array([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1]])
    >>> losses = xentx_jax.softmax_cross_entropy_with_integer_labels(logits, jnp.array([0, 1]))
    >>> [f"{loss:.4f}" for loss in losses]
    ['0.2761', '2.9518']
    """
    logits = _array(logits)
    mask = _mask(where, logits, axis)
    logits, mask = _one_axis(logits, axis), _one_axis(mask, axis)
    axis = axis if isinstance(axis, int) else -1
    if mask is None:
        # NumPy's labels are left so: JAX's integers may be too narrow to hold a wrong one.
        return _FUNCTIONS.cross_entropy(logits, labels, axis=axis, reduction="none")
    kept = jnp.any(mask, axis)
    if isinstance(labels, np.ndarray) and not isinstance(kept, jax.core.Tracer):
        labels = np.where(kept, labels, 0)
    else:
        labels = jnp.where(kept, _array(labels), 0)
    logits = _excluding(logits, mask, axis)
    losses = _FUNCTIONS.cross_entropy(logits, labels, axis=axis, reduction="none")
    return jnp.where(kept, losses, 0)


def safe_softmax_cross_entropy(logits: Any, labels: Any) -> Array:
    r"""Drop-in replacement for optax.safe_softmax_cross_entropy.

    .. math:: \ell = \sum_k y_k \left( \log \sum_j e^{x_j} - x_k \right)

    Parameters
    ----------
    logits : array
        Unnormalised scores in shape ``(..., C)``, of dtype float16, bfloat16, float32 or float64.
    labels : array
        Class probabilities in the shape of `logits`, of any real dtype.

    Returns
    -------
    array
        A loss for each row, in the dtype of `logits`.

    Raises
    ------
    TypeError, ValueError
        As `xentx.cross_entropy`.

    See Also
    --------
    softmax_cross_entropy : The same function. In xentx both are safe: a class at -inf with label 0
        contributes 0.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import xentx_jax
    >>> logits = jnp.array([0.0, 0.0, -jnp.inf])
    >>> loss = xentx_jax.safe_softmax_cross_entropy(logits, jnp.array([0.5, 0.5, 0.0]))
    >>> f"{loss:.4f}"
    '0.6931'
    """
    return softmax_cross_entropy(logits, labels)


def _array(value: Any) -> Array:
    return jnp.asarray(plain(value) if isinstance(value, np.ndarray) else value)


def _mask(where: Any, logits: Array, axis: Axis | None) -> Array | None:
    """Broadcast `where` to the shape of the logits."""
    if where is None:
        return None
    mask = _array(where)
    if mask.ndim != logits.ndim:
        mask = jnp.expand_dims(mask, tuple(range(logits.ndim)) if axis is None else axis)
    return jnp.broadcast_to(mask, logits.shape)


def _one_axis(array: Any, axis: Axis | None) -> Any:
    """Merge several axes into one, the last."""
    if array is None or isinstance(axis, int):
        return array
    if axis is None:
        return jnp.reshape(array, -1)
    last = jnp.moveaxis(array, axis, tuple(range(-len(axis), 0)))
    return jnp.reshape(last, (*last.shape[: -len(axis)], -1))


def _excluding(logits: Array, mask: Array, axis: int) -> Array:
    """Set excluded classes to -inf. A row without other classes must stay finite."""
    rest = jnp.where(jnp.any(mask, axis, keepdims=True), -jnp.inf, 0)
    return jnp.where(mask, logits, rest.astype(logits.dtype))
