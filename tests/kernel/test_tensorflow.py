"""TensorFlow tensors on the CPU kernel, eager and in graphs.

`test_bits` compares the bits with other frameworks. The tests in tests/matrix also run on the
kernel, and check derivatives of every order. The tests here check that the operators work wherever
TensorFlow may place or transform them.
"""

import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import xentx
import xentx_numpy
from xentx.testing import _oracle as oracle
from xentx.testing import requested_frameworks
from xentx.testing._engines import portable_core
from xentx.testing._problems import OPTIONS, REDUCTIONS, RNG_SEED, draw_problem

if "tensorflow" not in requested_frameworks():
    pytest.skip("TensorFlow is not requested", allow_module_level=True)

import tensorflow as tf

import xentx_tensorflow
from xentx_tensorflow import _kernel

if _kernel.operators() is None:
    pytest.skip("xentx is without a kernel for TensorFlow here", allow_module_level=True)

BACKEND = xentx_tensorflow.BACKEND
RNG = np.random.default_rng(RNG_SEED)
LOGITS = RNG.normal(0, 2, (6, 5))
TARGET = RNG.integers(0, 5, 6)
SOFT = RNG.gamma(1.0, size=(6, 5))
WEIGHT, SAMPLE_WEIGHT = RNG.uniform(0.5, 2, 5), RNG.uniform(0.5, 2, 6)
SEED = RNG.normal(size=(6, 5))

xla = {"jit_compile": True}


def loss(logits, target=TARGET, **options):
    return xentx_tensorflow.cross_entropy(logits, target, label_smoothing=0.1, **options)


def portable(function):
    """Return the same function, computed by the portable core."""

    def by_the_core(*args, **kwargs):
        with portable_core(BACKEND):
            return function(*args, **kwargs)

    return by_the_core


def both(function):
    """Return a function for the value, and the gradient with respect to the first argument."""

    def value_and_gradient(logits, *args, cotangent=None):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = function(logits, *args)
        return value, tape.gradient(value, logits, output_gradients=cotangent)

    return value_and_gradient


def gradient(function):
    return lambda *args: both(function)(*args)[1]


def tensor(array, dtype=None):
    return tf.constant(array, dtype)


def operators_in(function, *args):
    """Names of xentx's operators in a function's graph, and in the functions that it calls."""
    graph = tf.function(function).get_concrete_function(*args).graph.as_graph_def()
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    return {node.op for node in nodes if node.op.startswith("Xentx")}


@pytest.fixture
def calls(monkeypatch):
    """Names of the operators that are called eagerly or while a graph is built."""
    called = []
    loaded = _kernel.operators()
    names = [name for name in dir(loaded) if name.startswith("xentx_")]

    def spy(name):
        return lambda *args: called.append(name) or getattr(loaded, name)(*args)

    spies = SimpleNamespace(**{name: spy(name) for name in names})
    monkeypatch.setattr(_kernel, "operators", lambda: spies)
    return called


# ---- Which operators are called, and that they call the kernel.


def test_a_tape_that_watches_the_logits_has_the_gradient_formed_with_the_loss(calls):
    logits = tensor(LOGITS)
    loss(logits)
    assert calls == ["xentx_loss"]
    calls.clear()
    value, found = both(loss)(logits)
    assert calls == ["xentx_loss_and_gradient", "xentx_loss", "xentx_loss_gradient"]
    calls.clear()
    with tf.GradientTape() as tape:
        tape.watch(weight := tensor(WEIGHT))
        by_weight = loss(logits, weight=weight)
    assert calls == ["xentx_loss"]
    assert tape.gradient(by_weight, weight).shape == weight.shape
    calls.clear()
    again = xentx_tensorflow.value_and_grad(xentx_tensorflow.cross_entropy)(
        logits, TARGET, label_smoothing=0.1
    )
    assert calls == ["xentx_loss_and_gradient"]
    np.testing.assert_array_equal(again[0], value)
    np.testing.assert_array_equal(again[1], found)


def test_the_gradient_for_a_cotangent_of_one_is_not_copied():
    logits = tensor(RNG.normal(size=(64, 1000)), tf.float32)
    target, options = tensor(np.zeros(64, np.int64)), "axis=1 reduction=mean"
    operators = _kernel.operators()
    _, known = operators.xentx_loss_and_gradient(logits, target, [], options)
    one, two = tf.constant(1.0), tf.constant(2.0)
    same = operators.xentx_loss_gradient(logits, target, [], one, [known], options)
    other = operators.xentx_loss_gradient(logits, target, [], two, [known], options)
    assert address(same) == address(known)
    assert address(other) != address(known)


