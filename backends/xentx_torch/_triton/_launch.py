"""Launch the kernels with tensors: choose the axes of rows, the variant and the size of a tile."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
import triton

from xentx._core._spec import LossSpec
from xentx_torch import _layout
from xentx_torch._layout import View
from xentx_torch._triton import _kernels

Array = torch.Tensor
Strides = tuple[int, ...]

_HALF = (torch.float16, torch.bfloat16)
_LN2 = Fraction("0.693147180559945309417232121458176568075500134360255254120680009493393622")
# The bits of the first part of T ln 2. Its product with an n of 11 bits is exact in the dtype.
_HIGH_BITS = {False: 12, True: 32}
_NOTHING: Any = (None,) * 5
# Classes with this stride are in different sectors of memory.
_APART = 16


@dataclass(frozen=True, slots=True)
class Rows:
    """The layout of arrays for a kernel. Rows are numbered (far, near). A program has near ones.

    Parameters
    ----------
    far, near, classes
        How many there are.
    strides
        Each array's along (far, classes, near); zeros where there is no array.
    copied
        Which arrays must be made contiguous first.
    result
        Strides of what is written in the shape of the logits, and lies as they do.
    result_strides
        The same along (far, classes, near).
    """

    far: int
    near: int
    classes: int
    strides: tuple[tuple[int, int, int], ...]
    copied: tuple[bool, ...]
    result: Strides
    result_strides: tuple[int, int, int]


@functools.lru_cache(maxsize=1024)
def rows_of(
    shape: tuple[int, ...], axis: int, strides: tuple[Strides | None, ...], over: tuple[str, ...]
) -> Rows:
    """Fit arrays to (far, classes, near), with as few copies as possible.

    Parameters
    ----------
    shape, axis
        Of the logits, and the axis of the classes.
    strides
        Each array's, the logits' first; None where there is no array.
    over
        Whether each array is over "all" axes, or over the "rows".
    """
    everything = tuple(range(len(shape)))
    rows = tuple(i for i in everything if i != axis)
    axes = {"all": everything, "rows": rows}
    views = [
        None if s is None else View(axes[name], s) for name, s in zip(over, strides, strict=True)
    ]
    logits = views[0]
    assert logits is not None  # noqa: S101 -- for the type checker
    layout = _layout.arrange(shape, 0, axis, logits, views[1:], in_order=False)
    outer, classes, inner = layout.sizes

    def placed(found: tuple[int, int, int, int] | None) -> tuple[int, int, int]:
        if found is None:
            return 0, 0, 0
        _, far, along, near = found
        return (0, along, far) if inner == 1 else (far, along, near)

    far, near = (1, outer) if inner == 1 else (outer, inner)
    return Rows(
        far=far,
        near=near,
        classes=classes,
        strides=tuple(map(placed, layout.strides)),
        copied=layout.copied,
        result=layout.result,
        result_strides=placed((0, classes * inner, inner, 1)),
    )


@dataclass(frozen=True, slots=True)
class Tile:
    """The numbers of rows of a program, of classes at a time, and of warps."""

    rows: int
    classes: int
    warps: int


def tile(classes: int, *, side_by_side: bool, most: int) -> Tile:
    """Choose by the shape of one row, because its bits must not depend on the number of rows.

    Parameters
    ----------
    classes, side_by_side
        How many there are, and whether they lie side by side in memory.
    most
        How many may be taken at a time, for what is kept of each in registers.
    """
    power = triton.next_power_of_2(classes)
    if not side_by_side:
        # Then the rows usually are. Several lanes read many classes, for more parallel loads.
        lanes = min(max(power // 16, 1), 32)
        return Tile(32 if lanes > 1 else 128, lanes, 4)
    lanes = min(power, most)
    return Tile(max(1024 // lanes, 1), lanes, 8 if lanes == most else 4)


@functools.lru_cache(maxsize=64)
def _reduction(temperature: float, *, double: bool) -> tuple[float, float]:
    """Return T ln 2 in two parts. The first part has only `_HIGH_BITS` bits."""
    exact = Fraction(temperature) * _LN2
    bits = _HIGH_BITS[double]
    unit = Fraction(2) ** (exact.numerator.bit_length() - exact.denominator.bit_length() - bits)
    high = round(exact / unit) * unit
    return float(high), float(exact - high)


@dataclass(frozen=True, slots=True)
class Given:
    """The arrays of a cross-entropy, and what the forward pass and the gradient have in common.

    Parameters
    ----------
    spec
        What to compute.
    logits, target, weight
        As in `xentx._calls.Problem`. Without a target it is a log_softmax.
    """

    spec: LossSpec
    logits: Array
    target: Array | None
    weight: Array | None

    @property
    def compute(self) -> torch.dtype:
        """The dtype of the losses of the rows."""
        dtype: torch.dtype = self.spec.precision.compute
        return dtype

    @property
    def has_shares(self) -> bool:
        """Whether q has other entries than that of a class index."""
        soft = self.target is not None and self.spec.soft
        return soft or (self.target is not None and self.spec.label_smoothing != 0.0)

    def rows(self, *others: tuple[Array | None, str]) -> Rows:
        """Lay out the logits, the target and other arrays over "all" axes or over the "rows"."""
        target = (self.target, "all" if self.spec.soft else "rows")
        arrays = ((self.logits, "all"), target, *others)
        return rows_of(
            tuple(self.logits.shape),
            self.spec.axis,
            tuple(None if array is None else array.stride() for array, _ in arrays),
            tuple(name for _, name in arrays),
        )

    def options(self, rows: Rows, span: int, *, fields: bool) -> dict[str, Any]:
        """Arguments of both kernels that select what to compute.

        The arrays reach over a `span` of elements along a row.
        """
        spec, logits = self.spec, self.logits
        half = logits.dtype in _HALF and not spec.exact
        capped = spec.logit_softcap is not None
        # A cap is computed in float64, except for half types.
        double = self.compute == torch.float64 or (capped and not half)
        many = self.has_shares or fields
        most = (512 if fields else 1024) if double else 4096 if half and not many else 2048
        chosen = tile(
            rows.classes,
            side_by_side=rows.strides[0][1] < _APART,
            most=most,
        )
        scaled = spec.temperature != 1.0
        high, low = _reduction(spec.temperature, double=double) if scaled else (0.0, 0.0)
        kind = _kernels.NONE
        if self.target is not None:
            kind = _kernels.DISTRIBUTION if spec.soft else _kernels.INDEX
        return {
            "ignore": spec.ignore_index or 0,
            "smoothing": spec.label_smoothing,
            "z_loss": spec.z_loss,
            "cap": spec.logit_softcap or 1.0,
            "temperature": spec.temperature,
            "ln2_high": high,
            "ln2_low": low,
            "R": chosen.rows,
            "B": chosen.classes,
            "WIDE": span >= 2**31 - 2**20,
            "TRUNCATES": logits.is_cpu,
            "DOUBLE": double,
            "FAST": half and not self.has_shares,
            "TARGET": kind.value,
            "IGNORE": spec.ignore_index is not None,
            "SMOOTH": spec.label_smoothing != 0.0,
            "WEIGHT": self.weight is not None,
            "Z": spec.z_loss != 0.0,
            "CAP": capped,
            "SCALED": scaled,
            "num_warps": chosen.warps if torch.version.hip is None else chosen.warps // 2,
            # Products and sums are rounded as they are written.
            "enable_fp_fusion": False,
        }


def _span(rows: Rows, *strides: tuple[int, int, int]) -> int:
    """Return how far the arrays with these strides reach along a row."""
    return (rows.classes - 1) * max(along for _, along, _ in strides)


def _laid_out(array: Array | None, copied: bool) -> Array | None:  # noqa: FBT001
    return array.contiguous() if array is not None and copied else array


def _run(kernel: Any, tensors: Sequence[Any], rows: Rows, numbers: Any, options: Any) -> None:
    """Launch a kernel. Pointers of arrays that are not given are never read."""
    logits = tensors[0]
    count = rows.far * rows.near
    if count == 0:
        return
    pointers = [logits if tensor is None else tensor for tensor in tensors]
    programs = rows.far * triton.cdiv(rows.near, options["R"])
    with torch.cuda.device_of(logits):
        kernel[(programs,)](
            *pointers, rows.near, count, rows.classes, *itertools.chain(*numbers), **options
        )


@dataclass(frozen=True, slots=True)
class Found:
    """The results of a forward pass.

    Parameters
    ----------
    fields
        The rows' losses, and the other fields of `xentx.RowStats` where they were asked for. The
        class axis is kept with length 1.
    logs
        Log-probabilities, where they were asked for.
    state
        What a gradient starts from.
    """

    fields: tuple[Array, ...]
    logs: Array | None
    state: Array


def forward(
    given: Given, *, losses: bool = True, fields: bool = False, logs: bool = False
) -> Found:
    """Compute the losses of the rows, all fields of RowStats, or the log-probabilities."""
    logits = given.logits
    rows = given.rows()
    x, target = (_laid_out(*pair) for pair in zip((logits, given.target), rows.copied, strict=True))
    shape = list(logits.shape)
    shape[given.spec.axis] = 1

    def empty(dtype: torch.dtype, *leading: int) -> Array:
        return torch.empty((*leading, *shape), dtype=dtype, device=logits.device)

    state = empty(torch.float64, 5 if fields else 4 if given.has_shares else 2)
    loss = empty(given.compute) if losses else None
    others: list[Array] = []
    if fields:
        others += [empty(given.compute) for _ in range(3)]
        others += [empty(torch.bool), empty(torch.int64)]
    y = None
    if logs:
        y = torch.empty_strided(logits.shape, rows.result, dtype=logits.dtype, device=logits.device)
    seen = [other.view(torch.int8) if other.dtype is torch.bool else other for other in others]
    tensors = (x, target, given.weight, loss, state, *(seen or _NOTHING[:5]), y)
    strides = (*rows.strides, rows.result_strides)
    options = {
        **given.options(rows, _span(rows, *strides), fields=fields),
        "LOSSES": losses,
        "FIELDS": fields,
        "LOGS": logs,
    }
    _run(_kernels.xentx_forward, tensors, rows, strides, options)
    return Found((() if loss is None else (loss,)) + tuple(others), y, state)


def gradient(
    given: Given, state: Array, cotangents: Sequence[Array], *, overwrite: bool = False
) -> Array:
    """Gradient with respect to the logits, which may be written over them.

    The cotangents are those of the losses, and of the three other real fields if there are any,
    which then have the same strides. Each has the shape of the rows.
    """
    logits, fields = given.logits, len(cotangents) > 1
    rows = given.rows((cotangents[0], "rows"))
    x, target, first = (
        _laid_out(*pair)
        for pair in zip((logits, given.target, cotangents[0]), rows.copied, strict=True)
    )
    if overwrite and rows.result == logits.stride():
        result = logits
    else:
        result = torch.empty_strided(
            logits.shape, rows.result, dtype=logits.dtype, device=logits.device
        )
    tensors = (x, target, given.weight, state, first, *(cotangents[1:] or _NOTHING[:3]), result)
    *strides, (c_far, _, c_near) = rows.strides
    numbers = (*strides, rows.result_strides, (c_far, c_near))
    options = {
        **given.options(rows, _span(rows, *strides, rows.result_strides), fields=fields),
        "FIELDS": fields,
    }
    _run(_kernels.xentx_gradient, tensors, rows, numbers, options)
    return result
