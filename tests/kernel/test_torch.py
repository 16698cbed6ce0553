"""PyTorch's tensors on the CPU kernel: plain, transformed, traced and compiled.

That the bits are those of the other frameworks is shown in test_bits too, and that derivatives of
every order are right in tests/matrix, which runs on the kernel where there is one. Here is what
PyTorch could do to a Function and to operators that it does not know.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from types import SimpleNamespace

import numpy as np
import pytest

import xentx
import xentx_numpy
from xentx.testing import _oracle as oracle
from xentx.testing import requested_frameworks
from xentx.testing._engines import portable_core
from xentx.testing._problems import OPTIONS, REDUCTIONS, RNG_SEED, draw_problem

if "torch" not in requested_frameworks():
    pytest.skip("PyTorch is not asked for", allow_module_level=True)

import torch
import torch.utils.checkpoint
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import xentx_torch
from xentx import _evaluate, _kernel_engine, _validation
from xentx_torch import _kernel as adapter
from xentx_torch import _operators, _private
from xentx_torch.testing import Torch

if _kernel_engine.KERNEL is None:
    pytest.skip("xentx is without a kernel here", allow_module_level=True)

from xentx_torch._kernel import OPERATOR_PAYS

BACKEND = xentx_torch.BACKEND
RNG = np.random.default_rng(RNG_SEED)
LOGITS = torch.tensor(RNG.normal(0, 2, (6, 5)))
TARGET = torch.tensor(RNG.integers(0, 5, 6))
SOFT = torch.tensor(RNG.gamma(1.0, size=(6, 5)))
WEIGHT, SAMPLE_WEIGHT = torch.tensor(RNG.uniform(0.5, 2, 5)), torch.tensor(RNG.uniform(0.5, 2, 6))
SEED = torch.tensor(RNG.normal(size=(6, 5)))
# So many that compilers call the kernel.
LARGE = torch.tensor(RNG.normal(0, 2, (OPERATOR_PAYS // 1000 + 1, 1000)), dtype=torch.float32)
LARGE_TARGET = torch.tensor(RNG.integers(0, 1000, len(LARGE)))

to_torch, to_numpy = Torch().array, Torch().numpy
log_softmax = xentx_torch.log_softmax


def loss(logits, target=TARGET, **options):
    return xentx_torch.cross_entropy(logits, target, label_smoothing=0.1, **options)


def own(logits, target=TARGET, **options):
    """Value and gradient by xentx alone, without autograd."""
    both = xentx.value_and_grad(xentx_torch.cross_entropy)
    return both(logits, target, label_smoothing=0.1, **options)


def portable(function):
    """The same by the core."""

    def by_the_core(*args, **kwargs):
        with portable_core(BACKEND):
            return function(*args, **kwargs)

    return by_the_core


def leaf(array):
    """A leaf that lies as the array does, and shares its memory."""
    return array.detach().requires_grad_()


def both(function):
    """Value and gradient by the first argument, for a cotangent."""

    def value_and_gradient(logits, *args, cotangent=None):
        logits = leaf(logits)
        value = function(logits, *args)
        value.backward(torch.ones_like(value) if cotangent is None else cotangent)
        return value.detach(), logits.grad

    return value_and_gradient


def expected_bits(logits, target, cotangent=None, **options):
    """NumPy's value and gradient, for arrays of PyTorch's."""
    arrays = {k: to_numpy(v) for k, v in options.items() if isinstance(v, torch.Tensor)}
    seed = None if cotangent is None else to_numpy(cotangent)
    args = [to_numpy(logits)] if target is None else [to_numpy(logits), to_numpy(target)]
    function = xentx_numpy.log_softmax if target is None else xentx_numpy.cross_entropy
    return xentx.value_and_grad(function)(*args, cotangent=seed, **{**options, **arrays})


def assert_bits(found, expected):
    for got, array in zip(found, expected, strict=True):
        wanted = array if isinstance(array, torch.Tensor) else to_torch(np.asarray(array))
        assert got.dtype == wanted.dtype
        assert torch.equal(got.isnan(), wanted.isnan())
        assert torch.equal(got.nan_to_num(), wanted.nan_to_num())


def assert_near(found, expected, rtol=1e-9, atol=1e-12):
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol, equal_nan=True)


@pytest.fixture
def calls(monkeypatch):
    """What each call of the kernel is asked for, in letters: cotangent, value, gradient."""
    made = []
    plan = _kernel_engine.KERNEL.plan

    def spy(**layout):
        ready = plan(**layout)

        def called(value, gradient, cotangent, *given):
            asked = (cotangent, value, gradient)
            made.append("".join(x for x, y in zip("cvg", asked, strict=True) if y is not None))
            return ready(value, gradient, cotangent, *given)

        return called

    # Plans are kept.
    monkeypatch.setattr(_validation, "_KINDS", {})
    monkeypatch.setattr(_operators, "_KNOWN", {})
    monkeypatch.setattr(adapter, "_calls", adapter.no_calls())
    monkeypatch.setattr(_kernel_engine, "KERNEL", SimpleNamespace(plan=spy))
    return made


@pytest.fixture
def never_the_core(monkeypatch):
    """Makes an error of every way to the core."""

    def fail(*args, **kwargs):
        pytest.fail("the core was called")

    monkeypatch.setattr(_evaluate, "portable", fail)
    monkeypatch.setattr(_evaluate, "portable_with_gradient", fail)


def operators_in(graph):
    """Names of our operators in an FX graph."""
    return [node.target.name() for node in graph.graph.nodes if "xentx" in str(node.target)]


# ---- calls that are known


@pytest.mark.usefixtures("never_the_core")
def test_a_known_call_is_told_from_all_others(monkeypatch):
    """Each twice, among others of the same shape: by function, dtype, strides and options."""
    monkeypatch.setattr(adapter, "_calls", adapter.no_calls())
    logits, target = torch.randn(6, 4, generator=torch.manual_seed(0)), torch.tensor([0, 1, 2] * 2)
    wide, turned = torch.cat([logits] * 2, 1), logits.T.contiguous().T
    forms = [logits, turned, wide[:, :4], wide[:, 4:], logits.double(), logits.half(), logits[:3]]
    options = [{}, {"label_smoothing": 0.1}, {"label_smoothing": 0.2}, {"reduction": "sum"}]
    options += [{"reduction": "none"}, {"ignore_index": 1}, {"z_loss": 1}, {"z_loss": 1.0}]
    cases = [
        (x, t, option)
        for x in forms
        for t in (target[: len(x)], target[: len(x)].int())
        for option in options
    ]
    for again in range(2):
        for x, t, option in cases if again else cases[::-1]:
            bits = expected_bits(x, t, **option)[0]
            assert_bits([xentx.cross_entropy(x, t, **option)], [bits])
            assert_bits([xentx_torch.cross_entropy(x, t, **option)], [bits])
            leaf = x.clone().requires_grad_()
            for enabled in (True, False):
                with torch.set_grad_enabled(enabled):
                    value = xentx.cross_entropy(leaf, t, **option)
                assert value.requires_grad == enabled
        assert_bits([xentx.log_softmax(logits)], [xentx_numpy.log_softmax(logits.numpy())])


def test_a_known_call_with_a_wrong_index_is_an_error():
    logits, target = torch.randn(3, 4), torch.tensor([0, 1, 2])
    for _ in range(2):
        xentx.cross_entropy(logits, target)
    with pytest.raises(IndexError, match="got 9 at position 1"):
        xentx.cross_entropy(logits, torch.tensor([0, 9, 2]))


# ---- values and gradients


@pytest.mark.usefixtures("never_the_core")
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", oracle.DTYPES)
def test_all_options_are_handed_on(dtype, reduction, soft):
    for i, names in enumerate(OPTIONS.values()):
        rng = np.random.default_rng([RNG_SEED, i])
        logits, target, options, seed = draw_problem(
            rng, (4, 7, 3), 1, oracle.DTYPES[dtype], soft=soft, reduction=reduction, options=names
        )
        tensors = {k: to_torch(v) for k, v in options.items() if isinstance(v, np.ndarray)}
        index_dtype = torch.int64 if i % 2 else torch.int32
        tensor = to_torch(target) if soft else to_torch(target).to(index_dtype)
        for cotangent in (seed, np.ones_like(seed)):
            mine = xentx_numpy.value_and_grad(xentx_numpy.cross_entropy)(
                logits, target, cotangent=cotangent, **options
            )
            found = both(
                lambda x, t=tensor, options={**options, **tensors}: xentx_torch.cross_entropy(
                    x, t, **options
                )
            )(to_torch(logits), cotangent=to_torch(cotangent))
            assert_bits(found, mine)
            truth = oracle.cross_entropy(logits, target, cotangent=cotangent, **options)
            for got, true, scale in zip(
                map(to_numpy, found),
                (truth.value, truth.gradient),
                (truth.value_scale, truth.gradient_scale),
                strict=True,
            ):
                oracle.assert_within(got, true, scale, 4)


@pytest.mark.usefixtures("never_the_core")
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("shape", [(5,), (6, 5), (2, 5, 3), (2, 3, 5, 4), (3, 1, 5, 2, 2)])
def test_every_axis(shape, soft):
    for axis in range(len(shape)):
        for reduction in ("none", "mean"):
            rng = np.random.default_rng([RNG_SEED, axis])
            logits, target, options, seed = draw_problem(
                rng, shape, axis, np.float32, soft=soft, reduction=reduction,
                options={"sample_weight": True, "weight": True},
            )  # fmt: skip
            arrays = [to_torch(np.asarray(a)) for a in (logits, target, seed)]
            tensors = {k: to_torch(options.pop(k)) for k in ("sample_weight", "weight")}
            found = both(
                lambda x, t=arrays[1], o=options | tensors: xentx_torch.cross_entropy(x, t, **o)
            )(arrays[0], cotangent=arrays[2])
            assert_bits(found, expected_bits(*arrays, **options, **tensors))
    for axis in range(len(shape)):
        found = both(lambda x, axis=axis: log_softmax(x, axis=axis))(arrays[0])
        assert_bits(found, expected_bits(arrays[0], None, axis=axis))


def misaligned(x):
    """Memory of which not even the elements are aligned."""
    raw = bytearray(1 + x.numel() * x.element_size())
    whole = torch.frombuffer(raw, dtype=torch.uint8)
    whole[1:] = x.contiguous().reshape(-1).view(torch.uint8)
    return torch.frombuffer(raw, dtype=x.dtype, offset=1).reshape(x.shape)


def of_a_larger(x):
    whole = torch.full([2 * n + 3 for n in x.shape], 77, dtype=x.dtype)
    part = whole[tuple(slice(1, 1 + 2 * n, 2) for n in x.shape)]
    return part.copy_(x)


LAYOUTS = {
    "contiguous": lambda x: x,
    "axes in reverse": lambda x: x.permute(*range(x.ndim)[::-1]).contiguous().permute(
        *range(x.ndim)[::-1]
    ),
    "first axis last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "last axis first": lambda x: x.movedim(-1, 0).contiguous().movedim(0, -1),
    "part of a larger": of_a_larger,
    "flipped by indexing": lambda x: x[torch.arange(len(x)).flip(0)],
    "first expanded": lambda x: x[:1].expand(x.shape),
    "last expanded": lambda x: x[..., :1].expand(x.shape),
    "one number": lambda x: x[(0,) * x.ndim].expand(x.shape),
    "overlapping": lambda x: x.as_strided(x.shape, (1,) * x.ndim),
    "misaligned": misaligned,
    "misaligned and in reverse": lambda x: misaligned(x.mT).mT if x.ndim > 1 else misaligned(x),
}  # fmt: skip


@pytest.mark.usefixtures("never_the_core")
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout(name, soft):
    lay = LAYOUTS[name]
    rng = np.random.default_rng(RNG_SEED)
    for shape, axis in (((6, 5), 1), ((4, 7, 3), 1), ((4, 3, 7), 2), ((3, 4, 2, 2), 1)):
        for reduction in ("none", "weighted_mean"):
            logits, target, options, seed = draw_problem(
                rng, shape, axis, np.float32, soft=soft, reduction=reduction,
                options={"sample_weight": True, "weight": True},
            )  # fmt: skip
            arrays = [to_torch(np.asarray(a)) for a in (logits, target, seed)]
            tensors = {k: to_torch(options.pop(k)) for k in ("sample_weight", "weight")}
            arrays = [lay(a) if a.ndim else a for a in arrays]
            tensors = {k: lay(v) for k, v in tensors.items()}
            found = both(
                lambda x, t=arrays[1], o=options | tensors: xentx_torch.cross_entropy(x, t, **o)
            )(arrays[0], cotangent=arrays[2])
            assert_bits(found, expected_bits(*arrays, **options, **tensors))
            logits = arrays[0].contiguous()
            expected = expected_bits(*arrays, **options, **tensors, label_smoothing=0.1)
            seed = arrays.pop()
            assert_bits(own(*arrays, cotangent=seed, **options, **tensors), expected)
            assert torch.equal(arrays[0], logits)
    cotangent = lay(to_torch(rng.normal(size=shape).astype(np.float32)))
    found = both(lambda x: log_softmax(x, axis=1))(arrays[0], cotangent=cotangent)
    assert_bits(found, expected_bits(arrays[0], None, cotangent, axis=1))


def test_each_array_may_lie_as_it_likes():
    # What is prepared for one layout must not be taken for another.
    arrays = {"target": TARGET, "weight": WEIGHT, "sample_weight": SAMPLE_WEIGHT}
    expected = both(lambda x: loss(x, **arrays))(LOGITS)
    soft = both(lambda x: loss(x, SOFT))(LOGITS)
    for lay in LAYOUTS.values():
        for name, array in arrays.items():
            if torch.equal(lay(array), array):  # some layouts change the values
                given = {**arrays, name: lay(array)}
                assert_bits(both(lambda x, g=given: loss(x, **g))(LOGITS), expected)
        if torch.equal(lay(SOFT), SOFT):
            assert_bits(both(lambda x, lay=lay: loss(x, lay(SOFT)))(LOGITS), soft)


def test_a_gradient_lies_as_its_logits_do():
    images = torch.randn(2, 5, 3, 4).to(memory_format=torch.channels_last)
    target = torch.zeros(2, 3, 4, dtype=torch.int64)
    for logits in (images, images.contiguous(), images.permute(0, 2, 3, 1)):
        axis = 3 if logits.shape[3] == 5 else 1
        for reduction in ("mean", "none"):
            value, found = both(
                lambda x, a=axis, r=reduction: loss(x, target, axis=a, reduction=r)
            )(logits)
            assert found.stride() == logits.stride()
            assert value.is_contiguous()


@pytest.mark.usefixtures("never_the_core")
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64"])
def test_class_indices_of_every_dtype(dtype):
    target = TARGET.to(getattr(torch, dtype))
    ignored = {"ignore_index": int(TARGET[0])}
    assert_bits(
        both(lambda x: loss(x, target, **ignored))(LOGITS),
        both(lambda x: loss(x, **ignored))(LOGITS),
    )


@pytest.mark.usefixtures("never_the_core")
@pytest.mark.parametrize("dtype", oracle.DTYPES)
def test_probabilities_and_weights_of_every_dtype(dtype):
    arrays = [a.to(getattr(torch, dtype)) for a in (SOFT, WEIGHT, SAMPLE_WEIGHT)]
    for logits in (LOGITS.half(), LOGITS.float(), LOGITS):
        options = {"weight": arrays[1], "sample_weight": arrays[2]}
        found = both(lambda x, o=options: xentx_torch.cross_entropy(x, arrays[0], **o))(logits)
        assert_bits(found, expected_bits(logits, arrays[0], **options))


@pytest.mark.usefixtures("never_the_core")
def test_sizes_that_are_odd():
    for shape in ((0, 5), (3, 1), (0, 1), (1, 5)):
        logits, target = torch.zeros(shape), torch.zeros(shape[0], dtype=torch.int64)
        for reduction in REDUCTIONS:
            found = both(lambda x, t=target, r=reduction: loss(x, t, reduction=r))(logits)
            assert_bits(
                found, expected_bits(logits, target, label_smoothing=0.1, reduction=reduction)
            )
        assert both(log_softmax)(logits)[1].shape == shape
    value, found = both(lambda x: loss(x, torch.tensor(3)))(LOGITS[0])
    assert value.shape == ()
    assert_bits(
        (value, found), expected_bits(LOGITS[0], TARGET[:1][0] * 0 + 3, label_smoothing=0.1)
    )


# ---- cotangents


@pytest.mark.usefixtures("never_the_core")
@pytest.mark.parametrize("dtype", oracle.DTYPES)
@pytest.mark.parametrize("cotangent", [1.0, 2.0, 0.0, -0.37, 3e-5, float("nan"), float("inf")])
def test_every_cotangent_of_a_reduced_loss(cotangent, dtype):
    logits = LOGITS.to(getattr(torch, dtype))
    seed = torch.tensor(cotangent, dtype=logits.dtype)
    for reduction in ("sum", "mean", "weighted_mean"):
        options = {"label_smoothing": 0.1, "reduction": reduction}
        expected = expected_bits(logits, TARGET, seed, **options)
        assert_bits(
            both(lambda x, r=reduction: loss(x, reduction=r))(logits, cotangent=seed), expected
        )
        for given in (seed, cotangent, np.float64(seed.item())):
            if given is not cotangent or dtype == "float64":  # which others may lack
                assert_bits(own(logits, cotangent=given, reduction=reduction), expected)


ROW_COTANGENTS = {
    "of rows": SEED[:, 0].contiguous(),
    "not contiguous": SEED[:, 1],
    "one expanded": torch.tensor(1.0, dtype=torch.float64).expand(6),
    "zeros": torch.zeros(6, dtype=torch.float64),
    "some NaN": torch.where(torch.arange(6) == 2, torch.nan, SEED[:, 2]),
    "misaligned": misaligned(SEED[:, 3]),
    "negated view": torch.complex(SEED[:, 0], SEED[:, 1]).conj().imag,
}


@pytest.mark.parametrize("name", ROW_COTANGENTS)
def test_every_cotangent_of_rows(name):
    cotangent = ROW_COTANGENTS[name]
    assert_bits(
        both(lambda x: loss(x, reduction="none"))(LOGITS, cotangent=cotangent),
        expected_bits(LOGITS, TARGET, cotangent.clone(), label_smoothing=0.1, reduction="none"),
    )
    columns = cotangent[:, None].expand(6, 5)
    assert_bits(
        both(log_softmax)(LOGITS, cotangent=columns), expected_bits(LOGITS, None, columns.clone())
    )


def test_sums_of_unreduced_losses():
    # Their cotangent is one number, expanded.
    for dtype in (torch.float16, torch.float32, torch.float64):
        logits = LOGITS.to(dtype)
        ones = torch.ones(6, dtype=dtype)
        options = {"label_smoothing": 0.1, "reduction": "none"}
        _, found = both(lambda x: loss(x, reduction="none").sum())(logits)
        assert_bits([found], [expected_bits(logits, TARGET, ones, **options)[1]])
        _, found = both(lambda x: log_softmax(x).sum())(logits)
        assert_bits([found], [expected_bits(logits, None, ones[:, None].expand(6, 5))[1]])


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("watched", [False, True])
def test_cotangents_of_another_dtype_than_the_value(dtype, watched):
    logits = LOGITS.float().requires_grad_(watched)
    seed = (7 * SEED.abs()).to(getattr(torch, dtype))
    for options in ({}, {"precision": "exact"}):
        found = xentx.value_and_grad(log_softmax)(logits, cotangent=seed, **options)
        expected = expected_bits(logits, None, seed, **options)
        assert_near((y.detach() for y in found), map(to_torch, expected), rtol=1e-6, atol=1e-6)
        found = own(logits, cotangent=seed[:, 0], reduction="none", **options)
        expected = expected_bits(
            logits, TARGET, seed[:, 0], label_smoothing=0.1, reduction="none", **options
        )
        assert_bits((y.detach() for y in found), expected)


def test_small_gradients_survive_in_float16():
    # What a loss scaled down by 2^-14 pulls back, which the gradient for a cotangent of 1, rounded
    # to float16 and scaled only then, would have lost.
    seed = torch.tensor(2.0**-14, dtype=torch.float16)
    _, found = both(loss)(LOGITS.half(), cotangent=seed)
    truth = oracle.cross_entropy(
        LOGITS.half().numpy(), TARGET.numpy(), label_smoothing=0.1, cotangent=seed.numpy()
    )
    assert oracle.ulps(found.numpy(), truth.gradient).max() <= 0.501


# ---- the Function: what is formed, saved, and handed over


def test_what_the_kernel_is_asked_for(calls):
    logits = leaf(LOGITS)
    loss(LOGITS)
    with torch.no_grad():
        loss(logits)
    value = loss(logits)
    assert calls == ["v", "v", "vg"]
    value.backward(retain_graph=True)
    assert calls == ["v", "v", "vg"]  # the gradient for a cotangent of 1 was there
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


def test_a_gradient_that_is_there_is_no_constant():
    """Second derivatives of a loss are not 0 because its gradient was formed in the forward."""
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
def test_a_graph_that_was_freed_says_so(function):
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


def test_a_gradient_is_nobody_elses():
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


def test_logits_that_are_the_target_too():
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


# ---- around it: contexts, classes, devices


def flops():
    return FlopCounterMode(display=False)


@contextlib.contextmanager
def double_by_default():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def packed_away():
    with torch.autograd.graph.save_on_cpu():
        yield


CONTEXTS = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default dtype": double_by_default,
    "default device": lambda: torch.device("meta"),
    "saved elsewhere": packed_away,
    "operators are counted": flops,
    "mutation allowed": torch.autograd.graph.allow_mutation_on_saved_tensors,
    "anomalies are found": torch.autograd.detect_anomaly,
    "one thread": lambda: torch.autograd.set_multithreading_enabled(False),
    "forward mode": forward_ad.dual_level,
    "deterministic": lambda: torch.autograd.graph.disable_saved_tensors_hooks("none here"),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", CONTEXTS)
def test_contexts_change_nothing(name, monkeypatch):
    for dtype in (torch.float16, torch.float32):
        logits = LOGITS.to(dtype)
        for reduction in ("mean", "none"):

            def function(x, reduction=reduction):
                return loss(x, weight=WEIGHT, reduction=reduction)

            expected = both(function)(logits)
            monkeypatch.setattr(_validation, "_KINDS", {})  # so that all is prepared inside
            with CONTEXTS[name]():
                found = both(function)(logits)
                inside = own(logits, weight=WEIGHT, reduction=reduction)
            if name == "forward mode":  # which has derivatives of the core's
                assert_near(
                    found, expected, rtol=1e-2 if dtype == torch.float16 else 1e-5, atol=1e-5
                )
            else:
                assert_bits(found, expected)
                assert_bits(inside, expected)


def test_what_inference_mode_prepares_serves_outside():
    shape = (7, 11)
    with torch.inference_mode():
        logits, target = torch.randn(shape), torch.zeros(7, dtype=torch.int64)
        inside = loss(logits, target), loss(logits, target, reduction="none")
        assert all(y.is_inference() for y in inside)
    logits, target = logits.clone(), target.clone()
    for reduction, value in zip(("mean", "none"), inside, strict=True):
        found = both(lambda x, r=reduction: loss(x, target, reduction=r))(logits)
        assert not any(y.is_inference() for y in found)
        assert torch.equal(found[0], value)


def test_an_anomaly_is_found():
    logits = LOGITS.clone()
    logits[0, 0] = torch.nan
    with (
        pytest.warns(UserWarning, match="Anomaly Detection|Error detected in"),
        pytest.raises(RuntimeError, match="returned nan values in its 0th output"),
        torch.autograd.detect_anomaly(),
    ):
        both(loss)(logits)


class Subclass(torch.Tensor):
    """A class of somebody else's."""


