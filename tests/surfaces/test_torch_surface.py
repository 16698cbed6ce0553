"""Functions and modules that replace those of torch.nn.

tests/drop_in runs PyTorch's own test cases on them. tests/kernel tests transformations of the
functions that they call. The tests here check the modules and the signatures.
"""

import copy
import inspect
import io
import itertools
import os
import pickle
import subprocess
import sys
import threading
import types

import pytest

from xentx.testing import requested_frameworks
from xentx.testing._engines import portable_core

if "torch" not in requested_frameworks():
    pytest.skip("PyTorch is not requested", allow_module_level=True)

import torch
import torch.utils.checkpoint
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import xentx
import xentx_torch
from xentx_torch import functional

NAMES = ("log_softmax", "nll_loss", "cross_entropy", "linear_cross_entropy")
MODULES = ("LogSoftmax", "NLLLoss", "CrossEntropyLoss", "LinearCrossEntropyLoss")

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(6, 5, generator=GENERATOR)
IMAGES = torch.randn(2, 5, 3, 4, generator=GENERATOR)
TARGET = torch.tensor([0, 4, -100, 2, 2, 1])
SOFT = torch.rand(6, 5, generator=GENERATOR)
WEIGHT = torch.rand(5, generator=GENERATOR) + 0.5


@pytest.fixture(params=["kernel", "portable"], autouse=True)
def engine(request):
    """Run each test with both engines, if this run has them."""
    backend = xentx_torch.BACKEND
    torch._dynamo.reset()  # noqa: SLF001
    if request.param == "portable":
        with portable_core(backend):
            yield request.param
    elif backend.engines:
        yield request.param
    else:
        pytest.skip("no kernel here")


def gradients(function, *arrays):
    """Value and gradients for a non-uniform cotangent."""
    leaves = [array.detach().clone().requires_grad_() for array in arrays]
    value = function(*leaves)
    seed = torch.linspace(1.0, 2.0, value.numel(), dtype=value.dtype).reshape(value.shape)
    return value.detach(), *torch.autograd.grad(value, leaves, seed)


def assert_near(found, expected, **tolerance):
    torch.testing.assert_close(found, expected, **tolerance)


def modules():
    """One module of each class, some with state, with PyTorch's module and the arguments."""
    return {
        "LogSoftmax": (xentx_torch.LogSoftmax(1), torch.nn.LogSoftmax(1), (LOGITS,)),
        "NLLLoss": (
            xentx_torch.NLLLoss(WEIGHT, ignore_index=2),
            torch.nn.NLLLoss(WEIGHT, ignore_index=2),
            (LOGITS.log_softmax(1), TARGET.abs() % 5),
        ),
        "CrossEntropyLoss": (
            xentx_torch.CrossEntropyLoss(WEIGHT, label_smoothing=0.2, reduction="none"),
            torch.nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.2, reduction="none"),
            (LOGITS, TARGET),
        ),
        "LinearCrossEntropyLoss": (
            seeded(xentx_torch.LinearCrossEntropyLoss),
            seeded(torch.nn.LinearCrossEntropyLoss),
            (LOGITS, TARGET),
        ),
    }


def seeded(cls):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return cls(5, 7, bias=True, label_smoothing=0.1, weight=torch.ones(7))


# ---- signatures


@pytest.mark.pinned
@pytest.mark.parametrize("name", [*NAMES, *MODULES[:3]])
def test_parameters_are_those_of_torch_and_then_ours(name):
    ours, theirs = (
        list(inspect.signature(f).parameters.values())
        for f in (
            (getattr(functional, name), getattr(torch.nn.functional, name))
            if name in NAMES
            else (getattr(xentx_torch, name), getattr(torch.nn, name))
        )
    )
    for mine, other in zip(ours, theirs, strict=False):
        assert (mine.name, mine.kind, mine.default) == (other.name, other.kind, other.default)
    assert len(ours) >= len(theirs)
    assert all(extra.kind is extra.KEYWORD_ONLY for extra in ours[len(theirs) :])


