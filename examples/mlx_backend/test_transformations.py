"""MLX's own transformations of the losses, which `xentx.testing` does not test."""

import mlx.core as mx
import numpy as np
import pytest

import xentx

LOGITS = mx.array([[1.0, 2.0, 0.5], [0.1, 0.5, 2.0]])
TARGET = mx.array([1, 2])


def loss(logits):
    return xentx.cross_entropy(logits, TARGET, label_smoothing=0.1)


def native(logits):
    hard = mx.take_along_axis(logits, TARGET[:, None], -1).squeeze(-1)
    smooth = 0.9 * hard + 0.1 * logits.mean(-1)
    return (mx.logsumexp(logits, -1) - smooth).mean()


def close(a, b):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-6, atol=1e-7)


def test_registered():
    assert xentx.backend_of(LOGITS).name == "mlx"
    assert "mlx" in {backend.name for backend in xentx.backends()}


@pytest.mark.parametrize("wrap", [lambda f: f, mx.compile], ids=["lazy", "compiled"])
def test_grad(wrap):
    close(wrap(mx.grad(loss))(LOGITS), mx.grad(native)(LOGITS))


def test_second_order():
    def along(f):
        return mx.grad(lambda x: (mx.grad(f)(x) * mx.sin(x)).sum())(LOGITS)

    close(along(loss), along(native))


def test_forward_mode():
    tangent = mx.cos(LOGITS)
    for ours, theirs in zip(
        mx.jvp(loss, [LOGITS], [tangent]), mx.jvp(native, [LOGITS], [tangent]), strict=True
    ):
        close(ours[0], theirs[0])


def test_per_sample_gradients():
    each = mx.vmap(mx.grad(xentx.cross_entropy))(LOGITS, TARGET)
    close(each, mx.grad(lambda x: xentx.cross_entropy(x, TARGET, reduction="sum"))(LOGITS))
