"""The losses of xentx, for the arrays of each framework."""

from dataclasses import replace
from typing import Any

from xentx.natives._native import Native, Requirement
from xentx.natives.vocabulary import FLOATS

_ADDRESS = "https://pypi.org/project/xentx/"
_CALLS = "xentx.natives.calls.xentx"
_OPTIONS = ("axis", "weight", "sample_weight", "ignore_index", "label_smoothing")
_BINARY_OPTIONS = ("weight", "pos_weight", "label_smoothing")
_REDUCTIONS = ("none", "mean", "sum", "weighted_mean")


def _record(framework: str, distributions: tuple[str, ...], **fields: Any) -> Native:
    return Native(
        id=f"xentx:{framework}",
        name="xentx.cross_entropy",
        framework=framework,
        call=f"{_CALLS}:cross_entropy",
        needs=(Requirement(module=framework, distributions=distributions),),
        targets=("indices", "probabilities"),
        class_axis="axis, the last by default; must be given for 3 or more dimensions",
        options={name: name for name in _OPTIONS},
        reductions={name: name for name in _REDUCTIONS},
        logits_dtypes=FLOATS,
        documentation=_ADDRESS,
        **fields,
    )


def _binary(record: Native) -> Native:
    return replace(
        record,
        id=f"{record.id}.binary_cross_entropy",
        name="xentx.binary_cross_entropy",
        loss="binary_cross_entropy",
        call=f"{_CALLS}:binary_cross_entropy",
        gradient=record.gradient and f"{_CALLS}:binary_cross_entropy_gradient",
        targets=("probabilities",),
        class_axis="none: each logit is a problem of its own",
        options={name: name for name in _BINARY_OPTIONS},
    )


_NUMPY = _record("numpy", ("numpy",), gradient=f"{_CALLS}:cross_entropy_gradient")
_TORCH = _record("torch", ("torch",))
_JAX = _record("jax", ("jax",))
_TENSORFLOW = _record("tensorflow", ("tensorflow", "tensorflow-cpu", "tensorflow-macos"))

RECORDS = tuple(
    record
    for numpy, torch, jax, tensorflow in (
        (_NUMPY, _TORCH, _JAX, _TENSORFLOW),
        map(_binary, (_NUMPY, _TORCH, _JAX, _TENSORFLOW)),
    )
    for record in (
        numpy,
        torch,
        jax,
        jax.under_compiler("jit"),
        tensorflow,
        tensorflow.under_compiler("xla"),
    )
)
