"""Sharded losses on four ranks of PyTorch, for `test_torch_ranks.py`.

``python torch_ranks.py RANK STORE`` prints a line for each case, with its name and the error. The
results are compared on every rank, after the collectives of a case, so that no rank waits for
another one that has failed.
"""

import functools
import sys
import traceback
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
import torch.utils.checkpoint
from torch.distributed.tensor.debug import CommDebugMode

import xentx
import xentx_torch
from xentx_torch import parallel

RANKS = 4
SIZES = (5, 0, 8, 3)  # uneven, and one rank has no classes
EDGES = np.cumsum([0, *SIZES])
CLASSES, ROWS, FEATURES = int(EDGES[-1]), 12, 6
SEED = 20261129
CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def own(array, dim=-1):
    """Return the classes of this rank."""
    rank = dist.get_rank()
    return array.narrow(dim, int(EDGES[rank]), SIZES[rank]).contiguous()


def whole(array, dim=-1):
    """Concatenate the classes of all ranks."""
    parts = [None] * RANKS
    dist.all_gather_object(parts, array.detach())
    return torch.cat(parts, dim)


def arrays(dtype=torch.float32):
    """Logits with special values, indices, probabilities, class weights and sample weights."""
    rng = np.random.default_rng(SEED)
    x = rng.normal(0, 3, (ROWS, CLASSES))
    hard = rng.integers(0, CLASSES, ROWS)
    hard[3] = -100
    x[3] = np.nan  # in an ignored row
    x[5, 7], hard[5] = 40.0, 7  # confident
    x[6, 1] = x[6, 14] = x[6].max() + 1.0  # equal on two ranks
    x[7, 5:13], hard[7] = -np.inf, 14  # a rank without finite logits
    x[8, 2] = np.nan
    x[9] = -np.inf
    soft, weight = rng.dirichlet(np.ones(CLASSES), ROWS), rng.uniform(0.5, 2, CLASSES)
    sample = rng.uniform(0.5, 2, ROWS)
    given = [torch.tensor(a).to(dtype) for a in (x, soft, weight, sample)]
    return given[0], torch.tensor(hard), *given[1:]


OPTIONS = {
    "mean": {},
    "none": {"reduction": "none"},
    "sum": {"reduction": "sum"},
    "weighted mean": {"reduction": "weighted_mean", "weight": True, "label_smoothing": 0.1},
    "smoothing": {"label_smoothing": 0.1},
    "weight": {"weight": True},
    "weight and smoothing": {"weight": True, "label_smoothing": 0.1},
    "z loss": {"z_loss": 0.01},
    "cap": {"logit_softcap": 5.0},
    "temperature": {"temperature": 0.7},
    "sample weight": {"sample_weight": True},
    "normalizer": {"normalizer": 7.0},
    "soft": {"soft": True},
    "soft mean": {"soft": True, "reduction": "weighted_mean", "weight": True},
    "everything": {
        "weight": True,
        "sample_weight": True,
        "label_smoothing": 0.1,
        "z_loss": 0.01,
        "logit_softcap": 8.0,
        "temperature": 1.5,
    },
    "everything soft": {
        "soft": True,
        "weight": True,
        "sample_weight": True,
        "label_smoothing": 0.1,
        "z_loss": 0.01,
        "reduction": "none",
    },
}


def problem(options, dtype=torch.float32, *, corners=True):
    """Return arrays by name, and the other options."""
    options = dict(options)
    x, hard, soft, weight, sample = arrays(dtype)
    if not corners or options.get("reduction") != "none":
        x = torch.where(x.isnan() & (hard != -100)[:, None], 0.0, x)
        x[9] = 1.0  # all tied
    if not corners:
        x = x.nan_to_num(0.0, neginf=-9.0)
    named = {"logits": x, "target": hard}
    if options.pop("soft", False):
        named["target"], named["logits"] = soft, x.nan_to_num(0.0, neginf=-9.0)
    if options.get("label_smoothing"):
        named["logits"] = torch.where(x == -torch.inf, -9.0, named["logits"])
    if options.pop("weight", False):
        named["weight"] = weight
    if options.pop("sample_weight", False):
        named["sample_weight"] = sample
    return named, options


def shard(named):
    """Return the arrays of this rank."""
    split = {"logits", "weight"} | ({"target"} if named["target"].ndim == 2 else set())
    return {name: own(array) if name in split else array for name, array in named.items()}


def pulled(function, named, options, cotangent=None):
    """Value, and gradients with respect to all floating-point arrays."""
    given = {name: a.clone().requires_grad_(a.is_floating_point()) for name, a in named.items()}
    leaves = {name: a for name, a in given.items() if a.requires_grad}
    value = function(given.pop("logits"), given.pop("target"), **given, **options)
    seed = None
    if value.ndim:
        seed = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).reshape(value.shape)
    found = torch.autograd.grad(value, list(leaves.values()), seed)
    return value.detach(), dict(zip(leaves, found, strict=True))


