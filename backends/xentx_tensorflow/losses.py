"""Keras's losses, by xentx, for who looks for them here; they run on any backend of Keras's."""

from xentx_keras import CategoricalCrossentropy, SparseCategoricalCrossentropy

__all__ = ["CategoricalCrossentropy", "SparseCategoricalCrossentropy"]
