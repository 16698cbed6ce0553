"""PyTorch's autograd and torch.func on the CPU kernel: saved tensors, and every derivative."""

from types import SimpleNamespace

import numpy as np
import pytest

from xentx.testing import requested_frameworks
from xentx.testing._problems import REDUCTIONS, RNG_SEED

if "torch" not in requested_frameworks():
    pytest.skip("PyTorch is not requested", allow_module_level=True)

import torch
import torch.utils.checkpoint
from torch.autograd import forward_ad

import xentx_torch
from torch_kernel import (
    LOGITS,
    SAMPLE_WEIGHT,
    SEED,
    SOFT,
    TARGET,
    WEIGHT,
    assert_bits,
    assert_near,
    both,
    jvp,
    leaf,
    log_softmax,
    loss,
    own,
    portable,
    stacked,
)
from xentx import _kernel_engine, _validation
from xentx_torch import _kernel as adapter
from xentx_torch import _operators


@pytest.fixture
def calls(monkeypatch):
    """Outputs and inputs of each call of the kernel, as letters: cotangent, value, gradient."""
    made = []
    plan = _kernel_engine.KERNEL.plan

    def spy(**layout):
        ready = plan(**layout)

        def called(value, gradient, cotangent, *given):
            asked = (cotangent, value, gradient)
            made.append("".join(x for x, y in zip("cvg", asked, strict=True) if y is not None))
            return ready(value, gradient, cotangent, *given)

        return called

    # The caches contain plans.
    monkeypatch.setattr(_validation, "_KINDS", {})
    monkeypatch.setattr(_operators, "_KNOWN", {})
    monkeypatch.setattr(adapter, "_calls", adapter.no_calls())
    monkeypatch.setattr(_kernel_engine, "KERNEL", SimpleNamespace(plan=spy))
    return made


# ---- autograd.Function: what is computed and saved


def test_arguments_of_the_kernel_s_calls(calls):
    logits = leaf(LOGITS)
    loss(LOGITS)
    with torch.no_grad():
        loss(logits)
    value = loss(logits)
    assert calls == ["v", "v", "vg"]
    value.backward(retain_graph=True)
    assert calls == ["v", "v", "vg"]  # the gradient for a cotangent of 1 is stored
    value.backward()
    assert calls == ["v", "v", "vg", "cg"]
    calls.clear()
    (2 * loss(logits)).backward()
    assert calls == ["vg", "cg"]
    calls.clear()
    loss(logits, reduction="none").sum().backward()
    assert calls == ["v", "cg"]
    calls.clear()
    own(LOGITS)
    own(LOGITS, cotangent=0.5)
    assert calls == ["vg", "cvg"]
    calls.clear()
    loss(LOGITS, weight=leaf(WEIGHT)).backward()
    assert calls == ["v"]


def test_a_stored_gradient_is_not_a_constant():
    """The gradient that the forward pass computes is not treated as a constant."""
    expected = torch.autograd.functional.hessian(portable(loss), LOGITS)
    assert expected.abs().max() > 0.01
    assert_near([torch.autograd.functional.hessian(loss, LOGITS)], [expected])
    logits = leaf(LOGITS)
    (found,) = torch.autograd.grad(loss(logits), logits, create_graph=True)
    (second,) = torch.autograd.grad((found * SEED).sum(), logits, create_graph=True)
    assert_near([second], [(expected.reshape(30, 30) @ SEED.reshape(30)).reshape(6, 5)])
    (third,) = torch.autograd.grad((second * SEED).sum(), logits)
    assert third.abs().max() > 0.01


def test_a_second_backward_adds_the_same_again():
    for function in (loss, lambda x: loss(x, reduction="none").sum(), lambda x: 3 * loss(x)):
        logits = leaf(LOGITS)
        value = function(logits)
        value.backward(retain_graph=True)
        once = logits.grad.clone()
        value.backward(retain_graph=True)
        assert torch.equal(logits.grad, once + once)
        value.backward()
        assert torch.equal(logits.grad, once + once + once)