@pytest.mark.filterwarnings("ignore:size_average and reduce")
@pytest.mark.parametrize(
    ("size_average", "reduce"), list(itertools.product([None, True, False], repeat=2))
)
def test_deprecated_reductions(size_average, reduce):
    options = {"size_average": size_average, "reduce": reduce}
    for name in ("cross_entropy", "nll_loss"):
        ours, theirs = (
            getattr(f, name)(LOGITS, TARGET, **options) for f in (functional, torch.nn.functional)
        )
        assert_near(ours, theirs)
    for name in ("CrossEntropyLoss", "NLLLoss"):
        module = getattr(xentx_torch, name)(None, size_average, -100, reduce)
        assert (
            module.reduction == getattr(torch.nn, name)(None, size_average, -100, reduce).reduction
        )
        assert_near(module(LOGITS, TARGET), getattr(torch.nn, name)(**options)(LOGITS, TARGET))


def test_deprecated_reductions_warn():
    for function in (functional.cross_entropy, functional.nll_loss):
        with pytest.warns(UserWarning, match="please use reduction='sum' instead"):
            function(LOGITS, TARGET, size_average=False)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 4, 3), (2, 4, 3, 2)])
def test_an_implicit_axis_warns(shape):
    logits = torch.randn(shape, generator=GENERATOR)
    with pytest.warns(UserWarning, match="Implicit dimension choice for log_softmax") as caught:
        found = functional.log_softmax(logits)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="Implicit dimension choice for log_softmax"):
        assert_near(found, torch.nn.functional.log_softmax(logits))
    with pytest.warns(UserWarning, match="Implicit dimension choice for log_softmax"):
        assert_near(xentx_torch.LogSoftmax()(logits), found)


def test_classes_are_on_axis_1():
    square = torch.randn(2, 3, 3, generator=GENERATOR)  # the last axis has the same size
    target = torch.tensor([[0, 1, 2], [2, 2, 0]])
    for function in ("cross_entropy", "nll_loss"):
        ours, theirs = (
            getattr(f, function)(square, target) for f in (functional, torch.nn.functional)
        )
        assert_near(ours, theirs)
    assert_near(
        functional.cross_entropy(LOGITS[0], torch.tensor(3)),
        torch.nn.functional.cross_entropy(LOGITS[0], torch.tensor(3)),
    )


def test_extras_are_those_of_the_function():
    options = {"z_loss": 0.1, "logit_softcap": 2.0}
    expected = xentx_torch.cross_entropy(LOGITS, TARGET, **options)
    assert_near(functional.cross_entropy(LOGITS, TARGET, **options), expected)
    module = xentx_torch.CrossEntropyLoss(**options)
    assert_near(module(LOGITS, TARGET), expected)
    assert_near(pickle.loads(pickle.dumps(module))(LOGITS, TARGET), expected)  # noqa: S301
    layer = xentx_torch.LinearCrossEntropyLoss(5, 7, **options)
    expected = xentx_torch.linear_cross_entropy(LOGITS, layer.linear.weight, TARGET, **options)
    assert_near(layer(LOGITS, TARGET), expected)


def test_errors_are_those_of_the_function():
    with pytest.raises(ValueError, match="logits: got a 0-dimensional array"):
        functional.cross_entropy(torch.tensor(1.0), torch.tensor(0))
    with pytest.raises(IndexError, match="target: got 5 at position 1; expected 0 <= target < 5"):
        xentx_torch.CrossEntropyLoss()(LOGITS[:2], torch.tensor([0, 5]))
    with pytest.raises(ValueError, match=r"input: got shape \(5,\) .* expected \(N, 5\)"):
        functional.linear_cross_entropy(LOGITS[0], torch.zeros(3, 4, 5), torch.zeros(4).long())
    with pytest.raises(ValueError, match="reduction: got 'average'"):
        xentx_torch.NLLLoss(reduction="average")(LOGITS, TARGET)
    with pytest.raises(ValueError, match=r"label_smoothing: got -0\.1"):
        xentx_torch.CrossEntropyLoss(label_smoothing=-0.1)(LOGITS, TARGET)


