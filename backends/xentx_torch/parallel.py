"""Losses of classes that are sharded over the ranks of a process group: tensor parallel training.

The logits are sharded along their last axis, and the head along its first. Each rank has a range of
the classes, in the order of the ranks. The ranges may have different sizes, including 0. Class
probabilities and class weights are sharded in the same way. The rows are replicated, and so are
class indices, sample weights and the value. Every rank calls ``backward`` on its own copy of the
loss.

A loss needs two all-reduces: the maximum of one number for each row, and the sum of three numbers,
or of four with class weights, label smoothing or class probabilities. They are float64. Their size
does not depend on the number of classes. The backward pass with respect to the logits needs no
collective. The gradient of `hidden` is a sum over the ranks, which needs one.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self, TypeVar, Unpack, overload

import torch
import torch.distributed as dist

from xentx import RowStats, _registry, _shards, _validation
from xentx._calls import Problem
from xentx._checks import LossOptions, Reduction, check_block
from xentx._core import cross_entropy as _cross_entropy
from xentx._core import linear as core
from xentx._core import partials as monoid
from xentx._core._spec import LossSpec
from xentx._core.partials import Partials
from xentx._shards import Arrays, Rows, Shard
from xentx_torch import _arrays, _distributed, _linear, _private

__all__ = ["cross_entropy", "linear_cross_entropy", "per_row"]

# The most blocks of classes, and the most ranks, of a loss that is computed in a fixed order.
BLOCKS = 64

Array = torch.Tensor
BACKEND = _arrays.BACKEND
xp = _distributed.NAMESPACE
Function = TypeVar("Function", bound=Callable[..., Any])


# ---- Collectives, and their derivatives.


def _all_reduced(array: Array, op: Any, group: Any) -> Array:
    array = array.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(array, op, group=group)
    return array


class _Sum(torch.autograd.Function):
    """The sum of an array over the ranks. Its transpose is `_Shared`."""

    @staticmethod
    def forward(array: Array, ranks: "_Ranks") -> Array:
        return ranks.summed(array)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Array) -> None:  # noqa: ARG004
        ctx.ranks = inputs[1]

    @staticmethod
    def backward(ctx: Any, cotangent: Array) -> tuple[Any, None]:
        return _Shared.apply(cotangent, ctx.ranks), None  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, tangent: Array, _: None) -> Any:
        return _Sum.apply(tangent, ctx.ranks)  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], array: Array, ranks: Any) -> Any:  # noqa: ARG004
        return _Sum.apply(array, ranks), dims[0]  # type: ignore[no-untyped-call]


class _Shared(torch.autograd.Function):
    """The identity, of an array that is the same on all ranks. Its transpose is `_Sum`.

    It precedes a computation that uses the array and the rank's classes. The cotangent of each rank
    is then its contribution to a sum.
    """

    @staticmethod
    def forward(array: Array, ranks: "_Ranks") -> Array:  # noqa: ARG004
        return array.view_as(array)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Array) -> None:  # noqa: ARG004
        ctx.ranks = inputs[1]

    @staticmethod
    def backward(ctx: Any, cotangent: Array) -> tuple[Any, None]:
        return _Sum.apply(cotangent, ctx.ranks), None  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, tangent: Array, _: None) -> Array:  # noqa: ARG004
        return tangent.view_as(tangent)

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], array: Array, ranks: Any) -> Any:  # noqa: ARG004
        return _Shared.apply(array, ranks), dims[0]  # type: ignore[no-untyped-call]


def _by_pairs(terms: Iterable[Sequence[Array]]) -> list[Array]:
    """Add arrays in pairs, the sums in pairs, and so on. Their number is a power of two.

    The sum of a half is the sum that a rank with this half computes. Therefore the result does not
    depend on the number of ranks.
    """
    sums: list[list[Array]] = []
    for count, term in enumerate(terms, 1):
        total, added = list(term), count
        while added % 2 == 0:
            total = [a + b for a, b in zip(sums.pop(), total, strict=True)]
            added //= 2
        sums.append(total)
    (result,) = sums
    return result


class _Ranks:
    """The ranks of a process group, and their collectives.

    Parameters
    ----------
    group
        The process group, or None for all processes.
    in_order
        Whether sums over the ranks are computed in a fixed order.
    """

    def __init__(self, group: Any, *, in_order: bool) -> None:
        self.group, self.in_order = group, in_order
        self.rank, self.count = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            msg = "group: got one that this process is not in; expected one of its own"
            raise ValueError(msg)

    def summed(self, array: Array) -> Array:
        """Return the sum of an array over the ranks, without derivatives.

        In a fixed order, each rank adds its part of the numbers of all ranks. The two collectives
        together send as many bytes as an all-reduce.
        """
        if not self.in_order:
            return _all_reduced(array, dist.ReduceOp.SUM, self.group)
        flat = array.detach().reshape(-1)
        padded = torch.nn.functional.pad(flat, (0, -flat.numel() % self.count))
        received, whole = torch.empty_like(padded), torch.empty_like(padded)
        dist.all_to_all_single(received, padded, group=self.group)
        parts = received.view(self.count, padded.numel() // self.count).unbind()
        (own,) = _by_pairs([part] for part in parts)
        dist.all_gather_into_tensor(whole, own, group=self.group)
        return whole[: flat.numel()].view(array.shape)

    def sums(self, terms: Sequence[Array]) -> tuple[Array, ...]:
        """Return the sums of several arrays over the ranks, with their derivatives."""
        return _Sum.apply(torch.stack(list(terms)), self).unbind()  # type: ignore[no-untyped-call]

    def shared(self, arrays: Sequence[Array]) -> tuple[Array, ...]:
        """Return replicated arrays, whose cotangents are summed over the ranks.

        They are stacked, so that all ranks need the same single all-reduce for their derivatives.
        """
        if not arrays:
            return ()
        return _Shared.apply(torch.stack(list(arrays)), self).unbind()  # type: ignore[no-untyped-call]

    def tops(self, own: Sequence[Array], error: Exception | None = None) -> tuple[Array, ...]:
        """Return the maxima over the ranks, in one all-reduce. Raise if a rank has an error.

        A flag is part of the all-reduce. With it, an error on one rank is raised on all ranks, and
        no rank waits for a collective that another rank does not start.
        """
        flag = 0 if error is None else self.rank + 1
        if error is not None and not isinstance(error, IndexError):
            flag += self.count
        parts = [part.detach() for part in own]
        largest = _all_reduced(
            torch.cat([*parts, parts[0].new_full((1,), flag)]), dist.ReduceOp.MAX, self.group
        )
        if error is not None:
            raise error
        number = int(largest[-1])
        if number:
            rank, is_index = (number - 1) % self.count, number <= self.count
            what = "target: a class index is out of range" if is_index else "invalid arguments"
            msg = f"{what} on rank {rank} of the group: see the error there"
            raise IndexError(msg) if is_index else RuntimeError(msg)
        return largest[:-1].split([part.shape[0] for part in own])

    def gathered(self, numbers: Sequence[int], like: Array) -> list[list[int]]:
        """Return the numbers of all ranks."""
        own = torch.tensor(numbers, dtype=torch.int64, device=like.device)
        parts = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(parts, own, group=self.group)
        return [[int(number) for number in part] for part in parts]


# ---- Validated calls.


@dataclass(frozen=True)
class _Call:
    """A validated call, in the layout of `xentx._shards.lay_out`."""

    ranks: _Ranks
    shard: Shard
    arrays: Arrays
    rows: Rows

    def blocks(self) -> Iterator[Self]:
        """Yield the calls of the blocks of this rank's classes.

        The size of a block depends only on the number of all classes. Blocks are copied, because
        the bits of a matrix product may depend on the strides and the alignment of its operands.
        """
        if not self.ranks.in_order:
            yield self
            return
        classes = self.shard.spec.classes
        size = classes // min(BLOCKS, classes & -classes)
        for first in range(0, self.shard.size, size):
            yield self.block(first, size)

    def block(self, first: int, size: int) -> Self:
        """Return the call of some of the classes."""
        return self.cut(first, size, (_block(self.arrays[0], 1, first, size),))

    def cut(self, first: int, size: int, logits: Arrays, **others: Any) -> Self:
        """Replace the logits, or the operands that they are computed from, by those of a block."""
        _, target, weight, *options = self.arrays
        target = _block(target, 1, first, size) if self.shard.spec.soft else target
        arrays = (*logits, target, _block(weight, 1, first, size), *options)
        shard = replace(self.shard, start=self.shard.start + first, size=size)
        return replace(self, shard=shard, arrays=arrays, **others)

    def local(self) -> Self:
        """Return the call for this rank's classes, with options that all ranks share."""
        return replace(self, arrays=(*self.arrays[:3], *self.ranks.shared(self.arrays[3:])))

    def state(self) -> Partials[Array]:
        """Return the state of the classes of the call."""
        return _shards.state(self.shard, self.arrays)

    def gradient(self, state: Partials[Array], cotangent: Array) -> Array:
        """Return the gradient with respect to the logits, from the state of all classes."""
        parts = [
            _shards.gradient(block.shard, block.arrays, state, cotangent) for block in self.blocks()
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def losses(self, state: Partials[Array]) -> Array:
        """Return each row's loss from the state of all classes, with its derivatives."""
        return _Losses.apply(self, state, *self.arrays)  # type: ignore[no-untyped-call]

    def plain(self) -> "_Call":
        """Return the call in which the logits are an array that autograd differentiates."""
        return self


@dataclass(frozen=True)
class _LinearCall(_Call):
    """A validated call whose logits are not stored. The first of the arrays is hidden.

    Parameters
    ----------
    head, bias
        The operands for this rank's classes.
    spec
        The loss with the dtype of the matrix products. That of the shard has the dtype of states.
    chunk
        The requested number of rows of a tile, or None.
    """

    head: Array
    bias: Array | None
    spec: LossSpec
    chunk: int | None

    @property
    def factors(self) -> tuple[Any, ...]:
        """Hidden, head, bias, target and weight in the layout of `xentx._core.linear`."""
        hidden, target, weight, *_ = self.arrays
        target = target if self.spec.soft else target[:, 0]
        return hidden, self.head, self.bias, target, None if weight is None else weight[0]

    def tiling(self) -> core.Tiling:
        """Return the sizes of the tiles."""
        rows, size = self.arrays[0].shape[0], max(1, self.shard.size)
        return core.tiling(rows, size, self.chunk, by_classes=True)

    def engine(self) -> core.Engine:
        """Return the functions that compute tiles."""
        return _shards.engine(self.shard, self.arrays[3:])

    def block(self, first: int, size: int) -> Self:
        head, bias = (_block(array, 0, first, size) for array in (self.head, self.bias))
        return self.cut(first, size, self.arrays[:1], head=head, bias=bias)

    def state(self) -> Partials[Array]:
        if not self.shard.size:
            return _shards.state(self.shard, self.plain().arrays)
        tiles, tiling = _linear.tiles(self.head), self.tiling()
        return core.states(tiles, self.spec, tiling, self.factors, self.engine())

    def gradients(
        self, state: Partials[Array], cotangent: Array, needs: core.Needs
    ) -> list[Array | None]:
        """Return the gradients of hidden, head and bias. That of hidden is this rank's share."""
        parts = []

        def shares() -> Iterator[list[Array]]:
            for block in self.blocks():
                by_hidden, *others = core.gradients_of(
                    _linear.tiles(block.head),
                    block.spec,
                    block.tiling(),
                    block.factors,
                    state,
                    cotangent,
                    block.engine(),
                    needs,
                )
                parts.append(others)
                yield [] if by_hidden is None else [by_hidden]

        share = _by_pairs(shares())
        joined = (
            found[0] if len(found) == 1 or found[0] is None else torch.cat(found)
            for found in map(list, zip(*parts, strict=True))
        )
        return [share[0] if share else None, *joined]

    def losses(self, state: Partials[Array]) -> Array:
        hidden, *others = self.arrays
        return _LinearLosses.apply(self, state, hidden, self.head, self.bias, *others)  # type: ignore[no-untyped-call]

    def plain(self) -> _Call:
        hidden, *others = self.arrays
        # An ignored row may contain NaN, and the product of NaN and a slope of 0 is NaN.
        hidden = core.kept_rows(xp, self.spec, hidden, self.factors[3])
        (hidden,) = self.ranks.shared([hidden])
        factors = (hidden, self.head, self.bias)
        logits = core.logits_of(_linear.tiles(self.head), self.spec, *factors)
        return _Call(self.ranks, self.shard, (logits, *others), self.rows)

    def of(self, hidden: Array, head: Array, bias: Array | None, *others: Any) -> "_LinearCall":
        """Return the call with other arrays."""
        return replace(self, arrays=(hidden, *others), head=head, bias=bias)


class _Given(NamedTuple):
    """Shapes of this rank's arguments, before the first collective.

    Parameters
    ----------
    array
        The first array.
    shape
        The shape of the rows.
    size
        The number of classes of this rank.
    classes, start
        The number of classes of all ranks, and the first class of this rank. None if the ranks
        exchange their numbers of classes.
    maxima
        The number of arrays of rows in the reduction of the maxima.
    """

    array: Array
    shape: tuple[int, ...]
    size: int
    classes: int | None
    start: int | None
    maxima: int = 1


def _called(
    ranks: _Ranks,
    given: _Given,
    check: Callable[[], Problem],
    flat: Callable[[], Array],
    dtype: Any,
) -> _Call:
    """Validate a call. An error on one rank is raised on all ranks.

    ``check()`` validates this rank's arguments. ``flat()`` returns the logits, or hidden, with the
    rows on one axis.
    """
    count = math.prod(given.shape)
    classes, start = given.classes, given.start
    error: Exception | None = None
    try:
        if (classes is None) != (start is None):
            msg = (
                f"classes, start: got {classes} and {start}; expected both, or neither to exchange "
                "them between the ranks"
            )
            raise ValueError(msg)  # noqa: TRY301 -- it is raised on all ranks below
        problem = check()
        if classes is not None:
            start = check_block(BACKEND, start, given.size, classes)
    except (TypeError, ValueError) as wrong:
        error = wrong
    if classes is None or start is None:
        found = ranks.gathered([error is not None, count, given.size], given.array)
        error = error or _difference(found)
        if error is not None:
            raise error
        classes = sum(size for *_, size in found)
        start = sum(size for *_, size in found[: ranks.rank])
    if error is None and ranks.in_order:
        error = _uneven(ranks, given.size, classes, start)
    if error is None:
        try:
            laid_out = _shards.lay_out(
                problem,
                flat(),
                given.shape,
                dtype,
                size=given.size,
                classes=classes,
                start=start,
            )
        except IndexError as wrong:
            error = wrong
    if error is not None:
        ranks.tops([given.array.new_zeros(count, dtype=torch.float64)] * given.maxima, error)
    return _Call(ranks, *laid_out)


def _difference(found: list[list[int]]) -> Exception | None:
    """Return an error if a rank has failed, or if the sizes of the ranks do not fit together.

    For each rank, `found` has whether it has failed, and its numbers of rows and classes.
    """
    failed = [rank for rank, (wrong, *_) in enumerate(found) if wrong]
    if failed:
        return RuntimeError(
            f"invalid arguments on {_named(failed)} of the group: see the error there"
        )
    by_rows: dict[int, list[int]] = {}
    for rank, (_, rows, _) in enumerate(found):
        by_rows.setdefault(rows, []).append(rank)
    if len(by_rows) > 1:
        got = " and ".join(f"{rows} on {_named(ranks)}" for rows, ranks in by_rows.items())
        return ValueError(f"rows: got {got} of the group; expected the same number on every rank")
    if not any(size for *_, size in found):
        return ValueError("classes: got none on any rank of the group; expected at least 1")
    return None


def _uneven(ranks: _Ranks, size: int, classes: int, start: int) -> Exception | None:
    """Return an error if the rank's classes are not whole blocks, as a fixed order needs."""
    count, what = ranks.count, "with deterministic=True"
    if count > BLOCKS or BLOCKS % count:
        msg = f"group: got {count} ranks {what}; expected a power of two, at most {BLOCKS}"
        return ValueError(msg)
    if classes % count:
        msg = f"classes: got {classes} on {count} ranks {what}; expected a multiple of {count}"
        return ValueError(msg)
    each = classes // count
    if (size, start) != (each, ranks.rank * each):
        msg = (
            f"classes: got {size} from class {start} on rank {ranks.rank} {what}; expected {each} "
            f"from class {ranks.rank * each}, an equal part of {classes} on {count} ranks"
        )
        return ValueError(msg)
    return None


def _block(array: Array | None, axis: int, first: int, size: int) -> Array | None:
    """Copy some classes of an array."""
    if array is None:
        return None
    return array.narrow(axis, first, size).clone(memory_format=torch.contiguous_format)


def _named(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _local(name: str, array: Any, ndim: int) -> Array:
    """Check that an argument is a plain tensor of this rank, not a DTensor."""
    if not isinstance(array, torch.Tensor):
        msg = f"{name}: got {_registry.describe(array)}; expected a torch array"
        raise TypeError(msg)
    if _distributed.is_distributed(array):
        msg = (
            f"{name}: got a DTensor; expected the tensor of this rank (hint: to_local(); "
            "xentx.cross_entropy takes DTensors)"
        )
        raise TypeError(msg)
    if array.ndim < ndim:
        msg = f"{name}: got a {array.ndim}-dimensional array; expected at least {ndim} dimensions"
        raise ValueError(msg)
    return array


def _padded(array: Any, axis: int) -> Any:
    """Return an array with one class instead of an array with none, which validation rejects."""
    if not isinstance(array, torch.Tensor) or not array.ndim or array.shape[axis]:
        return array
    shape = list(array.shape)
    shape[axis] = 1
    return array.new_zeros(shape)


def _emptied(array: Any, padded: Array | None, axis: int) -> Array | None:
    """Undo `_padded` after validation. Return the argument itself if it is a tensor.

    Then autograd has it as an input.
    """
    return array if isinstance(array, torch.Tensor) or padded is None else padded.narrow(axis, 0, 0)


def _dense(
    ranks: _Ranks,
    logits: Array,
    target: Any,
    *,
    classes: int | None,
    start: int | None,
    weight: Any,
    maxima: int = 1,
    **options: Any,
) -> _Call:
    """Validate a call with logits."""
    logits = _local("logits", logits, 1)
    shape, size = tuple(logits.shape[:-1]), logits.shape[-1]

    def check() -> Problem:
        if size:
            return _validation.rowwise(
                BACKEND, _cross_entropy, logits, target, axis=-1, weight=weight, **options
            )
        given = (_padded(logits, -1), _padded(target, -1))
        problem = _validation.rowwise(
            BACKEND, _cross_entropy, *given, axis=-1, weight=_padded(weight, -1), **options
        )
        _, found, own, *others = problem.arrays
        found = _emptied(target, found, -1) if problem.kind.spec.soft else found
        return Problem(problem.kind, (logits, found, _emptied(weight, own, -1), *others))

    given = _Given(logits, shape, size, classes, start, maxima)
    flat = lambda: logits.reshape(math.prod(shape), size)  # noqa: E731
    return _called(ranks, given, check, flat, logits.dtype)


def _with_head(
    ranks: _Ranks,
    factors: tuple[Any, Any, Any],
    target: Any,
    *,
    classes: int | None,
    start: int | None,
    weight: Any,
    **options: Any,
) -> _LinearCall:
    """Validate a call with the operands of the logits."""
    hidden, head = _local("hidden", factors[0], 1), _local("head", factors[1], 2)
    shape, size = tuple(hidden.shape[:-1]), head.shape[0]
    bias, linear = factors[2], None

    def check() -> Problem:
        nonlocal bias, linear
        padded = (_padded(head, 0), _padded(target, -1) if not size else target)
        linear, found = _validation.linear(
            BACKEND,
            _cross_entropy,
            hidden,
            *padded,
            bias=bias if size else _padded(bias, 0),
            weight=weight if size else _padded(weight, 0),
            **options,
        )
        _, _, bias, found_target, own, sample_weight, normalizer, _, *numbers = found
        spec = replace(linear.kind.spec, reduction=linear.reduction)
        if not size:
            bias, own = _emptied(factors[2], bias, 0), _emptied(weight, own, 0)
            found_target = _emptied(target, found_target, -1) if spec.soft else found_target
        arrays = (hidden, found_target, own)
        return Problem(
            replace(linear.kind, spec=spec), (*arrays, sample_weight, normalizer, *numbers)
        )

    given = _Given(hidden, shape, size, classes, start)
    flat = lambda: hidden.reshape(math.prod(shape), hidden.shape[-1])  # noqa: E731
    call = _called(ranks, given, check, flat, None)
    assert linear is not None  # noqa: S101 -- for the type checker
    spec = replace(call.shard.spec, precision=linear.kind.spec.precision)
    rows = replace(call.rows, dtype=linear.dtype)
    return _LinearCall(call.ranks, call.shard, call.arrays, rows, head, bias, spec, linear.chunk)


# ---- The losses of rows.


def _is_transformed() -> bool:
    """Whether forward mode or torch.func is active. They need expressions of operators."""
    return _private.in_forward_mode() or bool(_private.are_transforms_active())


def _needs_gradient(arrays: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(a is not None and a.requires_grad for a in arrays)


# Takes the call of a block and the maxima of all classes, and returns numbers of each row to sum.
More = Callable[[_Call, Array], Sequence[Array]]


def _joined(
    call: _Call, more: More | None = None, beside: Sequence[Array] = ()
) -> tuple[Partials[Array], list[Array], tuple[Array, ...]]:
    """Return the state of all classes, in two reductions over the ranks.

    The numbers of `more` are added to the reduction of the sums, and the numbers `beside` to the
    reduction of the maxima.
    """
    states = [block.state() for block in call.blocks()]
    own = functools.reduce(torch.maximum, [state.top for state in states])
    top, *others = call.ranks.tops([own, *beside])
    terms = _by_pairs(_shards.summands(call.shard, state, top) for state in states)
    extra = [] if more is None else _by_pairs(more(block, top) for block in call.blocks())
    sums = call.ranks.sums([*terms, *extra])
    known = len(terms)
    state = _shards.joined(call.shard, call.arrays, states[0], top, sums[:known])
    return state, list(sums[known:]), tuple(others)


def _rows_of(call: _Call, reduction: str) -> tuple[Array, Array | None]:
    """Return the loss of each row, and its amount in the divisor of a mean if that is a sum."""
    shard = call.shard
    has_amounts = shard.has_amounts(reduction)
    is_mass = shard.amounts_are_mass(reduction)
    transformed = _is_transformed()
    moves = has_amounts and (transformed or _needs_gradient(call.arrays[1:]))

    def amounts(block: _Call, _: Any = None) -> list[Array]:
        return [_shards.amounts(block.shard, block.arrays, reduction)]

    if transformed:
        dense = call.plain()
        extra: list[Array] = []
        state, *_ = _joined(dense.local())
        losses = _shards.losses(shard, dense.arrays, state)
    else:
        needs_amounts = has_amounts and not is_mass and not moves
        with torch.no_grad():
            state, extra, _ = _joined(call, amounts if needs_amounts else None)
        losses = call.losses(state)
    if not has_amounts:
        return losses, None
    if moves:
        return losses, call.ranks.sums(_by_pairs(map(amounts, call.local().blocks())))[0]
    return losses, extra[0] if extra else state.mass


class _Losses(torch.autograd.Function):
    """The losses of the rows from the state of all classes, with their accurate gradient."""

    @staticmethod
    def forward(ctx: Any, call: _Call, state: Partials[Array], *arrays: Array | None) -> Array:
        ctx.call, ctx.state = replace(call, arrays=()), state
        ctx.save_for_backward(*arrays)
        return _shards.losses(call.shard, arrays, state)

    @staticmethod
    def backward(ctx: Any, cotangent: Array) -> tuple[Array | None, ...]:
        arrays, needs = ctx.saved_tensors, ctx.needs_input_grad[2:]
        call = replace(ctx.call, arrays=arrays)
        found: list[Array | None] = [None] * len(arrays)
        again = torch.is_grad_enabled()
        if needs[0] and not again:
            found[0] = call.gradient(ctx.state, cotangent)
        if again or any(needs[1:]):
            _differentiate(call, needs, cotangent, found)
        return None, None, *found


def _differentiate(
    call: _Call, needs: Sequence[bool], cotangent: Array, found: list[Array | None]
) -> None:
    """Add the remaining gradients to `found`.

    In a backward that is differentiated, they are expressions of operators. The gradient with
    respect to the logits is the accurate one. The others are computed by autograd.
    """
    again, shard, ranks = torch.is_grad_enabled(), call.shard, call.ranks
    with torch.enable_grad():
        if not again:
            arrays = _leaves(call.arrays, [False, *needs[1:]])
            call = replace(call, arrays=arrays)
        state, *_ = _joined(call.local())
        if needs[0] and again:
            *fields, seed = ranks.shared([*state, cotangent])
            found[0] = call.local().gradient(Partials(*fields), seed)
        places = [i for i, need in enumerate(needs) if need and i > 0]
        losses = _shards.losses(shard, call.arrays, state)
        _add_gradients(losses, call.arrays, places, cotangent, found, again=again)


def _add_gradients(
    losses: Array,
    arrays: Arrays,
    places: Sequence[int],
    cotangent: Array,
    found: list[Array | None],
    *,
    again: bool,
) -> None:
    """Add the gradients that autograd computes with respect to the arrays at `places`."""
    if not places:
        return
    wanted = [arrays[i] for i in places]
    gradients = torch.autograd.grad(
        losses, wanted, cotangent, create_graph=again, materialize_grads=True
    )
    for i, gradient in zip(places, gradients, strict=True):
        found[i] = gradient


def _leaves(arrays: Arrays, needs: Sequence[bool]) -> Arrays:
    return tuple(
        None if a is None else a.detach().requires_grad_(need)
        for a, need in zip(arrays, needs, strict=True)
    )


class _LinearLosses(torch.autograd.Function):
    """The losses of the rows for hidden, head and bias. Backward computes the logits again."""

    @staticmethod
    def forward(
        ctx: Any, call: _LinearCall, state: Partials[Array], *arrays: Array | None
    ) -> Array:
        ctx.call, ctx.state = call.of(None, None, None), state  # type: ignore[arg-type]
        ctx.save_for_backward(*arrays)
        return _shards.losses(call.shard, call.arrays, state)

    @staticmethod
    def backward(ctx: Any, cotangent: Array) -> tuple[Array | None, ...]:
        arrays, needs = ctx.saved_tensors, ctx.needs_input_grad[2:]
        factors, others = needs[: _linear.FACTORS], needs[_linear.FACTORS :]
        found: list[Array | None] = [None] * len(arrays)
        if torch.is_grad_enabled() or any(others):
            again = torch.is_grad_enabled()
            with torch.enable_grad(), _linear.as_they_are(arrays[0]):
                given = arrays if again else _leaves(arrays, needs)
                losses, _ = _rows_of(ctx.call.of(*given).plain(), "none")
                places = [i for i, need in enumerate(needs) if need]
                _add_gradients(losses, given, places, cotangent, found, again=again)
            return None, None, *found
        call = ctx.call.of(*arrays)
        with _linear.as_they_are(arrays[0]):
            found[: _linear.FACTORS] = call.gradients(ctx.state, cotangent, factors)
        if found[0] is not None:
            found[0] = call.ranks.summed(found[0])
        for i, gradient in enumerate(found[: _linear.FACTORS]):
            if gradient is not None:
                found[i] = gradient.to(arrays[i].dtype)
        return None, None, *found


def _value(call: _Call, *, return_normalizer: bool) -> Any:
    """Return the reduced loss, and its divisor if it is requested."""
    reduction = call.rows.divided_by(return_normalizer=return_normalizer)
    losses, amounts = _rows_of(call, reduction)
    return _shards.reduce(
        call.shard, call.arrays, call.rows, losses, amounts, return_normalizer=return_normalizer
    )


# ---- The functions.


def _uncompiled(function: Function) -> Function:
    """Exclude a function from compiled graphs. Its collectives and its errors need values."""
    disabled: Function = torch.compiler.disable(function)
    return disabled


@overload
def cross_entropy(
    logits: Array,
    target: Array,
    /,
    *,
    group: Any = None,
    classes: int | None = None,
    start: int | None = None,
    deterministic: bool = False,
    return_normalizer: Literal[False] = False,
    **options: Unpack[LossOptions],
) -> Array: ...
@overload
def cross_entropy(
    logits: Array,
    target: Array,
    /,
    *,
    group: Any = None,
    classes: int | None = None,
    start: int | None = None,
    deterministic: bool = False,
    return_normalizer: Literal[True],
    **options: Unpack[LossOptions],
) -> tuple[Array, Array]: ...
@_uncompiled
def cross_entropy(
    logits: Array,
    target: Array,
    /,
    *,
    group: Any = None,
    classes: int | None = None,
    start: int | None = None,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float | Array = 0.0,
    z_loss: float | Array = 0.0,
    logit_softcap: float | Array | None = None,
    temperature: float | Array = 1.0,
    reduction: Reduction = "mean",
    normalizer: float | Array | None = None,
    return_normalizer: bool = False,
    deterministic: bool = False,
) -> Any:
    """`xentx.cross_entropy` of logits whose classes are sharded over the ranks of a group.

    Every rank calls it, with the logits of the same rows for its own classes.

    Parameters
    ----------
    logits : torch.Tensor
        The logits of this rank's classes, on the last axis.
    target : torch.Tensor
        Class indices, counted from the first class of all ranks, the same on every rank; or this
        rank's part of class probabilities.
    group : torch.distributed.ProcessGroup, optional
        The ranks that share the classes. By default all ranks.
    classes, start : int, optional
        The number of classes of all ranks, and the first class of this rank. By default the ranks
        exchange their numbers of classes, by a third collective of three numbers.
    weight : torch.Tensor, optional
        This rank's part of the class weights.
    sample_weight : torch.Tensor, optional
        As in `xentx.cross_entropy`, the same on every rank.
    ignore_index : int or None, default: -100
        As in `xentx.cross_entropy`.
    label_smoothing, z_loss : float or torch.Tensor, default: 0.0
        As in `xentx.cross_entropy`, the same on every rank.
    logit_softcap : float or torch.Tensor, optional
        As in `xentx.cross_entropy`, the same on every rank.
    temperature : float or torch.Tensor, default: 1.0
        As in `xentx.cross_entropy`, the same on every rank.
    reduction : {"mean", "sum", "none", "weighted_mean"}, default: "mean"
        As in `xentx.cross_entropy`.
    normalizer : float or torch.Tensor, optional
        As in `xentx.cross_entropy`, the same on every rank.
    return_normalizer : bool, default: False
        As in `xentx.cross_entropy`.
    deterministic : bool, default: False
        Whether the loss and its gradient have the same bits for any number of ranks. It is the same
        on every rank. The number of ranks is then a power of two, at most 64, and every rank has
        the same number of classes. An all-to-all and an all-gather replace the second all-reduce.

    Returns
    -------
    torch.Tensor
        What `xentx.cross_entropy` returns for all classes together, on every rank.
    torch.Tensor
        With `return_normalizer`, the divisor.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `xentx.cross_entropy`. If the error is on another rank, a RuntimeError or an IndexError
        names this rank. If the ranks exchange their numbers of classes, a ValueError also names
        the ranks with another number of rows. With `deterministic`, a
        ValueError if the number of ranks is not a power of two, or if the ranks do not have equal
        numbers of classes in their order.

    Notes
    -----
    Every rank has a copy of the same loss, and calls ``backward`` on its copy. Derivatives of any
    order and in forward mode are supported. The gradient with respect to class weights, class
    probabilities and options needs two more all-reduces.

    With `deterministic`, the classes are computed in blocks. Their number is the largest power of
    two that divides the number of classes, at most 64. The numbers of the blocks are added in
    pairs, the sums in pairs, and so on, over the blocks of a rank and then over the ranks. The bits
    are the same on devices of the same kind, with the same number of threads and the same engine.
    This holds for the loss and for its gradient with respect to the logits.

    If a rank differentiates a number that depends on its own part of a gradient, such as the square
    of this part, then the derivative is that of the sum of the numbers of all ranks. ``torch.func``
    is supported except ``vmap`` of the loss. ``torch.compile`` does not include the loss in its
    graph.

    Examples
    --------
    >>> import torch
    >>> import torch.distributed as dist
    >>> from xentx_torch import parallel
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> logits = torch.tensor([[1.0, 2.0, 0.5], [0.1, 0.5, 2.0]])
    >>> print(f"{parallel.cross_entropy(logits, torch.tensor([1, 2])):.6f}")
    0.390574
    >>> dist.destroy_process_group()
    """
    call = _dense(
        _Ranks(group, in_order=deterministic),
        logits,
        target,
        classes=classes,
        start=start,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_softcap=logit_softcap,
        temperature=temperature,
        reduction=reduction,
        normalizer=normalizer,
    )
    return _value(call, return_normalizer=return_normalizer)


@overload
def linear_cross_entropy(
    hidden: Array,
    head: Array,
    target: Array,
    /,
    *,
    group: Any = None,
    classes: int | None = None,
    start: int | None = None,
    deterministic: bool = False,
    bias: Array | None = None,
    chunk: int | str = "auto",
    return_normalizer: Literal[False] = False,
    **options: Unpack[LossOptions],
) -> Array: ...
@overload
def linear_cross_entropy(
    hidden: Array,
    head: Array,
    target: Array,
    /,
    *,
    group: Any = None,
    classes: int | None = None,
    start: int | None = None,
    deterministic: bool = False,
    bias: Array | None = None,
    chunk: int | str = "auto",
    return_normalizer: Literal[True],
    **options: Unpack[LossOptions],
) -> tuple[Array, Array]: ...
@_uncompiled
def linear_cross_entropy(
    hidden: Array,
    head: Array,
    target: Array,
    /,
    *,
    group: Any = None,
    classes: int | None = None,
    start: int | None = None,
    bias: Array | None = None,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float | Array = 0.0,
    z_loss: float | Array = 0.0,
    logit_softcap: float | Array | None = None,
    temperature: float | Array = 1.0,
    reduction: Reduction = "mean",
    normalizer: float | Array | None = None,
    return_normalizer: bool = False,
    chunk: int | str = "auto",
    deterministic: bool = False,
) -> Any:
    """`xentx.linear_cross_entropy` of a head whose classes are sharded over the ranks of a group.

    A rank computes its logits tile by tile, and never stores all of them. The gradient of `hidden`
    is summed over the ranks.

    Parameters
    ----------
    hidden : torch.Tensor
        The last layer's input, features on the last axis, the same on every rank.
    head : torch.Tensor
        The last layer's weights for this rank's classes, in shape ``(classes, features)``.
    target : torch.Tensor
        As in `cross_entropy`.
    group : torch.distributed.ProcessGroup, optional
        As in `cross_entropy`.
    classes, start : int, optional
        As in `cross_entropy`.
    bias : torch.Tensor, optional
        The last layer's bias for this rank's classes.
    weight, sample_weight : torch.Tensor, optional
        As in `cross_entropy`.
    ignore_index : int or None, default: -100
        As in `cross_entropy`.
    label_smoothing, z_loss : float or torch.Tensor, default: 0.0
        As in `cross_entropy`.
    logit_softcap : float or torch.Tensor, optional
        As in `cross_entropy`.
    temperature : float or torch.Tensor, default: 1.0
        As in `cross_entropy`.
    reduction : {"mean", "sum", "none", "weighted_mean"}, default: "mean"
        As in `cross_entropy`.
    normalizer : float or torch.Tensor, optional
        As in `cross_entropy`.
    return_normalizer : bool, default: False
        As in `cross_entropy`.
    chunk : int or str, default: "auto"
        The number of rows of a tile, or the memory of their logits, such as "256MB".
    deterministic : bool, default: False
        As in `cross_entropy`.

    Returns
    -------
    torch.Tensor
        What `xentx.linear_cross_entropy` returns for the whole head, on every rank.
    torch.Tensor
        With `return_normalizer`, the divisor.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cross_entropy`.

    Notes
    -----
    The backward pass needs one all-reduce, of the gradient of `hidden`. It computes the tiles of
    logits again. Derivatives of second order, in forward mode, and with respect to class weights,
    class probabilities or options store all logits of this rank.

    With `deterministic`, the same bits need a matrix product that returns the same bits for the
    same shapes. Each block of `cross_entropy` is a matrix product of its own. An all-to-all and an
    all-gather of the gradient of `hidden` replace the all-reduce of the backward.

    Examples
    --------
    >>> import torch
    >>> import torch.distributed as dist
    >>> from xentx_torch import parallel
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> hidden = torch.tensor([[1.0, 2.0], [0.5, -1.0]])
    >>> head = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, -1.0]])
    >>> print(f"{parallel.linear_cross_entropy(hidden, head, torch.tensor([0, 2])):.6f}")
    0.565440
    >>> dist.destroy_process_group()
    """
    call = _with_head(
        _Ranks(group, in_order=deterministic),
        (hidden, head, bias),
        target,
        classes=classes,
        start=start,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_softcap=logit_softcap,
        temperature=temperature,
        reduction=reduction,
        normalizer=normalizer,
        chunk=chunk,
    )
    with _linear.as_they_are(call.head):
        return _value(call, return_normalizer=return_normalizer)


@_uncompiled
def per_row(
    logits: Array,
    target: Array,
    /,
    *,
    group: Any = None,
    classes: int | None = None,
    start: int | None = None,
    weight: Array | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float | Array = 0.0,
    z_loss: float | Array = 0.0,
    logit_softcap: float | Array | None = None,
    temperature: float | Array = 1.0,
    deterministic: bool = False,
) -> RowStats[Array]:
    """`xentx.per_row` of logits whose classes are sharded over the ranks of a group.

    Parameters
    ----------
    logits : torch.Tensor
        As in `cross_entropy`.
    target : torch.Tensor
        As in `cross_entropy`.
    group : torch.distributed.ProcessGroup, optional
        As in `cross_entropy`.
    classes, start : int, optional
        As in `cross_entropy`.
    weight : torch.Tensor, optional
        As in `cross_entropy`.
    ignore_index : int or None, default: -100
        As in `cross_entropy`.
    label_smoothing, z_loss : float or torch.Tensor, default: 0.0
        As in `cross_entropy`.
    logit_softcap : float or torch.Tensor, optional
        As in `cross_entropy`.
    temperature : float or torch.Tensor, default: 1.0
        As in `cross_entropy`.
    deterministic : bool, default: False
        As in `cross_entropy`.

    Returns
    -------
    RowStats
        What `xentx.per_row` returns for all classes together, on every rank.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cross_entropy`.

    Notes
    -----
    A third all-reduce finds the first class of the largest logit. With `deterministic`, all fields
    have the same bits for any number of ranks.

    Examples
    --------
    >>> import torch
    >>> import torch.distributed as dist
    >>> from xentx_torch import parallel
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> parallel.per_row(torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([1])).prediction
    tensor([1])
    >>> dist.destroy_process_group()
    """
    # The largest probabilities are reduced together with the largest logits.
    soft = isinstance(target, torch.Tensor) and target.is_floating_point()
    call = _dense(
        _Ranks(group, in_order=deterministic),
        logits,
        target,
        classes=classes,
        start=start,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_softcap=logit_softcap,
        temperature=temperature,
        reduction="none",
        maxima=3 if soft else 2,
    )
    shard, rows = call.shard, call.rows
    target, soft = call.arrays[1], shard.spec.soft
    kept = torch.ones_like(call.arrays[0][:, :0].sum(1, keepdim=True), dtype=torch.bool)
    if shard.spec.ignore_index is not None:
        kept = target != shard.spec.ignore_index
    searched = [
        torch.where(kept, call.arrays[0].detach(), 0.0),
        *([target.detach()] if soft else []),
    ]
    largest = [_largest(array) for array in searched]
    state, sums, found = _joined(
        call.local(),
        lambda block, top: _shards.details(block.shard, block.arrays, top),
        [value for value, _ in largest],
    )
    if _is_transformed():
        loss = _shards.losses(shard, call.arrays, state)
    else:
        loss = call.losses(Partials(*(field.detach() for field in state)))
    lse, log_prob, entropy = monoid.lse_log_prob_entropy(xp, state, *sums)
    # The first rank with the largest number. Ranks with NaN precede the others.
    far = 2 * shard.spec.classes
    places = []
    for (value, place), top in zip(largest, found, strict=True):
        at = torch.where(value == top, place + shard.start, far)
        places.append(torch.where(value.isnan(), place + shard.start - far, at))
    first = _all_reduced(torch.stack(places), dist.ReduceOp.MIN, call.ranks.group)
    prediction, *wanted = torch.where(first < 0, first + far, first)
    prediction = torch.where(kept[:, 0], prediction, 0)
    correct = kept[:, 0] & (prediction == (wanted[0] if soft else target[:, 0]))
    fields = (field.reshape(rows.shape).to(rows.dtype) for field in (loss, lse, log_prob, entropy))
    loss, lse, log_prob, entropy = fields
    hits = (field.reshape(rows.shape) for field in (correct, prediction))
    correct, prediction = hits
    return RowStats(loss, lse, log_prob, entropy, correct, prediction)


def _largest(array: Array) -> tuple[Array, Array]:
    """Return the largest number of each row in float64, and its first place. NaN is larger."""
    if not array.shape[1]:
        nothing = array.new_full((array.shape[0],), -math.inf, dtype=torch.float64)
        return nothing, torch.zeros_like(nothing, dtype=torch.int64)
    return array.amax(1).double(), array.argmax(1)