def units(found, true, *, together=False):
    """Error in units in the last place of the largest number of a row, or of a vector."""
    assert found.shape == true.shape, (found.shape, true.shape)
    eps, tiny = torch.finfo(found.dtype).eps, torch.finfo(found.dtype).tiny
    found, true = found.double(), true.double()
    assert torch.equal(found.isnan(), true.isnan())
    infinite = true.isinf()
    assert torch.equal(found[infinite], true[infinite])
    found, true = (torch.where(true.isfinite(), a, 0.0) for a in (found, true))
    if not true.numel():
        return 0.0
    rows = true.ndim > 1 or together
    scale = true.abs().amax(-1, keepdim=True) if rows else true.abs()
    unit = torch.exp2(scale.clamp_min(tiny).log2().floor()) * eps
    return float(((found - true).abs() / unit).max())


def check_pulled(name, options, most, dtype=torch.float32):
    named, rest = problem(options, dtype)
    value, gradients = pulled(parallel.cross_entropy, shard(named), rest)
    gradients = {
        key: whole(g) if shard(named)[key].shape != named[key].shape else g
        for key, g in gradients.items()
    }
    wide = {k: a.double() if a.is_floating_point() else a for k, a in named.items()}
    true, expected = pulled(xentx.cross_entropy, wide, rest)
    assert value.dtype == dtype
    errors = {"value": units(value, true) / most[0]}
    for key, gradient in gradients.items():
        errors[key] = units(gradient, expected[key], together=True) / most[1]
    assert max(errors.values()) <= 1.0, (name, errors)


@case
def values_and_gradients():
    """With respect to logits, class probabilities and both weights, against float64."""
    for name, options in OPTIONS.items():
        check_pulled(name, options, (1, 4))


@case
def narrow_and_wide_dtypes():
    for name in ("none", "everything"):
        for dtype, most in ((torch.bfloat16, 1), (torch.float16, 1), (torch.float64, 60)):
            check_pulled(name, OPTIONS[name], (most, most), dtype)