# ---- the linear losses


@pytest.mark.parametrize("positions", [(), (3,), (3, 2)])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_layers_of_every_position(positions, soft):
    hidden = torch.randn(4, 6, generator=GENERATOR, dtype=torch.float64)
    head = torch.randn(5, *positions, 6, generator=GENERATOR, dtype=torch.float64)
    bias = torch.randn(5, *positions, generator=GENERATOR, dtype=torch.float64)
    target = torch.randint(5, (4, *positions), generator=GENERATOR)
    if soft:
        target = torch.rand(4, 5, *positions, generator=GENERATOR, dtype=torch.float64)
    for reduction in ("mean", "none"):
        ours, theirs = (
            gradients(
                lambda h, w, b, f=f, r=reduction: f.linear_cross_entropy(
                    h, w, target, linear_bias=b, reduction=r, label_smoothing=0.1
                ),
                hidden,
                head,
                bias,
            )
            for f in (functional, torch.nn.functional)
        )
        assert_near(ours, theirs)


def test_chunk_is_read_from_the_options(monkeypatch):
    chunks = []
    monkeypatch.setattr(
        functional._FUNCTIONS,  # noqa: SLF001
        "linear_cross_entropy",
        lambda *_, chunk="auto", **__: chunks.append(chunk),
    )
    for options in (None, torch.nn.LinearCrossEntropyOptions()):
        functional.linear_cross_entropy(LOGITS, LOGITS, TARGET, options=options)
    options = torch.nn.LinearCrossEntropyOptions(chunking_method=None, batch_chunk_size=2)
    functional.linear_cross_entropy(LOGITS, LOGITS, TARGET, options=options)
    assert chunks == ["auto", "auto", 2]


# ---- modules


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_one_of_torch(name):
    ours, theirs, arrays = modules()[name]
    assert isinstance(ours, getattr(torch.nn, name))
    assert repr(ours) == repr(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert_near(ours(*arrays), theirs(*arrays))
    first, rest = arrays[0], arrays[1:]
    assert_near(
        gradients(lambda x: ours(x, *rest), first), gradients(lambda x: theirs(x, *rest), first)
    )


@pytest.mark.parametrize("name", MODULES)
def test_copies(name):
    module, theirs, arrays = modules()[name]
    expected = module(*arrays)
    stored = io.BytesIO()
    torch.save(module, stored)
    stored.seek(0)
    for other in (
        copy.copy(module),
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),  # noqa: S301
        torch.load(stored, weights_only=False),
    ):
        assert type(other) is type(module)
        assert torch.equal(other(*arrays), expected)
    # State dicts are compatible with PyTorch's modules, in both directions.
    module.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(module.state_dict())
    assert module.double().state_dict().keys() == theirs.state_dict().keys()
    for value in module.state_dict().values():
        assert value.dtype == torch.float64


@pytest.mark.parametrize("name", MODULES)
def test_compiled(name):
    module, _, arrays = modules()[name]
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    first, rest = arrays[0], arrays[1:]
    for count in (6, 4):
        given = [a[:count] for a in rest]
        found, expected = (
            gradients(lambda x, m=m, given=given: m(x, *given), first[:count])
            for m in (compiled, module)
        )
        assert_near(found, expected)


