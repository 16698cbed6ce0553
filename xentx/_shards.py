"""Losses with classes sharded over machines, without the collectives, which an adapter has.

Each machine has a block of the classes, its shard. The rows, and all arrays with one number per
row, are the same on all machines. A loss takes two reductions: the maximum of the rows' maxima, and
the sum of the states after they are aligned to it. The gradient with respect to the logits takes
none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from xentx import _blocks
from xentx._backend import Backend
from xentx._calls import Kind, Prepared, Problem
from xentx._core import _distribution, _pick
from xentx._core import linear as core
from xentx._core import partials as monoid
from xentx._core import reduction as reductions
from xentx._core._spec import LossSpec, bound, is_given
from xentx._core.partials import Partials
from xentx._types import Array

# Logits, target and weight of a shard, its rows on one axis, and the options that are arrays.
Arrays = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Shard:
    """A machine's part of a loss, without the arrays.

    Parameters
    ----------
    backend
        The backend of the arrays.
    spec
        The loss, in float64, for logits of rows by classes. It counts the classes of all shards.
    start, size
        The shard's first class, and the number of its classes, which may be 0.
    is_weighted
        Whether classes have weights.
    """

    backend: Backend
    spec: LossSpec
    start: Any
    size: int
    is_weighted: bool

    @property
    def has_known_mass(self) -> bool:
        """Whether the target distribution of each row is known to sum to 1."""
        return _pick.is_one_class(self.spec) and not self.is_weighted

    def has_amounts(self, reduction: str) -> bool:
        """Whether the amounts of the rows in the divisor of a mean are sums over the shards."""
        if reduction == "weighted_mean":
            return not self.has_known_mass
        return reduction == "mean" and self.is_weighted and not self.spec.soft

    def amounts_are_mass(self, reduction: str) -> bool:
        """Whether that sum is the one of the row's target distribution, which its state has."""
        return reduction == "weighted_mean" or not is_given(self.spec.label_smoothing)


@dataclass(frozen=True, slots=True)
class Rows:
    """What belongs to the rows, the same on every machine.

    Parameters
    ----------
    shape, dtype
        Of a loss without a reduction.
    reduction
        What becomes of the rows' losses.
    sample_weight, normalizer
        As the core takes them; None where there is none.
    """

    shape: tuple[Any, ...]
    dtype: Any
    reduction: str
    sample_weight: Array | None
    normalizer: Array | None

    @property
    def is_mean(self) -> bool:
        """Whether the sum of the losses is divided."""
        return self.reduction in ("mean", "weighted_mean")

    def divided_by(self, *, return_normalizer: bool) -> str:
        """Name the reduction whose divisor has to be summed, "none" if none has."""
        if self.normalizer is not None:
            return "none"
        return self.reduction if self.is_mean or not return_normalizer else "mean"


def lay_out(
    problem: Problem,
    logits: Array,
    shape: tuple[int | None, ...],
    dtype: Any,
    *,
    size: int,
    classes: int,
    start: Any,
) -> tuple[Shard, Arrays, Rows]:
    """Lay out a shard of rows in a shape, and check its class indices against all classes.

    `logits` are those of the problem with the rows on one axis, or what they will be made of.
    """
    kind, (_, target, weight, sample_weight, normalizer, *options) = problem
    xp, count = kind.backend.namespace(logits), -1 if None in shape else math.prod(shape)  # type: ignore[arg-type]
    target = xp.reshape(target, (count, size) if kind.spec.soft else (count,))
    if sample_weight is not None:
        sample_weight = xp.reshape(sample_weight, (count,))
    spec = replace(kind.spec, axis=1, reduction="none")
    given = (logits, target, weight, sample_weight, normalizer, *options)
    prepared = _blocks.prepare(Problem(Kind(kind.backend, spec), given), classes)
    shard = Shard(kind.backend, prepared.spec, start, size, weight is not None)
    rows = Rows(shape, dtype, kind.spec.reduction, prepared.sample_weight, prepared.divisor)
    return shard, prepared.arrays, rows


def prepared(shard: Shard, arrays: Arrays) -> Prepared:
    """Pose the problem of a block of the shard."""
    logits, _, _, *options = arrays
    xp = shard.backend.namespace(logits)
    return Prepared(shard.spec, bound(xp, shard.spec, logits, options), arrays)


def state(shard: Shard, arrays: Arrays) -> Partials[Array]:
    """State of the shard's own classes."""
    if shard.size:
        return _blocks.state(shard.backend, prepared(shard, arrays), shard.start)
    logits, target, weight, *options = arrays
    xp, wide = shard.backend.namespace(logits), shard.spec.precision.accumulate
    # Made of the arrays, so that autodiff takes the steps here that it takes on other machines.
    zeros = xp.sum(xp.astype(logits, wide), axis=1)
    for array in (target if shard.spec.soft else None, weight):
        if array is not None:
            zeros = zeros + xp.sum(xp.astype(array, wide), axis=1)
    for option in options:
        zeros = zeros + 0.0 * option
    kept = _distribution.kept(shard.spec, target)
    kept = zeros + 1.0 if kept is None else xp.astype(kept[:, 0], wide)
    return monoid.empty(xp, zeros, zeros, zeros, zeros, zeros, kept)


