"""Losses for NumPy arrays: SciPy, scikit-learn, and the textbook formula."""

from xentx.natives._native import Native, Requirement
from xentx.natives.vocabulary import FLOATS

_NUMPY = Requirement(module="numpy", distributions=("numpy",))
_SCIPY = Requirement(module="scipy", distributions=("scipy",), since="1.5")
_SKLEARN = Requirement(module="sklearn", distributions=("scikit-learn",), since="0.18")
_BY_HAND = {"none": "(as it is)", "mean": "(loss.mean())", "sum": "(loss.sum())"}

RECORDS = (
    Native(
        id="scipy:log_softmax + gather",
        name="scipy.special.log_softmax, numpy.take_along_axis",
        framework="numpy",
        call="xentx.natives.calls.scipy:log_softmax_gather",
        gradient="xentx.natives.calls.scipy:log_softmax_gather_gradient",
        needs=(_SCIPY, _NUMPY),
        class_axis="axis; all of them by default",
        options={"axis": "axis"},
        reductions=_BY_HAND,
        logits_dtypes=FLOATS,
        documentation="https://docs.scipy.org/doc/scipy/reference/generated/scipy.special.log_softmax.html",
    ),
    Native(
        id="sklearn:log_loss",
        name="sklearn.metrics.log_loss",
        framework="numpy",
        call="xentx.natives.calls.sklearn:log_loss",
        needs=(_SKLEARN, _SCIPY, _NUMPY),
        takes="probabilities",
        class_axis="fixed: the last",
        options={"sample_weight": "sample_weight"},
        reductions={"mean": "normalize=True", "sum": "normalize=False"},
        logits_dtypes=("float16", "float32", "float64"),
        documentation="https://scikit-learn.org/stable/modules/generated/sklearn.metrics.log_loss.html",
        max_classes=4096,
    ),
    Native(
        id="numpy:naive softmax, then log",
        name="-log(exp(x)[t] / exp(x).sum())",
        framework="numpy",
        call="xentx.natives.calls.numpy:naive",
        gradient="xentx.natives.calls.numpy:naive_gradient",
        needs=(_NUMPY,),
        class_axis="as written: any",
        options={"axis": "axis"},
        reductions=_BY_HAND,
        documentation="https://numpy.org/doc/stable/reference/generated/numpy.exp.html",
        caveat="the textbook formula: exp overflows, and its sum rounds small losses away",
    ),
)