# First calls of a program. Each is compiled in a process without earlier calls.
FIRST_CALLS = """
import os, sys
import torch, torch._dynamo
import {api} as api

torch.set_num_threads(1)
x, t, h = torch.linspace(-1, 1, 12).reshape(3, 4), torch.tensor([0, 3, 1]), torch.ones(4, 4)
w = [1.0, 2.0, 3.0, 4.0]
calls = dict(
    int=lambda: api.cross_entropy(x, t, normalizer=10),
    float=lambda: api.cross_entropy(x, t, normalizer=2.5),
    list=lambda: api.cross_entropy(x, [0, 3, 1]),
    weight=lambda: api.cross_entropy(x, t, weight=w),
    nll=lambda: api.nll_loss(x, t, weight=w),
    log_softmax=lambda: api.log_softmax(x),
    linear=lambda: api.linear_cross_entropy(x, h, t, normalizer=10, weight=w),
    per_row=lambda: api.per_row(x, [0, 3, 1], weight=w).loss,
    linear_per_row=lambda: api.linear_per_row(x, h, t, weight=w).entropy,
    gradient=lambda: api.value_and_grad(api.cross_entropy)(x, t, normalizer=10)[1],
    partials=lambda: api.finish(api.partials(x, t, classes=4, weight=w)),
)
if hasattr(api, "functional"):
    calls |= dict(
        function=lambda: api.functional.cross_entropy(x, t, torch.tensor(w), label_smoothing=0.1),
        module=lambda: api.CrossEntropyLoss()(x, t),
        trainer=lambda: api.compute_loss_func(dict(logits=x[None]), t[None], 10),
    )
for name, call in calls.items():
    if os.fork() == 0:
        try:
            found = torch.compile(call, fullgraph=True, backend="eager")()
            print(name, torch.equal(found, call()), flush=True)
        finally:
            os._exit(0)
    os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="it forks")
@pytest.mark.parametrize(("api", "count"), [("xentx", 11), ("xentx_torch", 14)])
def test_the_first_call_is_compiled(api, count, engine):
    if api == "xentx_torch" and engine == "portable":
        pytest.skip("it does not depend on the engine")
    done = subprocess.run(
        [sys.executable, "-P", "-c", FIRST_CALLS.format(api=api)],
        env={**os.environ, "XENTX_ENGINE": engine},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == count, done.stderr
    assert all(line.endswith(" True") for line in lines), done.stdout


HIDDEN, HEAD = torch.randn(6, 4, generator=GENERATOR), torch.randn(5, 4, generator=GENERATOR)
STEPS = 14
COUNTS = [3 + 2 * i for i in range(STEPS)]
FRACTIONS = [0.015 + 0.07 * i for i in range(STEPS)]


def linear_loss(_, target, **options):
    return xentx_torch.linear_cross_entropy(HIDDEN, HEAD, target, **options)


def row_losses(logits, target, **options):
    return xentx_torch.per_row(logits, target, **options).loss


SCHEDULES = [
    *((xentx_torch.cross_entropy, "normalizer", values) for values in (COUNTS, FRACTIONS)),
    *((linear_loss, "normalizer", values) for values in (COUNTS, FRACTIONS)),
    *(
        (function, "ignore_index", list(range(-4, STEPS - 4)))
        for function in (
            xentx_torch.cross_entropy,
            xentx_torch.nll_loss,
            functional.cross_entropy,
            linear_loss,
            row_losses,
        )
    ),
    *(
        (function, option, FRACTIONS)
        for option in ("label_smoothing", "z_loss", "logit_softcap")
        for function in (functional.cross_entropy, linear_loss, row_losses)
    ),
]


@pytest.mark.parametrize(
    ("function", "option", "values"),
    SCHEDULES,
    ids=[f"{f.__name__}-{o}-{type(v[0]).__name__}" for f, o, v in SCHEDULES],
)
def test_a_number_that_changes_with_each_call_compiles_twice(function, option, values):
    """As many times as for PyTorch's function: for the first number, and for all others."""
    counter = CompileCounterWithBackend("aot_eager")
    target = TARGET.abs() % 5

    def loss(logits, number):
        return function(logits, target, **{option: number})

    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for value in values:
        found, expected = (
            gradients(lambda x, f=f, v=value: f(x, v) + x.sum(), LOGITS) for f in (compiled, loss)
        )
        assert_near(found, expected)
    assert counter.frame_count <= 2


def test_numbers_that_a_compiler_holds_to_be_dynamic():
    def function(x, t, smoothing, ignored):
        return functional.cross_entropy(x, t, label_smoothing=smoothing, ignore_index=ignored)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for options in ((0.1, -100), (0.3, -100), (0.3, 2)):
        assert_near(
            compiled(LOGITS, TARGET.abs() % 5, *options),
            function(LOGITS, TARGET.abs() % 5, *options),
        )


