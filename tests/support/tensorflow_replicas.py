"""Two replicas of TensorFlow on one CPU, for `test_tensorflow_replicas.py`.

``python tensorflow_replicas.py`` prints a line for each case, with its name and the error.
"""

import sys
import traceback

import keras
import numpy as np
import tensorflow as tf

import xentx
import xentx_keras

CPUS = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(CPUS[0], [tf.config.LogicalDeviceConfiguration()] * 2)

ROWS, FEATURES, CLASSES = 8, 3, 5
RNG = np.random.default_rng(20261130)
INPUTS = RNG.normal(size=(ROWS, FEATURES)).astype(np.float32)
KERNEL = RNG.normal(size=(FEATURES, CLASSES)).astype(np.float32)
# Of the four rows of the first replica, one is not ignored.
TARGET = np.array([-1, 2, -1, -1, 0, 4, 3, 1])
SAMPLE_WEIGHT = RNG.uniform(0.5, 2, ROWS).astype(np.float32)
# All cases use one strategy: TensorFlow confuses the collectives of several strategies.
REPLICAS = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def fitted(strategy, loss, target, **options):
    """Return the loss that `fit` reports, and the weights after a step of SGD."""
    with strategy.scope():
        layer = keras.layers.Dense(CLASSES, use_bias=False)
        model = keras.Sequential([keras.Input((FEATURES,)), layer])
        layer.set_weights([KERNEL])
        model.compile(keras.optimizers.SGD(1.0), loss=loss)
    history = model.fit(INPUTS, target, batch_size=ROWS, shuffle=False, verbose=0, **options)
    return history.history["loss"][0], layer.get_weights()[0]


def as_one(loss, target=TARGET, **options):
    """Compare two replicas with one. Return the difference between them for Keras's own class."""
    alone = fitted(tf.distribute.get_strategy(), loss, target, **options)
    together = fitted(REPLICAS, loss, target, **options)
    np.testing.assert_allclose(together[1], alone[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(together[0], alone[0], rtol=1e-5)
    native = getattr(keras.losses, type(loss).__name__).from_config(
        {
            name: value
            for name, value in loss.get_config().items()
            if name not in ("weight", "z_loss", "logit_softcap", "label_smoothing")
        }
    )
    native = fitted(REPLICAS, native, target, **options)
    return np.abs(native[1] - alone[1]).max()


@case
def fit_with_ignored_rows():
    loss = xentx_keras.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    assert as_one(loss) > 0.01  # Keras's own loss differs
    assert as_one(loss, sample_weight=SAMPLE_WEIGHT) > 0.01


@case
def fit_with_a_mean_of_sample_weights():
    options = {"from_logits": True, "reduction": "mean_with_sample_weight"}
    one_hot = np.eye(CLASSES, dtype=np.float32)[np.maximum(TARGET, 0)]
    loss = xentx_keras.CategoricalCrossentropy(**options)
    assert as_one(loss, one_hot, sample_weight=SAMPLE_WEIGHT) > 1e-4
    loss = xentx_keras.SparseCategoricalCrossentropy(ignore_class=-1, **options)
    assert as_one(loss, sample_weight=SAMPLE_WEIGHT) > 0.01


@case
def fit_with_a_sum():
    loss = xentx_keras.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=-1, reduction="sum"
    )
    alone = fitted(tf.distribute.get_strategy(), loss, TARGET)
    together = fitted(REPLICAS, loss, TARGET)
    np.testing.assert_allclose(together[1], alone[1], rtol=1e-5, atol=1e-6)


@case
def a_loop_with_a_normalizer():
    """The example of docs/howto/data_parallel.md."""
    target = np.where(TARGET < 0, -100, TARGET)

    def step(logits, target):
        items = tf.reduce_sum(tf.cast(target != -100, tf.float32))
        items = tf.distribute.get_replica_context().all_reduce("SUM", items)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = xentx.cross_entropy(logits, target, normalizer=items)
        return loss, tape.gradient(loss, logits)

    def part(array):
        values = lambda context: array[4 * context.replica_id_in_sync_group :][:4]  # noqa: E731
        return REPLICAS.experimental_distribute_values_from_function(values)

    logits = INPUTS @ KERNEL
    expected = xentx.value_and_grad(xentx.cross_entropy)(logits, target)
    for run in (REPLICAS.run, tf.function(REPLICAS.run)):
        arrays = part(tf.constant(logits)), part(tf.constant(target))
        loss, gradient = run(step, args=arrays)
        loss = REPLICAS.reduce("SUM", loss, axis=None)
        gradient = tf.concat(REPLICAS.experimental_local_results(gradient), 0)
        np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
        np.testing.assert_allclose(gradient, expected[1], rtol=1e-5, atol=1e-7)


def main():
    for name in sys.argv[1:] or CASES:
        try:
            CASES[name]()
            wrong = ""
        except Exception:  # noqa: BLE001 -- a case may raise any error
            wrong = traceback.format_exc()
        print(repr((name, wrong)), flush=True)  # noqa: T201 -- the test reads it


if __name__ == "__main__":
    main()
