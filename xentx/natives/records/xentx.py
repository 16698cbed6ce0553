"""xentx's own cross-entropy, as it is called on each framework's arrays."""

from typing import Any

from xentx.natives._native import Native, Requirement
from xentx.natives.vocabulary import FLOATS

_ADDRESS = "https://pypi.org/project/xentx/"
_OPTIONS = ("axis", "weight", "sample_weight", "ignore_index", "label_smoothing")
_REDUCTIONS = ("none", "mean", "sum", "weighted_mean")


def _record(framework: str, distributions: tuple[str, ...], **fields: Any) -> Native:
    return Native(
        id=f"xentx:{framework}",
        name="xentx.cross_entropy",
        framework=framework,
        call="xentx.natives.calls.xentx:cross_entropy",
        needs=(Requirement(module=framework, distributions=distributions),),
        targets=("indices", "probabilities"),
        class_axis="axis, the last by default; must be given for 3 or more dimensions",
        options={name: name for name in _OPTIONS},
        reductions={name: name for name in _REDUCTIONS},
        logits_dtypes=FLOATS,
        documentation=_ADDRESS,
        **fields,
    )


_JAX = _record("jax", ("jax",))
_TENSORFLOW = _record("tensorflow", ("tensorflow", "tensorflow-cpu", "tensorflow-macos"))

RECORDS = (
    _record("numpy", ("numpy",), gradient="xentx.natives.calls.xentx:cross_entropy_gradient"),
    _record("torch", ("torch",)),
    _JAX,
    _JAX.under_compiler("jit"),
    _TENSORFLOW,
    _TENSORFLOW.under_compiler("xla"),
)
