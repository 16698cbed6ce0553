"""xentx's names of losses, options, reductions, targets and dtypes, which all records use."""

from typing import Literal

LossName = Literal["cross_entropy", "binary_cross_entropy"]
Option = Literal["axis", "weight", "pos_weight", "sample_weight", "ignore_index", "label_smoothing"]
Reduction = Literal["none", "mean", "sum", "weighted_mean"]
Target = Literal["indices", "probabilities"]
Input = Literal["logits", "probabilities"]

FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