@pytest.mark.parametrize("name", MODULES)
def test_exported(name):
    module, _, arrays = modules()[name]
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(module, arrays, dynamic_shapes=[{0: rows}] * len(arrays))
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    again = torch.export.load(stored)
    for count in (6, 3):
        given = [a[:count] for a in arrays]
        assert_near(again.module()(*given), module(*given))


def test_torchscript_is_refused_by_name():
    # TorchScript does not support keyword-only parameters with defaults. torch.jit.trace works.
    def script(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(x, t)

    with pytest.raises(Exception, match="can't take variable number of arguments or use keyword"):
        torch.jit.script(script)


class Model(torch.nn.Module):
    """A layer and its loss."""

    def __init__(self, loss):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.layer = torch.nn.Linear(5, 5)
        self.loss = loss

    def forward(self, x, target):
        x = self.layer(x)
        return self.loss(x) if isinstance(self.loss, torch.nn.LogSoftmax) else self.loss(x, target)


TRACED = {
    **{name: module for name, (module, _, _) in modules().items()},
    "functional": functional.cross_entropy,
    "functional.log_softmax": lambda x, t: functional.nll_loss(functional.log_softmax(x, 1), t),
    "xentx": xentx.cross_entropy,
    "xentx_torch": lambda x, t: xentx_torch.nll_loss(xentx_torch.log_softmax(x), t),
    "linear": lambda x, t: xentx_torch.linear_cross_entropy(x, torch.eye(5), t, normalizer=3),
    "per_row": lambda x, t: xentx.per_row(x, t).entropy,
}


@pytest.mark.parametrize("name", TRACED)
def test_symbolic_trace(name):
    model = Model(TRACED[name])
    traced = torch.fx.symbolic_trace(model)
    calls = [node for node in traced.graph.nodes if node.op == "call_function"]
    assert any(node.target.__module__.startswith("xentx") for node in calls)
    for count in (6, 4):
        target = TARGET[:count].abs() % 5
        found, expected = (
            gradients(lambda x, m=m, t=target: m(x, t), LOGITS[:count]) for m in (traced, model)
        )
        assert_near(found, expected)


def test_symbolic_trace_of_value_and_grad_is_an_error():
    both = xentx.value_and_grad(xentx.cross_entropy)
    with pytest.raises(TypeError, match=r"^logits: got a proxy of torch\.fx; expected a tensor"):
        torch.fx.symbolic_trace(lambda x, t: both(x, t)[0])


NOT_DENSE = {
    "sparse_coo": lambda x: x.to_sparse(),
    "sparse_csr": lambda x: x.to_sparse_csr(),
    "nested": lambda x: torch.nested.nested_tensor(list(x)),
    "jagged": lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged),
}
ARGUMENTS = {
    "logits": lambda x: xentx.cross_entropy(x, TARGET),
    "log_probs": lambda x: xentx_torch.nll_loss(x, TARGET),
    "target": lambda x: xentx.cross_entropy(LOGITS, x),
    "weight": lambda x: xentx.cross_entropy(LOGITS, TARGET, weight=x),
    "sample_weight": lambda x: xentx.cross_entropy(LOGITS, TARGET, sample_weight=x),
    "normalizer": lambda x: xentx.cross_entropy(LOGITS, TARGET, normalizer=x),
    "cotangent": lambda x: xentx.value_and_grad(xentx.log_softmax)(LOGITS, cotangent=x),
    "hidden": lambda x: xentx.linear_cross_entropy(x, LOGITS, TARGET),
    "head": lambda x: functional.linear_cross_entropy(LOGITS, x, TARGET),
}
LOGITS_OF = [
    lambda x: xentx_torch.CrossEntropyLoss()(x, TARGET),
    xentx_torch.LogSoftmax(1),
    lambda x: xentx.per_row(x, TARGET),
    lambda x: xentx.partials(x, TARGET, classes=5),
    lambda x: xentx.value_and_grad(xentx.cross_entropy)(x, TARGET),
]