@pytest.mark.parametrize("function", [loss, lambda x: loss(x, reduction="none").sum(), log_softmax])
def test_a_graph_that_was_freed_is_an_error(function):
    value = function(leaf(LOGITS)).sum()
    value.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        value.backward()


@pytest.mark.parametrize("function", [loss, lambda x: loss(x, reduction="none").sum(), log_softmax])
def test_arrays_modified_before_the_backward_are_an_error(function):
    logits = leaf(LOGITS) * 1
    value = function(logits).sum()
    logits.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@pytest.mark.parametrize("name", ["target", "weight", "sample_weight"])
def test_so_are_the_other_arrays(name):
    arrays = {
        "target": TARGET.clone(),
        "weight": WEIGHT.clone(),
        "sample_weight": WEIGHT[:1] + SEED[:, 0] ** 2,
    }
    value = loss(leaf(LOGITS), **arrays)
    arrays[name].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_a_gradient_is_not_shared():
    logits = leaf(LOGITS)
    value = loss(logits)
    value.backward(retain_graph=True)
    expected, mine = logits.grad.clone(), logits.grad
    mine.zero_()
    logits.grad = None
    value.backward(retain_graph=True)
    assert torch.equal(logits.grad, expected)
    assert torch.equal(mine, torch.zeros_like(mine))
    found = [torch.autograd.grad(value, logits, retain_graph=True)[0] for _ in range(3)]
    assert len({y.data_ptr() for y in (*found, logits.grad, logits, mine)}) == 6
    found = [own(LOGITS)[1] for _ in range(2)]
    assert len({y.data_ptr() for y in (*found, LOGITS)}) == 3


def test_two_losses_of_one_array():
    logits = leaf(LOGITS)
    first, second = loss(logits), loss(logits, logit_softcap=3.0)
    expected = [torch.autograd.grad(y, logits, retain_graph=True)[0] for y in (first, second)]
    (first + second).backward(retain_graph=True)
    assert torch.equal(logits.grad, expected[0] + expected[1])
    second.backward()
    assert torch.equal(logits.grad, expected[0] + expected[1] + expected[1])


def test_logits_as_the_target():
    probabilities = LOGITS.softmax(-1)

    def function(x):
        return xentx_torch.cross_entropy(x, x)

    assert_near(both(function)(probabilities), both(portable(function))(probabilities))


def test_hooks_see_gradients_and_may_change_them():
    logits = leaf(LOGITS)
    hidden = 2 * logits
    hidden.retain_grad()
    hidden.register_hook(lambda g: 3 * g)
    done = []
    logits.register_post_accumulate_grad_hook(lambda x: done.append(x.grad.clone()))
    loss(hidden).backward()
    expected = 3 * both(loss)(2 * LOGITS)[1]
    assert_near((hidden.grad, done[0]), (expected, 2 * expected))


def test_saved_tensors_can_be_packed_and_nothing_else_is_saved(calls):
    packed, unpacked = [], []

    def pack(x):
        packed.append(x.shape)
        return x.clone()

    def unpack(x):
        unpacked.append(x.shape)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        found = both(loss)(LOGITS)
    assert sorted(packed) == sorted(unpacked) == [(6,), (6, 5)]
    assert calls == ["v", "cg"]
    assert_bits(found, both(loss)(LOGITS))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_checkpoints(reduction, reentrant):
    def function(x):
        return loss(2 * x, reduction=reduction).sum()

    def recomputed(x):
        return torch.utils.checkpoint.checkpoint(function, x, use_reentrant=reentrant)

    assert_bits(both(recomputed)(LOGITS), both(function)(LOGITS))