class Head(torch.nn.Module):
    """A model that ends in the loss."""

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(LOGITS[0].clone())
        self.register_buffer("weight", WEIGHT)

    def forward(self, x, target):
        return loss(x + self.bias, target, weight=self.weight)


def test_subclasses_and_modules():
    expected = both(loss)(LOGITS)
    value, found = both(loss)(LOGITS.as_subclass(Subclass))
    assert type(value) is Subclass
    assert_near((y.as_subclass(torch.Tensor) for y in (value, found)), expected)
    parameter = torch.nn.Parameter(LOGITS.clone())
    loss(parameter, torch.nn.Buffer(TARGET)).backward()
    assert_bits([parameter.grad], [expected[1]])

    head = Head()
    head(LOGITS, TARGET).backward()
    by_bias = head.bias.grad

    def functional(parameters):
        return torch.func.functional_call(head, parameters, (LOGITS, TARGET))

    assert_near([torch.func.grad(functional)({"bias": head.bias.detach()})["bias"]], [by_bias])


def test_a_negated_view_is_read_as_it_is():
    negated = torch.complex(SOFT, SOFT).conj().imag
    assert negated.is_neg()
    plain = negated.clone().resolve_neg()
    for logits, target, weight in (
        (negated, TARGET, None), (LOGITS, -negated, None), (LOGITS, TARGET, negated[0]),
    ):  # fmt: skip

        def function(x, target=target, weight=weight):
            return loss(x, target, weight=weight)

        assert_near(both(function)(logits), both(portable(function))(logits))
    assert_near(both(loss)(negated), both(loss)(plain))


