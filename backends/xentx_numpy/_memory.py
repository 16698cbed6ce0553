"""Reuse of memory for gradients, if the user enables it.

New memory takes more time than writing the gradient: the operating system maps and clears it page
by page, and unmaps it when the array is deleted. A training loop that needs the same amount in each
step can keep the memory, up to a limit.
"""

import math
import threading
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# For smaller arrays, NumPy uses memory that the process already has.
_SMALLEST = 1 << 20

# Reentrant: the garbage collector may delete a lease while this module runs.
_lock = threading.RLock()
_limit = 0
_free: dict[int, Array] = {}  # by address, oldest first


def reuse_memory(most: int) -> None:
    """Reuse the memory of gradients that have been deleted.

    This is off by default. It affects gradients of `value_and_grad` that have one megabyte or more.
    Memory is not reused while an array or a view still refers to it.

    Parameters
    ----------
    most : int
        The largest number of unused bytes to keep. 0 frees them all.

    Raises
    ------
    ValueError
        If `most` is negative.

    Examples
    --------
    >>> import xentx_numpy
    >>> xentx_numpy.reuse_memory(1 << 30)
    >>> xentx_numpy.reuse_memory(0)
    """
    global _limit  # noqa: PLW0603
    if most < 0:
        msg = f"most: got {most}; expected a number of bytes, or 0 to keep none"
        raise ValueError(msg)
    with _lock:
        _limit = most
        _let_go()


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Make an array with arbitrary content, in kept memory of the same size if there is some."""
    size = math.prod(shape) * dtype.itemsize
    if size < _SMALLEST or _limit == 0:
        return np.empty(shape, dtype)
    with _lock:
        fitting = [address for address, memory in _free.items() if memory.nbytes == size]
        memory = _free.pop(fitting[-1], None) if fitting else None
    if memory is None:
        memory = np.empty(size, np.uint8)
    return np.asarray(_Lease(memory)).view(dtype).reshape(shape)


class _Lease:
    """Owner of memory for NumPy. It is deleted when no array refers to the memory."""

    def __init__(self, memory: Array) -> None:
        self._memory = memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        with _lock:
            _free[self._memory.ctypes.data] = self._memory
            _let_go()


def _let_go() -> None:
    """Free the oldest memory, until the rest is within the limit."""
    while sum(memory.nbytes for memory in list(_free.values())) > _limit:
        _free.pop(next(iter(_free)))
