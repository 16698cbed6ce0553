"""Algebraic identities between results, on every route."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

import xentx

# There are few shapes, since compilers compile once for each shape.
SHAPES = st.sampled_from([(1, 1), (3, 2), (4, 5)])
LOGITS = SHAPES.flatmap(
    lambda shape: hnp.arrays(np.float32, shape, elements=st.floats(-30, 30, width=32))
)
EXAMPLES = settings(max_examples=25)


def two_steps(logits, target):
    return xentx.nll_loss(xentx.log_softmax(logits), target, reduction="none")


def targets(logits, seed):
    return np.random.default_rng(seed).integers(0, logits.shape[1], len(logits)).astype(np.int32)


def test_probabilities_sum_to_one(route):
    @EXAMPLES
    @given(LOGITS)
    def run(logits):
        total = np.exp(route.value(xentx.log_softmax, logits).astype(np.float64)).sum(-1)
        np.testing.assert_allclose(total, 1, rtol=1e-5)

    run()


def test_gradient_rows_sum_to_zero(route):
    """Adding a constant to all logits of a row does not change its loss."""

    @EXAMPLES
    @given(LOGITS, st.integers(0, 99))
    def run(logits, seed):
        _, gradient = route.pull(
            xentx.cross_entropy, logits, targets(logits, seed), reduction="sum"
        )
        size = np.abs(gradient).sum(-1).astype(np.float64)
        assert np.all(np.abs(gradient.astype(np.float64).sum(-1)) <= 1e-6 * size + 1e-37)

    run()


def test_loss_is_never_negative(route):
    @EXAMPLES
    @given(LOGITS, st.integers(0, 99), st.sampled_from([0.0, 0.3, 1.0]))
    def run(logits, seed, smoothing):
        loss = route.value(
            xentx.cross_entropy,
            logits,
            targets(logits, seed),
            reduction="none",
            label_smoothing=smoothing,
        )
        assert np.all(loss >= 0)

    run()


def test_identity(route):
    """Cross-entropy is log-softmax followed by nll_loss."""

    @EXAMPLES
    @given(LOGITS, st.integers(0, 99))
    def run(logits, seed):
        target = targets(logits, seed)

        one = route.value(xentx.cross_entropy, logits, target, reduction="none")
        np.testing.assert_allclose(route.value(two_steps, logits, target), one, rtol=1e-6)

    run()


def test_one_hot_is_the_index(route):
    @EXAMPLES
    @given(LOGITS, st.integers(0, 99))
    def run(logits, seed):
        target = targets(logits, seed)
        one_hot = np.eye(logits.shape[1], dtype=np.float32)[target]
        hard = route.pull(xentx.cross_entropy, logits, target, label_smoothing=0.2)
        soft = route.pull(xentx.cross_entropy, logits, one_hot, label_smoothing=0.2)
        np.testing.assert_allclose(soft[0], hard[0], rtol=1e-6)
        np.testing.assert_allclose(soft[1], hard[1], rtol=1e-5, atol=1e-8)

    run()


def test_a_sample_weight_repeats_a_row(route):
    @EXAMPLES
    @given(hnp.arrays(np.float32, (3, 4), elements=st.floats(-9, 9, width=32)), st.integers(0, 99))
    def run(logits, seed):
        target, times = targets(logits, seed), np.array([2, 1, 3])
        options = {"label_smoothing": 0.1, "z_loss": 0.01}
        weighted = route.value(
            xentx.cross_entropy, logits, target, sample_weight=times.astype(np.float32), **options
        )
        repeated = route.value(
            xentx.cross_entropy, logits.repeat(times, 0), target.repeat(times), **options
        )
        np.testing.assert_allclose(weighted, repeated, rtol=2e-6)

    run()


def test_ignored_rows_do_not_count(route):
    @EXAMPLES
    @given(hnp.arrays(np.float32, (4, 3), elements=st.floats(width=32)), st.integers(0, 99))
    def run(logits, seed):
        target = targets(logits, seed)
        target[1] = target[3] = -100
        _, gradient = route.pull(xentx.cross_entropy, logits, target, reduction="sum")
        assert np.all(gradient[[1, 3]] == 0)
        value = route.value(xentx.cross_entropy, logits, target)
        without = route.value(xentx.cross_entropy, logits[[0, 2]], target[[0, 2]])
        np.testing.assert_allclose(value, without, rtol=1e-6)

    run()


def test_a_row_does_not_depend_on_the_others(route):
    """The loss and gradient of a row do not depend on the batch, except for a vectorised exp."""

    @EXAMPLES
    @given(
        hnp.arrays(np.float32, (3, 5), elements=st.floats(-30, 30, width=32)), st.integers(0, 99)
    )
    def run(logits, seed):
        target = targets(logits, seed)
        order = [2, 0, 1]
        here = route.pull(xentx.cross_entropy, logits, target, reduction="none")
        there = route.pull(xentx.cross_entropy, logits[order], target[order], reduction="none")
        np.testing.assert_allclose(there[0], here[0][order], rtol=5e-7)
        np.testing.assert_allclose(there[1], here[1][order], rtol=1e-6, atol=1e-37)

    run()