def address(x):
    return np.asarray(memoryview(x)).__array_interface__["data"][0]


def test_a_graph_that_no_tape_sees_forms_no_gradient():
    assert operators_in(loss, tensor(LOGITS)) == {"XentxLoss"}
    assert operators_in(both(loss), tensor(LOGITS)) == {"XentxLossAndGradient", "XentxLossGradient"}


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", oracle.DTYPES)
def test_all_options_are_handed_on(dtype, reduction, soft):
    for i, names in enumerate(OPTIONS.values()):
        rng = np.random.default_rng([RNG_SEED, i])
        logits, target, options, seed = draw_problem(
            rng, (4, 7, 3), 1, oracle.DTYPES[dtype], soft=soft, reduction=reduction, options=names
        )
        mine = xentx_numpy.value_and_grad(xentx_numpy.cross_entropy)(
            logits, target, cotangent=seed, **options
        )
        target = target if soft or i % 2 else target.astype(np.int64)
        arrays = {k: tensor(v) for k, v in options.items() if isinstance(v, np.ndarray)}
        found = both(
            lambda x, t, arrays, options=options: xentx_tensorflow.cross_entropy(
                x, t, **{**options, **arrays}
            )
        )(tensor(logits), tensor(target), arrays, cotangent=tensor(seed))
        truth = oracle.cross_entropy(logits, target, cotangent=seed, **options)
        for got, ours, true, scale in zip(
            found,
            mine,
            (truth.value, truth.gradient),
            (truth.value_scale, truth.gradient_scale),
            strict=True,
        ):
            np.testing.assert_array_equal(got.numpy(), ours)
            oracle.assert_within(got.numpy(), true, scale, 4)


@pytest.mark.parametrize("traced", [False, True])
def test_log_softmax(traced):
    logits, seed = tensor(LOGITS, tf.float32), tensor(SEED, tf.float32)

    def function(x, u):
        return both(xentx_tensorflow.log_softmax)(x, cotangent=u)

    value, found = (tf.function(function) if traced else function)(logits, seed)
    mine = xentx_numpy.value_and_grad(xentx_numpy.log_softmax)(
        logits.numpy(), cotangent=seed.numpy()
    )
    np.testing.assert_array_equal(value, mine[0])
    np.testing.assert_array_equal(found, mine[1])
    assert function(tensor(LOGITS[0]), tensor(SEED[0]))[0].shape == (5,)


def test_a_cotangent_with_another_dtype_is_not_rounded():
    logits = tensor(LOGITS, tf.float16)
    seed = np.float32(1.0001)  # not a float16 number
    ours = xentx_tensorflow.value_and_grad(xentx_tensorflow.cross_entropy)
    mine = xentx_numpy.value_and_grad(xentx_numpy.cross_entropy)
    _, found = ours(logits, TARGET, cotangent=seed)
    np.testing.assert_array_equal(found, mine(logits.numpy(), TARGET, cotangent=seed)[1])


def test_small_gradients_survive_in_float16():
    # A loss scaled by 2^-14: the gradient must be scaled before it is rounded to float16.
    logits = tensor(LOGITS, tf.float16)
    seed = tensor(np.float16(2.0**-14))
    for function in (both(loss), tf.function(both(loss))):
        _, found = function(logits, cotangent=seed)
        truth = oracle.cross_entropy(
            logits.numpy(), TARGET, label_smoothing=0.1, cotangent=seed.numpy()
        )
        assert oracle.ulps(found.numpy(), truth.gradient).max() <= 0.501


def test_sizes_that_are_odd():
    for shape in ((0, 5), (3, 1), (0, 1)):
        logits, target = tf.zeros(shape), tf.zeros(shape[:1], tf.int32)
        for function in (both(loss), tf.function(both(loss))):
            value, found = function(logits, target)
            assert found.shape == shape
            np.testing.assert_array_equal(value, 0.0 if shape[0] else np.nan)
            np.testing.assert_array_equal(found, np.zeros(shape))
    value, found = both(loss)(tensor(LOGITS[0]), tensor(TARGET[0]))
    assert value.shape == ()
    assert found.shape == (5,)


