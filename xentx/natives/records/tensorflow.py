"""TensorFlow's losses, each eager and under XLA."""

from dataclasses import replace

from xentx.natives._native import Native, Requirement

_DOCS = "https://www.tensorflow.org/api_docs/python/tf"
_TENSORFLOW = Requirement(
    module="tensorflow",
    distributions=("tensorflow", "tensorflow-cpu", "tensorflow-macos", "tf-nightly"),
    since="2.0",
)

_SPARSE = Native(
    id="tf:nn.sparse_softmax_cross_entropy_with_logits",
    name="tf.nn.sparse_softmax_cross_entropy_with_logits",
    framework="tensorflow",
    call="xentx.natives.calls.tensorflow:sparse_softmax_cross_entropy_with_logits",
    needs=(_TENSORFLOW,),
    class_axis="fixed: the last",
    reductions={
        "none": "(as it is)",
        "mean": "(tf.reduce_mean(loss))",
        "sum": "(tf.reduce_sum(loss))",
    },
    target_dtypes=("int32", "int64"),
    documentation=f"{_DOCS}/nn/sparse_softmax_cross_entropy_with_logits",
)

_DENSE = replace(
    _SPARSE,
    id="tf:nn.softmax_cross_entropy_with_logits",
    name="tf.nn.softmax_cross_entropy_with_logits",
    call="xentx.natives.calls.tensorflow:softmax_cross_entropy_with_logits",
    targets=("probabilities",),
    class_axis="axis, the last by default",
    options={"axis": "axis"},
    documentation=f"{_DOCS}/nn/softmax_cross_entropy_with_logits",
)

_V1_SPARSE = replace(
    _SPARSE,
    id="tf:compat.v1.losses.sparse_softmax_cross_entropy",
    name="tf.compat.v1.losses.sparse_softmax_cross_entropy",
    call="xentx.natives.calls.tensorflow:v1_sparse_softmax_cross_entropy",
    options={"sample_weight": "weights"},
    reductions={
        "none": "reduction=Reduction.NONE",
        "mean": "reduction=Reduction.SUM_BY_NONZERO_WEIGHTS, the default",
        "sum": "reduction=Reduction.SUM",
        "weighted_mean": "reduction=Reduction.MEAN",
    },
    documentation=f"{_DOCS}/compat/v1/losses/sparse_softmax_cross_entropy",
)

_BINARY = replace(
    _DENSE,
    id="tf:nn.sigmoid_cross_entropy_with_logits",
    name="tf.nn.sigmoid_cross_entropy_with_logits",
    loss="binary_cross_entropy",
    call="xentx.natives.calls.tensorflow:sigmoid_cross_entropy_with_logits",
    class_axis="none: each logit is a problem of its own",
    options={},
    documentation=f"{_DOCS}/nn/sigmoid_cross_entropy_with_logits",
)

RECORDS = (
    *(
        record
        for eager in (_SPARSE, _DENSE, _BINARY)
        for record in (eager, eager.under_compiler("xla"))
    ),
    _V1_SPARSE,
    replace(
        _V1_SPARSE,
        id="tf:compat.v1.losses.softmax_cross_entropy",
        name="tf.compat.v1.losses.softmax_cross_entropy",
        call="xentx.natives.calls.tensorflow:v1_softmax_cross_entropy",
        targets=("probabilities",),
        options={"sample_weight": "weights", "label_smoothing": "label_smoothing"},
        documentation=f"{_DOCS}/compat/v1/losses/softmax_cross_entropy",
    ),
)