REFUSED = {
    "sparse": (lambda x: x.to_sparse(), TypeError),
    "compressed": (lambda x: x.to_sparse_csr(), TypeError),
    "of MKL-DNN": (lambda x: x.float().to_mkldnn(), TypeError),
    "nested": (lambda x: torch.nested.nested_tensor(list(x)), TypeError),
    "complex": (lambda x: x.to(torch.complex64).conj(), TypeError),
    "quantized": (lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8), TypeError),
    "of 8 bits": (lambda x: x.to(torch.float8_e5m2), TypeError),
}


@pytest.mark.filterwarnings("ignore")  # of features in beta
@pytest.mark.parametrize("name", REFUSED)
def test_what_nobody_can_read_is_the_error_of_the_core(name):
    make, error = REFUSED[name]
    messages = []
    for function in (loss, portable(loss), own):
        with pytest.raises(error) as caught:
            function(make(LOGITS))
        messages.append(str(caught.value)[:80])
    assert messages[0] == messages[1]


class Labelled(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (lambda: torch.ones(2), None),
        (lambda: torch.nn.Parameter(torch.ones(2)), None),
        (lambda: torch.ones(2, device="meta"), "the tensor is on device meta; the CPU kernel"),
        (lambda: torch.eye(2).to_sparse(), "the tensor has layout torch.sparse_coo; the CPU"),
        (lambda: torch.ones(2).as_subclass(Labelled), "the tensor is a Labelled, a subclass of"),
        (lambda: torch.ones(2, dtype=torch.cfloat).conj().imag, "the tensor is a view that negate"),
    ],
)
def test_why_a_tensor_takes_the_core(tensor, reason):
    info = xentx.backend_of(tensor())
    assert info.engine.split()[0] == ("kernel" if reason is None else "portable")
    assert (info.reason or "").startswith(reason or "")
    assert (info.reason is None) == (reason is None)


