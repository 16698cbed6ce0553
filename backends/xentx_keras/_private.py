"""All that xentx takes from Keras's private modules, and what happens where it is gone.

`set_keras_mask` marks rows of a loss as left out, so that a mean neither adds nor counts them.
Keras has no public function for that. Where this one is gone, `set_keras_mask` here is None and
`SparseCategoricalCrossentropy` refuses ``ignore_class`` with a mean.
"""

from typing import Any

try:
    from keras.src.backend import set_keras_mask
except ImportError:
    set_keras_mask: Any = None  # type: ignore[no-redef]

__all__ = ["set_keras_mask"]
