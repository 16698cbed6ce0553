"""The Triton engine through the public functions, on the CPU in Triton's interpreter."""

import importlib.util
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

import xentx
from xentx import _calls, _evaluate
from xentx.testing import _oracle as oracle
from xentx.testing import requested_frameworks
from xentx.testing._checks import check_rows, row_truth, stacked
from xentx.testing._problems import OPTIONS, REDUCTIONS, draw_problem

if "torch" not in requested_frameworks():
    pytest.skip("PyTorch is not requested", allow_module_level=True)
if os.environ.get("XENTX_ENGINE") != "triton" or os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("XENTX_ENGINE=triton and TRITON_INTERPRET=1 are not set", allow_module_level=True)

import torch

from xentx_torch import BACKEND
from xentx_torch._triton import _adapter, _launch
from xentx_torch.testing import Torch

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # raised by NumPy

HAS_KERNEL = importlib.util.find_spec("xentx._kernel") is not None
ROUTE = Torch()
DTYPES = list(oracle.DTYPES.values())
# Units of the dtype, for the loss and for the gradient.
UNITS = {"float32": (2, 4), "float64": (4, 8), "float16": (1, 2), "bfloat16": (1, 2)}


@pytest.fixture
def no_core(monkeypatch):
    """Fail if the portable core computes a call that the engine declines."""

    def fail(*_, **__):
        pytest.fail("the core computed")

    for name in ("portable", "portable_with_gradient", "_other_stats"):
        monkeypatch.setattr(_evaluate, name, fail)


def assert_right(problem, units=None):
    logits, target, options, cotangent = problem
    truth = oracle.cross_entropy(logits, target, cotangent=cotangent, **options)
    value, gradient = ROUTE.pull(
        xentx.cross_entropy, logits, target, cotangent=cotangent, **options
    )
    assert value.dtype == gradient.dtype == logits.dtype
    units = UNITS[logits.dtype.name] if units is None else units
    oracle.assert_within(value, truth.value, truth.value_scale, units[0])
    oracle.assert_within(gradient, truth.gradient, truth.gradient_scale, units[1])


SHAPES = [((3, 37), 1), ((2, 5, 3), 1), ((7, 2), 0), ((2, 3, 9), 2), ((13,), 0)]
CASES = [
    (name, dtype, soft, SHAPES[i % len(SHAPES)], REDUCTIONS[i % len(REDUCTIONS)])
    for i, (name, dtype, soft) in enumerate(itertools.product(OPTIONS, DTYPES, [False, True]))
]


@pytest.mark.parametrize(("name", "dtype", "soft", "layout", "reduction"), CASES)
def test_options(name, dtype, soft, layout, reduction, no_core):
    rng = np.random.default_rng(1)
    problem = draw_problem(
        rng, *layout, dtype, soft=soft, reduction=reduction, options=OPTIONS[name]
    )
    assert_right(problem)


def problem_of(logits, target=None, **options):
    rows = logits.shape[:-1]
    rng = np.random.default_rng(2)
    target = rng.integers(0, logits.shape[-1], rows) if target is None else target
    options = {"axis": -1, "reduction": "none", **options}
    return logits, target, options, rng.normal(size=rows).astype(logits.dtype)


def confident(rng, shape):
    x = rng.normal(size=shape)
    np.put_along_axis(x, x.argmax(-1)[..., None], rng.uniform(15, 60, (*shape[:-1], 1)), -1)
    return x


