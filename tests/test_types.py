"""Types of the public functions. mypy and pyright check this file: `nox -s typing`.

At run time `assert_type` does nothing, and these tests check the types of the results.
"""

from typing import TYPE_CHECKING, Any, assert_type

import numpy as np
import pytest
from numpy.typing import NDArray

import xentx
import xentx_numpy
from xentx import LinearGradients, Partials, RowStats
from xentx._checks import LossOptions
from xentx.extending import bind

if TYPE_CHECKING:
    import jax
    import torch

Floats = NDArray[np.float32]

LOGITS: Floats = np.asarray([[1.0, 2.0, 0.5], [0.1, 0.5, 2.0]], np.float32)
HEAD: Floats = np.asarray([[0.5, 0.5, 0.0], [1.0, 0.0, 1.0]], np.float32)
TARGET = np.asarray([1, 0])


def check(value: object, like: type) -> None:
    """Check that a result, or each array of a tuple, has the type `like`."""
    for array in value if isinstance(value, tuple) else (value,):
        # NumPy's functions return scalars instead of arrays with no dimensions.
        assert array is None or isinstance(array, (like, np.generic))


def test_losses_return_arrays_of_the_type_of_their_first_argument() -> None:
    values = (
        assert_type(xentx.log_softmax(LOGITS, axis=1), Floats),
        assert_type(xentx.nll_loss(LOGITS, TARGET, weight=[1, 2, 3]), Floats),
        assert_type(xentx.cross_entropy(LOGITS, [1, 0], label_smoothing=0.1), Floats),
        assert_type(xentx.binary_cross_entropy(LOGITS, LOGITS * 0, reduction="sum"), Floats),
        assert_type(xentx.kl_divergence(LOGITS, LOGITS, direction="reverse"), Floats),
        assert_type(xentx.linear_cross_entropy(LOGITS, HEAD, TARGET, chunk=1), Floats),
    )
    check(values, np.ndarray)


def test_return_normalizer_gives_a_pair() -> None:
    pair = xentx.cross_entropy(LOGITS, TARGET, return_normalizer=True, axis=1)
    check(assert_type(pair, tuple[Floats, Floats]), np.ndarray)
    pair = xentx.linear_cross_entropy(LOGITS, HEAD, TARGET, return_normalizer=True, bias=HEAD[:, 0])
    check(assert_type(pair, tuple[Floats, Floats]), np.ndarray)


def test_named_tuples_have_fields_of_this_type() -> None:
    rows = assert_type(xentx.per_row(LOGITS, TARGET, temperature=2), RowStats[Floats])
    check(assert_type(rows.loss, Floats), np.ndarray)
    loss, *_, prediction = rows
    check((assert_type(loss, Floats), assert_type(prediction, Floats)), np.ndarray)
    rows = assert_type(xentx.linear_per_row(LOGITS, HEAD, TARGET), RowStats[Floats])
    check(assert_type(rows.entropy, Floats), np.ndarray)


def test_blocks() -> None:
    state = assert_type(xentx.partials(LOGITS, TARGET, classes=3), Partials[Floats])
    check(assert_type(xentx.combine(state, state), Partials[Floats]), np.ndarray)
    check(assert_type(xentx.align(state, state.top), Partials[Floats]), np.ndarray)
    check(assert_type(xentx.finish(state), Floats), np.ndarray)
    gradient = xentx.block_gradient(state, LOGITS, TARGET, classes=3)
    check(assert_type(gradient, Floats), np.ndarray)
    state = xentx.linear_partials(LOGITS, HEAD, TARGET, classes=HEAD.shape[0])
    check(assert_type(state, Partials[Floats]).top, np.ndarray)
    own = xentx.linear_block_gradient(state, LOGITS, HEAD, TARGET, classes=HEAD.shape[0])
    check(assert_type(own.head, Floats), np.ndarray)


def test_value_and_grad() -> None:
    dense = xentx.value_and_grad(xentx.cross_entropy)
    check(assert_type(dense(LOGITS, TARGET, axis=1), tuple[Floats, Floats]), np.ndarray)
    counted, gradient = dense(LOGITS, TARGET, return_normalizer=True)
    check(assert_type(counted, tuple[Floats, Floats]), np.ndarray)
    check(assert_type(gradient, Floats), np.ndarray)
    pair = xentx.value_and_grad(xentx.log_softmax)(LOGITS, cotangent=LOGITS)
    check(assert_type(pair, tuple[Floats, Floats]), np.ndarray)
    linear = xentx.value_and_grad(xentx.linear_cross_entropy)
    value, gradients = linear(LOGITS, HEAD, TARGET)
    check(assert_type(value, Floats), np.ndarray)
    check(assert_type(gradients, LinearGradients[Floats]), np.ndarray)
    assert assert_type(gradients.bias, Floats | None) is None
    counted, _ = linear(LOGITS, HEAD, TARGET, return_normalizer=True)
    check(assert_type(counted, tuple[Floats, Floats]), np.ndarray)


