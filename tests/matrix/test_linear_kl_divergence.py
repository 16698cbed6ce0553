"""linear_kl_divergence: second derivatives, compilers, and memory of chunks."""

import gc
import shutil

import numpy as np
import pytest

import xentx
from xentx.testing import requested_frameworks

RNG = np.random.default_rng(3)
# Hidden and head of the student, then those of the teacher.
FACTORS = tuple(RNG.normal(size=shape) for shape in ((7, 3), (5, 3), (7, 2), (5, 2)))
OPTIONS = {"beta": 0.3, "temperature": 1.5}
CHUNK = 3
REDUCTIONS = ["none", "mean"]


def linear(reduction):
    def loss(*factors):
        return xentx.linear_kl_divergence(*factors, reduction=reduction, chunk=CHUNK, **OPTIONS)

    return loss


def dense(reduction, product):
    def loss(hidden, head, other, other_head):
        logits = product(hidden, head), product(other, other_head)
        return xentx.kl_divergence(*logits, reduction=reduction, **OPTIONS)

    return loss


@pytest.mark.skipif("torch" not in requested_frameworks(), reason="not requested")
class TestTorch:
    @pytest.fixture(autouse=True)
    def _torch(self):
        self.torch = pytest.importorskip("torch")

    def factors(self, count=4, dtype="float64"):
        dtype = getattr(self.torch, dtype)
        tensors = (self.torch.from_numpy(a).to(dtype) for a in FACTORS)
        return [a.requires_grad_(i < count) for i, a in enumerate(tensors)]

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    @pytest.mark.parametrize("count", [2, 4], ids=["student", "both"])
    def test_checkers(self, reduction, count):
        factors = self.factors(count)
        assert self.torch.autograd.gradcheck(linear(reduction), factors, check_forward_ad=True)
        assert self.torch.autograd.gradgradcheck(linear(reduction), factors)

    def test_func(self):
        factors = [a.detach() for a in self.factors()]
        ours, theirs = (
            self.torch.func.hessian(loss, argnums=1)(*factors)
            for loss in (linear("mean"), dense("mean", lambda x, w: x @ w.T))
        )
        self.torch.testing.assert_close(ours, theirs)

    @pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a compiler")
    def test_compile(self):
        """The gradients of the student are computed in the forward pass, in chunks."""
        compiled = self.torch.compile(linear("mean"), fullgraph=True)
        results = []
        for function in (linear("mean"), compiled):
            factors = self.factors(2, "float32")
            value = function(*factors)
            value.backward()
            results.append((value.detach(), factors[0].grad, factors[1].grad))
        self.torch.testing.assert_close(*results)

    @pytest.mark.parametrize("beta", [0.0, 0.5])
    def test_operator_without_values(self, beta):
        import xentx_torch  # noqa: F401 -- registers the operator
        from xentx._core._spec import OPTIONS as NAMES

        hidden, head, *others = self.factors(2, "float32")
        bias = self.torch.ones(5)
        arrays = (hidden, head, bias, *others, None, None, bias, *(None for _ in NAMES))
        options = "operation=kl_divergence axis=1 soft=True reduction=mean"
        if beta:
            options += f" beta={beta}"
        given = (*arrays, options, None, CHUNK, [True, True, True])
        operator = self.torch.ops.xentx.linear_loss.default
        self.torch.library.opcheck(operator, given, test_utils=("test_schema", "test_faketensor"))
        expected = xentx.linear_kl_divergence(
            hidden, head, *others, bias=bias, reference_bias=bias, beta=beta
        )
        self.torch.testing.assert_close(operator(*given)[0], expected)

    @pytest.mark.parametrize("count", [2, 4], ids=["student", "both"])
    def test_logits_come_by_chunks(self, monkeypatch, count):
        from xentx_torch._linear import TorchTiles

        sizes, logits = [], TorchTiles.logits

        def spy(self, hidden, head, bias):
            sizes.append(hidden.shape[0])
            return logits(self, hidden, head, bias)

        monkeypatch.setattr(TorchTiles, "logits", spy)
        linear("mean")(*self.factors(count)).backward()
        assert set(sizes) == {3, 1}