def test_other_devices_take_the_core():
    for reduction in REDUCTIONS:
        options = {"reduction": reduction, "weight": WEIGHT.to("meta")}
        value, found = both(lambda x, o=options: loss(x, TARGET.to("meta"), **o))(LOGITS.to("meta"))
        assert value.shape == ((6,) if reduction == "none" else ())
        assert found.shape == (6, 5)
        assert value.device.type == found.device.type == "meta"
    with FakeTensorMode():
        # As if there were a GPU: operators take arrays of one device only.
        logits, weight = torch.empty(6, 5, device="cuda"), torch.ones(5, device="cuda")
        target = torch.zeros(6, dtype=torch.int64, device="cuda")
        assert loss(logits, target, weight=weight).device.type == "cuda"
        assert own(logits, target, weight=weight)[1].device.type == "cuda"


# ---- indices out of range


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("wrong", [5, -1])
def test_a_wrong_index_is_the_same_error_as_ever(wrong, reduction):
    target = torch.where(torch.arange(6) == 2, wrong, TARGET)
    stacked = torch.stack([LOGITS, LOGITS])

    def function(x):
        return loss(x, target, reduction=reduction)

    for call in (
        lambda: function(LOGITS),
        lambda: function(leaf(LOGITS)),
        lambda: own(LOGITS, target, reduction=reduction),
        lambda: torch.vmap(function)(stacked),
        lambda: torch.func.jacrev(function)(LOGITS),
        lambda: torch.func.jvp(function, (LOGITS,), (SEED,)),
    ):
        with pytest.raises(IndexError, match=rf"target: got {wrong} at position 2; expected 0 <= "):
            call()
    # Where nobody can look at it, the row is NaN.
    rows = torch.arange(6) == 2
    mapped = torch.vmap(loss)(LOGITS.float()[:, None], target[:, None])
    assert torch.equal(mapped.isnan(), rows)