REGIMES = {
    "normal": lambda rng, shape: 3 * rng.normal(size=shape),
    "confident": confident,
    "offset": lambda rng, shape: rng.normal(size=shape) + 1e4,
    "below": lambda rng, shape: rng.normal(size=shape) - 3e3,
    "offset, some rows": lambda rng, shape: (
        rng.normal(size=shape) + rng.choice([0, 2e4, -2e4], (*shape[:-1], 1))
    ),
    "scaled": lambda rng, shape: 1e3 * rng.normal(size=shape),
    "ties": lambda rng, shape: np.round(rng.normal(size=shape)),
    "masked": lambda rng, shape: np.where(rng.random(shape) < 0.5, -np.inf, rng.normal(size=shape)),
    "falling": lambda rng, shape: np.sort(40 * rng.normal(size=shape))[..., ::-1].copy(),
    "rising": lambda rng, shape: np.sort(40 * rng.normal(size=shape)),
}


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("regime", REGIMES)
def test_float32_is_right_to_the_last_digits(regime, soft, temperature, no_core):
    rng = np.random.default_rng(3)
    shape = (5, 2500)  # more than a tile
    logits = REGIMES[regime](rng, shape).astype(np.float32)
    target = logits.argmax(-1)
    target[1:] = rng.integers(0, shape[1], 4)
    if soft:
        target = rng.dirichlet(np.full(shape[1], 0.1), shape[0]).astype(np.float32)
    logits, target, options, cotangent = problem_of(logits, target, temperature=temperature)
    truth = oracle.cross_entropy(logits, target, cotangent=cotangent, **options)
    value, gradient = ROUTE.pull(
        xentx.cross_entropy, logits, target, cotangent=cotangent, **options
    )
    # The error is relative to the loss itself, not to its terms.
    oracle.assert_within(value, truth.value, np.abs(truth.value), 2)
    spread = np.abs(truth.gradient_scale) / (1 + (temperature != 1) * 1e4)
    blurred = oracle.cross_entropy(
        logits.astype(np.longdouble) / np.longdouble(temperature),
        target,
        cotangent=cotangent / np.longdouble(temperature),
        axis=-1,
        reduction="none",
    )
    assert spread.shape == gradient.shape
    oracle.assert_within(gradient, truth.gradient, blurred.gradient_scale, 4)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_are_rounded_once(dtype, regime, no_core):
    rng = np.random.default_rng(4)
    with np.errstate(over="ignore"):
        logits = REGIMES[regime](rng, (4, 300)).astype(oracle.DTYPES[dtype])
    assert_right(problem_of(logits))


LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, 2).contiguous().transpose(0, 2),
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "every other class": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "every other row": lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
    "rows that are one": lambda x: x[:, :, :1].expand(x.shape),
}


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, axis, no_core):
    x = torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = LAYOUTS[layout](x).detach().requires_grad_()
    rows = list(x.shape)
    classes = rows.pop(axis)
    target = torch.arange(np.prod(rows)).reshape(rows) % classes
    value = xentx.cross_entropy(x, target, axis=axis)
    (gradient,) = torch.autograd.grad(value, x)
    moved = x.movedim(axis, 1)
    native = torch.nn.functional.cross_entropy(moved, target)
    (expected,) = torch.autograd.grad(native, x)
    torch.testing.assert_close(value, native)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("classes", [10, 300, 5000])
def test_a_rows_bits_do_not_depend_on_the_others(classes, dtype, no_core):
    generator = torch.Generator().manual_seed(5)
    x = (5 * torch.randn(9, classes, generator=generator)).to(dtype)
    x[7] += 3000  # the kernel reads this row twice
    target = torch.randint(classes, (9,), generator=generator)
    options = {"label_smoothing": 0.1, "z_loss": 0.01, "reduction": "none"}

    fields = {"axis": 1, "ignore_index": -100, "label_smoothing": 0.1, "z_loss": 0.01}
    spec = _calls.spec_of(BACKEND, x, {"operation": "cross_entropy", **fields})

    def solved(rows):
        given = x[rows].detach().requires_grad_()
        value = xentx.cross_entropy(given, target[rows], **options)
        value.sum().backward()
        # The sums before they are rounded.
        state = _launch.forward(_launch.Given(spec, x[rows], target[rows], None)).state
        return value.detach(), given.grad, state.movedim(0, -1)

    together = solved(torch.arange(9))
    for rows in ([3], [8, 3], [0, 1, 2, 3, 7]):
        for alone, all_of_them in zip(solved(torch.tensor(rows)), together, strict=True):
            assert torch.equal(alone, all_of_them[rows])


