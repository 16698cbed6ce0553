"""Derivatives of linear_cross_entropy for all arguments, orders and transformations.

They are compared with derivatives of cross_entropy of the logits, which test_derivatives checks.
"""

import functools
import gc
import shutil
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import xentx
from xentx._core import _spec
from xentx.testing import requested_frameworks
from xentx.testing._checks import draw_linear

RNG = np.random.default_rng(11)
ROWS, FEATURES, CLASSES = 7, 3, 5
HIDDEN = RNG.normal(size=(ROWS, FEATURES))
HEAD = RNG.normal(size=(CLASSES, FEATURES))
BIAS = RNG.normal(size=CLASSES)
TARGET = np.array([1, 2, 0, -100, 4, 4, 3])
SOFT = RNG.gamma(1.0, size=(ROWS, CLASSES))
WEIGHT = RNG.uniform(0.5, 2, CLASSES)
SAMPLE_WEIGHT = RNG.uniform(0.5, 2, ROWS)
OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.05, "logit_softcap": 6.0, "temperature": 1.5}
REDUCTIONS = ["none", "mean"]
# order of JAX's check; compiling the second order takes half a minute
ORDER = {"none": 1, "mean": 2}
AXES = (0, None, None)  # in_axes of vmap
CHUNK = 3  # two full chunks and a smaller one


def linear(target, reduction, **more):
    """Return a loss as a function of the factors and the weights."""

    def loss(hidden, head, bias, weight=None, sample_weight=None):
        return xentx.linear_cross_entropy(
            hidden,
            head,
            target,
            bias=bias,
            weight=weight,
            sample_weight=sample_weight,
            reduction=reduction,
            chunk=CHUNK,
            **OPTIONS,
            **more,
        )

    return loss


def dense(target, reduction):
    """Return the same loss of dense logits."""

    def loss(hidden, head, bias, weight=None, sample_weight=None):
        logits = hidden @ swap(head) + bias
        return xentx.cross_entropy(
            logits,
            target,
            weight=weight,
            sample_weight=sample_weight,
            reduction=reduction,
            axis=-1,
            **OPTIONS,
        )

    return loss


def swap(head):
    """Transpose. TensorFlow has no ``.T``."""
    if hasattr(head, "mT"):
        return head.mT
    import tensorflow as tf

    return tf.transpose(head)