def test_memory_at_any_address_is_read_and_aligned_memory_handed_out():
    whole = tensor(RNG.normal(size=(8, 7)), tf.float32)
    for row in range(1, 5):
        part = tf.raw_ops.Slice(input=whole, begin=[row, 0], size=[3, 7])
        value, found = both(loss)(part, TARGET[:3])
        again = both(loss)(tensor(part.numpy()), TARGET[:3])
        np.testing.assert_array_equal(value, again[0])
        np.testing.assert_array_equal(found, again[1])
        assert address(found) % 64 == 0
        # unaligned memory would end the process
        tf.exp(found) + tf.exp(xentx_tensorflow.log_softmax(part))


def test_arguments_are_not_overwritten():
    logits, target = tensor(RNG.normal(size=(64, 128)), tf.float32), tensor(np.arange(64))
    before = logits.numpy().copy()

    def function(x, t):
        value, found = both(loss)(x, t, cotangent=tf.constant(0.5))
        log_probs, pulled = both(xentx_tensorflow.log_softmax)(x)
        rows, by_rows = both(lambda x, t: loss(x, t, reduction="none"))(x * 1.0, t)
        return value, found, log_probs, pulled, rows, by_rows, x + 1.0

    for form in (function, tf.function(function)):
        results = form(logits, target)
        np.testing.assert_array_equal(logits, before)
        np.testing.assert_array_equal(results[-1], before + 1.0)
    expected = portable(function)(logits, target)
    for got, wanted in zip(results, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_logits_as_the_target():
    probs = tf.nn.softmax(tensor(LOGITS))

    def function(x):
        return xentx_tensorflow.cross_entropy(x, x)

    expected = gradient(portable(function))(probs)
    for form in (function, tf.function(function)):
        np.testing.assert_allclose(gradient(form)(probs), expected, rtol=1e-12)


# ---- indices out of range


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("wrong", [5, -1])
def test_a_wrong_index_is_the_same_error_as_without_the_kernel(wrong, reduction):
    target = tensor(np.where(np.arange(6) == 2, wrong, TARGET))
    message = rf"target: got {wrong} at position 2; expected 0 <= target < 5"
    for function in (
        loss,
        both(loss),
        xentx_tensorflow.value_and_grad(xentx_tensorflow.cross_entropy),
    ):
        with pytest.raises(IndexError, match=message):
            function(tensor(LOGITS), target)
    value, found = tf.function(both(lambda x, t: loss(x, t, reduction="none")))(
        tensor(LOGITS), target
    )
    np.testing.assert_array_equal(np.isnan(value), np.arange(6) == 2)
    np.testing.assert_array_equal(np.isnan(found).all(-1), np.arange(6) == 2)
    assert np.isfinite(found[:2]).all()


def test_operators_raise_errors_for_wrong_graphs():
    operators = _kernel.operators()
    logits, target = tensor(LOGITS), tensor(TARGET)
    for arguments, message in (
        ((logits, target[:3], [], [], "axis=1 reduction=mean"), "target: got another size"),
        ((logits, target, [], [], "axis=2"), "without the class axis"),
        ((logits, target, [], [], "axis=1 colour=red"), "options: got colour=red"),
        ((logits, target, [logits], [], "axis=1 weight=True"), "weight: got another"),
        ((logits, target, [], [], "axis=1 weight=1"), "options: got the flag 1"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            operators.xentx_loss(*arguments)


# ---- derivatives without operators


def second(function):
    def of_gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(gradient(function)(x) * SEED)
        return tape.gradient(value, x)

    return of_gradient


def third(function):
    def of_second(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(second(function)(x) * SEED)
        return tape.gradient(value, x)

    return of_second


def jacobian(function):
    def of_value(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x)
        return tape.jacobian(value, x)

    return of_value


def hessian(function):
    def of_gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            found = gradient(function)(x)
        return tape.jacobian(found, x)

    return of_gradient


def jvp(function):
    def of_value(x):
        with tf.autodiff.ForwardAccumulator(x, tensor(SEED)) as forward:
            value = function(x)
        return forward.jvp(value)

    return of_value


def forward_over_reverse(function):
    return jvp(gradient(function))


def reverse_over_forward(function):
    return gradient(jvp(function))


def vectorized(function):
    return lambda x: tf.vectorized_map(function, tf.stack([x, 2.0 * x, x + 1.0]))


def persistent(function):
    def twice(x):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            value = function(x)
        once = tape.gradient(value, x)
        return once + tape.gradient(value, x, tf.fill(tf.shape(value), tensor(0.3, x.dtype)))

    return twice


DERIVATIVES = {
    "second": second,
    "third": third,
    "jacobian": jacobian,
    "hessian": hessian,
    "jvp": jvp,
    "forward over reverse": forward_over_reverse,
    "reverse over forward": reverse_over_forward,
    "vectorized": vectorized,
    "vectorized gradient": lambda function: vectorized(gradient(function)),
    "gradient of vectorized": lambda function: gradient(vectorized(function)),
    "persistent": persistent,
}


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "function"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", DERIVATIVES)
def test_every_derivative_is_the_one_of_the_core(name, reduction, traced, caplog):
    def function(x):
        return loss(x, z_loss=0.1, logit_softcap=3.0, reduction=reduction)

    derivative = DERIVATIVES[name]
    expected = portable(derivative(function))(tensor(LOGITS))
    assert np.any(expected != 0)
    derived = derivative(function)
    found = (tf.function(derived) if traced else derived)(tensor(LOGITS))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert "Using a while_loop" not in caplog.text  # a warning that users cannot avoid


def row_stats(x, target=TARGET, **options):
    """Weighted sum of the fields that have derivatives."""
    fields = xentx_tensorflow.per_row(x, target, label_smoothing=0.1, **options)[:4]
    return sum(field * seed for field, seed in zip(fields, SEED.T, strict=False))


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "function"])
@pytest.mark.parametrize("name", DERIVATIVES)
def test_every_derivative_of_row_statistics(name, traced):
    derivative = DERIVATIVES[name]
    expected = portable(derivative(row_stats))(tensor(LOGITS))
    assert np.any(expected != 0)
    derived = derivative(row_stats)
    found = (tf.function(derived) if traced else derived)(tensor(LOGITS))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_operators_of_row_statistics():
    derived = gradient(row_stats)
    assert operators_in(derived, tensor(LOGITS)) == {"XentxRowStats", "XentxRowStatsGradient"}
    compiled = tf.function(derived, **xla)(tensor(LOGITS))
    np.testing.assert_allclose(compiled, derived(tensor(LOGITS)), rtol=1e-9, atol=1e-12)
    with pytest.raises(IndexError, match="target: got 7 at position 0"):
        row_stats(tensor(LOGITS), np.where(np.arange(6) == 0, 7, TARGET))
    by_all = []
    for function in (row_stats, portable(row_stats)):
        arrays = [tensor(a) for a in (LOGITS, SOFT, WEIGHT)]
        with tf.GradientTape() as tape:
            tape.watch(arrays)
            value = function(*arrays[:2], weight=arrays[2])
        by_all.append(tape.gradient(value, arrays))
    for found, expected in zip(*by_all, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_a_graph_has_gradients_by_an_eager_tensor():
    # The tensor is so large that a graph captures it instead of storing a constant.
    x, target = tensor(np.tile(LOGITS, (10, 1))), np.tile(TARGET, 10)

    def entropy(x):
        return xentx.per_row(x, target).entropy

    for function in (entropy, lambda x: loss(x, target, reduction="none")):
        found = tf.function(lambda f=function: gradient(f)(x))()
        np.testing.assert_allclose(found, gradient(function)(x), rtol=1e-12)
        assert jacobian(function)(x).shape == (60, 60, 5)


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "function"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_derivatives_by_all_arrays_at_once_and_again(reduction, traced):
    arrays = [tensor(a) for a in (LOGITS, SOFT, WEIGHT, SAMPLE_WEIGHT)]
    if reduction == "mean":
        arrays.append(tensor(7.5, tf.float64))

    def derivatives(*arrays):
        with tf.GradientTape() as outer:
            outer.watch(arrays)
            with tf.GradientTape() as tape:
                tape.watch(arrays)
                logits, target, weight, sample_weight, *normalizer = arrays
                value = xentx_tensorflow.cross_entropy(
                    logits,
                    target,
                    weight=weight,
                    sample_weight=sample_weight,
                    normalizer=normalizer[0] if normalizer else None,
                    reduction=reduction,
                    z_loss=0.1,
                )
            first = tape.gradient(value, arrays)
            total = tf.add_n([tf.reduce_sum(g * g) for g in first])
        return [*first, *outer.gradient(total, arrays)]

    expected = portable(derivatives)(*arrays)
    found = (tf.function(derivatives) if traced else derivatives)(*arrays)
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "options",
    [
        {
            "z_loss": 1e-300,
            "logit_softcap": 1 / 3,
            "temperature": 0.1,
            "ignore_index": int(TARGET[0]),
        },
        {"weight": WEIGHT, "sample_weight": SAMPLE_WEIGHT, "normalizer": np.float64(1 / 7)},
        {"reduction": "weighted_mean", "sample_weight": SAMPLE_WEIGHT},
    ],
)
def test_an_operator_remembers_all_options_to_the_last_bit(options):
    def function(x):
        return loss(x, **options)

    expected = portable(second(function))(tensor(LOGITS))
    np.testing.assert_array_equal(second(function)(tensor(LOGITS)), expected)


# ---- graphs, and the devices that run them


def close(found, expected=None):
    if expected is None:
        expected = portable(both(loss))(tensor(LOGITS, tf.float32))
    for got, wanted in zip(found, expected, strict=False):
        np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("soft", [False, True])
def test_unknown_shapes(soft, reduction):
    target = SOFT if soft else TARGET
    signature = [
        tf.TensorSpec([None, 5], tf.float64),
        tf.TensorSpec([None, 5] if soft else [None], target.dtype),
    ]

    def function(x, t):
        return both(lambda x, t: loss(x, t, reduction=reduction))(x, t)

    traced = tf.function(function, input_signature=signature)
    close(traced(tensor(LOGITS), tensor(target)), function(tensor(LOGITS), tensor(target)))
    shape = traced.get_concrete_function().structured_outputs[0].shape
    assert shape.as_list() == ([None] if reduction == "none" else [])


def nested(inner):
    """Return a function compiled by XLA, which calls one that was traced and run before."""
    return tf.function(lambda *args: tf.nest.map_structure(lambda y: y * 1.0, inner(*args)), **xla)


def traced_before(function):
    function = tf.function(function)
    function(tensor(LOGITS, tf.float32))
    return function


XLA = {
    "itself": lambda: tf.function(both(loss), **xla),
    "concrete": lambda: tf.function(both(loss), **xla).get_concrete_function(
        tensor(LOGITS, tf.float32)
    ),
    "within a function": lambda: tf.function(tf.function(both(loss), **xla)),
    "calls what was traced before": lambda: nested(traced_before(both(loss))),
    "differentiates what was traced before": lambda: tf.function(both(traced_before(loss)), **xla),
    "tape around it": lambda: both(tf.function(loss, **xla)),
    "tape around what was traced before": lambda: both(nested(traced_before(loss))),
}


@pytest.mark.parametrize("name", XLA)
def test_functions_that_xla_compiles(name):
    close(XLA[name]()(tensor(LOGITS, tf.float32)))


def test_no_operator_in_a_graph_for_xla():
    @tf.function(**xla)
    def function(x):
        return both(loss)(x)

    graph = function.get_concrete_function(tensor(LOGITS)).graph.as_graph_def()
    assert "Xentx" not in str(graph)


def test_control_flow():
    def loop(x):
        def body(i, total, found):
            value, more = both(loss)(x)
            return i + 1, total + value, found + more

        start = (0, 0.0, tf.zeros_like(x))
        _, total, found = tf.while_loop(lambda i, *_: i < 4, body, start)
        return total / 4, found / 4

    def around_loop(x):
        def summed(x):
            return tf.while_loop(
                lambda i, _: i < 4, lambda i, y: (i + 1, y + loss(x) / 4), (0, 0.0)
            )[1]

        return both(summed)(x)

    def around_condition(x):
        return both(
            lambda x: tf.cond(tf.reduce_sum(x) < 1e9, lambda: loss(x), lambda: tf.constant(0.0))
        )(x)

    logits = tensor(LOGITS, tf.float32)
    for function in (loop, around_loop, around_condition):
        close(function(logits))
        close(tf.function(function)(logits))
    close(tf.function(loop, **xla)(logits))


def test_recomputed_gradients_and_symbolic_ones():
    logits = tensor(LOGITS, tf.float32)
    recomputed = both(tf.recompute_grad(loss))
    close(recomputed(logits))
    close(tf.function(recomputed)(logits))

    @tf.function
    def symbolic(x):
        value = loss(x)
        return value, *tf.gradients(value, x)

    close(symbolic(logits))


def test_variables():
    variable = tf.Variable(LOGITS, dtype=tf.float32)

    def step():
        with tf.GradientTape() as tape:
            value = loss(variable)
        return value, tape.gradient(value, variable)

    close(step())
    close(tf.function(step)())


def test_data_pipelines():
    data = tf.data.Dataset.from_tensor_slices(tf.stack([tensor(LOGITS, tf.float32)] * 4))
    for found in data.map(both(loss), num_parallel_calls=2):
        close(found)


def test_threads_of_python():
    logits = [tensor(RNG.normal(size=(300, 1000)), tf.float32) for _ in range(2)]
    target = tensor(RNG.integers(0, 1000, 300))
    function = tf.function(both(loss))
    expected = [both(loss)(x, target) for x in logits]
    wrong = []

    def work(i):
        for form in (both(loss), function) * 20:
            for got, wanted in zip(form(logits[i], target), expected[i], strict=True):
                if not np.array_equal(got, wanted):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_why_a_tensor_takes_the_core(monkeypatch):
    seen = []

    def look(x):
        seen.append(xentx.backend_of(x).reason)
        return x

    tf.function(look)(tensor(LOGITS))
    tf.function(look, jit_compile=True)(tensor(LOGITS))
    assert seen == [None, "the function is compiled by XLA, which has no operator of xentx"]
    monkeypatch.setattr(_kernel, "_path", lambda: None)
    monkeypatch.setattr(_kernel, "_load", _kernel._load.__wrapped__)  # noqa: SLF001
    for info in (xentx.backend_of(tensor(LOGITS)), xentx.backends()[3]):
        assert info.engine == "portable"
        assert "has no operators for TensorFlow (hint: on Linux and macOS, XENTX_" in info.reason
    monkeypatch.setattr(_kernel, "_path", lambda: Path(__file__))
    (info,) = (info for info in xentx.backends() if info.name == "tensorflow")
    assert f"TensorFlow {tf.__version__} does not load xentx's operators: " in info.reason


def test_other_devices_take_the_core(monkeypatch):
    elsewhere = SimpleNamespace(device="/job:localhost/replica:0/task:0/device:GPU:0")
    assert "device:GPU:0" in _kernel.declines(elsewhere)
    remote = SimpleNamespace(device="/job:worker/replica:0/task:1/device:CPU:0")
    assert "job:worker" in _kernel.declines(remote)
    # TensorFlow places a graph later: the graph chooses the engine by the kind of device.
    devices = [SimpleNamespace(name=f"/device:{name}") for name in ("CPU:0", "GPU:0")]
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda: devices)
    assert operators_in(loss, tensor(LOGITS)) == {"XentxLoss"}
    devices.append(SimpleNamespace(name="/job:worker/replica:0/task:1/device:CPU:0"))
    assert operators_in(loss, tensor(LOGITS)) == set()


def run(program, *args):
    """Run a program in a new process, and return the words that it prints."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, *args], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


SAVED = """
import sys
import numpy as np
import tensorflow as tf
import xentx_tensorflow
loaded = tf.saved_model.load(sys.argv[1])
arrays = np.load(sys.argv[1] + "/arrays.npz")
x, t = tf.constant(arrays["x"]), tf.constant(arrays["t"])

def tape(x, t):
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = loaded.loss(x, t)
    return value, tape.gradient(value, x)

for function in (loaded.both, tape, tf.function(tape), tf.function(tape, jit_compile=True)):
    for got, wanted in zip(function(x, t), (arrays["value"], arrays["gradient"])):
        np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=1e-7)
        print("bits" if np.array_equal(got, wanted) else "close")