def test_corners(no_core):
    inf, nan = float("inf"), float("nan")
    x = np.asarray(
        [
            [20.0, 0.0, 0.0],  # confident
            [0.0, -inf, 1.0],  # a masked class
            [-inf, -inf, -inf],
            [inf, 0.0, 0.0],
            [nan, 0.0, 0.0],
            [0.0, 2.0, -inf],  # the target is masked
            [nan, inf, 0.0],  # ignored
            [1.0, 1.0, 1.0],
        ],
        np.float32,
    )
    target = np.asarray([0, 0, 0, 0, 1, 2, -100, 1])
    value, gradient = ROUTE.pull(
        xentx.cross_entropy, x, target, cotangent=np.ones(8, np.float32), reduction="none"
    )
    assert value[0] == pytest.approx(2 * np.exp(-20), rel=1e-6)
    assert gradient[0].sum() == 0
    assert np.isnan(value[[2, 3, 4]]).all()
    assert np.isnan(gradient[[2, 3, 4]]).all()
    assert np.isfinite(value[[0, 1, 7]]).all()
    assert value[5] == inf
    np.testing.assert_allclose(gradient[5], [1 / (1 + np.exp(2)), 1 / (1 + np.exp(-2)), -1], 1e-6)
    assert value[6] == 0
    assert not gradient[6].any()
    np.testing.assert_allclose(gradient[7], [1 / 3, -2 / 3, 1 / 3], 1e-6)


def test_nothing_to_compute(no_core):
    x = torch.zeros(0, 5, requires_grad=True)
    value = xentx.cross_entropy(x, torch.zeros(0, dtype=torch.int64))
    value.backward()
    assert value.isnan()
    assert x.grad.shape == (0, 5)
    assert xentx.cross_entropy(x.detach(), torch.zeros(0, dtype=torch.int64), reduction="sum") == 0


def test_index_out_of_range():
    x = torch.randn(3, 5)
    for wrong in (5, -1):
        with pytest.raises(IndexError, match=f"got {wrong} at position 1"):
            xentx.cross_entropy(x, torch.tensor([0, wrong, -100]))


def test_index_out_of_range_is_not_checked_on_a_device(monkeypatch, no_core):
    monkeypatch.setattr(_adapter, "LOOKS", False)
    x = torch.randn(4, 5, requires_grad=True)
    target = torch.tensor([0, 5, -1, -100])
    value = xentx.cross_entropy(x, target, reduction="none")
    value.sum().backward()
    assert value.isnan().tolist() == [False, True, True, False]
    assert x.grad.isnan().any(-1).tolist() == [False, True, True, False]
    assert x.grad[3].abs().max() == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_row_stats(axis, soft, dtype, no_core):
    rng = np.random.default_rng(6)
    options = {"z_loss": 0.01, "temperature": 1.7, "axis": axis}
    if not soft:
        options |= {"label_smoothing": 0.1, "ignore_index": 2}
    shape = (4, 60) if axis else (60, 4)
    logits = 3 * rng.normal(size=shape)
    logits = np.round(logits).astype(oracle.DTYPES[dtype])  # ties
    target = rng.integers(0, 60, 4)
    target[1] = 2
    if soft:
        target = np.moveaxis(rng.dirichlet(np.ones(60), 4), -1, axis).astype(np.float32)
    found = stacked(xentx.per_row(ROUTE.array(logits), ROUTE.array(target), **options))
    check_rows(ROUTE.numpy(found), row_truth(logits, target, **options), 4)


