"""Losses for Keras, for each of its backends: TensorFlow, JAX, PyTorch or NumPy.

Keras passes tensors of its backend to a loss, and `xentx.cross_entropy` accepts them. So this
package imports Keras, but no framework.
"""

from xentx_keras._losses import CategoricalCrossentropy, SparseCategoricalCrossentropy

__all__ = ["CategoricalCrossentropy", "SparseCategoricalCrossentropy"]
