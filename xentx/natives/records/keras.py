"""Keras's losses, on the Keras backend of this process."""

from dataclasses import replace

from xentx.natives._native import Native, Requirement

_DOCS = "https://keras.io/api"
_LOSSES = f"{_DOCS}/losses/probabilistic_losses"

_SPARSE = Native(
    id="keras:SparseCategoricalCrossentropy(from_logits=True)",
    name="keras.losses.SparseCategoricalCrossentropy",
    framework="keras",
    call="xentx.natives.calls.keras:sparse",
    needs=(Requirement(module="keras", distributions=("keras",), since="3.0"),),
    class_axis="fixed: the last, but for the torch backend",
    options={"ignore_index": "ignore_class", "sample_weight": "sample_weight when called"},
    reductions={
        "none": "reduction=None",
        "mean": "reduction='sum_over_batch_size', the default",
        "sum": "reduction='sum'",
        "weighted_mean": "reduction='mean_with_sample_weight'",
    },
    documentation=f"{_LOSSES}/#sparsecategoricalcrossentropy-class",
)

_CATEGORICAL = replace(
    _SPARSE,
    id="keras:CategoricalCrossentropy(from_logits=True)",
    name="keras.losses.CategoricalCrossentropy",
    call="xentx.natives.calls.keras:categorical",
    targets=("probabilities",),
    class_axis="axis, the last by default",
    options={
        "axis": "axis",
        "label_smoothing": "label_smoothing",
        "sample_weight": "sample_weight when called",
    },
    documentation=f"{_LOSSES}/#categoricalcrossentropy-class",
)

_OPS_SPARSE = replace(
    _SPARSE,
    id="keras:ops.sparse_categorical_crossentropy",
    name="keras.ops.sparse_categorical_crossentropy",
    call="xentx.natives.calls.keras:ops_sparse",
    options={},
    reductions={
        "none": "(as it is)",
        "mean": "(keras.ops.mean(loss))",
        "sum": "(keras.ops.sum(loss))",
    },
    documentation=f"{_DOCS}/ops/nn/#sparsecategoricalcrossentropy-function",
)

_BINARY = replace(
    _SPARSE,
    id="keras:BinaryCrossentropy(from_logits=True)",
    name="keras.losses.BinaryCrossentropy",
    loss="binary_cross_entropy",
    call="xentx.natives.calls.keras:binary",
    targets=("probabilities",),
    class_axis="axis, the last by default, over which it takes the mean",
    options={"label_smoothing": "label_smoothing"},
    documentation=f"{_LOSSES}/#binarycrossentropy-class",
)

RECORDS = (
    _SPARSE,
    replace(
        _SPARSE,
        id="keras:SparseCategoricalCrossentropy(from_logits=True, dtype=logits.dtype)",
        call="xentx.natives.calls.keras:sparse_dtype",
    ),
    replace(
        _SPARSE,
        id="keras:SparseCategoricalCrossentropy()",
        call="xentx.natives.calls.keras:sparse_probabilities",
        takes="probabilities",
    ),
    replace(
        _SPARSE,
        id="keras:SparseCategoricalCrossentropy() on logits",
        call="xentx.natives.calls.keras:sparse_mistaken",
        caveat="the common mistake: from_logits forgotten, and no warning",
    ),
    _CATEGORICAL,
    replace(
        _CATEGORICAL,
        id="keras:CategoricalCrossentropy()",
        call="xentx.natives.calls.keras:categorical_probabilities",
        takes="probabilities",
    ),
    _OPS_SPARSE,
    replace(
        _OPS_SPARSE,
        id="keras:ops.categorical_crossentropy",
        name="keras.ops.categorical_crossentropy",
        call="xentx.natives.calls.keras:ops_categorical",
        targets=("probabilities",),
        class_axis="axis, the last by default",
        options={"axis": "axis"},
        documentation=f"{_DOCS}/ops/nn/#categoricalcrossentropy-function",
    ),
    _BINARY,
)