@pytest.mark.filterwarnings("ignore")  # beta features
@pytest.mark.parametrize("kind", NOT_DENSE)
def test_tensors_that_are_not_dense_are_named(kind):
    tensor = NOT_DENSE[kind](LOGITS)
    what = "nested" if kind == "jagged" else kind
    for name, function in (*ARGUMENTS.items(), *(("logits", f) for f in LOGITS_OF)):
        if kind == "jagged" and name == "head":
            continue  # a jagged tensor has no fixed size that could be flattened
        with pytest.raises(TypeError, match=f"^{name}: got a {what} tensor; expected a dense tens"):
            function(tensor)


# ---- contexts, threads and subclasses


class Passing(TorchDispatchMode):
    """Runs every operation unchanged."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize(
    "function",
    [
        xentx.cross_entropy,
        xentx_torch.nll_loss,
        xentx_torch.CrossEntropyLoss(),
        linear_loss,
        row_losses,
        xentx.value_and_grad(xentx.cross_entropy),
    ],
)
def test_a_mode_that_dispatches_sees_the_same_errors(function, watched):
    logits, target = LOGITS.clone().requires_grad_(watched), TARGET.abs() % 5
    target[2] = 7
    with pytest.raises(IndexError) as plain:
        function(logits, target)
    with Passing(), pytest.raises(IndexError) as caught:
        function(logits, target)
    assert str(caught.value) == str(plain.value)
    target[2] = -100
    with Passing():
        found = function(logits, target)
    expected = function(logits, target)
    assert_near(found, expected)


def test_tensors_with_values_where_others_are_fake():
    """In this mode, operations on tensors with values return fake tensors."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        for target in (TARGET, torch.tensor([7])):
            assert xentx_torch.cross_entropy(LOGITS[: len(target)], target).shape == ()