# ---- derivatives that the kernel lacks


def stacked(x):
    return torch.stack([x, 2.0 * x, x + 1.0])


def second(function):
    return torch.func.grad(lambda x: (torch.func.grad(function)(x) * SEED).sum())


def jvp(function):
    return lambda x: torch.func.jvp(function, (x,), (SEED,))[1]


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
    """Sum of the fields that have derivatives, weighted."""
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
    """By the kernel without autograd and with it; by the other arrays and again by the core."""
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


# ---- tracing and compiling


def collecting(graphs):
    """A backend of torch.compile that collects graphs, forward and backward, and runs them."""

    def compiler(graph, _):
        graphs.append(operators_in(graph))
        return make_boxed_func(graph)

    return aot_autograd(fw_compiler=compiler, bw_compiler=compiler)


@pytest.fixture
def fresh():
    """torch.compile as if nothing had been compiled."""
    torch._dynamo.reset()  # noqa: SLF001
    yield
    torch._dynamo.reset()  # noqa: SLF001


SMALL, FORWARD, BACKWARD = [], ["xentx::forward"], ["xentx::backward"]


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_graphs_hold_the_operators_where_they_pay(dynamic):
    small = LOGITS.float(), TARGET
    for arrays, expected in (
        (small, [SMALL, SMALL]),
        ((LARGE, LARGE_TARGET), [FORWARD, BACKWARD]),
    ):
        graphs = []
        compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend=collecting(graphs))
        found = both(compiled)(*arrays)
        assert graphs == expected
        assert_near(found, both(loss)(*arrays), rtol=1e-5, atol=1e-7)
        if expected != [SMALL, SMALL]:
            assert_bits(found, both(loss)(*arrays))
            if dynamic:
                shorter = [a[2:] for a in (LARGE.repeat(2, 1), LARGE_TARGET.repeat(2))]
                assert_bits(both(compiled)(*shorter), both(loss)(*shorter))
                assert graphs == expected
    graphs = []
    compiled = torch.compile(own, fullgraph=True, dynamic=dynamic, backend=collecting(graphs))
    found = compiled(LARGE, LARGE_TARGET)
    assert graphs == [[*FORWARD, *BACKWARD]]
    assert_bits(found, both(loss)(LARGE, LARGE_TARGET))