"""


def test_a_saved_model_in_a_new_process(tmp_path):
    signature = [tf.TensorSpec([None, 5], tf.float32), tf.TensorSpec([None], tf.int64)]
    module = tf.Module()
    module.loss = tf.function(loss, input_signature=signature)
    module.both = tf.function(both(loss), input_signature=signature)
    tf.saved_model.save(module, str(tmp_path))
    logits, target = tensor(LOGITS, tf.float32), tensor(TARGET)
    value, found = both(loss)(logits, target)
    np.savez(tmp_path / "arrays.npz", x=logits, t=target, value=value, gradient=found)
    assert run(SAVED, str(tmp_path))[:6] == ["bits"] * 6


DEVICES = """
import numpy as np
import tensorflow as tf
cpu, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import xentx
import xentx_tensorflow
from tensorflow.experimental import dtensor
x, t = tf.random.stateless_normal((6, 5), (1, 2)), tf.range(6) % 5

def both(x, t):
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = xentx_tensorflow.cross_entropy(x, t)
    return value, tape.gradient(value, x)

expected = both(x, t)
def close(name, found):
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=1e-7)
    print(name)

with tf.device("CPU:1"):
    close("second", both(tf.identity(x), t))

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
def step(x, t):
    value, gradient = strategy.run(both, args=(x, t))
    gradients = strategy.experimental_local_results(gradient)
    return strategy.reduce("MEAN", value, axis=None), gradients[1]