def test_parts_of_a_graph():
    logits, weight, target = leaf(LOGITS), leaf(WEIGHT), leaf(SOFT)
    everything = (logits, target, weight)

    def derive(*chosen):
        value = loss(logits, target, weight=weight)
        return torch.autograd.grad(value, chosen)

    together = derive(*everything)
    for array, wanted in zip(everything, together, strict=True):
        assert_near(derive(array), [wanted])
    expected = portable(derive)(*everything)
    assert_near(together, expected)
    loss(logits, target, weight=weight).backward(inputs=[weight])
    assert logits.grad is target.grad is None
    assert_near([weight.grad], [expected[2]])
    assert not loss(logits.detach(), target.detach()).requires_grad


# ---- derivatives that the kernel does not compute


def second(function):
    return torch.func.grad(lambda x: (torch.func.grad(function)(x) * SEED).sum())


def dual(function):
    def derivative(x):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(function(forward_ad.make_dual(leaf(x), SEED))).tangent

    return derivative


def legacy(name, **options):
    return lambda function: (
        lambda x: getattr(torch.autograd.functional, name)(function, x, **options)
    )


def batched(function):
    def derivative(x):
        x = leaf(x)
        value = function(x)
        seeds = torch.stack([torch.full_like(value, y) for y in (1.0, 0.0, -0.3)])
        return torch.autograd.grad(value, x, seeds, is_grads_batched=True)[0]

    return derivative


def mapped_backward(function):
    def derivative(x):
        x = leaf(x)
        value = function(x)

        def pull(y):
            return torch.autograd.grad(value, x, y * torch.ones_like(value), retain_graph=True)[0]

        return torch.vmap(pull)(torch.tensor([1.0, 0.0, -0.3], dtype=x.dtype))

    return derivative


f = torch.func
DERIVATIVES = {
    "grad": f.grad,
    "second": second,
    "third": lambda function: f.grad(lambda x: (second(function)(x) * SEED).sum()),
    "vjp": lambda function: lambda x: f.vjp(function, x)[1](torch.tensor(0.3, dtype=x.dtype))[0],
    "jvp": jvp,
    "jvp of jvp": lambda function: jvp(jvp(function)),
    "jvp of grad": lambda function: jvp(f.grad(function)),
    "grad of jvp": lambda function: f.grad(jvp(function)),
    "dual numbers": dual,
    "dual numbers of backward": lambda function: dual(
        lambda x: torch.autograd.grad(function(x), x, create_graph=True)[0]
    ),
    "jacrev": f.jacrev,
    "jacfwd": f.jacfwd,
    "hessian": f.hessian,
    "jacrev of jacrev": lambda function: f.jacrev(f.jacrev(function)),
    "jacrev of jacfwd": lambda function: f.jacrev(f.jacfwd(function)),
    "linearize": lambda function: lambda x: f.linearize(function, x)[1](SEED),
    "vmap": lambda function: lambda x: f.vmap(function)(stacked(x)),
    "vmap in chunks": lambda function: lambda x: f.vmap(function, chunk_size=2)(stacked(x)),
    "vmap of grad": lambda function: lambda x: f.vmap(f.grad(function))(stacked(x)),
    "vmap of second": lambda function: lambda x: f.vmap(second(function))(stacked(x)),
    "vmap of jvp": lambda function: lambda x: f.vmap(jvp(function))(stacked(x)),
    "grad of vmap": lambda function: f.grad(lambda x: f.vmap(function)(stacked(x)).sum()),
    "jacrev of vmap": lambda function: f.jacrev(lambda x: f.vmap(function)(stacked(x))),
    "hessian of vmap": lambda function: f.hessian(lambda x: f.vmap(function)(stacked(x))),
    "legacy jacobian": legacy("jacobian"),
    "legacy jacobian at once": legacy("jacobian", vectorize=True),
    "legacy jacobian forward": legacy("jacobian", vectorize=True, strategy="forward-mode"),
    "legacy hessian": legacy("hessian"),
    "legacy hessian at once": legacy("hessian", vectorize=True),
    "legacy vhp": lambda function: lambda x: torch.autograd.functional.vhp(function, x, SEED)[1],
    "legacy hvp": lambda function: lambda x: torch.autograd.functional.hvp(function, x, SEED)[1],
    "batched cotangents": batched,
    "vmap of backward": mapped_backward,
}