@pytest.mark.usefixtures("fresh")
def test_a_compiled_derivative_by_another_array_is_of_the_core():
    graphs = []
    weight = torch.ones(1000, requires_grad=True)
    compiled = torch.compile(
        lambda w: loss(LARGE, LARGE_TARGET, weight=w), fullgraph=True, backend=collecting(graphs)
    )
    compiled(weight).backward()
    assert graphs == [SMALL, SMALL]
    (expected,) = torch.autograd.grad(loss(LARGE, LARGE_TARGET, weight=weight), weight)
    assert_near([weight.grad], [expected], rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("fresh")
def test_a_wrong_index_is_nan_in_a_compiled_graph():
    for logits, target in ((LOGITS.float(), TARGET), (LARGE, LARGE_TARGET)):
        rows = torch.arange(len(logits)) == 2
        wrong = torch.where(rows, logits.shape[1], target)
        compiled = torch.compile(
            lambda x, t: loss(x, t, reduction="none"), fullgraph=True, backend="aot_eager"
        )
        value, found = both(compiled)(logits, wrong)
        assert torch.equal(value.isnan(), rows)
        assert torch.equal(found.isnan().all(1), rows)
        assert torch.equal(found.isnan().any(1), rows)


@pytest.mark.usefixtures("fresh")
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="it needs a compiler")
def test_inductor():
    def step(x, t):
        return 2.0 * loss(x * 1.0, t) + loss(x, t, reduction="none").sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for rows in (len(LARGE), len(LARGE) - 1):
        arrays = LARGE[:rows], LARGE_TARGET[:rows]
        assert_near(both(compiled)(*arrays), both(step)(*arrays), rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("fresh")
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_compiled_autograd():
    logits = leaf(LOGITS)
    value = loss(logits * 1)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):  # noqa: SLF001
        value.backward()
    assert_near([logits.grad], [both(loss)(LOGITS)[1]])


