"""xentx's losses for Keras, on whichever backend it runs: TensorFlow, JAX, PyTorch or NumPy.

Keras hands a loss its backend's own tensors, which `xentx.cross_entropy` knows: so this package
imports Keras and no framework.
"""

from xentx_keras._losses import CategoricalCrossentropy, SparseCategoricalCrossentropy

__all__ = ["CategoricalCrossentropy", "SparseCategoricalCrossentropy"]
