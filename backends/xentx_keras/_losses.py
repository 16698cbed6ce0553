"""Drop-in replacements for Keras's two cross-entropies.

xentx computes the loss of each row and its gradient. Keras reduces, so sample weights and masks
behave as in Keras. A mean over the replicas of a distribution strategy has one divisor for all.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

import xentx
from xentx._backend import plain
from xentx._types import Array
from xentx_keras._private import set_keras_mask

# Replacements of labels. Both are out of range, and independent of the caller's `ignore_class`.
IGNORED, NO_CLASS = -1, -2

MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")


def _replica() -> Any:
    """Return TensorFlow's context of this replica; None where there are no others."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf  # noqa: PLC0415 -- Keras has other backends

    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return None
    return tf.distribute.get_replica_context()


class _Sum(keras.losses.Loss):  # type: ignore[misc] # Keras has no types
    """Sum of ``function(y_true, y_pred)``, with Keras's sample weights and masks."""

    def __init__(self, function: Callable[[Array, Array], Array], dtype: Any) -> None:
        super().__init__(name=None, reduction="sum", dtype=dtype)
        self.call = function


class _CrossEntropy(keras.losses.Loss):  # type: ignore[misc] # Keras has no types
    """The common part of both losses: the options, and the conversion of probabilities."""

    def __init__(
        self,
        *,
        from_logits: bool,
        label_smoothing: float,
        axis: int,
        weight: Sequence[float] | None,
        z_loss: float,
        logit_softcap: float | None,
        reduction: str | None,
        name: str,
        dtype: Any,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.from_logits = from_logits
        self.label_smoothing = label_smoothing
        self.axis = axis
        self.weight = None if weight is None else [float(w) for w in np.asarray(weight)]
        self.z_loss = z_loss
        self.logit_softcap = logit_softcap

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Array:
        """Loss of a batch, reduced."""
        # Keras cannot convert arrays of another byte order to its backend's arrays.
        values = [
            plain(value) if isinstance(value, np.ndarray) else value
            for value in (y_true, y_pred, sample_weight)
        ]
        replica = _replica() if self.reduction in MEANS else None
        if replica is None:
            return super().__call__(*values)
        # The gradients of the replicas are summed. Keras would divide by what is counted here, and
        # by the number of replicas.
        weights = values[2] if self.reduction == "mean_with_sample_weight" else None
        total = _Sum(self.call, self.dtype)(*values)
        count = _Sum(self._ones, self.dtype)(*values[:2], weights)
        return ops.divide_no_nan(total, replica.all_reduce("SUM", count))

    def _ones(self, y_true: Array, y_pred: Array) -> Array:  # noqa: ARG002
        """Return a 1 for each row, with the mask that the losses have."""
        return ops.ones_like(ops.take(y_pred, 0, axis=self.axis))

    def _loss(self, y_pred: Array, target: Array, **options: Any) -> Array:
        logits = y_pred
        if not self.from_logits:
            # The softmax of log p is p, normalised. For p = 0 the gradient would be 0 * inf.
            dtype = keras.backend.standardize_dtype(y_pred.dtype)
            tiny = 1e-7 if dtype == "float16" else 1.1754944e-38  # the smallest normal float32
            logits = ops.log(ops.maximum(y_pred, tiny))
        return xentx.cross_entropy(
            logits,
            target,
            axis=self.axis,
            weight=None if self.weight is None else np.asarray(self.weight),
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            logit_softcap=self.logit_softcap,
            reduction="none",
            **options,
        )

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return {
            **super().get_config(),
            "from_logits": self.from_logits,
            "label_smoothing": self.label_smoothing,
            "axis": self.axis,
            "weight": self.weight,
            "z_loss": self.z_loss,
            "logit_softcap": self.logit_softcap,
        }


@keras.saving.register_keras_serializable(package="xentx")
class SparseCategoricalCrossentropy(_CrossEntropy):
    r"""Drop-in replacement for keras.losses.SparseCategoricalCrossentropy.

    .. math:: \ell = \log \sum_k e^{x_k} - x_t

    It has the same arguments, order and defaults. Options of `xentx.cross_entropy` that Keras does
    not have are keyword arguments. The notes list the differences from Keras's loss.

    Parameters
    ----------
    from_logits : bool, default: False
        Whether `y_pred` contains logits. Otherwise it contains probabilities, which are normalised.
        Logits are more accurate: use a last layer without softmax.
    ignore_class : int, optional
        Rows with this target are ignored. They do not count in the divisor of
        "sum_over_batch_size" and "mean".
    reduction : str, default: "sum_over_batch_size"
        As in all losses of Keras.
    axis : int, default: -1
        The axis of `y_pred` that holds the classes.
    name : str, default: "sparse_categorical_crossentropy"
        The name of the loss.
    dtype : str or keras.DTypePolicy, optional
        The dtype of the computation. The default is Keras's ``floatx``. Keras converts class
        indices to this dtype. Therefore float16 and bfloat16, which are exact for integers up to
        2048 and 256 only, raise an error.
    label_smoothing, weight, z_loss, logit_softcap
        As in `xentx.cross_entropy`.

    Raises
    ------
    ValueError
        If `dtype` is float16 or bfloat16.
    IndexError
        When called, if a label is invalid: negative, too large, NaN, infinite or fractional.

    See Also
    --------
    CategoricalCrossentropy : For one-hot and soft targets.

    Notes
    -----
    These differ from Keras's loss:

    - The loss of a confident row is not rounded to 0.
    - The gradient of an ignored row is 0, for any logits.
    - With ``from_logits=False``, the probability 0 has the loss 87.34, which is ``-log`` of the
      smallest normal float32. Keras clips probabilities to 1e-7, which has the loss 16.12.
    - An invalid label raises an IndexError if labels are concrete. If they are traced, as in `fit`
      by default, the loss of the row is NaN. To find such a label, compile the model with
      ``run_eagerly=True``: the error names the label and its position in the batch.
    - Under a distribution strategy, a mean is the mean over the rows of all replicas. Keras's is
      the mean of the replicas' means.

    Examples
    --------
    >>> import numpy as np
    >>> import xentx_keras
    >>> loss = xentx_keras.SparseCategoricalCrossentropy(from_logits=True)
    >>> print(f"{float(loss(np.array([0]), np.array([[20.0, 0.0]]))):.7g}")
    2.061154e-09
    """

    def __init__(
        self,
        from_logits: bool = False,  # noqa: FBT001, FBT002 -- Keras's order
        ignore_class: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        axis: int = -1,
        name: str = "sparse_categorical_crossentropy",
        dtype: Any = None,
        *,
        label_smoothing: float = 0.0,
        weight: Sequence[float] | None = None,
        z_loss: float = 0.0,
        logit_softcap: float | None = None,
    ) -> None:
        super().__init__(
            from_logits=from_logits,
            label_smoothing=label_smoothing,
            axis=axis,
            weight=weight,
            z_loss=z_loss,
            logit_softcap=logit_softcap,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        self.ignore_class = ignore_class
        if self.dtype in ("float16", "bfloat16"):
            msg = (
                f"dtype: got {self.dtype}; expected float32 or float64, since Keras makes class "
                "indices numbers of it"
            )
            raise ValueError(msg)
        if (
            ignore_class is not None
            and set_keras_mask is None
            and reduction not in ("sum", "none", None)
        ):
            msg = (
                f"ignore_class: got {ignore_class} with reduction={reduction!r}, for which Keras "
                f"{keras.__version__} has no masks; expected None, or reduction 'sum' or 'none'"
            )
            raise ValueError(msg)

    def call(self, y_true: Array, y_pred: Array) -> Array:
        """Loss of each row."""
        y_true, kept = self._labels(y_true, y_pred)
        classes = ops.shape(y_pred)[self.axis]
        is_class = ops.logical_and(y_true >= 0, ops.less(y_true, classes))
        is_class = ops.logical_and(is_class, ops.equal(ops.floor(y_true), y_true))
        # NaN and infinity cannot be cast to integers, so they are replaced first.
        target = ops.cast(ops.where(is_class, y_true, NO_CLASS), "int32")
        ignored = None
        if kept is not None:
            ignored, target = IGNORED, ops.where(kept, target, IGNORED)
        try:
            losses = self._loss(y_pred, target, ignore_index=ignored)
        except IndexError as error:
            raise IndexError(self._no_class(y_true, target, classes)) from error
        return self._masked(losses, kept)

    def _ones(self, y_true: Array, y_pred: Array) -> Array:
        _, kept = self._labels(y_true, y_pred)
        return self._masked(super()._ones(y_true, y_pred), kept)

    def _labels(self, y_true: Array, y_pred: Array) -> tuple[Array, Array | None]:
        """Return a label for each row, and which rows are not ignored: None for all."""
        if len(y_true.shape) == len(y_pred.shape) and y_true.shape[self.axis] == 1:
            y_true = ops.squeeze(y_true, axis=self.axis)
        if self.ignore_class is None:
            return y_true, None
        return y_true, ops.not_equal(y_true, float(self.ignore_class))

    def _masked(self, rows: Array, kept: Array | None) -> Array:
        """Mark the rows that are ignored."""
        if kept is not None and set_keras_mask is not None:
            set_keras_mask(rows, kept)
        return rows

    def _no_class(self, y_true: Array, target: Array, classes: int) -> str:
        """Return the error message for the first invalid label."""
        labels, replaced = ops.convert_to_numpy(y_true), ops.convert_to_numpy(target)
        at = tuple(int(i) for i in np.argwhere(replaced == NO_CLASS)[0])
        label = labels[at]
        shown = int(label) if np.isfinite(label) and label == int(label) else label
        ignored = "" if self.ignore_class is None else f", or ignore_class={self.ignore_class}"
        return (
            f"y_true: got {shown} at position {at[0] if len(at) == 1 else at}; expected "
            f"0 <= y_true < {classes}{ignored}"
        )

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return {**super().get_config(), "ignore_class": self.ignore_class}


@keras.saving.register_keras_serializable(package="xentx")
class CategoricalCrossentropy(_CrossEntropy):
    r"""Drop-in replacement for keras.losses.CategoricalCrossentropy.

    .. math:: \ell = \sum_k q_k \left(\log \sum_j e^{x_j} - x_k\right)

    It has the same arguments, order and defaults. Options of `xentx.cross_entropy` that Keras does
    not have are keyword arguments. The notes list the differences from Keras's loss.

    Parameters
    ----------
    from_logits : bool, default: False
        Whether `y_pred` contains logits. Otherwise it contains probabilities, which are normalised.
        Logits are more accurate: use a last layer without softmax.
    label_smoothing : float, default: 0.0
        As in `xentx.cross_entropy`.
    axis : int, default: -1
        The axis that holds the classes.
    reduction : str, default: "sum_over_batch_size"
        As in all losses of Keras.
    name : str, default: "categorical_crossentropy"
        The name of the loss.
    dtype : str or keras.DTypePolicy, optional
        The dtype of the computation. The default is Keras's ``floatx``.
    weight, z_loss, logit_softcap
        As in `xentx.cross_entropy`.

    See Also
    --------
    SparseCategoricalCrossentropy : For class indices.

    Notes
    -----
    These differ from Keras's loss:

    - The loss of a confident row is not rounded to 0.
    - The gradient is correct for a target that does not sum to 1. There is also a gradient with
      respect to the target.
    - With ``from_logits=False``, the probability 0 has the loss 87.34, which is ``-log`` of the
      smallest normal float32. Keras clips probabilities to 1e-7, which has the loss 16.12.
    - Under a distribution strategy, a mean is the mean over the rows of all replicas. Keras's is
      the mean of the replicas' means.

    Examples
    --------
    >>> import numpy as np
    >>> import xentx_keras
    >>> loss = xentx_keras.CategoricalCrossentropy(from_logits=True)
    >>> print(f"{float(loss(np.array([[1.0, 0.0]]), np.array([[20.0, 0.0]]))):.7g}")
    2.061154e-09
    """

    def __init__(
        self,
        from_logits: bool = False,  # noqa: FBT001, FBT002 -- Keras's order
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str = "categorical_crossentropy",
        dtype: Any = None,
        *,
        weight: Sequence[float] | None = None,
        z_loss: float = 0.0,
        logit_softcap: float | None = None,
    ) -> None:
        super().__init__(
            from_logits=from_logits,
            label_smoothing=label_smoothing,
            axis=axis,
            weight=weight,
            z_loss=z_loss,
            logit_softcap=logit_softcap,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )

    def call(self, y_true: Array, y_pred: Array) -> Array:
        """Loss of each row."""
        return self._loss(y_pred, y_true)