def traced(function, mode):
    def without_defaults(x, t):
        return function(x, t)

    return make_fx(without_defaults, tracing_mode=mode)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(mode):
    for arrays in ((LARGE, LARGE_TARGET), (LOGITS.float(), TARGET)):
        large = arrays[0] is LARGE or mode == "real"  # real tensors are none of a compiler's
        for function, names in (
            (loss, FORWARD),
            (torch.func.grad(loss), FORWARD + BACKWARD),
            (own, FORWARD + BACKWARD),
        ):
            graph = traced(function, mode)(*arrays)
            if large or function is loss:
                assert operators_in(graph) == (names if large else [])
            shorter = [a[1:] for a in arrays] if mode == "symbolic" else arrays
            found, expected = graph(*shorter), function(*shorter)
            if isinstance(found, torch.Tensor):
                found, expected = [found], [expected]
            assert_near(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize(
    "function", [xentx.cross_entropy, portable(xentx.cross_entropy), xentx.nll_loss]
)
def test_what_make_fx_records_serves_other_values(function, mode):
    """Whether a row is ignored, or its target is no class, is not part of the record."""
    graph = make_fx(lambda x, t: function(x, t, reduction="none"), tracing_mode=mode)(
        LOGITS, TARGET
    )
    expected = function(LOGITS, TARGET, reduction="none")
    for other, value in ((-100, 0.0), (5, float("nan"))):
        target = TARGET.clone()
        target[1], expected[1] = other, value
        torch.testing.assert_close(graph(LOGITS, target), expected, equal_nan=True)


def test_fake_tensors():
    for source, target in ((LARGE, LARGE_TARGET), (LOGITS.float(), TARGET)):
        with FakeTensorMode() as mode:
            logits = mode.from_tensor(source).requires_grad_()
            fake = mode.from_tensor(target)
            value = loss(logits, fake, reduction="none")
            value.sum().backward()
            assert value.shape == target.shape
            assert logits.grad.shape == source.shape
            assert [y.shape for y in own(logits, fake)] == [(), source.shape]
    assert torch.isfinite(loss(LOGITS.float()))  # nothing fake was kept


class Exported(torch.nn.Module):
    """What is exported."""

    def forward(self, logits, target):
        return loss(logits, target)


def test_export():
    rows = torch.export.Dim("rows", min=2)
    arrays = LOGITS.float(), TARGET
    program = torch.export.export(Exported(), arrays, dynamic_shapes=({0: rows}, {0: rows}))
    assert operators_in(program) == FORWARD
    for count in (6, 3):
        given = [a[:count] for a in arrays]
        assert_bits([program.module()(*given)], [loss(*given)])
    assert_bits(both(program.module())(*arrays), both(loss)(*arrays))


@pytest.mark.filterwarnings("ignore")  # of every number that is taken for a constant
def test_jit_trace():
    logits = LOGITS.float()
    traced = torch.jit.trace(loss, (logits, TARGET))
    for count in (6, 3):
        found = both(traced)(logits[:count], TARGET[:count])
        assert_near(found, both(loss)(logits[:count], TARGET[:count]), rtol=1e-5, atol=1e-6)


def operator_arguments():
    for reduction in REDUCTIONS:
        for target in (TARGET, leaf(SOFT)):
            soft = target is not TARGET
            options = (
                f"operation=cross_entropy axis=1{' soft=True' * soft} reduction={reduction} "
                "label_smoothing=0.1 z_loss=0.01 logit_softcap=3.0 temperature=0.5"
            )
            ignored = None if soft else -100
            weights = (leaf(WEIGHT), leaf(SAMPLE_WEIGHT), None)
            yield (leaf(LOGITS), target, *weights, 0, options, ignored)
    log_softmax = ("operation=log_softmax axis=1", None)
    yield (leaf(LOGITS), None, None, None, None, 0, *log_softmax)
    yield (leaf(stacked(LOGITS)), None, None, None, None, 1, *log_softmax)


@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("arguments", list(operator_arguments()), ids=lambda a: a[6])
def test_operators_keep_the_rules_of_operators(arguments):
    forward, backward = torch.ops.xentx.forward.default, torch.ops.xentx.backward.default
    seed = torch.full_like(forward(*arguments).detach(), 0.3)
    for operator, given in ((forward, arguments), (backward, (leaf(seed), *arguments))):
        checks = torch.library.opcheck(operator, given)
        assert set(checks.values()) == {"SUCCESS"}


# ---- threads and processes


def test_threads_of_python():
    logits = [torch.tensor(RNG.normal(size=(300, 1000)), dtype=torch.float32) for _ in range(2)]
    target = torch.tensor(RNG.integers(0, 1000, 300))
    expected = [both(loss)(x, target) for x in logits]
    wrong = []

    def work(i):
        try:
            for _ in range(20):
                assert_bits(both(loss)(logits[i], target), expected[i])
        except BaseException as failure:  # noqa: BLE001
            wrong.append(failure)

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_backwards_in_other_threads():
    """Several at once on one graph, of which one can have the gradient that is there."""
    expected = both(loss)(LOGITS)[1]
    for _ in range(20):
        logits = leaf(LOGITS)
        value, found, wrong = loss(logits), [], []

        def work(value=value, logits=logits, found=found, wrong=wrong):
            try:
                found.append(torch.autograd.grad(value, logits, retain_graph=True)[0])
            except BaseException as failure:  # noqa: BLE001
                wrong.append(failure)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert len({y.data_ptr() for y in found}) == 4
        for y in found:
            assert torch.equal(y, expected)


def test_zeros_without_memory():
    """PyTorch's autograd has tensors of zeros that have a shape and no address."""
    make = torch._efficientzerotensor  # noqa: SLF001 -- there is no public way to one
    zeros = make((2, 5))
    assert_bits(both(loss)(zeros, TARGET[:2]), both(loss)(torch.zeros(2, 5), TARGET[:2]))
    logits = LOGITS.clone().requires_grad_()
    loss(logits, TARGET, reduction="none").backward(make((6,)).double())
    assert torch.all(logits.grad == 0)


def test_freed_storage():
    logits = torch.zeros(2, 5)
    logits.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"got a tensor of shape \(2, 5\) whose storage was freed"):
        loss(logits, TARGET[:2])