def test_bound_functions_keep_their_types() -> None:
    check(assert_type(xentx_numpy.cross_entropy(LOGITS, TARGET), Floats), np.ndarray)
    check(assert_type(xentx_numpy.per_row(LOGITS, TARGET), RowStats[Floats]), np.ndarray)
    bound = bind(xentx.cross_entropy, xentx_numpy.BACKEND)
    pair = bound(LOGITS, TARGET, return_normalizer=True)
    check(assert_type(pair, tuple[Floats, Floats]), np.ndarray)
    both = xentx.value_and_grad(xentx_numpy.log_softmax)(LOGITS)
    check(assert_type(both, tuple[Floats, Floats]), np.ndarray)


def test_wrong_arguments_are_errors() -> None:
    # Type checkers report unused ignore comments, so each call below must be a type error.
    with pytest.raises(TypeError):
        xentx.cross_entropy(LOGITS, TARGET, smoothing=0.1)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    with pytest.raises(ValueError, match="reduction"):
        xentx.nll_loss(LOGITS, TARGET, reduction="avg")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError):
        xentx.log_softmax()  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("function", "others"),
    [
        (xentx.cross_entropy, {"axis", "precision"}),
        (xentx.linear_cross_entropy, {"bias", "precision", "chunk"}),
    ],
)
def test_overloads_have_the_options_of_the_function(function: Any, others: set[str]) -> None:
    arrays = {"logits", "hidden", "head", "target"}
    names = set(function.__signature__.parameters) - arrays
    assert names == LossOptions.__optional_keys__ | others | {"return_normalizer"}


def test_torch(frameworks: tuple[str, ...]) -> None:
    if "torch" not in frameworks:
        pytest.skip("torch was not requested")
    import torch

    import xentx_torch
    from xentx_torch import functional

    logits, target = torch.zeros(2, 3), torch.tensor([1, 0])
    values = (
        assert_type(xentx.cross_entropy(logits, target), torch.Tensor),
        assert_type(xentx_torch.cross_entropy(logits, target), torch.Tensor),
        assert_type(functional.cross_entropy(logits, target, label_smoothing=0.1), torch.Tensor),
        assert_type(functional.log_softmax(logits, 1), torch.Tensor),
        assert_type(xentx_torch.CrossEntropyLoss().forward(logits, target), torch.Tensor),
        *assert_type(xentx_torch.per_row(logits, target), RowStats[torch.Tensor]),
        *assert_type(
            xentx.value_and_grad(xentx_torch.cross_entropy)(logits, target),
            tuple[torch.Tensor, torch.Tensor],
        ),
    )
    check(values, torch.Tensor)


def test_jax(frameworks: tuple[str, ...]) -> None:
    if "jax" not in frameworks:
        pytest.skip("jax was not requested")
    import jax
    import jax.numpy as jnp

    import xentx_jax

    logits, target = jnp.zeros((2, 3)), jnp.asarray([1, 0])
    values = (
        assert_type(xentx.cross_entropy(logits, target), jax.Array),
        assert_type(xentx_jax.cross_entropy(logits, target), jax.Array),
        assert_type(xentx_jax.safe_softmax_cross_entropy(logits, logits), jax.Array),
        *assert_type(xentx_jax.per_row(logits, target), RowStats[jax.Array]),
        *assert_type(
            xentx.value_and_grad(xentx.nll_loss)(logits, target), tuple[jax.Array, jax.Array]
        ),
    )
    check(values, jax.Array)


if TYPE_CHECKING:
    # Functions that need several devices: only their types are checked.
    import xentx_jax.parallel
    import xentx_torch.parallel

    def sharded_torch(x: torch.Tensor) -> None:
        parallel = xentx_torch.parallel
        assert_type(parallel.cross_entropy(x, x, classes=4), torch.Tensor)
        pair = parallel.linear_cross_entropy(x, x, x, bias=x, return_normalizer=True)
        assert_type(pair, tuple[torch.Tensor, torch.Tensor])
        assert_type(parallel.per_row(x, x), RowStats[torch.Tensor])

    def sharded_jax(x: jax.Array) -> None:
        parallel = xentx_jax.parallel
        assert_type(parallel.cross_entropy(x, x, axis_name="i"), jax.Array)
        pair = parallel.linear_cross_entropy(x, x, x, axis_name="i", return_normalizer=True)
        assert_type(pair, tuple[jax.Array, jax.Array])
        assert_type(parallel.per_row(x, x, axis_name="i"), RowStats[jax.Array])