def row_stats(x, target=TARGET, **options):
    """Weighted sum of the fields that have derivatives."""
    fields = xentx_torch.per_row(x, target, label_smoothing=0.1, **options)[:4]
    return sum((field * seed).sum() for field, seed in zip(fields, SEED.T, strict=False))


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr")
@pytest.mark.parametrize("name", DERIVATIVES)
def test_every_derivative_is_the_one_of_the_core(name):
    options = {"z_loss": 0.1, "logit_softcap": 3.0}
    functions = (
        lambda x: loss(x, **options),
        lambda x: (loss(x, reduction="none", **options) * SEED[:, 0]).sum(),
        lambda x: (log_softmax(x) * SEED).sum(),
        lambda x: row_stats(x, **options),
    )
    derivative = DERIVATIVES[name]
    for function in functions:
        expected = portable(derivative(function))(LOGITS)
        assert expected.abs().max() > 0
        assert_near([derivative(function)(LOGITS).detach()], [expected.detach()])


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_row_statistics_in_eager_mode(dtype, soft):
    """The kernel computes fields and the gradient of the logits, the core other derivatives."""
    target = SOFT if soft else TARGET
    arrays = [a.to(dtype) if a.is_floating_point() else a for a in (LOGITS, target, WEIGHT)]

    def function(logits, target, weight):
        return row_stats(logits, target, weight=weight, z_loss=0.1)

    def derivatives():
        given = [leaf(a) if a.is_floating_point() else a for a in arrays]
        wanted = [a for a in given if a.requires_grad]
        plain = torch.autograd.grad(function(*given), wanted[0])[0]
        first = torch.autograd.grad(function(*given), wanted, create_graph=True)
        again = torch.autograd.grad(sum((g * g).sum() for g in first), wanted)
        return [plain, *(g.detach() for g in first), *again]

    logits = leaf(arrays[0])
    stats, no_graph = (xentx_torch.per_row(x, *arrays[1:2]) for x in (logits, arrays[0]))
    assert_bits([field.detach() for field in stats], no_graph)
    assert [field.requires_grad for field in stats] == [True] * 4 + [False] * 2
    assert type(stats.entropy.grad_fn).__name__ == "_RowsBackward"
    rtol = 1e-10 if dtype == torch.float64 else 2e-5
    assert_near(derivatives(), portable(derivatives)(), rtol, rtol)
    with torch.no_grad():
        logits.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stats.lse.sum().backward()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_derivatives_by_all_arrays_at_once_and_again(reduction):
    arrays = [LOGITS, SOFT, WEIGHT, SAMPLE_WEIGHT]
    if reduction == "mean":
        arrays.append(torch.tensor(7.5, dtype=torch.float64))

    def function(logits, target, weight, sample_weight, normalizer=None):
        return xentx_torch.cross_entropy(
            logits,
            target,
            weight=weight,
            sample_weight=sample_weight,
            normalizer=normalizer,
            reduction=reduction,
            z_loss=0.1,
        )

    def derivatives(*arrays):
        arrays = [leaf(a) for a in arrays]
        first = torch.autograd.grad(function(*arrays).sum(), arrays, create_graph=True)
        total = sum((y * y).sum() for y in first)
        return [y.detach() for y in (*first, *torch.autograd.grad(total, arrays))]

    def functional(*arrays):
        every = tuple(range(len(arrays)))
        first = torch.func.grad(lambda *a: function(*a).sum(), argnums=every)
        total = torch.func.grad(lambda *a: sum((y * y).sum() for y in first(*a)), argnums=every)
        return [*first(*arrays), *total(*arrays)]

    expected = portable(derivatives)(*arrays)
    assert_near(derivatives(*arrays), expected, atol=1e-11)
    assert_near(functional(*arrays), expected, atol=1e-11)