@pytest.mark.skipif("torch" not in requested_frameworks(), reason="not requested")
class TestTorch:
    @pytest.fixture(autouse=True)
    def _torch(self):
        import torch

        self.torch = torch
        self.target = torch.from_numpy(TARGET)

    def factors(self, *more, dtype=None, requires_grad=True):
        arrays = (HIDDEN, HEAD, BIAS, *more)
        return tuple(
            self.torch.from_numpy(a).to(dtype or self.torch.float64).requires_grad_(requires_grad)
            for a in arrays
        )

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    def test_checkers(self, reduction):
        loss = linear(self.target, reduction)
        check = self.torch.autograd
        for more in ((), (WEIGHT, SAMPLE_WEIGHT)):
            assert check.gradcheck(loss, self.factors(*more), check_forward_ad=True)
            assert check.gradgradcheck(loss, self.factors(*more))

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    def test_soft_target(self, reduction):
        def loss(target, *factors):
            return linear(target, reduction)(*factors)

        soft = self.torch.from_numpy(SOFT).requires_grad_()
        assert self.torch.autograd.gradcheck(loss, (soft, *self.factors()))
        assert self.torch.autograd.gradgradcheck(loss, (soft, *self.factors()))

    def test_backward_again(self):
        value = linear(self.target, "mean")(*(factors := self.factors()))
        value.backward(retain_graph=True)
        first = [factor.grad.clone() for factor in factors]
        value.backward(self.torch.tensor(3.0, dtype=value.dtype))
        for factor, gradient in zip(factors, first, strict=True):
            self.torch.testing.assert_close(factor.grad, 4 * gradient)
        with pytest.raises(RuntimeError, match="second time"):
            value.backward()

    def test_modified_in_place(self):
        factors = self.factors()
        value = linear(self.target, "mean")(*factors)
        with self.torch.no_grad():
            factors[1].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.backward()

    def test_frozen_factors(self):
        for frozen in range(3):
            factors = [f.detach().requires_grad_(i != frozen) for i, f in enumerate(self.factors())]
            linear(self.target, "mean")(*factors).backward()
            assert [f.grad is None for f in factors] == [i == frozen for i in range(3)]

    def test_func(self):
        func, factors = self.torch.func, self.factors(requires_grad=False)
        ours, theirs = linear(self.target, "mean"), dense(self.target, "mean")
        for transform in (func.grad, func.jacrev, func.jacfwd, func.hessian):
            for argnum in range(3):
                self.torch.testing.assert_close(
                    transform(ours, argnums=argnum)(*factors),
                    transform(theirs, argnums=argnum)(*factors),
                )
        stacked = self.torch.stack([factors[0], 2 * factors[0]])
        in_dims = (0, None, None)
        self.torch.testing.assert_close(
            func.vmap(func.grad(ours), in_dims)(stacked, *factors[1:]),
            func.vmap(func.grad(theirs), in_dims)(stacked, *factors[1:]),
        )

    def test_hessian_vector_product(self):
        factors = self.factors()
        direction = self.torch.ones_like(factors[1])
        products = []
        for loss in (linear(self.target, "mean"), dense(self.target, "mean")):
            (first,) = self.torch.autograd.grad(loss(*factors), factors[1], create_graph=True)
            products += self.torch.autograd.grad((first * direction).sum(), factors)
        for ours, theirs in zip(products[:3], products[3:], strict=True):
            self.torch.testing.assert_close(ours, theirs)

    def test_gradient_of_value_and_grad(self):
        factors = self.factors()
        options = {"bias": factors[2], "chunk": CHUNK}
        function = xentx.value_and_grad(xentx.linear_cross_entropy)
        _, found = function(*factors[:2], self.target, **options)
        (ours,) = self.torch.autograd.grad(found.head.square().sum(), factors[0])
        logits = factors[0] @ factors[1].T + factors[2]
        value = xentx.cross_entropy(logits, self.target)
        (by_head,) = self.torch.autograd.grad(value, factors[1], create_graph=True)
        (theirs,) = self.torch.autograd.grad(by_head.square().sum(), factors[0])
        self.torch.testing.assert_close(ours, theirs)

    def test_checkpoint(self):
        factors = self.factors()
        loss = linear(self.target, "mean")
        expected = self.torch.autograd.grad(loss(*factors), factors)
        value = self.torch.utils.checkpoint.checkpoint(loss, *factors, use_reentrant=False)
        for ours, theirs in zip(self.torch.autograd.grad(value, factors), expected, strict=True):
            self.torch.testing.assert_close(ours, theirs)

    def test_autocast(self):
        layer = self.torch.nn.Linear(FEATURES, CLASSES)
        hidden = self.torch.from_numpy(HIDDEN).float()
        with self.torch.autocast("cpu", self.torch.bfloat16):
            narrow = self.torch.nn.Linear(FEATURES, FEATURES)(hidden)
            value = linear(self.target, "mean")(narrow, layer.weight, layer.bias)
        assert (narrow.dtype, value.dtype) == (self.torch.bfloat16, self.torch.float32)
        value.backward()
        assert layer.weight.grad.dtype == self.torch.float32
        logits = narrow.detach().float() @ layer.weight.T + layer.bias
        expected = xentx.cross_entropy(logits, self.target, **OPTIONS)
        self.torch.testing.assert_close(value, expected)

    def test_scaled_float16(self):
        """The gradients are multiplied by the cotangent before they are rounded to float16."""
        factors = self.factors(dtype=self.torch.float16)
        value = 2.0**-20 * linear(self.target, "mean")(*factors)
        value.backward(self.torch.tensor(2.0**20))
        plain = self.factors(dtype=self.torch.float16)
        linear(self.target, "mean")(*plain).backward()
        for factor, other in zip(factors, plain, strict=True):
            self.torch.testing.assert_close(factor.grad, other.grad)

    @pytest.mark.parametrize("smoothing", ["number", "array"])
    @pytest.mark.parametrize("precision", ["default", "exact"])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_operator_without_values(self, dtype, precision, smoothing):
        """The operator's fake implementation has the shapes and dtypes of its results."""
        import xentx_torch  # noqa: F401 -- registers the operator

        hidden, head, bias = self.factors(dtype=getattr(self.torch, dtype))
        array = None if smoothing == "number" else self.torch.tensor(0.1)
        scalars = (array if name == "label_smoothing" else None for name in _spec.OPTIONS)
        arrays = (hidden, head, bias, self.target, None, None, None, None, *scalars)
        options = "operation=cross_entropy axis=1 reduction=mean"
        if array is None:
            options += " label_smoothing=0.1"
        if precision == "exact":
            options += " exact=True"
        operator = self.torch.ops.xentx.linear_loss.default
        checks = ("test_schema", "test_faketensor")
        given = (*arrays, options, -100, CHUNK, [True, True, True])
        self.torch.library.opcheck(operator, given, test_utils=checks)

    def test_rows_without_gradients_come_by_chunks(self, monkeypatch):
        from xentx_torch._linear import TorchTiles

        sizes = []
        logits = TorchTiles.logits

        def spy(self, hidden, head, bias):
            sizes.append(hidden.shape[0])
            return logits(self, hidden, head, bias)

        monkeypatch.setattr(TorchTiles, "logits", spy)
        hidden, head, _ = self.factors()
        with self.torch.no_grad():
            xentx.linear_per_row(hidden, head, self.target, chunk=CHUNK)
        assert sizes == [3, 3, 1]

    @pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a compiler")
    @pytest.mark.parametrize("reduction", REDUCTIONS)
    def test_compile(self, reduction):
        loss = linear(self.target, reduction)
        compiled = self.torch.compile(loss, fullgraph=True)
        results = []
        for function in (loss, compiled):
            factors = self.factors(dtype=self.torch.float32)
            value = function(*factors)
            value.backward(self.torch.ones_like(value))
            results.append((value.detach(), *(factor.grad for factor in factors)))
        self.torch.testing.assert_close(*results)

    @pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a compiler")
    def test_a_compiled_call_names_the_position_of_a_wrong_index(self):
        hidden, head, _ = self.factors()
        wrong = self.target.clone()
        wrong[CHUNK + 2] = CLASSES
        loss = self.torch.compile(
            lambda target: xentx.linear_cross_entropy(hidden, head, target, chunk=CHUNK)
        )
        with pytest.raises(IndexError, match=f"got {CLASSES} at position {CHUNK + 2}"):
            loss(wrong)

    @pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a compiler")
    def test_compile_any_options(self):
        @settings(max_examples=4)  # each is compiled
        @given(st.data())
        def run(data):
            problem = draw_linear(data.draw, ["float32"])
            arrays, options = problem.arrays, dict(problem.options)
            shape = arrays[0].shape[:1] if options["reduction"] == "none" else ()
            cotangent = np.asarray(problem.rng.normal(size=shape), np.float32)
            target, cotangent = map(self.torch.from_numpy, (arrays[2], cotangent))
            for name, value in options.items():
                if isinstance(value, np.ndarray):
                    options[name] = self.torch.from_numpy(value)

            def loss(hidden, head):
                return xentx.linear_cross_entropy(hidden, head, target, **options)

            results = []
            for function in (loss, self.torch.compile(loss, fullgraph=True)):
                factors = [self.torch.from_numpy(a).requires_grad_() for a in arrays[:2]]
                value = function(*factors)
                value.backward(cotangent)
                results.append((value.detach(), *(factor.grad for factor in factors)))
            self.torch.testing.assert_close(*results, equal_nan=True)

        run()


