"""The type and text of every error, which are the same in every framework, eager and traced."""

import re

import numpy as np
import pytest

import xentx

B = np.array([[1.0, 2.0, 0.5], [0.1, 0.5, 2.0]], np.float32)
T = np.array([1, 2], np.int32)
Y = np.array([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]], np.float32)
CUBE = np.zeros((2, 3, 3), np.float32)
W = np.ones(3, np.float32)

# arguments, options, exception, text
ERRORS = {
    "integer logits": (
        (B.astype(np.int32), T), {}, TypeError,
        "logits: got dtype int32; expected float16, bfloat16, float32 or float64",
    ),
    "bool logits": (
        (B > 1, T), {}, TypeError,
        "logits: got dtype bool; expected float16, bfloat16, float32 or float64",
    ),
    "complex logits": (
        (B.astype(np.complex64), T), {}, TypeError,
        "logits: got dtype complex64; expected float16, bfloat16, float32 or float64",
    ),
    "0-d logits": (
        (B[0, 0], T), {}, ValueError,
        "logits: got a 0-dimensional array; expected at least a class axis",
    ),
    "no classes": (
        (np.zeros((2, 0), np.float32), T), {}, ValueError,
        "logits: got shape (2, 0) with 0 classes on axis 1; expected at least 1",
    ),
    "no axis for 3 dimensions": (
        (CUBE, np.zeros((2, 3), np.int32)), {}, ValueError,
        "axis: got none for logits of shape (2, 3, 3); with 3 or more dimensions say which one "
        "holds the classes, for example axis=-1 or axis=1",
    ),
    "axis out of range": (
        (B, T), {"axis": 2}, ValueError,
        "axis: got 2 for logits of shape (2, 3); expected -2 <= axis < 2",
    ),
    "axis of a wrong type": (
        (B, T), {"axis": 1.0}, TypeError, "axis: got a float; expected an integer",
    ),
    "bool target": (
        (B, T > 1), {}, TypeError,
        "target: got dtype bool; expected int8, int16, int32, int64, uint8, uint16, uint32, "
        "uint64, float16, bfloat16, float32 or float64: integers for class indices, floats for "
        "class probabilities",
    ),
    "float target of indices' shape": (
        (B, T.astype(np.float32)), {}, TypeError,
        "target: got dtype float32 in shape (2,), the shape of class indices; expected integers, "
        "or class probabilities in the shape (2, 3) of logits",
    ),
    "integer target of logits' shape": (
        (B, Y.astype(np.int32)), {}, TypeError,
        "target: got dtype int32 in shape (2, 3), the shape of logits; expected class indices in "
        "shape (2,), or class probabilities as floats (hint: one_hot(indices, 3) as floats, or "
        "argmax over axis 1)",
    ),
    "indices of another length": (
        (B, np.zeros(3, np.int32)), {}, ValueError,
        "target: got shape (3,) with dtype int32; expected class indices in shape (2,) for logits "
        "of shape (2, 3) with classes on axis 1",
    ),
    "indices that would broadcast": (
        (B, np.zeros(1, np.int32)), {}, ValueError,
        "target: got shape (1,) with dtype int32; expected class indices in shape (2,) for logits "
        "of shape (2, 3) with classes on axis 1",
    ),
    "indices that would squeeze": (
        (B, np.zeros((2, 1), np.int32)), {}, ValueError,
        "target: got shape (2, 1) with dtype int32; expected class indices in shape (2,) for "
        "logits of shape (2, 3) with classes on axis 1",
    ),
    "probabilities that would broadcast": (
        (B, Y[:1]), {}, ValueError,
        "target: got shape (1, 3) with dtype float32; expected class probabilities in shape (2, 3) "
        "for logits of shape (2, 3) with classes on axis 1",
    ),
    "weight of another length": (
        (B, T), {"weight": W[:2]}, ValueError,
        "weight: got shape (2,); expected (3,), one weight for each class of logits of shape "
        "(2, 3) on axis 1",
    ),
    "weight of bools": (
        (B, T), {"weight": W > 0}, TypeError,
        "weight: got dtype bool; expected float16, bfloat16, float32, float64, int8, int16, int32, "
        "int64, uint8, uint16, uint32 or uint64",
    ),
    "sample_weight of another length": (
        (B, T), {"sample_weight": W}, ValueError,
        "sample_weight: got shape (3,); expected (2,), one weight for each row of logits of shape "
        "(2, 3) with classes on axis 1",
    ),
    "ignore_index with probabilities": (
        (B, Y), {"ignore_index": 1}, TypeError,
        "ignore_index: got 1 with a soft target; expected class indices for target, or a "
        "sample_weight of 0 for the rows to ignore",
    ),
    "ignore_index of a wrong type": (
        (B, T), {"ignore_index": 1.0}, TypeError,
        "ignore_index: got a float; expected an integer",
    ),
    "negative smoothing": (
        (B, T), {"label_smoothing": -0.1}, ValueError,
        "label_smoothing: got -0.1; expected 0 <= label_smoothing <= 1",
    ),
    "smoothing above 1": (
        (B, T), {"label_smoothing": 1.5}, ValueError,
        "label_smoothing: got 1.5; expected 0 <= label_smoothing <= 1",
    ),
    "smoothing of NaN": (
        (B, T), {"label_smoothing": float("nan")}, ValueError,
        "label_smoothing: got nan; expected 0 <= label_smoothing <= 1",
    ),
    "smoothing of a wrong type": (
        (B, T), {"label_smoothing": "0.1"}, TypeError,
        "label_smoothing: got a str; expected a number",
    ),
    "negative z_loss": (
        (B, T), {"z_loss": -1.0}, ValueError, "z_loss: got -1.0; expected 0 <= z_loss < inf",
    ),
    "softcap of 0": (
        (B, T), {"logit_softcap": 0.0}, ValueError,
        "logit_softcap: got 0.0; expected 0 < logit_softcap < inf",
    ),
    "temperature of 0": (
        (B, T), {"temperature": 0.0}, ValueError,
        "temperature: got 0.0; expected 0 < temperature < inf",
    ),
    "temperature of a wrong type": (
        (B, T), {"temperature": None}, TypeError, "temperature: got a NoneType; expected a number",
    ),
    "unknown reduction": (
        (B, T), {"reduction": "avg"}, ValueError,
        "reduction: got 'avg'; expected 'none', 'mean', 'sum' or 'weighted_mean'",
    ),
    "normalizer without mean": (
        (B, T), {"reduction": "sum", "normalizer": 3}, ValueError,
        "normalizer: got reduction='sum'; expected reduction='mean'",
    ),
    "normalizer with a shape": (
        (B, T), {"normalizer": np.ones(2, np.float32)}, ValueError,
        "normalizer: got shape (2,); expected a number or a 0-d array",
    ),
    "target of a wrong type": (
        (B, "12"), {}, TypeError, "target: got a str; expected an array or a list of numbers",
    ),
    "ragged target": (
        (B, [[1], [1, 2]]), {}, TypeError,
        "target: got a list; expected an array or a list of numbers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS.values(), ids=ERRORS)
def test_cross_entropy(route, case):
    args, options, exception, text = case
    if "complex" in text and "strict" in route.name:
        pytest.skip("complex arrays are tested with NumPy")
    with pytest.raises(exception) as raised:
        route.value(xentx.cross_entropy, *args, **options)
    assert str(raised.value) == text


def test_target_out_of_range_names_its_position(route):
    if route.traced:
        pytest.skip("the target is traced")
    text = "target: got 7 at position (1, 2); expected 0 <= target < 3, or ignore_index=-100"
    target = np.array([[0, -100, 2], [1, 1, 7]])
    with pytest.raises(IndexError, match=f"^{re.escape(text)}$"):
        route.value(xentx.cross_entropy, CUBE, target, axis=1)


def test_nll_loss_names_its_own_argument(route):
    text = "log_probs: got dtype int32; expected float16, bfloat16, float32 or float64"
    with pytest.raises(TypeError, match=f"^{text}"):
        route.value(xentx.nll_loss, B.astype(np.int32), T)
    with pytest.raises(ValueError, match=r"for log_probs of shape \(2, 3\) with classes on axis 1"):
        route.value(xentx.nll_loss, B, np.zeros(3, np.int32))


HIDDEN = np.zeros((2, 4), np.float32)
HEAD = np.zeros((3, 4), np.float32)

LINEAR_ERRORS = {
    "integer hidden": (
        (HIDDEN.astype(np.int32), HEAD, T), {}, TypeError,
        "hidden: got dtype int32; expected float16, bfloat16, float32 or float64",
    ),
    "0-d hidden": (
        (HIDDEN[0, 0], HEAD, T), {}, ValueError,
        "hidden: got a 0-dimensional array; expected at least an axis of features",
    ),
    "integer head": (
        (HIDDEN, HEAD.astype(np.int32), T), {}, TypeError,
        "head: got dtype int32; expected float16, bfloat16, float32 or float64",
    ),
    "transposed head": (
        (HIDDEN, np.zeros((4, 3), np.float32), T), {}, ValueError,
        "head: got shape (4, 3); expected (classes, 4) for hidden of shape (2, 4)",
    ),
    "no classes": (
        (HIDDEN, np.zeros((0, 4), np.float32), T), {}, ValueError,
        "head: got shape (0, 4) with 0 classes on axis 0; expected at least 1",
    ),
    "bias of another shape": (
        (HIDDEN, HEAD, T), {"bias": np.zeros(4, np.float32)}, ValueError,
        "bias: got shape (4,); expected (3,) for head of shape (3, 4)",
    ),
    "target of another shape": (
        (HIDDEN, HEAD, np.zeros(3, np.int32)), {}, ValueError,
        "target: got shape (3,) with dtype int32; expected class indices in shape (2,) for hidden "
        "@ head.T of shape (2, 3) with classes on axis 1",
    ),
    "chunk of no rows": (
        (HIDDEN, HEAD, T), {"chunk": 0}, ValueError, "chunk: got 0; expected at least 1 row",
    ),
    "chunk by a wrong name": (
        (HIDDEN, HEAD, T), {"chunk": "large"}, ValueError,
        "chunk: got 'large'; expected a number of rows, 'auto', or an amount of memory such as "
        "'256MB'",
    ),
    "chunk in another unit": (
        (HIDDEN, HEAD, T), {"chunk": "256 mb"}, ValueError,
        "chunk: got '256 mb'; expected a number of rows, 'auto', or an amount of memory such as "
        "'256MB'",
    ),
    "chunk of a wrong type": (
        (HIDDEN, HEAD, T), {"chunk": 1.5}, TypeError, "chunk: got a float; expected an integer",
    ),
    "label_smoothing": (
        (HIDDEN, HEAD, T), {"label_smoothing": 2}, ValueError,
        "label_smoothing: got 2.0; expected 0 <= label_smoothing <= 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LINEAR_ERRORS.values(), ids=LINEAR_ERRORS)
def test_linear_cross_entropy(route, case):
    args, options, exception, text = case
    with pytest.raises(exception) as raised:
        route.value(xentx.linear_cross_entropy, *args, **options)
    assert str(raised.value) == text


def test_linear_target_out_of_range(route):
    """An error if the target is concrete. If it is traced, only its row is NaN."""
    target = np.array([1, 7])
    if route.traced:
        found = route.value(xentx.linear_cross_entropy, HIDDEN, HEAD, target, reduction="none")
        np.testing.assert_array_equal(np.isnan(found), [False, True])
        return
    text = "target: got 7 at position 1; expected 0 <= target < 3, or ignore_index=-100"
    with pytest.raises(IndexError, match=f"^{re.escape(text)}$"):
        route.value(xentx.linear_cross_entropy, HIDDEN, HEAD, target)


def test_block_of_classes(route):
    text = (
        "start: got 2 for a block of 3 classes; expected 0 <= start <= 1, where all blocks have 4 "
        "classes"
    )

    def top(logits, target):
        return xentx.partials(logits, target, classes=4, start=2).top

    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        route.value(top, B, T)


def test_no_state():
    text = "a: got a numpy array; expected what xentx.partials returns"
    with pytest.raises(TypeError, match=f"^{text}$"):
        xentx.combine(B, B)


def test_cotangent_of_another_shape(route):
    text = "cotangent: got shape (3,); expected (), the shape of the value"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        route.value(xentx.value_and_grad(xentx.cross_entropy), B, T, cotangent=W)


def test_no_array():
    text = (
        "logits: got a list; expected an array of NumPy, PyTorch, JAX, TensorFlow or another "
        "Array API library"
    )
    with pytest.raises(TypeError, match=f"^{text}$"):
        xentx.cross_entropy([[1.0, 2.0]], [0])
    with pytest.raises(TypeError, match="log_probs: got a list"):
        xentx.nll_loss([[1.0, 2.0]], [0])
    with pytest.raises(TypeError, match="logits: got a MaskedArray"):
        xentx.cross_entropy(np.ma.masked_array(B), T)


def test_missing_arguments():
    with pytest.raises(TypeError, match=r"cross_entropy\(\) missing 2 required positional"):
        xentx.cross_entropy()
    with pytest.raises(TypeError, match="unexpected keyword argument 'dim'"):
        xentx.cross_entropy(B, T, dim=1)


def test_value_and_grad_of_something_else():
    text = (
        "loss_fn: got sum; expected one of xentx's functions: log_softmax, nll_loss, "
        "cross_entropy, binary_cross_entropy, linear_cross_entropy"
    )
    with pytest.raises(TypeError, match=f"^{text}$"):
        xentx.value_and_grad(sum)