close("mirrored", step(x, t))
close("traced", tf.function(step)(x, t))

mesh = dtensor.create_mesh([("batch", 2)], devices=["CPU:0", "CPU:1"])
x = dtensor.copy_to_mesh(x, dtensor.Layout.replicated(mesh, 2))
x = dtensor.relayout(x, dtensor.Layout.batch_sharded(mesh, "batch", 2))
t = dtensor.copy_to_mesh(t, dtensor.Layout.replicated(mesh, 1))
for function in (xentx_tensorflow.cross_entropy, tf.function(xentx_tensorflow.cross_entropy)):
    for part in dtensor.unpack(function(x, t)):
        np.testing.assert_allclose(part, expected[0], rtol=1e-6)
print("sharded")

def spread(array, *names):
    whole = dtensor.copy_to_mesh(array, dtensor.Layout.replicated(mesh, array.ndim))
    return dtensor.relayout(whole, dtensor.Layout([*names], mesh))

def gathered(array):
    return dtensor.relayout(array, dtensor.Layout.replicated(mesh, array.ndim)).numpy()

x, t, none = tf.random.stateless_normal((6, 4), (1, 2)), tf.range(6) % 4, dtensor.UNSHARDED
weight = np.arange(1.0, 5.0, dtype=np.float32)
OPTIONS = [{}, {"weight": weight, "label_smoothing": 0.1}, {"z_loss": 0.1, "normalizer": 3.0}]
LAYOUTS = [
    (spread(x, none, none), spread(t, none)),
    (spread(x, "batch", none), spread(t, "batch")),
    (spread(x, "batch", none), t.numpy()),
    (spread(x, none, "batch"), spread(t, none)),
    (spread(x, none, "batch"), spread(t, "batch")),
]
head = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
for logits, target in LAYOUTS:
    for options in OPTIONS:
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = xentx.cross_entropy(logits, target, **options)
        gradient = gathered(tape.gradient(value, logits))
        own = xentx.value_and_grad(xentx.cross_entropy)(x.numpy(), t.numpy(), **options)
        np.testing.assert_allclose(gathered(value), own[0], rtol=2e-6)
        np.testing.assert_allclose(gradient, own[1], rtol=2e-6, atol=1e-7)
    for options in ({}, {"weight": weight}):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = xentx.nll_loss(logits, target, **options)
        gradient = gathered(tape.gradient(value, logits))
        own = xentx.value_and_grad(xentx.nll_loss)(x.numpy(), t.numpy(), **options)
        np.testing.assert_allclose(gathered(value), own[0], rtol=2e-6)
        np.testing.assert_allclose(gradient, own[1], rtol=2e-6, atol=1e-7)
    expected = xentx.per_row(x.numpy(), t.numpy()).entropy
    found = xentx.per_row(logits, target).entropy
    np.testing.assert_allclose(gathered(found), expected, rtol=2e-6)
    value = gathered(xentx.linear_cross_entropy(logits, head, target))
    expected = xentx.linear_cross_entropy(x.numpy(), head, t.numpy())
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    print("layout")
"""


def test_several_devices():
    assert run(DEVICES) == ["second", "mirrored", "traced", "sharded", *["layout"] * 5]


THREADS = """
import os, time
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(1)
import xentx_tensorflow
x, t = tf.random.stateless_normal((2000, 1000), (1, 2)), tf.zeros(2000, tf.int32)
xentx_tensorflow.cross_entropy(x, t)
before = time.thread_time(), time.process_time()
for _ in range(20):
    xentx_tensorflow.cross_entropy(x, t)
print((time.process_time() - before[1]) / (time.thread_time() - before[0]))
"""


def test_tensorflow_may_limit_the_threads():
    (ratio,) = run(THREADS)
    assert float(ratio) < 1.2