def test_gradcheck():
    for reduction in ("none", "mean"):
        arrays = [leaf(a) for a in (LOGITS[:3, :3], SOFT[:3, :3], WEIGHT[:3])]

        def function(logits, target, weight, reduction=reduction):
            return loss(logits, target, weight=weight, z_loss=0.1, reduction=reduction)

        assert torch.autograd.gradcheck(
            function, arrays, check_forward_ad=True, check_batched_grad=True
        )
        assert torch.autograd.gradgradcheck(function, arrays, check_batched_grad=True)
    target = torch.tensor([0, 2, -100])
    for function in (log_softmax, lambda x: loss(x, target, logit_softcap=4.0)):
        assert torch.autograd.gradcheck(function, arrays[:1], check_batched_grad=True)
        assert torch.autograd.gradgradcheck(function, arrays[:1])


def test_an_operator_remembers_all_options_to_the_last_bit():
    for options in (
        {
            "z_loss": 1e-300,
            "logit_softcap": 1 / 3,
            "temperature": 0.1,
            "ignore_index": int(TARGET[0]),
        },
        {"weight": WEIGHT, "sample_weight": SAMPLE_WEIGHT, "normalizer": 1 / 7},
        {"reduction": "weighted_mean", "sample_weight": SAMPLE_WEIGHT},
        {"precision": "exact"},
    ):
        for logits in (LOGITS, LOGITS.float()):

            def function(x, options=options):
                return loss(x, **options)

            expected = both(function)(logits)
            assert_bits([function(logits), torch.func.grad(function)(logits)], expected)
            assert_bits(torch.func.grad_and_value(function)(logits)[::-1], expected)


# ---- vmap

DIMS = {
    "logits": (0, None),
    "target": (None, 0),
    "both": (0, 0),
    "logits in the middle": (1, None),
    "logits last": (2, 0),
    "target last": (None, -1),
}


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", DIMS)
def test_vmap_changes_no_bit(name, reduction, soft):
    dims = DIMS[name]
    rng = np.random.default_rng(RNG_SEED)
    logits = torch.tensor(rng.normal(size=(3, 6, 5)), dtype=torch.float32)
    targets = torch.tensor(
        rng.gamma(1.0, size=(3, 6, 5)) if soft else rng.integers(0, 5, (3, 6)),
        dtype=torch.float32 if soft else torch.int64,
    )
    arrays = [
        a[0] if d is None else a.movedim(0, d) for a, d in zip((logits, targets), dims, strict=True)
    ]

    def function(x, t):
        return loss(x, t, reduction=reduction, weight=WEIGHT)

    for each in (function, torch.func.grad(lambda x, t: function(x, t).sum())):
        found = torch.vmap(each, dims)(*arrays)
        singly = [
            each(*(a if d is None else a.select(d, i) for a, d in zip(arrays, dims, strict=True)))
            for i in range(3)
        ]
        assert_bits([found], [torch.stack(singly)])


def test_nested_vmap():
    logits, targets = torch.randn(2, 6, 3, 5), torch.randint(0, 5, (3, 2, 6))
    weights = torch.rand(2, 5) + 0.5

    def function(x, t, w):
        return loss(x, t, weight=w)

    inner = torch.vmap(torch.func.grad_and_value(function), (1, 0, None))
    found = torch.vmap(inner, (0, 1, 0))(logits, targets, weights)
    for i in range(2):
        for j in range(3):
            expected = torch.func.grad_and_value(function)(
                logits[i, :, j], targets[j, i], weights[i]
            )
            assert_bits([y[i, j] for y in found], expected)
    assert torch.vmap(loss, (0, None))(torch.zeros(0, 6, 5), TARGET).shape == (0,)
