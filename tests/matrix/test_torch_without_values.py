"""PyTorch tensors without values, on the device "meta" and fake: shapes, dtypes and devices."""

import contextlib

import pytest

import xentx
from xentx.testing import requested_frameworks

if "torch" not in requested_frameworks():
    pytest.skip("PyTorch is not requested", allow_module_level=True)

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves


def split(x, target):
    """Loss of rows whose classes are in two blocks."""
    left = xentx.partials(x[:, :2], target, classes=5)
    right = xentx.partials(x[:, 2:], target, classes=5, start=2)
    return xentx.finish(xentx.combine(left, right))


def split_layer(hidden, head, target):
    """Gradients of a block of the last layer."""
    state = xentx.linear_partials(hidden, head, target, classes=9, start=2, chunk=3)
    gradients = xentx.linear_block_gradient(
        state.__class__(*(field.detach() for field in state)),
        hidden,
        head,
        target,
        classes=9,
        start=2,
        chunk=3,
    )
    return state.rest, *gradients[:2]


# Functions of a dictionary of arrays. Their first result is differentiated.
FUNCTIONS = {
    "log_softmax": lambda a: xentx.log_softmax(a["logits"]),
    "nll_loss": lambda a: xentx.nll_loss(a["logits"], a["target"], weight=a["weight"]),
    "cross_entropy": lambda a: xentx.cross_entropy(
        a["logits"], a["target"], weight=a["weight"], label_smoothing=0.1, reduction="none"
    ),
    "cross_entropy of probabilities": lambda a: xentx.cross_entropy(
        a["logits"], a["soft"], z_loss=0.1, logit_softcap=5.0
    ),
    "binary_cross_entropy": lambda a: xentx.binary_cross_entropy(a["logits"], a["soft"]),
    "linear_cross_entropy": lambda a: xentx.linear_cross_entropy(
        a["hidden"], a["head"], a["target"], chunk=3
    ),
    "per_row": lambda a: xentx.per_row(a["logits"], a["target"]),
    "linear_per_row": lambda a: xentx.linear_per_row(a["hidden"], a["head"], a["target"], chunk=3),
    "partials": lambda a: split(a["logits"], a["target"]),
    "linear_partials": lambda a: split_layer(a["hidden"], a["head"], a["target"]),
    "value_and_grad": lambda a: xentx.value_and_grad(xentx.cross_entropy)(
        a["logits"], a["target"], return_normalizer=True
    ),
    "value_and_grad of a last layer": lambda a: xentx.value_and_grad(xentx.linear_cross_entropy)(
        a["hidden"], a["head"], a["target"]
    ),
}


def results(function, dtype, device):
    """Call a function, and differentiate its first result."""
    arrays = {
        "logits": torch.zeros(4, 5, dtype=dtype, device=device),
        "hidden": torch.zeros(4, 3, dtype=dtype, device=device),
        "head": torch.zeros(5, 3, dtype=dtype, device=device),
        "target": torch.zeros(4, dtype=torch.int64, device=device),
        "soft": torch.zeros(4, 5, device=device),
        "weight": torch.ones(5, device=device),
    }
    variables = [arrays[name].requires_grad_() for name in ("logits", "hidden", "head")]
    values = [leaf for leaf in tree_leaves(function(arrays)) if leaf is not None]
    values[0].sum().backward()
    return values + [variable.grad for variable in variables if variable.grad is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("where", ["meta", "fake"])
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_without_values(function, where, dtype):
    expected = results(function, dtype, "cpu")
    with FakeTensorMode() if where == "fake" else contextlib.nullcontext():
        found = results(function, dtype, "cpu" if where == "fake" else "meta")
    assert len(expected) > 1
    assert [(a.shape, a.dtype) for a in found] == [(a.shape, a.dtype) for a in expected]
    assert {a.device.type for a in found} == {"cpu" if where == "fake" else "meta"}