def test_entropy_of_logits_far_apart(no_core):
    logits = torch.tensor([[2.0**110, -(2.0**100), -(2.0**110), 0.0]], dtype=torch.bfloat16)
    fields = xentx.per_row(logits, torch.tensor([0]))
    assert fields.entropy == fields.loss == fields.log_prob == 0


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"z_loss": 0.01, "temperature": 1.7}, {"logit_softcap": 6.0}, {"smooth": 0.1}],
    ids=lambda options: " ".join(options) or "plain",
)
def test_derivatives_of_row_stats(options, soft):
    options = dict(options)
    if "smooth" in options:
        if soft:
            pytest.skip("computed by the portable core")
        options = {"label_smoothing": options["smooth"], "weight": torch.rand(30) + 0.1}
    generator = torch.Generator().manual_seed(7)
    x = 3 * torch.randn(5, 30, generator=generator)
    x[0, 3] += 40
    target = torch.randint(30, (5,), generator=generator)
    target[0], target[1] = 3, -100
    if soft:
        target = torch.rand(5, 30, generator=generator)
    cotangents = torch.randn(4, 5, generator=generator).double()

    def pulled(x, target, chosen, **options):
        x = x.detach().requires_grad_()
        fields = xentx.per_row(x, target, **options)[:4]
        total = sum((fields[i].double() * cotangents[i]).sum() for i in chosen)
        return torch.autograd.grad(total, x)[0]

    def by_autograd(x, chosen):
        # Plain expressions in float64.
        x = x.double().detach().requires_grad_()
        y = x if "logit_softcap" not in options else 6 * torch.tanh(x / 6)
        y = y / options.get("temperature", 1.0)
        logs = y.log_softmax(-1)
        lse = y.logsumexp(-1)
        kept = torch.ones(5) if soft else (target != -100).double()
        index = target if soft else target.clamp(min=0)
        q = index.double() if soft else torch.nn.functional.one_hot(index, 30).double()
        log_prob = (q * logs).sum(-1)
        s = options.get("label_smoothing", 0.0)
        w = options.get("weight", torch.ones(30)).double()
        loss = -(w * ((1 - s) * q + s / 30) * logs).sum(-1)
        loss = loss + options.get("z_loss", 0.0) * lse**2
        entropy = -(logs.exp() * logs).sum(-1)
        fields = (loss, lse, log_prob, entropy)
        total = sum((kept * fields[i] * cotangents[i]).sum() for i in chosen)
        return torch.autograd.grad(total, x)[0]

    for chosen in ([0], [1], [2], [3], [0, 1, 2, 3]):
        found = pulled(x, target, chosen, **options)
        torch.testing.assert_close(found.double(), by_autograd(x, chosen), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_log_softmax(dtype, regime, no_core):
    rng = np.random.default_rng(8)
    with np.errstate(over="ignore"):
        logits = REGIMES[regime](rng, (4, 50)).astype(oracle.DTYPES[dtype])
    cotangent = rng.normal(size=logits.shape).astype(logits.dtype)
    losses, p, complement = oracle.log_softmax(logits.astype(oracle.LONG))
    c = cotangent.astype(oracle.LONG)
    others = c.sum(-1, keepdims=True) - c
    gradient = np.where(p > 0.5, c * complement - p * others, c * 1 - p * (others + c))
    size = np.abs(c).sum(-1, keepdims=True)
    scale = np.where(p > 0.5, np.abs(c) * complement + p * (size - np.abs(c)), np.abs(c) + p * size)
    value, found = ROUTE.pull(xentx.log_softmax, logits, cotangent=cotangent)
    oracle.assert_within(value, -losses, losses, 2)
    oracle.assert_within(found, gradient, scale, 4)


def test_log_softmax_of_strided_classes(no_core):
    x = torch.randn(1, 6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: xentx.log_softmax(x, axis=1), x, fast_mode=True)


def test_gradients_of_other_arrays_and_of_second_order():
    generator = torch.Generator().manual_seed(9)
    x, y, w, s = (
        torch.rand(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 3), (2, 3), (3,), (2,))
    )

    def loss(x, y, w, s):
        return xentx.cross_entropy(x, y, weight=w, sample_weight=s, label_smoothing=0.1)

    assert torch.autograd.gradcheck(loss, (x, y, w, s), fast_mode=True)
    assert torch.autograd.gradgradcheck(loss, (x, y, w, s), fast_mode=True)
    assert torch.autograd.gradgradcheck(xentx.log_softmax, x, fast_mode=True)
    fields = lambda x: xentx.per_row(x, torch.tensor([0, 2]))[:4]  # noqa: E731
    assert torch.autograd.gradcheck(fields, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(fields, x, fast_mode=True)


def test_transformations_are_the_cores():
    x = torch.randn(4, 6, dtype=torch.float64)
    target = torch.tensor([0, 1, 2, -100])

    def loss(x):
        return xentx.cross_entropy(x, target)

    given = x.clone().requires_grad_()
    loss(given).backward()
    torch.testing.assert_close(torch.func.grad(loss)(x), given.grad)
    _, tangent = torch.func.jvp(loss, (x,), (torch.ones_like(x).cumsum(-1),))
    torch.testing.assert_close(tangent, (given.grad * torch.ones_like(x).cumsum(-1)).sum())
    rows = torch.func.vmap(torch.func.grad(xentx.cross_entropy))(x[:3], target[:3])
    torch.testing.assert_close(rows, 3 * given.grad[:3])
    batched = torch.autograd.grad(
        xentx.cross_entropy(given, target, reduction="none"),
        given,
        torch.eye(4, dtype=torch.float64),
        is_grads_batched=True,
    )[0]
    torch.testing.assert_close(batched.sum(0), 3 * given.grad)


def test_value_and_grad_may_write_over_the_logits(no_core):
    generator = torch.Generator().manual_seed(10)
    hidden = torch.randn(5, 8, generator=generator, requires_grad=True)
    head = torch.randn(20, 8, generator=generator, requires_grad=True)
    target = torch.randint(20, (5,), generator=generator)
    value = xentx.linear_cross_entropy(hidden, head, target, z_loss=0.1)
    found = torch.autograd.grad(value, (hidden, head))
    logits = hidden @ head.T
    native = torch.nn.functional.cross_entropy(logits, target)
    native = native + 0.1 * (logits.logsumexp(-1) ** 2).mean()
    torch.testing.assert_close(value, native)
    for ours, expected in zip(found, torch.autograd.grad(native, (hidden, head)), strict=True):
        torch.testing.assert_close(ours, expected)
    both = xentx.value_and_grad(xentx.cross_entropy)
    logits = logits.detach()
    kept = logits.clone()
    value, gradient = both(logits, target, cotangent=torch.tensor(2.0))
    assert torch.equal(logits, kept)
    given = kept.requires_grad_()
    (2 * torch.nn.functional.cross_entropy(given, target)).backward()
    torch.testing.assert_close(gradient, given.grad)


@pytest.mark.parametrize(
    ("engine", "interpreted", "expected", "reason"),
    [
        ("triton", "1", "triton (", "None"),
        ("triton", "0", "portable", "PyTorch sees no CUDA or ROCm device, on which Triton runs"),
        ("portable", "1", "portable", "XENTX_ENGINE=portable is set"),
        # The interpreter is only for tests.
        ("auto", "1", "kernel (" if HAS_KERNEL else "portable", "None" if HAS_KERNEL else ""),
    ],
)
def test_which_engine(engine, interpreted, expected, reason):
    program = "import torch, xentx; print(xentx.backend_of(torch.zeros(3)))"
    env = {**os.environ, "XENTX_ENGINE": engine, "TRITON_INTERPRET": interpreted}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"engine='{expected}" in done.stdout
    assert reason in done.stdout


def test_kernels_are_not_imported_before_one_runs():
    program = "import sys, torch, xentx_torch; print('xentx_torch._triton._kernels' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout == "False\n", done.stderr


def test_engine_that_is_not_installed():
    program = "import sys; sys.modules['triton'] = None; import torch, xentx_torch"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "XENTX_ENGINE: got 'triton', but Triton is not installed" in done.stderr