@pytest.mark.parametrize(
    ("dtype", "compiled"),
    [(d, False) for d in (torch.float16, torch.bfloat16, torch.float32, torch.float64)]
    + [(torch.bfloat16, True)],
)
def test_autocast(dtype, compiled):
    """As in PyTorch: losses of narrow logits have float32. On CPUs, log_softmax keeps the dtype."""
    for name, cls in (("cross_entropy", "CrossEntropyLoss"), ("nll_loss", "NLLLoss")):
        calls = [getattr(functional, name), getattr(xentx_torch, cls)()]
        if compiled:
            calls = [torch.compile(call, fullgraph=True, backend="aot_eager") for call in calls]
        with torch.autocast("cpu", torch.bfloat16):
            own = getattr(torch.nn.functional, name)
            expected = gradients(lambda x, own=own: own(x, TARGET), LOGITS.to(dtype))
        for call in calls:
            with torch.autocast("cpu", torch.bfloat16):
                found = gradients(lambda x, call=call: call(x, TARGET), LOGITS.to(dtype))
            assert_near(found, expected)
            assert call(LOGITS.to(dtype), TARGET).dtype == dtype
    layer = xentx_torch.LinearCrossEntropyLoss(5, 7, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        logits = LOGITS.to(dtype)
        wide = torch.promote_types(dtype, torch.float32)
        assert functional.log_softmax(logits, 1).dtype == dtype
        assert layer(logits, TARGET).dtype == wide
        assert xentx_torch.compute_loss_func({"logits": logits}, TARGET).dtype == wide
        # Functions that are not drop-in replacements keep the dtype of the logits.
        for function in (xentx.cross_entropy, xentx_torch.cross_entropy, xentx.nll_loss):
            assert function(logits, TARGET).dtype == dtype


def test_inference_mode_and_checkpoints():
    module = xentx_torch.CrossEntropyLoss(WEIGHT)
    expected = gradients(lambda x: module(x, TARGET), LOGITS)
    with torch.inference_mode():
        assert torch.equal(module(LOGITS, TARGET), expected[0])
    for options in ({"use_reentrant": False}, {"use_reentrant": True}):
        leaf = LOGITS.clone().requires_grad_()
        torch.utils.checkpoint.checkpoint(module, leaf, TARGET, **options).backward()
        assert torch.equal(leaf.grad, expected[1])


def test_functional_calls_of_a_module():
    module = xentx_torch.CrossEntropyLoss(WEIGHT)

    def call(weight, logits):
        return torch.func.functional_call(module, {"weight": weight}, (logits, TARGET))

    weights = torch.stack([WEIGHT, 2 * WEIGHT, WEIGHT.flip(0)])
    found = torch.vmap(torch.func.grad(call, argnums=1), (0, None))(weights, LOGITS)
    for weight, gradient in zip(weights, found, strict=True):
        expected = gradients(lambda x, w=weight: xentx_torch.CrossEntropyLoss(w)(x, TARGET), LOGITS)
        assert_near(gradient, expected[1])


def test_a_module_of_several_threads():
    """DataParallel runs forward passes of replicas in threads, and one backward pass for all."""
    module = xentx_torch.CrossEntropyLoss(WEIGHT)
    logits = LOGITS.clone().requires_grad_()
    expected = gradients(lambda x: sum(module(x * s, TARGET) for s in (1, 2, 3)), LOGITS)
    for _ in range(5):
        values, failures = {}, []

        def work(scale, values=values, failures=failures):
            try:
                values[scale] = module(logits * scale, TARGET)
            except BaseException as failure:  # noqa: BLE001
                failures.append(failure)

        threads = [threading.Thread(target=work, args=(scale,)) for scale in (1, 2, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        total = sum(values.values())
        assert_near([total.detach(), *torch.autograd.grad(total, logits)], list(expected))


class Logged(torch.Tensor):
    """A subclass that records the functions of PyTorch that are called."""

    seen = ()

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.seen = (*cls.seen, function)
        return super().__torch_function__(function, types, args, kwargs or {})


def test_tensors_of_a_subclass():
    module = xentx_torch.CrossEntropyLoss()
    for logits, target in (
        (LOGITS.as_subclass(Logged), TARGET),
        (LOGITS, SOFT.as_subclass(Logged)),
    ):
        value = module(logits, target)
        assert type(value) is Logged
        assert_near(value.as_subclass(torch.Tensor), module(*map(plain, (logits, target))))
    assert Logged.seen


def plain(array):
    return array.as_subclass(torch.Tensor)


def test_targets():
    for dtype in (torch.int8, torch.uint8, torch.int16, torch.int32):
        wanted = torch.nn.functional.cross_entropy(LOGITS, TARGET.abs() % 5)
        assert_near(xentx_torch.CrossEntropyLoss()(LOGITS, (TARGET.abs() % 5).to(dtype)), wanted)
    ours, theirs = (
        gradients(
            lambda x, t, f=f: f.cross_entropy(x, t, WEIGHT, label_smoothing=0.1), LOGITS, SOFT
        )
        for f in (functional, torch.nn.functional)
    )
    assert_near(ours, theirs)


@pytest.mark.parametrize("name", MODULES)
def test_tensors_without_values(name):
    module, _, arrays = modules()[name]
    expected = module(*arrays)
    # On the device "meta" parameters have no values either.
    remote = copy.deepcopy(module).to("meta")
    found = remote(*(a.to("meta") for a in arrays))
    assert found.is_meta
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        logits, *rest = (mode.from_tensor(a) for a in arrays)
        logits.requires_grad_()
        found = module(logits, *rest)
        found.sum().backward()
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert logits.grad.shape == logits.shape
    assert_near(module(*arrays), expected)  # no tensor without values was cached


# ---- interfaces for trainers


def causal_lm(logits, labels, num_items=None):
    """The loss of the causal language models in transformers, with PyTorch's own function."""
    shifted = torch.nn.functional.pad(labels, (0, 1), value=-100)[..., 1:].reshape(-1)
    logits = logits.float().reshape(-1, logits.shape[-1])
    if num_items is None:
        return torch.nn.functional.cross_entropy(logits, shifted)
    return torch.nn.functional.cross_entropy(logits, shifted, reduction="sum") / num_items


@pytest.mark.parametrize("items", [None, 7, torch.tensor(7), torch.tensor([7])])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_compute_loss_func(dtype, items):
    logits = torch.randn(2, 4, 5, generator=GENERATOR).to(dtype)
    labels = torch.tensor([[1, 0, 4, -100], [3, -100, 2, 2]])
    expected = gradients(lambda x: causal_lm(x, labels, items).reshape(()), logits)
    for wrap in (lambda x: {"logits": x}, lambda x: types.SimpleNamespace(logits=x)):
        found = gradients(
            lambda x, wrap=wrap: xentx_torch.compute_loss_func(wrap(x), labels, items), logits
        )
        assert_near(found, expected)
        assert found[0].dtype == torch.float32


def test_compute_loss_func_may_be_scaled_in_place():
    # The Trainer does this for several processes.
    def scaled(x):
        loss = xentx_torch.compute_loss_func(
            {"logits": x}, torch.tensor([[0, 1, 2]]), num_items_in_batch=torch.tensor(2)
        )
        loss *= 2
        return loss

    logits = torch.randn(1, 3, 5, generator=GENERATOR)
    expected = gradients(lambda x: 2 * causal_lm(x, torch.tensor([[0, 1, 2]]), 2), logits)
    assert_near(gradients(scaled, logits), expected)


def test_compute_loss_func_takes_the_options_of_the_loss():
    logits, labels = torch.randn(2, 3, 5, generator=GENERATOR), torch.tensor([[1, 2, 3], [0, 7, 7]])
    options = {"z_loss": 0.1, "ignore_index": 7}
    found = xentx_torch.compute_loss_func({"logits": logits}, labels, **options)
    expected = xentx_torch.cross_entropy(logits[:, :-1], labels[:, 1:], axis=-1, **options)
    assert_near(found, expected)


def test_sums_and_counts_of_micro_batches():
    """Sums and normalizers, as metrics and gradient accumulation use them."""
    options = {"weight": WEIGHT, "label_smoothing": 0.1}
    whole = gradients(lambda x: xentx_torch.cross_entropy(x, TARGET, **options), LOGITS)
    states = [torch.tensor(0.0), torch.tensor(0.0, dtype=torch.float64)]
    leaf = LOGITS.clone().requires_grad_()
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):  # of different sizes
        pair = xentx_torch.cross_entropy(
            leaf[rows], TARGET[rows], **options, reduction="sum", return_normalizer=True
        )
        pair[0].backward()
        states = [state + new.detach() for state, new in zip(states, pair, strict=True)]
    total, count = states
    assert_near((total / count).float(), whole[0])
    assert_near((leaf.grad / count).float(), whole[1])


def test_numpy_arrays_in_the_other_byte_order():
    """NumPy arrays together with tensors may have any byte order, and may be read-only."""
    target, soft = TARGET.numpy().astype(">i4"), SOFT.numpy().astype(">f8")
    weight, bias = WEIGHT.numpy().astype(">f4"), torch.arange(5.0).numpy().astype(">f4")
    for array in (target, soft, weight, bias):
        array.flags.writeable = False
    own = torch.tensor(target.tolist()), torch.tensor(soft.tolist()), WEIGHT, torch.arange(5.0)
    hidden, head = LOGITS[:, :3].contiguous(), IMAGES[0, :, 0, :3].contiguous()

    def losses(t, y, w, b):
        return [
            functional.nll_loss(LOGITS, t, w),
            functional.cross_entropy(LOGITS, t, w, label_smoothing=0.1),
            functional.cross_entropy(LOGITS, y, w),
            functional.linear_cross_entropy(hidden, head, t, linear_bias=b, weight=w),
            xentx_torch.NLLLoss()(LOGITS, t),
            xentx_torch.CrossEntropyLoss(WEIGHT)(LOGITS, t),
            xentx_torch.CrossEntropyLoss()(LOGITS, y),
            xentx_torch.cross_entropy(LOGITS, t, weight=w),
        ]

    for found, expected in zip(losses(target, soft, weight, bias), losses(*own), strict=True):
        assert_near(found, expected)