def twice(x):
    """Return two different hidden layers."""
    import jax.numpy as jnp

    return jnp.stack([x, -2 * x])


def of_twice(jax, f):
    """Return the sum of a mapped function."""
    each = jax.vmap(f, AXES)
    return lambda hidden, *rest: each(twice(hidden), *rest).sum()


def scanned(jax, f):
    """Return the sum of a function over the steps of a loop."""

    def total(hidden, *rest):
        def step(carry, hidden):
            return carry + f(hidden, *rest), None

        return jax.lax.scan(step, 0.0, twice(hidden))[0]

    return total


FIRST_CALL = """
import torch, xentx

@torch.compile(fullgraph=True)
def step(hidden, head, target):
    options = {"return_normalizer": True, "chunk": 2}
    return xentx.linear_cross_entropy(hidden, head, target, **options)

hidden, head = torch.eye(3, requires_grad=True), torch.ones(4, 3, requires_grad=True)
value, count = step(hidden, head, torch.tensor([0, 1, -100]))
value.backward()
print(round(value.item(), 6), count.item(), tuple(head.grad.shape))
"""


@pytest.mark.skipif("torch" not in requested_frameworks(), reason="not requested")
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a compiler")
def test_first_call_is_compiled():
    """Dynamo traces a function of xentx before any has been called."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_CALL], capture_output=True, text=True, check=False
    )
    assert done.stdout == "1.386294 2.0 (4, 3)\n", done.stderr


@pytest.mark.skipif("jax" not in requested_frameworks(), reason="not requested")
class TestJAX:
    @pytest.fixture(autouse=True)
    def _jax(self):
        import jax

        self.jax, self.jnp = jax, jax.numpy
        from xentx_jax.testing import enable_x64

        with enable_x64():
            self.target = jax.numpy.asarray(TARGET)
            yield

    def factors(self, *more, dtype=None):
        arrays = (HIDDEN, HEAD, BIAS, *more)
        return tuple(self.jnp.asarray(a, dtype or self.jnp.float64) for a in arrays)

    def of_jax(self, loss):
        """check_grads passes NumPy arrays."""
        return lambda *arrays: loss(*map(self.jnp.asarray, arrays))

    def close(self, ours, theirs):
        self.jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11), ours, theirs
        )

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    def test_checkers(self, reduction):
        from jax.test_util import check_grads

        loss = self.of_jax(linear(self.target, reduction))
        check_grads(loss, self.factors(), order=1)
        check_grads(loss, self.factors(WEIGHT, SAMPLE_WEIGHT), order=ORDER[reduction])

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    def test_soft_target(self, reduction):
        from jax.test_util import check_grads

        def loss(target, *factors):
            return linear(target, reduction)(*factors)

        factors = (self.jnp.asarray(SOFT), *self.factors())
        check_grads(self.of_jax(loss), factors, order=ORDER[reduction])

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    @pytest.mark.parametrize(
        "transform",
        [
            lambda jax, f, x: jax.jit(jax.grad(f, (0, 1, 2)))(*x),
            lambda jax, f, x: jax.jvp(f, x, x),
            lambda jax, f, x: jax.linearize(f, *x)[1](*x),
            lambda jax, f, x: jax.vmap(jax.grad(f, (0, 1, 2)), (0, None, None))(
                twice(x[0]), *x[1:]
            ),
            lambda jax, f, x: jax.grad(of_twice(jax, f), (0, 1, 2))(*x),
            lambda jax, f, x: jax.grad(jax.checkpoint(f), (0, 1, 2))(*x),
            lambda jax, f, x: jax.grad(scanned(jax, f), (0, 1, 2))(*x),
            lambda jax, f, x: jax.hessian(f, (0, 1))(*x),
            lambda jax, f, x: jax.jvp(jax.grad(f, (0, 1, 2)), x, x),
        ],
        ids=[
            "jit(grad)",
            "jvp",
            "linearize",
            "vmap(grad)",
            "grad(vmap)",
            "grad(checkpoint)",
            "grad(scan)",
            "hessian",
            "jvp(grad)",
        ],
    )
    def test_transformations(self, transform, reduction):
        factors = self.factors()

        def squared(loss):
            return lambda *factors: (loss(*factors) ** 2).sum()

        self.close(
            transform(self.jax, squared(linear(self.target, reduction)), factors),
            transform(self.jax, squared(dense(self.target, reduction)), factors),
        )

    def test_no_logits_in_memory(self):
        """No buffer of a compiled step has the size of the logits."""
        rows, features, classes = 4096, 64, 8192
        jnp = self.jnp
        hidden = jnp.zeros((rows, features), jnp.float32)
        head = jnp.zeros((classes, features), jnp.float32)
        target = jnp.zeros(rows, jnp.int32)

        def temporary(loss):
            step = self.jax.jit(self.jax.value_and_grad(loss, (0, 1)))
            return step.lower(hidden, head).compile().memory_analysis().temp_size_in_bytes

        logits = 4 * rows * classes

        def ours(hidden, head):
            return xentx.linear_cross_entropy(hidden, head, target, chunk=256)

        def theirs(hidden, head):
            return xentx.cross_entropy(hidden @ head.T, target)

        assert temporary(theirs) >= logits
        assert temporary(ours) < logits / 4
        for reduction in ("none", "sum"):

            def narrow(hidden, head, reduction=reduction):
                hidden, head = hidden.astype(jnp.bfloat16), head.astype(jnp.bfloat16)
                return xentx.linear_cross_entropy(hidden, head, target, reduction=reduction).sum()

            assert temporary(narrow) < logits


@pytest.mark.skipif("tensorflow" not in requested_frameworks(), reason="not requested")
class TestTensorFlow:
    @pytest.fixture(autouse=True)
    def _tensorflow(self):
        import tensorflow as tf

        self.tf = tf
        self.target = tf.constant(TARGET)

    def factors(self, *more, dtype="float64"):
        return tuple(self.tf.constant(a, dtype) for a in (HIDDEN, HEAD, BIAS, *more))

    def first(self, loss, *arrays):
        with self.tf.GradientTape() as tape:
            tape.watch(arrays)
            value = loss(*arrays)
        return value, *tape.gradient(value, arrays)

    def second(self, loss, *arrays):
        with self.tf.GradientTape() as tape:
            tape.watch(arrays)
            _, *gradients = self.first(loss, *arrays)
            total = sum(self.tf.reduce_sum(g**2) for g in gradients)
        return tape.gradient(total, arrays)

    def close(self, ours, theirs):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)

    @pytest.mark.parametrize(
        ("way", "reduction"),
        [
            ("eager", "none"),
            ("eager", "mean"),
            ("tf.function", "none"),
            ("tf.function", "mean"),
            ("XLA", "mean"),
        ],
    )
    def test_orders(self, way, reduction):
        for more in ((), (WEIGHT, SAMPLE_WEIGHT)) if way == "eager" else ((),):
            arrays = self.factors(*more)
            for order in (self.first, self.second):
                functions = [
                    functools.partial(order, make(self.target, reduction))
                    for make in (linear, dense)
                ]
                if way != "eager":
                    functions[0] = self.tf.function(functions[0], jit_compile=way == "XLA")
                self.close(functions[0](*arrays), functions[1](*arrays))

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    def test_soft_target(self, reduction):
        arrays = (self.tf.constant(SOFT), *self.factors())

        def of(make):
            return lambda target, *factors: make(target, reduction)(*factors)

        for order in (self.first, self.second):
            self.close(order(of(linear), *arrays), order(of(dense), *arrays))

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_no_tape_keeps_the_chunks(self, dtype):
        """The tape records no operation of a chunk, so its logits can be freed."""
        hidden = self.tf.ones((64, 4), dtype)
        head = self.tf.ones((50, 4), dtype)
        with self.tf.GradientTape() as tape:
            tape.watch([hidden, head])
            value = xentx.linear_cross_entropy(hidden, head, np.zeros(64, int), chunk=16)
            kept = [
                v for v in gc.get_objects() if issubclass(type(v), type(value)) and 50 in v.shape
            ]
        gradients = tape.gradient(value, [hidden, head])
        assert all(v.shape[0] != 16 for v in kept)
        assert [g.dtype for g in gradients] == [dtype, dtype]

    @pytest.mark.parametrize("way", ["eager", "tf.function"])
    def test_rows_are_computed_in_chunks(self, monkeypatch, way):
        """The loss of each row and its gradients use chunks, and second derivatives are correct."""
        from xentx_tensorflow._linear import TensorFlowTiles

        sizes = []
        logits = TensorFlowTiles.logits

        def spy(tiles, hidden, head, bias):
            sizes.append(hidden.shape[0])
            return logits(tiles, hidden, head, bias)

        def total(rows):
            return self.tf.reduce_sum(rows.loss) + self.tf.reduce_sum(rows.entropy * rows.lse)

        def by_chunks(hidden, head, bias):
            options = {"bias": bias, "chunk": CHUNK, **OPTIONS}
            return total(xentx.linear_per_row(hidden, head, self.target, **options))

        def at_once(hidden, head, bias):
            formed = self.tf.matmul(hidden, head, transpose_b=True) + bias
            return total(xentx.per_row(formed, self.target, **OPTIONS))

        for order, expected in ((self.first, 2 * [3, 3, 1]), (self.second, None)):
            sizes.clear()
            function = functools.partial(order, by_chunks)
            if way != "eager":
                function = self.tf.function(function)
            with monkeypatch.context() as patch:
                patch.setattr(TensorFlowTiles, "logits", spy)
                found = function(*self.factors())
            if expected:
                assert sizes == expected
            self.close(found, order(at_once, *self.factors()))

    def test_variables_and_unknown_rows(self):
        head = self.tf.Variable(HEAD)
        signature = [
            self.tf.TensorSpec((None, FEATURES), "float64"),
            self.tf.TensorSpec((None,), "int64"),
        ]

        @self.tf.function(input_signature=signature)
        def step(hidden, target):
            with self.tf.GradientTape() as tape:
                value = xentx.linear_cross_entropy(hidden, head, target, chunk=CHUNK)
            return value, tape.gradient(value, head)

        for rows in (ROWS, 6, 1):
            value, gradient = step(HIDDEN[:rows], TARGET[:rows])
            with self.tf.GradientTape() as tape:
                logits = self.tf.matmul(HIDDEN[:rows], head, transpose_b=True)
                expected = xentx.cross_entropy(logits, TARGET[:rows])
            self.close([value], [expected])
            self.close([gradient], [tape.gradient(expected, head)])
