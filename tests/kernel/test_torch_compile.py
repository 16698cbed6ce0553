"""PyTorch's tracers and compilers on the CPU kernel."""

import shutil

import pytest

import xentx
from xentx.testing import requested_frameworks
from xentx.testing._problems import REDUCTIONS

if "torch" not in requested_frameworks():
    pytest.skip("PyTorch is not requested", allow_module_level=True)

import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from torch_kernel import (
    LARGE,
    LARGE_TARGET,
    LOGITS,
    SAMPLE_WEIGHT,
    SOFT,
    TARGET,
    WEIGHT,
    assert_bits,
    assert_near,
    both,
    leaf,
    loss,
    own,
    portable,
    stacked,
)


def operators_in(graph):
    """Names of xentx's operators in an FX graph."""
    return [node.target.name() for node in graph.graph.nodes if "xentx" in str(node.target)]


def collecting(graphs):
    """Return a backend of torch.compile that runs graphs and lists their operators in `graphs`."""

    def compiler(graph, _):
        graphs.append(operators_in(graph))
        return make_boxed_func(graph)

    return aot_autograd(fw_compiler=compiler, bw_compiler=compiler)


@pytest.fixture
def fresh():
    """Reset torch.compile before and after a test."""
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
        large = arrays[0] is LARGE or mode == "real"  # for real tensors there is no compiler
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
def test_a_graph_from_make_fx_is_valid_for_other_values(function, mode):
    """The graph does not depend on whether a row is ignored or its target is out of range."""
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
    assert torch.isfinite(loss(LOGITS.float()))  # no fake tensor was cached


class Exported(torch.nn.Module):
    """A module to export."""

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


@pytest.mark.filterwarnings("ignore")  # it warns that numbers are treated as constants
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
