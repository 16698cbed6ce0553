"""PyTorch's losses."""

from dataclasses import replace

from xentx.natives._native import Native, Requirement
from xentx.natives.vocabulary import FLOATS

_DOCS = "https://docs.pytorch.org/docs/stable/generated"
_TORCH = Requirement(module="torch", distributions=("torch",))
_AXIS = "fixed: 1, or 0 where logits are 1-D"

_CROSS_ENTROPY = Native(
    id="torch:F.cross_entropy",
    name="torch.nn.functional.cross_entropy",
    framework="torch",
    call="torch.nn.functional:cross_entropy",
    # Label smoothing and probabilities as targets were added in 1.10.
    needs=(replace(_TORCH, since="1.10"),),
    targets=("indices", "probabilities"),
    class_axis=_AXIS,
    axis=1,
    options={
        "weight": "weight",
        "ignore_index": "ignore_index",
        "label_smoothing": "label_smoothing",
    },
    reductions={name: f"reduction='{name}'" for name in ("none", "mean", "sum")},
    target_dtypes=("int64", "uint8"),
    documentation=f"{_DOCS}/torch.nn.functional.cross_entropy.html",
)

_LOG_SOFTMAX_NLL = replace(
    _CROSS_ENTROPY,
    id="torch:F.log_softmax + F.nll_loss",
    name="torch.nn.functional.log_softmax, torch.nn.functional.nll_loss",
    call="xentx.natives.calls.torch:log_softmax_nll",
    needs=(_TORCH,),
    targets=("indices",),
    options={"weight": "weight", "ignore_index": "ignore_index"},
    documentation=f"{_DOCS}/torch.nn.functional.nll_loss.html",
)

_LINEAR = replace(
    _CROSS_ENTROPY,
    id="torch:F.linear_cross_entropy",
    name="torch.nn.functional.linear_cross_entropy",
    call="xentx.natives.calls.torch:linear_cross_entropy",
    needs=(replace(_TORCH, since="2.13"),),
    class_axis="fixed: 0 of linear_weight",
    documentation=f"{_DOCS}/torch.nn.functional.linear_cross_entropy.html",
    # The head is the identity, of classes x classes entries. The product of a zero and an infinite
    # logit is NaN.
    max_classes=4096,
    finite_logits=True,
)

_BINARY = replace(
    _CROSS_ENTROPY,
    id="torch:F.binary_cross_entropy_with_logits",
    name="torch.nn.functional.binary_cross_entropy_with_logits",
    loss="binary_cross_entropy",
    call="torch.nn.functional:binary_cross_entropy_with_logits",
    needs=(_TORCH,),
    targets=("probabilities",),
    class_axis="none: each logit is a problem of its own",
    options={"weight": "weight", "pos_weight": "pos_weight"},
    target_dtypes=FLOATS,
    documentation=f"{_DOCS}/torch.nn.functional.binary_cross_entropy_with_logits.html",
)

RECORDS = (
    _CROSS_ENTROPY,
    replace(
        _CROSS_ENTROPY,
        id="torch:nn.CrossEntropyLoss",
        name="torch.nn.CrossEntropyLoss",
        call="xentx.natives.calls.torch:cross_entropy_module",
        documentation=f"{_DOCS}/torch.nn.CrossEntropyLoss.html",
    ),
    _LOG_SOFTMAX_NLL,
    replace(
        _LOG_SOFTMAX_NLL,
        id="torch:nn.LogSoftmax + nn.NLLLoss",
        name="torch.nn.LogSoftmax, torch.nn.NLLLoss",
        call="xentx.natives.calls.torch:log_softmax_nll_modules",
        documentation=f"{_DOCS}/torch.nn.NLLLoss.html",
    ),
    _LINEAR,
    replace(
        _LINEAR,
        id="torch:F.linear_cross_entropy(options=LinearCrossEntropyOptions())",
        name="torch.nn.functional.linear_cross_entropy, chunked",
        call="xentx.natives.calls.torch:linear_cross_entropy_chunked",
    ),
    _CROSS_ENTROPY.under_compiler(
        "compile",
        name="torch.nn.functional.cross_entropy under torch.compile",
        needs=(replace(_TORCH, since="2.0"),),
        programs=("g++", "clang++", "c++"),
        documentation=f"{_DOCS}/torch.compile.html",
        slow=True,
    ),
    _BINARY,
)
