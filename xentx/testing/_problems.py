"""Random problems for every option, which all routes compute."""

import numpy as np

RNG_SEED = 20261123

OPTIONS = {
    "plain": {},
    "weight": {"weight": True},
    "ignore": {"ignore": True},
    "smoothing": {"label_smoothing": 0.1},
    "all smoothing": {"label_smoothing": 1.0},
    "smoothing, weight, ignore": {"label_smoothing": 0.3, "weight": True, "ignore": True},
    "sample weight": {"sample_weight": True},
    "z loss": {"z_loss": 0.01},
    "softcap": {"logit_softcap": 5.0},
    "temperature": {"temperature": 0.6},
    "normalizer": {"normalizer": 7.5},
    "everything": {
        "weight": True,
        "sample_weight": True,
        "ignore": True,
        "label_smoothing": 0.2,
        "z_loss": 0.1,
        "logit_softcap": 4.0,
        "temperature": 1.5,
    },
}
REDUCTIONS = ("none", "mean", "sum", "weighted_mean")


def draw_problem(rng, shape, axis, dtype, *, soft, reduction, options):
    """Draw a problem. Options that are True are replaced by arrays."""
    options = dict(options)
    rows = tuple(np.delete(shape, axis))
    classes = shape[axis]
    logits = rng.normal(0, 3, shape).astype(dtype)
    if soft:
        target = rng.gamma(0.5, size=shape).astype(dtype)
    else:
        target = rng.integers(0, classes, rows).astype(np.int32)
    if options.pop("ignore", False) and not soft:
        options["ignore_index"] = 1 % classes
        target = np.where(rng.random(rows) < 0.3, 1 % classes, target).astype(np.int32)
    float_dtype = np.float64 if dtype == np.float64 else np.float32
    if options.get("weight"):
        options["weight"] = rng.uniform(0.1, 2, classes).astype(float_dtype)
    if options.get("sample_weight"):
        options["sample_weight"] = rng.uniform(0.1, 2, rows).astype(float_dtype)
    if reduction != "mean":
        options.pop("normalizer", None)
    cotangent = rng.normal(size=rows if reduction == "none" else ()).astype(dtype)
    return logits, target, {**options, "axis": axis, "reduction": reduction}, cotangent
