"""The losses of `xentx_keras`, under the name of TensorFlow's package."""

from xentx_keras import CategoricalCrossentropy, SparseCategoricalCrossentropy

__all__ = ["CategoricalCrossentropy", "SparseCategoricalCrossentropy"]