@pytest.mark.skipif("jax" not in requested_frameworks(), reason="not requested")
class TestJAX:
    @pytest.fixture(autouse=True)
    def _jax(self):
        self.jax = pytest.importorskip("jax")
        from xentx_jax.testing import enable_x64

        with enable_x64():
            self.factors = tuple(map(self.jax.numpy.asarray, FACTORS))
            yield

    @pytest.mark.parametrize("count", [2, 4], ids=["student", "both"])
    @pytest.mark.parametrize("transform", ["grad", "jvp", "vmap", "second"])
    def test_transformations(self, transform, count):
        jax, numbers, found = self.jax, tuple(range(count)), []
        for loss in (linear("mean"), dense("mean", lambda x, w: x @ w.T)):

            def of_varied(*varied, loss=loss):
                return loss(*varied, *self.factors[count:])

            gradient = jax.grad(of_varied, numbers)
            varied = self.factors[:count]
            if transform == "grad":
                found.append(jax.jit(gradient)(*varied))
            elif transform == "jvp":
                found.append(jax.jvp(of_varied, varied, varied))
            elif transform == "vmap":
                twice = jax.numpy.stack([varied[0], -varied[0]])
                axes = (0, *(None for _ in varied[1:]))
                found.append(jax.vmap(gradient, axes)(twice, *varied[1:]))
            else:
                found.append(jax.jvp(gradient, varied, varied))
        for ours, theirs in zip(*map(jax.tree.leaves, found), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)

    def test_memory(self):
        """No buffer has the size of the logits, in the forward and the backward pass."""
        rows, features, classes = 4096, 8, 2000
        jax, logits = self.jax, 4 * rows * classes
        shapes = 2 * [(rows, features), (classes, features)]
        factors = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
        for numbers in ((0, 1), (0, 1, 2, 3)):

            def loss(*factors):
                return xentx.linear_kl_divergence(*factors, chunk=64)

            step = jax.jit(jax.value_and_grad(loss, numbers)).lower(*factors).compile()
            assert step.memory_analysis().temp_size_in_bytes < logits / 3


@pytest.mark.skipif("tensorflow" not in requested_frameworks(), reason="not requested")
class TestTensorFlow:
    @pytest.fixture(autouse=True)
    def _tensorflow(self):
        self.tf = pytest.importorskip("tensorflow")
        self.factors = tuple(map(self.tf.constant, FACTORS))

    def first(self, loss, count):
        with self.tf.GradientTape() as tape:
            tape.watch(self.factors[:count])
            value = loss(*self.factors)
        return value, *tape.gradient(value, self.factors[:count])

    def second(self, loss, count):
        with self.tf.GradientTape() as tape:
            tape.watch(self.factors[:count])
            _, *gradients = self.first(loss, count)
            total = sum(self.tf.reduce_sum(g**2) for g in gradients)
        return tape.gradient(total, self.factors[:count])

    @pytest.mark.parametrize("count", [2, 4], ids=["student", "both"])
    @pytest.mark.parametrize("way", ["eager", "tf.function", "XLA"])
    def test_orders(self, way, count):
        def product(x, w):
            return self.tf.matmul(x, w, transpose_b=True)

        for order in (self.first, self.second):
            found = []
            for loss in (linear("mean"), dense("mean", product)):

                def step(loss=loss, order=order):
                    return order(loss, count)

                if way != "eager" and not found:
                    step = self.tf.function(step, jit_compile=way == "XLA")
                found.append(step())
            for ours, theirs in zip(*found, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)

    def test_no_tape_keeps_the_chunks(self):
        with self.tf.GradientTape() as tape:
            tape.watch(self.factors[:2])
            value = linear("mean")(*self.factors)
            kept = [v for v in gc.get_objects() if issubclass(type(v), type(value))]
        assert not any(tuple(v.shape) == (CHUNK, 5) for v in kept)
        assert all(g is not None for g in tape.gradient(value, self.factors[:2]))

    def test_unknown_rows(self):
        hidden, head, other, other_head = self.factors
        signature = [self.tf.TensorSpec((None, n), "float64") for n in (3, 2)]

        @self.tf.function(input_signature=signature)
        def step(hidden, other):
            with self.tf.GradientTape() as tape:
                tape.watch(head)
                value = linear("mean")(hidden, head, other, other_head)
            return value, tape.gradient(value, head)

        for rows in (7, 6, 1):
            given = hidden[:rows], head, other[:rows], other_head
            with self.tf.GradientTape() as tape:
                tape.watch(head)
                value = linear("mean")(*given)
            found = step(hidden[:rows], other[:rows])
            for ours, theirs in zip(found, (value, tape.gradient(value, head)), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)
