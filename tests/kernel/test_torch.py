"""PyTorch tensors on the CPU kernel: cached calls, values, gradients, layouts and cotangents.

`test_bits` also compares the bits with other frameworks. The tests in tests/matrix also run on the
kernel, and check derivatives of every order.
"""

import numpy as np
import pytest

import xentx
import xentx_numpy
from xentx.testing import _oracle as oracle
from xentx.testing import requested_frameworks
from xentx.testing._problems import OPTIONS, REDUCTIONS, RNG_SEED, draw_problem

if "torch" not in requested_frameworks():
    pytest.skip("PyTorch is not requested", allow_module_level=True)

import torch

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
    expected_bits,
    leaf,
    log_softmax,
    loss,
    own,
    to_numpy,
    to_torch,
)
from xentx import _evaluate
from xentx_torch import _kernel as adapter


@pytest.fixture
def never_the_core(monkeypatch):
    """Fail if the portable core is called."""

    def fail(*args, **kwargs):
        pytest.fail("the core was called")

    monkeypatch.setattr(_evaluate, "portable", fail)
    monkeypatch.setattr(_evaluate, "portable_with_gradient", fail)


# ---- cached calls


@pytest.mark.usefixtures("never_the_core")
def test_a_cached_call_is_distinguished_from_all_others(monkeypatch):
    """Calls of one shape with different functions, dtypes, strides and options, each twice."""
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
    """Copy to memory at an odd address."""
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


def test_layouts_of_each_array():
    # The cache for one layout must not be used for another.
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


def test_a_gradient_has_the_layout_of_its_logits():
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
            # not every number is exact in the other dtypes
            if given is not cotangent or dtype == "float64":
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
    # The cotangent is an expanded scalar.
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
    # A loss scaled by 2^-14: the gradient must be scaled before it is rounded to float16.
    seed = torch.tensor(2.0**-14, dtype=torch.float16)
    _, found = both(loss)(LOGITS.half(), cotangent=seed)
    truth = oracle.cross_entropy(
        LOGITS.half().numpy(), TARGET.numpy(), label_smoothing=0.1, cotangent=seed.numpy()
    )
    assert oracle.ulps(found.numpy(), truth.gradient).max() <= 0.501


# ---- indices out of range


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("wrong", [5, -1])
def test_a_wrong_index_is_the_same_error_as_without_the_kernel(wrong, reduction):
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
    # In vmap the index is not checked, and the row is NaN.
    rows = torch.arange(6) == 2
    mapped = torch.vmap(loss)(LOGITS.float()[:, None], target[:, None])
    assert torch.equal(mapped.isnan(), rows)