@case
def options_that_are_tensors():
    """The derivatives with respect to these options are summed over the ranks."""
    named, _ = problem({"weight": True}, torch.float64, corners=False)
    numbers = {"label_smoothing": 0.1, "z_loss": 0.01, "logit_softcap": 8.0, "temperature": 1.5}
    more = {k: torch.tensor(v, dtype=torch.float64) for k, v in numbers.items()}
    _, gradients = pulled(parallel.cross_entropy, {**shard(named), **more}, {})
    _, expected = pulled(xentx.cross_entropy, {**named, **more}, {})
    for key in numbers:
        torch.testing.assert_close(gradients[key], expected[key], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(whole(gradients["logits"]), expected["logits"])


@case
def second_derivatives():
    """Derivatives of a sum over the gradients of all ranks."""
    for options in OPTIONS.values():
        named, rest = problem(options, torch.float64, corners=False)
        rng = np.random.default_rng(SEED)
        direction = torch.tensor(rng.normal(size=(ROWS, CLASSES)))

        def twice(function, named, direction, rest=rest):
            given = dict(named)
            x = given.pop("logits").clone().requires_grad_()
            value = function(x, given.pop("target"), **given, **rest)
            (g,) = torch.autograd.grad(value.sum(), x, create_graph=True)
            (h,) = torch.autograd.grad((g * direction).sum() + (g**3).sum(), x)
            return g.detach(), h

        found = twice(parallel.cross_entropy, shard(named), own(direction))
        expected = twice(xentx.cross_entropy, named, direction)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(whole(a), b, rtol=1e-9, atol=1e-12)


@case
def forward_mode():
    for options in OPTIONS.values():
        named, rest = problem(options, torch.float64, corners=False)
        direction = torch.tensor(np.random.default_rng(SEED).normal(size=(ROWS, CLASSES)))

        def tangent(function, named, direction, rest=rest):
            given = dict(named)
            x, target = given.pop("logits"), given.pop("target")
            with torch.autograd.forward_ad.dual_level():
                dual = torch.autograd.forward_ad.make_dual(x, direction)
                value = function(dual, target, **given, **rest)
                return torch.autograd.forward_ad.unpack_dual(value).tangent

        found = tangent(parallel.cross_entropy, shard(named), own(direction))
        expected = tangent(xentx.cross_entropy, named, direction)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@case
def torch_func():
    named, rest = problem({"label_smoothing": 0.1}, torch.float64, corners=False)
    local = shard(named)
    found = torch.func.grad(lambda x: parallel.cross_entropy(x, local["target"], **rest))(
        local["logits"]
    )
    _, expected = pulled(xentx.cross_entropy, named, rest)
    torch.testing.assert_close(whole(found), expected["logits"])

    def jacobian(function, named):
        rows = torch.func.jacrev(lambda x: function(x, named["target"], reduction="none", **rest))
        return rows(named["logits"])

    found = whole(jacobian(parallel.cross_entropy, local))
    torch.testing.assert_close(found, jacobian(xentx.cross_entropy, named))


@case
def compiled_and_checkpointed():
    named, _ = problem({}, corners=False)
    local, (_, expected) = shard(named), pulled(xentx.cross_entropy, named, {})

    def loss(x):
        return parallel.cross_entropy(2.0 * x, local["target"])

    for function in (
        torch.compile(loss, backend="aot_eager"),
        lambda x: torch.utils.checkpoint.checkpoint(loss, x, use_reentrant=False),
    ):
        x = (local["logits"] / 2.0).requires_grad_()
        function(x).backward()
        torch.testing.assert_close(whole(x.grad), 2.0 * expected["logits"])


@case
def places_that_are_given():
    named, _ = problem({})
    local, rank = shard(named), dist.get_rank()
    found = parallel.cross_entropy(
        local["logits"], local["target"], classes=CLASSES, start=int(EDGES[rank])
    )
    assert torch.equal(found, parallel.cross_entropy(local["logits"], local["target"]))
    value, divisor = parallel.cross_entropy(
        local["logits"], local["target"], reduction="sum", return_normalizer=True
    )
    torch.testing.assert_close(value / divisor.float(), found)


@case
def rows_of_any_shape():
    named, _ = problem({}, corners=False)
    x, target = named["logits"].reshape(3, 4, CLASSES), named["target"].reshape(3, 4)
    found = parallel.cross_entropy(own(x), target, reduction="none")
    torch.testing.assert_close(found, xentx.cross_entropy(x, target, axis=-1, reduction="none"))
    empty = parallel.cross_entropy(own(x)[:0], target[:0], reduction="none")
    assert empty.shape == (0, 4)
    assert bool(parallel.cross_entropy(own(x)[:0], target[:0]).isnan())


@case
def groups_of_some_ranks():
    """Two pairs of ranks, each with its own loss."""
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    rank = dist.get_rank()
    named, _ = problem({}, corners=False)
    x, target = named["logits"][:, :6] + rank // 2, named["target"].clamp(max=5)
    part = x[:, :4] if rank % 2 == 0 else x[:, 4:]
    found = parallel.cross_entropy(part.contiguous(), target, group=pairs[rank // 2])
    torch.testing.assert_close(found, xentx.cross_entropy(x, target))
    other = pairs[1 - rank // 2]
    kind, text = raised(parallel.cross_entropy, part, target, group=other)
    assert kind is ValueError
    assert text.startswith("group: got one that this process is not in")


def linear_problem(options, dtype):
    rng = np.random.default_rng(SEED)
    named, rest = problem(options, dtype, corners=False)
    del named["logits"]
    target = named.pop("target")
    hidden, head, bias = (
        torch.tensor(rng.normal(size=shape)).to(dtype)
        for shape in ((ROWS, FEATURES), (CLASSES, FEATURES), (CLASSES,))
    )
    if target.ndim == 1:
        hidden[3] = torch.nan  # ignored
    return (hidden, head, bias, target), named, rest


def linear_pulled(function, factors, named, rest, *, second=False, **more):
    hidden, head, bias = (a.clone().requires_grad_() for a in factors[:3])
    weight = {k: a.clone().requires_grad_() for k, a in named.items()}
    value = function(hidden, head, factors[3], bias=bias, **weight, **rest, **more)
    wanted = [hidden, head, bias, *weight.values()]
    seed = None
    if value.ndim:
        seed = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype)
    return value.detach(), torch.autograd.grad(value, wanted, seed)


@case
def linear():
    for name, options in OPTIONS.items():
        for dtype, most in ((torch.float32, 12), (torch.bfloat16, 1.5), (torch.float64, 200)):
            factors, named, rest = linear_problem(options, dtype)
            hidden, head, bias, target = factors
            local = (
                hidden,
                own(head, 0),
                own(bias, 0),
                own(target) if target.ndim == 2 else target,
            )
            split = {k: own(a) if k == "weight" else a for k, a in named.items()}
            # Derivatives with respect to class weights or probabilities use a different
            # implementation.
            names = [k for k in named if k == "sample_weight"]
            value, found = linear_pulled(
                parallel.linear_cross_entropy,
                local,
                {k: split[k] for k in names},
                {**rest, **{k: a for k, a in split.items() if k not in names}},
                chunk=5,
            )
            wide = [a.double() if a.is_floating_point() else a for a in factors]
            wide_named = {k: a.double() for k, a in named.items()}
            true, expected = linear_pulled(
                xentx.linear_cross_entropy,
                wide,
                {k: wide_named[k] for k in names},
                {**rest, **{k: a for k, a in wide_named.items() if k not in names}},
            )
            assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            found = [found[0], whole(found[1], 0), whole(found[2], 0), *found[3:]]
            errors = [
                units(a, b, together=True) / most for a, b in zip(found, expected, strict=True)
            ]
            errors.append(units(value, true) / max(most, 12))
            assert max(errors) <= 1.0, (name, dtype, errors)


@case
def linear_by_everything():
    """Also with respect to class weights, and second derivatives."""
    for name in ("weight and smoothing", "everything soft", "soft mean"):
        factors, named, rest = linear_problem(OPTIONS[name], torch.float64)
        hidden, head, bias, target = factors
        local = (hidden, own(head, 0), own(bias, 0), own(target) if target.ndim == 2 else target)
        split = {k: own(a) if k == "weight" else a for k, a in named.items()}
        value, found = linear_pulled(parallel.linear_cross_entropy, local, split, rest)
        true, expected = linear_pulled(xentx.linear_cross_entropy, factors, named, rest)
        torch.testing.assert_close(value, true)
        found = [found[0], *(whole(a, 0) for a in found[1:4]), *found[4:]]
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)

    def twice(function, hidden, head, target, share):
        hidden, head = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        value = function(hidden, head, target, label_smoothing=0.1)
        by_hidden, by_head = torch.autograd.grad(value, (hidden, head), create_graph=True)
        # The gradient with respect to hidden is the same on all ranks, so each adds its share.
        square = (by_hidden**2).sum() * share + (by_head**3).sum()
        return torch.autograd.grad(square, (hidden, head))

    (hidden, head, _, target), *_ = linear_problem({}, torch.float64)
    hidden, target = hidden.nan_to_num(0.0), target.clamp(min=0)
    found = twice(parallel.linear_cross_entropy, hidden, own(head, 0), target, 1.0)
    expected = twice(xentx.linear_cross_entropy, hidden, head, target, 1.0)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(whole(found[1], 0), expected[1])


@case
def per_row():
    for name in ("none", "weight and smoothing", "z loss", "cap", "temperature", "soft"):
        options = {k: v for k, v in OPTIONS[name].items() if k != "reduction"}
        named, rest = problem({**options, "reduction": "none"})
        rest.pop("reduction")
        wide = {k: a.double() if a.is_floating_point() else a for k, a in named.items()}

        def solved(function, named, rest=rest):
            given = dict(named)
            x, target = given.pop("logits").clone().requires_grad_(), given.pop("target")
            stats = function(x, target, **given, **rest)
            total = sum((i + 1) * field.nan_to_num(0.0).sum() for i, field in enumerate(stats[:4]))
            return stats, torch.autograd.grad(total, x)[0]

        found, gradient = solved(parallel.per_row, shard(named))
        expected, true = solved(xentx.per_row, wide)
        same = xentx.per_row(named["logits"], named["target"])
        for field, a, b in zip(found._fields[:4], found, expected, strict=False):
            assert units(a.detach(), b.detach()) <= 2, (name, field)
        assert torch.equal(found.prediction, same.prediction), name
        assert torch.equal(found.correct, same.correct), name
        torch.testing.assert_close(
            whole(gradient), true.float(), rtol=1e-5, atol=1e-6, equal_nan=True
        )


# The collectives that xentx uses, and the index of the argument with the rank's input.
COLLECTIVES = {"all_reduce": 0, "all_to_all_single": 1, "all_gather_into_tensor": 1}


def counted(function, *args, **options):
    """Return the result, and the bytes that this rank gives to each collective of the call."""
    given = []
    originals = {name: getattr(dist, name) for name in COLLECTIVES}

    def counting(name, *args, **kwargs):
        tensor = args[COLLECTIVES[name]]
        given.append(tensor.numel() * tensor.element_size())
        return originals[name](*args, **kwargs)

    with CommDebugMode() as mode:
        for name in COLLECTIVES:
            setattr(dist, name, functools.partial(counting, name))
        try:
            result = function(*args, **options)
        finally:
            for name, original in originals.items():
                setattr(dist, name, original)
    assert mode.get_total_counts() == len(given), mode.get_comm_counts()
    return result, given


@case
def collectives():
    """Two all-reduces with some float64 for each row, and none in the backward of the logits."""
    named, _ = problem({"weight": True}, corners=False)
    local = shard(named)
    rank, flag = dist.get_rank(), 1
    place = {"classes": CLASSES, "start": int(EDGES[rank])}
    for numbers, options in (
        (3, {}),
        (4, {"label_smoothing": 0.1}),
        (4, {"weight": local["weight"]}),
        (5, {"weight": local["weight"], "label_smoothing": 0.1}),
    ):
        x = local["logits"].clone().requires_grad_()
        value, sent = counted(parallel.cross_entropy, x, local["target"], **place, **options)
        assert sent == [8 * (ROWS + flag), 8 * numbers * ROWS], (options, sent)
        _, sent = counted(value.backward)
        assert sent == []
    factors, *_ = linear_problem({}, torch.float32)
    hidden, head, _, target = factors
    hidden, head = hidden.clone().requires_grad_(), own(head, 0).requires_grad_()
    value, sent = counted(parallel.linear_cross_entropy, hidden, head, target, chunk=5, **place)
    assert sent == [8 * (ROWS + flag), 8 * 3 * ROWS]
    _, sent = counted(value.backward)
    assert sent == [4 * ROWS * FEATURES]


@case
def collectives_of_a_fixed_order():
    """An all-to-all and an all-gather replace the second all-reduce, with as many numbers."""
    rank, flag, size = dist.get_rank(), 1, CLASSES // RANKS
    named, _ = problem({"weight": True}, corners=False)
    x, weight = (named[k].narrow(-1, rank * size, size) for k in ("logits", "weight"))
    given = {"classes": CLASSES, "start": rank * size, "deterministic": True}

    def expected(numbers, itemsize=8):
        return [itemsize * numbers * ROWS, itemsize * numbers * ROWS // RANKS]

    for numbers, options in (
        (3, {}),
        (4, {"label_smoothing": 0.1}),
        (5, {"weight": weight, "label_smoothing": 0.1}),
    ):
        logits = x.clone().requires_grad_()
        loss = parallel.cross_entropy
        value, sent = counted(loss, logits, named["target"], **given, **options)
        assert sent == [8 * (ROWS + flag), *expected(numbers)], (options, sent)
        _, sent = counted(value.backward)
        assert sent == []
    (hidden, head, _, target), *_ = linear_problem({}, torch.float32)
    hidden = hidden.clone().requires_grad_()
    head = head.narrow(0, rank * size, size).requires_grad_()
    value, sent = counted(parallel.linear_cross_entropy, hidden, head, target, **given)
    assert sent == [8 * (ROWS + flag), *expected(3)]
    _, sent = counted(value.backward)
    assert sent == expected(FEATURES, 4)


def groups_of(count):
    """Return the group of this rank, if the ranks are split into groups of `count`."""
    rank, found = dist.get_rank(), None
    for first in range(0, RANKS, count):
        group = dist.new_group([*range(first, first + count)])
        if first <= rank < first + count:
            found = group
    return found


MANY = 384  # classes in 64 blocks


def many_classes(dtype):
    """Logits or their factors, targets and weights for which the order of the sums matters."""
    rng = np.random.default_rng(SEED)
    x, hidden = rng.normal(0, 3, (ROWS, MANY)), rng.normal(size=(ROWS, 32))
    head, bias = rng.normal(size=(MANY, 32)), rng.normal(size=MANY)
    hard = torch.tensor(rng.integers(0, MANY, ROWS))
    x[2], hard[2] = np.nan, -100
    x[3, 5] = x[3, 300] = 20.0  # equal on two ranks
    hard[3] = 5
    x[4, 200:] = -np.inf
    hard[4] = 7
    soft, weight = rng.dirichlet(np.ones(MANY), ROWS), rng.uniform(0.5, 2, MANY)
    arrays = (x, hidden, head, bias, soft, weight)
    return hard, *(torch.tensor(a).to(dtype) for a in arrays)


def bits(arrays):
    """Return the bytes of arrays, in which NaN equals NaN and 0.0 differs from -0.0."""
    flat = ((a, a.detach().contiguous().reshape(-1).view(torch.uint8)) for a in arrays)
    return [(str(a.dtype), a.shape, found.numpy().tobytes()) for a, found in flat]


def of_groups(function, *, deterministic=True):
    """Return the bits of results on 1, 2 and 4 ranks: parts of classes are gathered."""
    found = []
    for count in (1, 2, 4):
        group = groups_of(count)
        size = MANY // count
        place = {"classes": MANY, "start": size * dist.get_rank(group)}

        def cut(array, dim, place=place, size=size):
            return array.narrow(dim, place["start"], size)

        def gathered(array, dim, group=group, count=count):
            parts = [torch.empty_like(array) for _ in range(count)]
            dist.all_gather(parts, array.contiguous(), group=group)
            return torch.cat(parts, dim)

        options = {"group": group, "deterministic": deterministic, **place}
        found.append(bits(function(cut, gathered, options)))
    return found


DETERMINISTIC = {
    "mean": {},
    "none": {"reduction": "none", "z_loss": 0.01},
    "weight": {"weight": True},
    "weight and smoothing": {"weight": True, "label_smoothing": 0.1},
    "soft": {"soft": True, "weight": True, "reduction": "weighted_mean"},
    "cap": {"logit_softcap": 8.0, "temperature": 1.5, "reduction": "sum"},
}


def dense_bits(dtype, options, **more):
    """Loss and gradient of logits."""
    hard, x, *_, soft, weight = many_classes(dtype)
    is_soft = options.get("soft", False)
    if is_soft or options.get("label_smoothing"):
        x = x.nan_to_num(0.0, neginf=-9.0)

    def function(cut, gathered, given):
        rest = {k: v for k, v in options.items() if k not in ("soft", "weight")}
        if options.get("weight"):
            rest["weight"] = cut(weight, 0)
        own_logits = cut(x, 1).requires_grad_()
        target = cut(soft, 1) if is_soft else hard
        value = parallel.cross_entropy(own_logits, target, **rest, **given)
        (gradient,) = torch.autograd.grad(value.sum(), own_logits)
        return value, gathered(gradient, 1)

    return of_groups(function, **more)


def linear_bits(dtype, options, **more):
    """Loss and gradients of the factors."""
    hard, _, hidden, head, bias, soft, weight = many_classes(dtype)

    def function(cut, gathered, given):
        rest = {k: v for k, v in options.items() if k not in ("soft", "weight")}
        if options.get("weight"):
            rest["weight"] = cut(weight, 0)
        factors = [a.clone().requires_grad_() for a in (hidden, cut(head, 0), cut(bias, 0))]
        target = cut(soft, 1) if options.get("soft") else hard
        value = parallel.linear_cross_entropy(
            *factors[:2], target, bias=factors[2], chunk=5, **rest, **given
        )
        by_hidden, by_head, by_bias = torch.autograd.grad(value.sum(), factors)
        return value, by_hidden, gathered(by_head, 0), gathered(by_bias, 0)

    return of_groups(function, **more)


def per_row_bits(dtype, options, **more):
    """All fields, and the gradient of their sum."""
    hard, x, *_, weight = many_classes(dtype)

    def function(cut, gathered, given):
        rest = {k: v for k, v in options.items() if k != "reduction"}
        if rest.pop("weight", False):
            rest["weight"] = cut(weight, 0)
        own_logits = cut(x, 1).requires_grad_()
        stats = parallel.per_row(own_logits, hard, **rest, **given)
        total = sum(field.nan_to_num(0.0, 0.0).sum() for field in stats[:4])
        (gradient,) = torch.autograd.grad(total, own_logits)
        return *stats, gathered(gradient, 1)

    return of_groups(function, **more)


@case
def the_same_bits_on_1_2_and_4_ranks():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for name, options in DETERMINISTIC.items():
            for function in (dense_bits, linear_bits):
                one, two, four = function(dtype, options)
                assert one == two == four, (function.__name__, name, dtype)
        for name in ("none", "weight and smoothing"):
            one, two, four = per_row_bits(dtype, DETERMINISTIC[name])
            assert one == two == four, (name, dtype)


@case
def other_bits_without_deterministic():
    """Without the option, the results of these problems differ."""
    wide = torch.float64
    for function, dtype in (
        (dense_bits, wide),
        (linear_bits, wide),
        (linear_bits, torch.float32),
        (per_row_bits, wide),
    ):
        one, two, four = function(dtype, DETERMINISTIC["none"], deterministic=False)
        assert one != two
        assert one != four


@case
def deterministic_values_and_derivatives():
    """The option changes only the order of the sums."""
    group, size = dist.group.WORLD, CLASSES // RANKS
    start = size * dist.get_rank()
    option = {"group": group, "deterministic": True}
    for name, options in OPTIONS.items():
        named, rest = problem(options, torch.float64, corners=False)
        split = {"logits", "weight"} | ({"target"} if named["target"].ndim == 2 else set())
        local = {k: a.narrow(-1, start, size) if k in split else a for k, a in named.items()}
        value, found = pulled(parallel.cross_entropy, local, {**rest, **option})
        true, expected = pulled(xentx.cross_entropy, named, rest)
        torch.testing.assert_close(value, true, msg=name)
        for key, gradient in found.items():
            all_ranks = whole(gradient) if key in split else gradient
            torch.testing.assert_close(all_ranks, expected[key], rtol=1e-9, atol=1e-12, msg=name)

        def twice(function, named, rest=rest):
            given = dict(named)
            x = given.pop("logits").clone().requires_grad_()
            value = function(x, given.pop("target"), **given, **rest)
            (g,) = torch.autograd.grad(value.sum(), x, create_graph=True)
            return torch.autograd.grad((g**3).sum(), x)[0]

        found = twice(lambda *a, **k: parallel.cross_entropy(*a, **k, **option), local)
        torch.testing.assert_close(whole(found), twice(xentx.cross_entropy, named))


@case
def deterministic_needs_equal_parts():
    named, _ = problem({}, corners=False)
    local, rank = shard(named), dist.get_rank()
    x, target = local["logits"], local["target"]
    for place in ({}, {"classes": CLASSES, "start": int(EDGES[rank])}):
        kind, text = raised(parallel.cross_entropy, x, target, deterministic=True, **place)
        assert kind is ValueError
        expected = (
            f"classes: got {SIZES[rank]} from class {EDGES[rank]} on rank {rank} with "
            f"deterministic=True; expected 4 from class {4 * rank}, an equal part of 16 on 4 ranks"
        )
        assert text == expected
    odd = 15 if rank else 14
    kind, text = raised(parallel.per_row, x[:, :0].new_zeros(ROWS, odd), target, deterministic=True)
    assert kind is ValueError
    assert text == ("classes: got 59 on 4 ranks with deterministic=True; expected a multiple of 4")
    three = dist.new_group([0, 1, 2])
    if rank < 3:
        kind, text = raised(
            parallel.linear_cross_entropy,
            torch.zeros(ROWS, 2),
            torch.zeros(4, 2),
            target,
            group=three,
            deterministic=True,
        )
        assert kind is ValueError
        assert text == (
            "group: got 3 ranks with deterministic=True; expected a power of two, at most 64"
        )


@case
def collectives_of_pytorchs_own():
    """PyTorch's own loss has three, as docs/howto/tensor_parallel.md states."""
    from torch.distributed.tensor import distribute_tensor
    from torch.distributed.tensor.parallel import loss_parallel

    mesh = dist.init_device_mesh("cpu", (RANKS,))
    named, _ = problem({}, corners=False)
    shards = [torch.distributed.tensor.Shard(1)]
    logits = distribute_tensor(named["logits"], mesh, shards).requires_grad_()
    with loss_parallel(), CommDebugMode() as mode:
        loss = torch.nn.functional.cross_entropy(logits, named["target"], reduction="sum")
        loss.backward()
    assert mode.get_total_counts() == 3, mode.get_comm_counts()


def raised(function, *args, **options):
    try:
        function(*args, **options)
    except Exception as error:  # noqa: BLE001 -- it is returned
        return type(error), str(error)
    raise AssertionError


@case
def errors_on_one_rank():
    """They raise on all ranks, and the group can still be used."""
    named, _ = problem({}, corners=False)
    local, rank = shard(named), dist.get_rank()
    x, target = local["logits"], local["target"].clone()
    place = {"classes": CLASSES, "start": int(EDGES[rank])}
    for given in ({}, place):
        bad = target.clone()
        if rank == 2:
            bad[4] = CLASSES
        kind, text = raised(parallel.cross_entropy, x, bad, **given)
        assert kind is IndexError
        assert ("got 16 at position 4" if rank == 2 else "on rank 2 of the group") in text, text

        smoothing = 2.0 if rank == 3 else 0.1
        more = {"label_smoothing": smoothing, **given}
        kind, text = raised(parallel.cross_entropy, x, target, **more)
        assert kind is (ValueError if rank == 3 else RuntimeError)
        assert ("label_smoothing: got 2.0" if rank == 3 else "rank 3 of the group") in text, text
        kind, text = raised(parallel.per_row, x, bad, **given)
        assert kind is IndexError
        assert ("got 16 at position 4" if rank == 2 else "on rank 2 of the group") in text, text
    rows = ROWS - (rank == 1)
    kind, text = raised(parallel.cross_entropy, x[:rows], target[:rows])
    assert kind is ValueError
    assert text.startswith("rows: got 12 on ranks 0, 2, 3 and 11 on rank 1 of the group"), text
    kind, text = raised(parallel.cross_entropy, x[:, :0], target)
    assert (kind, text[:12]) == (ValueError, "classes: got")
    kind, text = raised(parallel.cross_entropy, x, target, classes=CLASSES)
    assert kind is ValueError
    assert "expected both, or neither" in text
    kind, text = raised(parallel.cross_entropy, x, target, classes=CLASSES, start=CLASSES)
    # `start` may be the number of classes on a rank without classes.
    assert kind is (RuntimeError if SIZES[rank] == 0 else ValueError)
    assert kind is RuntimeError or "start: got 16" in text
    kind, text = raised(parallel.cross_entropy, None, target)
    assert (kind, text) == (TypeError, "logits: got a NoneType; expected a torch array")
    found = parallel.cross_entropy(x, target)
    torch.testing.assert_close(found, xentx.cross_entropy(named["logits"], target))


# ---- Rows are spread over the ranks: docs/howto/data_parallel.md and sequence_parallel.md.

TOKENS = (4, 1, 0, 7)  # number of rows of each rank, including ignored rows


def batch():
    """Inputs, indices, class weights and sample weights of all rows, and the slice of this rank."""
    rng = np.random.default_rng(SEED)
    inputs, weight = rng.normal(size=(ROWS, FEATURES)), rng.uniform(0.5, 2, CLASSES)
    target, sample = rng.integers(0, CLASSES, ROWS), rng.uniform(0.5, 2, ROWS)
    target[[1, 5, 6, 7, 8]] = -100
    start = sum(TOKENS[: dist.get_rank()])
    own_rows = slice(start, start + TOKENS[dist.get_rank()])
    return [torch.tensor(a) for a in (inputs, target, weight, sample)], own_rows


def network():
    """Return the same model on every rank."""
    torch.manual_seed(SEED)
    layers = (torch.nn.Linear(FEATURES, 8), torch.nn.Tanh(), torch.nn.Linear(8, CLASSES))
    return torch.nn.Sequential(*layers).double()


def one_process(**options):
    """Loss and gradients of all rows in one process."""
    (inputs, target, *_), _ = batch()
    model = network()
    loss = xentx.cross_entropy(model(inputs), target, **options)
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


def summed(*arrays):
    """Sums over the ranks."""
    arrays = [array.detach().clone() for array in arrays]
    for array in arrays:
        dist.all_reduce(array)
    return arrays


def check_as_one(loss, model, **options):
    """Assert that a loss and the gradients of a model are those of one process."""
    grads = (p.grad for p in model.parameters())
    grads = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in grads]
    for a, b in zip([loss, *grads], one_process(**options), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


def micro_batches(own_rows):
    """Split the rows of this rank into two parts, one of which may be empty."""
    middle = own_rows.start + TOKENS[dist.get_rank()] // 2
    return [slice(own_rows.start, middle), slice(middle, own_rows.stop)]


@case
def gradients_that_are_summed():
    """Gradients are summed over micro-batches and ranks, as in context parallel training."""
    (inputs, target, *_), own_rows = batch()
    (items,) = summed((target[own_rows] != -100).sum())
    model, total = network(), torch.zeros((), dtype=torch.float64)
    for part in micro_batches(own_rows):
        loss = xentx.cross_entropy(model(inputs[part]), target[part], normalizer=items)
        loss.backward()
        total += loss.detach()
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
    check_as_one(*summed(total), model)


@case
def gradients_that_ddp_averages():
    (inputs, target, *_), own_rows = batch()
    (items,) = summed((target[own_rows] != -100).sum())
    model = torch.nn.parallel.DistributedDataParallel(network())
    first, last = micro_batches(own_rows)
    with model.no_sync():
        one = xentx.cross_entropy(model(inputs[first]), target[first], normalizer=items / RANKS)
        one.backward()
    two = xentx.cross_entropy(model(inputs[last]), target[last], normalizer=items / RANKS)
    two.backward()
    check_as_one(*summed((one + two) / RANKS), model)


@case
def gradients_that_fsdp_averages():
    from torch.distributed.fsdp import fully_shard

    (inputs, target, *_), own_rows = batch()
    (items,) = summed((target[own_rows] != -100).sum())
    model = fully_shard(network(), mesh=dist.init_device_mesh("cpu", (RANKS,)))
    loss = xentx.cross_entropy(model(inputs[own_rows]), target[own_rows], normalizer=items / RANKS)
    loss.backward()
    check_as_one(*summed(loss / RANKS), model)


@case
def losses_of_tokens():
    """The gradients are divided by the number of tokens, as in Megatron."""
    (inputs, target, _, sample), own_rows = batch()
    model = network()
    mask = sample[own_rows]
    total, tokens = xentx.cross_entropy(
        model(inputs[own_rows]),
        target[own_rows],
        sample_weight=mask,
        reduction="sum",
        return_normalizer=True,
    )
    total.backward()
    total, tokens = summed(total, tokens)
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= tokens
    check_as_one(total / tokens, model, sample_weight=sample)


@case
def class_weights_of_rows_that_are_spread():
    """The divisor is computed with the loss, and reduced before the backward pass."""
    (inputs, target, weight, _), own_rows = batch()
    model = torch.nn.parallel.DistributedDataParallel(network())
    for options in ({}, {"label_smoothing": 0.1}):
        model.zero_grad()
        total, amount = xentx.cross_entropy(
            model(inputs[own_rows]),
            target[own_rows],
            weight=weight,
            reduction="sum",
            return_normalizer=True,
            **options,
        )
        dist.all_reduce(amount)
        (total * RANKS / amount).backward()
        check_as_one(*summed(total / amount), model, weight=weight, **options)


@case
def the_trainer_of_transformers():
    """The Trainer counts the labels of all ranks, scales the loss, and averages the gradients."""
    rng = np.random.default_rng(SEED)
    inputs = torch.tensor(rng.normal(size=(8, 5, FEATURES)))
    labels = torch.tensor(rng.integers(0, CLASSES, (8, 5)))
    lengths = torch.tensor([5, 2, 3, 5, 1, 4, 2, 5])
    labels[(torch.arange(5) >= lengths[:, None]) | (torch.arange(5) == 0)] = -100
    own_rows = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
    (items,) = summed((labels[own_rows] != -100).sum())
    model = torch.nn.parallel.DistributedDataParallel(network())
    total = torch.zeros((), dtype=torch.float64)
    for row in range(own_rows.start, own_rows.stop):
        outputs = {"logits": model(inputs[row : row + 1])}
        loss = xentx_torch.compute_loss_func(outputs, labels[row : row + 1], items) * RANKS
        loss.backward()
        total += loss.detach()
    alone = network()
    expected = xentx_torch.compute_loss_func({"logits": alone(inputs)}, labels)
    expected.backward()
    found = [*summed(total / RANKS), *(p.grad for p in model.parameters())]
    for a, b in zip(found, [expected, *(p.grad for p in alone.parameters())], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


@case
def tokens_that_are_gathered_before_the_head():
    """Sequence parallelism with tensor parallelism: hidden split by tokens, the head by classes."""
    from torch.distributed.tensor import DTensor, Shard

    mesh = dist.init_device_mesh("cpu", (RANKS,))
    (inputs, target, *_), _ = batch()
    body, _, head = model = network()
    weight, bias = (own(p.detach(), 0).requires_grad_() for p in (head.weight, head.bias))
    hidden = torch.tanh(body(inputs.chunk(RANKS)[dist.get_rank()]))
    hidden = DTensor.from_local(hidden, mesh, [Shard(0)]).full_tensor()
    loss = parallel.linear_cross_entropy(hidden, weight, target, bias=bias)
    loss.backward()
    for parameter in body.parameters():
        dist.all_reduce(parameter.grad)
    head.weight.grad, head.bias.grad = whole(weight.grad, 0), whole(bias.grad, 0)
    check_as_one(loss.detach(), model)


def main():
    rank, store, chosen = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=20),
    )
    for name in chosen or CASES:
        try:
            CASES[name]()
            wrong = ""
        except Exception:  # noqa: BLE001 -- a case may raise any error
            wrong = traceback.format_exc()
        print(repr((name, wrong)), flush=True)  # noqa: T201 -- the test reads it
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