def gradient(shard: Shard, arrays: Arrays, known: Partials[Array], cotangent: Array) -> Array:
    """Gradient with respect to the shard's logits, from the state of all classes."""
    if not shard.size:  # no numbers, but a function of what all machines have, as elsewhere
        xp = shard.backend.namespace(arrays[0])
        return xp.astype(arrays[0] * cotangent[:, None], arrays[0].dtype, copy=False)
    return _blocks.gradient(shard.backend, prepared(shard, arrays), known, cotangent, shard.start)


def engine(shard: Shard, options: Sequence[Array]) -> core.Engine:
    """Compute tiles of the logits of a last layer: each is a shard of its own."""

    def tile(logits: Array, first: Any) -> Shard:
        return replace(shard, start=shard.start + first, size=logits.shape[1])

    def of_tile(logits: Array, target: Array, weight: Array | None, first: Any) -> Partials[Array]:
        return state(tile(logits, first), (logits, target, weight, *options))

    def pulled(known: Partials[Array], cotangent: Array, *block: Any) -> Array:
        *arrays, first = block
        return gradient(tile(arrays[0], first), (*arrays, *options), known, cotangent)

    return core.Engine(_no_rows, of_tile, pulled)


def _no_rows(*_: Any) -> Any:
    """Compute no whole rows: no machine has any."""
    raise NotImplementedError


def summands(shard: Shard, own: Partials[Array], top: Array) -> list[Array]:
    """Return what is summed over the shards, once the largest of their maxima is known."""
    aligned = monoid.align(shard.backend.namespace(top), own, top)
    fields = [aligned.rest, aligned.ties, aligned.gaps]
    return fields if shard.has_known_mass else [*fields, aligned.mass]


def joined(
    shard: Shard, arrays: Arrays, own: Partials[Array], top: Array, sums: Sequence[Array]
) -> Partials[Array]:
    """Return the state of all classes from the sums."""
    rest, ties, gaps, *mass = sums
    xp, spec, target = shard.backend.namespace(top), shard.spec, arrays[1]
    # JAX knows what is the same on all devices by what it is made of: not of the shard's logits.
    kept = xp.ones_like(top) if spec.ignore_index is None else own.kept
    if not mass:
        mass = [_distribution.no_class_is_nan(xp, spec, target[:, 0], kept)]
    return Partials(top, rest, ties, mass[0], gaps, kept)


def details(shard: Shard, arrays: Arrays, top: Array) -> list[Array]:
    """Return the shard's sums for the fields of RowStats except the loss."""
    logits, target, *_ = arrays
    xp = shard.backend.namespace(logits)
    if not shard.size:
        return [xp.zeros_like(top)] * 3
    spec = prepared(shard, arrays).bound
    return [*monoid.details(xp, spec, logits, target, shard.start, top)]


def losses(shard: Shard, arrays: Arrays, known: Partials[Array]) -> Array:
    """Loss of each row, in float64."""
    xp = shard.backend.namespace(known.top)
    return monoid.finish(xp, known, prepared(shard, arrays).bound.z_loss)


def amounts(shard: Shard, arrays: Arrays, reduction: str) -> Array:
    """Return the shard's share of what each row adds to the divisor of a mean."""
    logits, target, weight, *_ = arrays
    xp, spec = shard.backend.namespace(logits), prepared(shard, arrays).bound
    if reduction == "mean":
        spec = replace(spec, label_smoothing=0.0)
    q = _distribution.distribution(xp, spec, target, weight, shard.start, shard.size)
    return xp.sum(q, axis=1, dtype=spec.precision.accumulate)


def divisor(
    shard: Shard, arrays: Arrays, rows: Rows, losses: Array, amounts: Array | None
) -> Array:
    """Return what a mean divides by, from the amounts of the rows: 1 each if None."""
    if rows.normalizer is not None:
        return rows.normalizer
    target = arrays[1]
    xp, spec = shard.backend.namespace(target), shard.spec
    if amounts is None:
        amounts = xp.ones_like(losses)
    if rows.sample_weight is not None:
        amounts = amounts * rows.sample_weight[:, 0]
    if not spec.soft:
        amounts = _distribution.keep_rows(xp, spec, target[:, 0], amounts)
    return reductions.total(xp, spec, amounts)


def reduce(
    shard: Shard,
    arrays: Arrays,
    rows: Rows,
    losses: Array,
    amounts: Array | None,
    *,
    return_normalizer: bool,
) -> Any:
    """Reduce the rows' losses, and round them. Return the divisor too if it is requested."""
    xp, found = shard.backend.namespace(losses), None
    if rows.is_mean or return_normalizer:
        found = divisor(shard, arrays, rows, losses, amounts)
    by = found if rows.is_mean else None
    value = reductions.forward(
        xp, shard.spec, losses[:, None], rows.sample_weight, rows.reduction, by
    )
    if rows.reduction == "none":
        value = xp.reshape(value, rows.shape)
    value = xp.astype(value, rows.dtype, copy=False)
    return (value, found) if return_normalizer else value
