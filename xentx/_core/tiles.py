"""Loops, slices, products and sums of `linear`, which depend on the framework.

`Tiles` is for mutable arrays and Python loops. A framework with immutable arrays, or with compiled
loops, has a subclass in its adapter. The rest of `linear` is the same for all frameworks.
"""

from collections.abc import Callable
from typing import Any

from xentx._types import Array, Namespace

Carry = Any
Index = Any  # an int, or a traced one

# The number of entries of a product that are computed before they are added to an accumulator.
BLOCK = 1 << 23


class Tiles:
    """Tiles of arrays of the namespace `xp`."""

    def __init__(self, xp: Namespace) -> None:
        self.xp = xp

    def loop(self, count: Any, step: Callable[[Index, Carry], Carry], carry: Carry) -> Carry:
        """``step(i, carry)`` for each i below `count`, in order."""
        for i in range(count):
            carry = step(i, carry)
        return carry

    def chunks(
        self, count: Any, size: int, step: Callable[[Index, Any, Carry], Carry], carry: Carry
    ) -> Carry:
        """``step(start, size, carry)`` for each whole chunk below `count` and the remainder."""
        whole = count // size
        carry = self.loop(whole, lambda i, carry: step(i * size, size, carry), carry)
        if isinstance(count, int) and count % size == 0:
            return carry
        return step(whole * size, count - whole * size, carry)

    def count(self, x: Array) -> Any:
        """Return the length of the first axis."""
        return x.shape[0]

    def zeros(self, shape: tuple[Any, ...], dtype: Any, like: Array) -> Array:
        """Make zeros on the device of `like`."""
        return self.xp.zeros(shape, dtype=dtype, device=getattr(like, "device", None))

    def take(self, x: Array, start: Index, size: Any, axis: int = 0) -> Array:
        """Return `size` entries along an axis."""
        return x[(slice(None),) * axis + (slice(start, start + size), ...)]

    def put(self, x: Array, start: Index, block: Array) -> Array:
        """Return `x`, which may be overwritten, with a block at `start` of its first axis."""
        block = self.xp.astype(block, x.dtype, copy=False)
        end = start + block.shape[0]
        if hasattr(x, "chunks") and block.shape == x.shape:
            return block  # in chunks of its own, which an assignment would join
        try:
            x[start:end, ...] = block
        except TypeError:  # a lazy array, which does not support assignment
            parts = [x[:start, ...], block, x[end:, ...]]
            return self.xp.concat([part for part in parts if part.shape[0] != 0])
        return x

    def add(self, x: Array, start: Index, block: Array) -> Array:
        """Return `x`, which may be overwritten, with a block added at `start` of its first axis."""
        return self.put(x, start, x[start : start + block.shape[0], ...] + block)

    def logits(self, hidden: Array, head: Array, bias: Array | None) -> Array:
        """``hidden @ head.T + bias``."""
        product = self.xp.matmul(hidden, head.T)
        return product if bias is None else product + bias

    def product(self, slope: Array, head: Array) -> Array:
        """``slope @ head``."""
        return self.xp.matmul(slope, head)

    def add_product(self, x: Array, slope: Array, hidden: Array) -> Array:
        """Return ``x + slope.T @ hidden``. `x` may be overwritten."""

        def step(start: Index, size: int, x: Array) -> Array:
            return self.add(x, start, self.pull(self.take(slope, start, size, axis=1), hidden))

        return self.chunks(slope.shape[1], max(1, BLOCK // max(1, hidden.shape[1])), step, x)

    def pull(self, slope: Array, hidden: Array) -> Array:
        """``slope.T @ hidden``."""
        return self.xp.matmul(slope.T, hidden)