def test_threads_of_torch_change_no_bit():
    before = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(both(loss)(LARGE, LARGE_TARGET))
            found.append(both(log_softmax)(LARGE, cotangent=LARGE.flip(1)))
    finally:
        torch.set_num_threads(before)
    for i in (2, 3, 4, 5):
        assert_bits(found[i], found[i % 2])


def run(program, head=None, **environment):
    """Run a program in an interpreter of its own, and return what it prints."""
    head = textwrap.dedent(HEAD if head is None else head)
    done = subprocess.run(
        [sys.executable, "-P", "-c", head + textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.split()


HEAD = """
    import multiprocessing, sys, time
    import torch
    import xentx_torch

    def both(x, t):
        x = x.detach().requires_grad_()
        value = xentx_torch.cross_entropy(x, t)
        value.backward()
        return value.detach(), x.grad
"""


def test_private_names_may_be_gone():
    """Each undocumented name of PyTorch has a fallback, which gives the same results."""
    chosen = (
        "test_a_known_call_with_a_wrong_index or test_all_options_are_handed_on or "
        "test_every_cotangent_of_rows or test_checkpoints or test_what_inference_mode or "
        "test_every_derivative_is_the_one_of_the_core or test_derivatives_by_all_arrays_at_once or "
        "test_compiled_autograd or test_fake_tensors or test_jit_trace or test_zeros_without or "
        "test_freed_storage"
    )
    program = f"""
        import importlib.util, inspect, operator, sys
        from unittest import mock
        import pytest, torch

        name = "xentx_torch._private"
        spec = importlib.util.spec_from_file_location(name, {_private.__file__!r})
        private = sys.modules[name] = importlib.util.module_from_spec(spec)
        with mock.patch("operator.attrgetter", lambda name: lambda x: getattr(x, name)):
            spec.loader.exec_module(private)
        assert len(private.MISSING) == inspect.getsource(private).count("_find(") - 1
        from xentx_torch import _kernel

        assert _kernel._private is private
        options = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-k", {chosen!r}]
        code = pytest.main([*options, {__file__!r}])
        print("code", int(code))
    """
    printed = run(program, head="")
    assert printed[-2:] == ["code", "0"], " ".join(printed)


def test_a_forked_child_computes():
    program = """
    x, t = torch.arange(600_000.0).reshape(600, 1000).sin(), torch.arange(600)
    expected = [bytes(y.numpy()) for y in both(x, t)]  # torch's == would wait for its threads

    def child():
        for _ in range(3):
            for got, wanted in zip(both(x, t), expected):
                assert bytes(got.numpy()) == wanted

    children = [multiprocessing.get_context("fork").Process(target=child) for _ in range(2)]
    for process in children:
        process.start()
    both(x, t)
    for process in children:
        process.join(60)
        print(process.exitcode)
        process.kill()
    """
    assert run(program) == ["0", "0"]


def test_one_thread_is_one_thread():
    program = """
    torch.set_num_threads(1)
    x, t = torch.zeros(2000, 1000), torch.zeros(2000, dtype=torch.int64)
    both(x, t)
    before = time.thread_time(), time.process_time()
    for _ in range(10):
        both(x, t)
    print((time.process_time() - before[1]) / (time.thread_time() - before[0]))
    """
    (ratio,) = run(program)
    assert float(ratio) < 1.2


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_memory():
    """The gradient becomes the leaf's: nothing of its size beside it."""
    program = """
    def peak():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

    both(torch.zeros(600, 1000), torch.zeros(600, dtype=torch.int64))
    x, t = torch.full((64_000, 1000), 0.5), torch.zeros(64_000, dtype=torch.int64)
    before = peak()
    x.requires_grad_()
    value = xentx_torch.cross_entropy(x, t)
    for scale in map(float, sys.argv[1:] or [1.0]):
        (scale * value).backward()
    print((peak() - before) * 1024 / (x.numel() * x.element_size()))
    """
    for scale in ("1.0", "0.5"):
        (ratio,) = run(program.replace("sys.argv[1:] or [1.0]", f"[{scale}]"))
        assert 0.9 < float(ratio) < 1.05


@pytest.mark.parametrize("engine", ["portable", "kernel"])
def test_the_engine_is_chosen_by_name(engine):
    program = """
    x, t = torch.arange(30.0).reshape(6, 5).sin(), torch.arange(6) % 5
    value, gradient = both(x, t)
    print(bool(xentx_torch.BACKEND.engines), "xentx._kernel" in sys.modules)
    print(abs(gradient - torch.func.grad(xentx_torch.cross_entropy)(x, t)).max().item() < 1e-6)
    """
    by_kernel = str(engine == "kernel")
    assert run(program, XENTX_ENGINE=engine) == [by_kernel, by_kernel, "True"]
