"""The CPU kernel in PyTorch's contexts, with subclasses, devices, threads and processes."""

import contextlib
import os
import subprocess
import sys
import textwrap
import threading

import pytest

import xentx
from xentx.testing import requested_frameworks
from xentx.testing._problems import REDUCTIONS

if "torch" not in requested_frameworks():
    pytest.skip("PyTorch is not requested", allow_module_level=True)

import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from torch_kernel import (
    LARGE,
    LARGE_TARGET,
    LOGITS,
    RNG,
    SOFT,
    TARGET,
    WEIGHT,
    assert_bits,
    assert_near,
    both,
    leaf,
    log_softmax,
    loss,
    own,
    portable,
)
from xentx import _validation
from xentx_torch import _private

# ---- contexts, classes, devices


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
            monkeypatch.setattr(_validation, "_KINDS", {})  # so that the call is prepared inside
            with CONTEXTS[name]():
                found = both(function)(logits)
                inside = own(logits, weight=WEIGHT, reduction=reduction)
            if name == "forward mode":  # the core computes the derivatives
                assert_near(
                    found, expected, rtol=1e-2 if dtype == torch.float16 else 1e-5, atol=1e-5
                )
            else:
                assert_bits(found, expected)
                assert_bits(inside, expected)


def test_what_inference_mode_caches_is_valid_outside():
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
    """A subclass that a user defines."""


class Head(torch.nn.Module):
    """A model that returns the loss."""

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


def test_a_negated_view():
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


@pytest.mark.filterwarnings("ignore")  # beta features
@pytest.mark.parametrize("name", REFUSED)
def test_unreadable_tensors_raise_the_error_of_the_core(name):
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
        # Fake tensors on a GPU: all arrays of an operator must be on one device.
        logits, weight = torch.empty(6, 5, device="cuda"), torch.ones(5, device="cuda")
        target = torch.zeros(6, dtype=torch.int64, device="cuda")
        assert loss(logits, target, weight=weight).device.type == "cuda"
        assert own(logits, target, weight=weight)[1].device.type == "cuda"


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
    """Several backward passes run at once on one graph. Only one can use the stored gradient."""
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
    """PyTorch's autograd has tensors of zeros with a shape but without memory."""
    make = torch._efficientzerotensor  # noqa: SLF001 -- there is no public function
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
    """Run a program in a new interpreter, and return what it prints."""
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
    """Each private name of PyTorch has a fallback, which gives the same results."""
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
    """The stored gradient becomes the gradient of the leaf, without a copy."""
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
