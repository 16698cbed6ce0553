"""Load a user's own logits and targets from files.

Pickles can run code, so they are never loaded: object arrays in .npy and .npz raise an error.
"""

import csv
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

Array = np.ndarray[Any, Any]

LOGITS_NAMES = ("logits", "x")
TARGET_NAMES = ("target", "targets", "labels", "y")

_PICKLE = b"\x80"  # the first byte of a pickle

_SAFETENSORS_DTYPES = {
    "F16": "<f2",
    "BF16": "<u2",
    "F32": "<f4",
    "F64": "<f8",
    "I8": "<i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
    "U8": "<u1",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
}


class DataError(ValueError):
    """A file does not contain valid logits or targets."""


def load(
    logits: Path,
    target: Path | None = None,
    *,
    axis: int | None = None,
    ignore_index: int = -100,
) -> tuple[Array, Array, str]:
    """Load logits and targets.

    Parameters
    ----------
    logits : Path
        A file with the suffix .npy, .npz, .safetensors or .csv. An .npz or .safetensors file names
        its arrays: "logits" or "x", and "target", "targets", "labels" or "y". Without a file of
        targets, a .csv has the class index in its last column.
    target : Path, optional
        A file of class indices, or of probabilities in the shape of the logits.
    axis : int, optional
        The axis of the logits that holds the classes. The default is the last axis. Required for
        logits of 3 or more dimensions if the shape of the targets fits several axes.
    ignore_index : int, default: -100
        Class index of the rows to ignore. They are returned like the others.

    Returns
    -------
    logits : ndarray of float64
        Values of the logits, classes on the last axis.
    target : ndarray
        Class indices as int64 or probabilities as float64, classes on the last axis.
    dtype : str
        Name of the dtype of the stored logits. float32 for text.

    Raises
    ------
    DataError
        If a file cannot be read, is of another kind, is damaged, needs a pickle or lacks an array,
        or if the shapes of the arrays do not match.
    """
    arrays = _read(logits)
    x, dtype = _pick(arrays, LOGITS_NAMES, logits)
    source = logits if target is None else target
    if target is not None:
        t, kind = _pick(_read(target), TARGET_NAMES, target)
    elif "" not in arrays:
        t, kind = _pick(arrays, TARGET_NAMES, logits)
    elif logits.suffix.lower() == ".csv":
        if x.ndim == 1:
            msg = f"{logits.name}: holds one column; expected --target with the file of the targets"
            raise DataError(msg)
        x, t, kind = x[:, :-1], x[:, -1], dtype
    else:
        msg = f"{logits.name}: holds one array; expected --target with the file of the targets"
        raise DataError(msg)
    axis = _check_logits(logits.name, x, dtype, t.shape, axis)
    checked = _check_target(source.name, t, kind, x.shape, axis, ignore_index)
    moved = np.moveaxis(x, axis, -1).astype(np.float64)
    return moved, np.moveaxis(checked, axis, -1) if checked.dtype.kind == "f" else checked, dtype


def _check_logits(
    name: str, x: Array, dtype: str, target: tuple[int, ...], axis: int | None
) -> int:
    """Check the logits, and find the axis of their classes."""
    if dtype not in ("float16", "bfloat16", "float32", "float64"):
        # NumPy's files store bfloat16 as bytes without a dtype.
        hint = " (hint: save bfloat16 as float32)" if x.dtype.kind == "V" else ""
        msg = f"{name}: got logits of dtype {dtype}; expected floats{hint}"
        raise DataError(msg)
    if x.ndim == 0 or x.size == 0:
        msg = f"{name}: got logits of shape {x.shape}; expected rows of at least one class"
        raise DataError(msg)
    if axis is not None and not -x.ndim <= axis < x.ndim:
        msg = (
            f"--axis: got {axis} for logits of shape {x.shape}; expected {-x.ndim} <= axis < "
            f"{x.ndim}"
        )
        raise DataError(msg)
    fitting = [a for a in range(x.ndim) if x.shape[:a] + x.shape[a + 1 :] == target]
    if axis is None and x.ndim > 2 and len(fitting) > 1:  # noqa: PLR2004
        msg = (
            f"--axis: got none for logits of shape {x.shape} and targets of shape {target}; "
            f"expected the axis of the classes, {' or '.join(map(str, fitting))}"
        )
        raise DataError(msg)
    return (-1 if axis is None else axis) % x.ndim


def _check_target(
    name: str, t: Array, dtype: str, shape: tuple[int, ...], axis: int, ignore_index: int
) -> Array:
    """Check the targets of logits of this shape, and convert them to indices or probabilities."""
    rows = shape[:axis] + shape[axis + 1 :]
    if t.dtype.kind not in "iufb":
        msg = f"{name}: got targets of dtype {dtype}; expected integers, or probabilities as floats"
        raise DataError(msg)
    if t.shape == rows:
        return _indices(name, t, shape[axis], ignore_index)
    if t.shape != shape:
        fitting = [a for a in range(len(shape)) if shape[:a] + shape[a + 1 :] == t.shape]
        hint = f" (hint: --axis {fitting[0]})" if fitting else ""
        msg = (
            f"{name}: got targets of shape {t.shape} for logits of shape {shape} with classes on "
            f"axis {axis}; expected class indices in shape {rows} or probabilities in shape "
            f"{shape}{hint}"
        )
        raise DataError(msg)
    if t.dtype.kind != "f":
        msg = (
            f"{name}: got targets of dtype {dtype} in the shape of the logits, {shape}; expected "
            f"probabilities as floats, or class indices in shape {rows} (hint: save "
            f"target.astype(numpy.float32), or target.argmax({axis}))"
        )
        raise DataError(msg)
    if ignore_index != -100:  # noqa: PLR2004 -- the default
        msg = f"--ignore-index: got {ignore_index} with probabilities; expected class indices"
        raise DataError(msg)
    return t.astype(np.float64)


def _indices(name: str, t: Array, classes: int, ignore_index: int) -> Array:
    with np.errstate(invalid="ignore"):  # NaN and numbers that are too large
        indices = t.astype(np.int64)
    if not np.array_equal(indices, t):
        msg = f"{name}: got targets such as {t[indices != t].flat[0]}; expected class indices"
        raise DataError(msg)
    kept = indices != ignore_index
    outside = kept & ((indices < 0) | (indices >= classes))
    if outside.any():
        got = indices[outside].flat[0]
        msg = (
            f"{name}: got a target of {got}; expected 0 <= target < {classes}, or --ignore-index "
            f"{got} for rows to ignore"
        )
        raise DataError(msg)
    if not kept.any():
        msg = f"{name}: got only targets of {ignore_index}, which are ignored; expected others"
        raise DataError(msg)
    return indices


def _pick(
    arrays: dict[str, tuple[Array, str]], names: tuple[str, ...], path: Path
) -> tuple[Array, str]:
    if "" in arrays:
        return arrays[""]
    found = [name for name in names if name in arrays]
    if not found:
        msg = f"{path.name}: holds {', '.join(arrays) or 'nothing'}; expected {' or '.join(names)}"
        raise DataError(msg)
    return arrays[found[0]]


def reason(error: OSError) -> str:
    """Return the reason why a file cannot be read or written, without the error number."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file or folder"
    if isinstance(error, IsADirectoryError):
        return "is a folder; expected a file"
    if isinstance(error, PermissionError):
        return "permission denied"
    return (error.strerror or str(error)).lower()


def _read(path: Path) -> dict[str, tuple[Array, str]]:
    """Return the arrays of a file by name, with their dtype. A single array has the name ""."""
    try:
        return _reader(path)(path)
    except DataError:
        raise
    except MemoryError as error:
        msg = f"{path.name}: holds an array that does not fit into memory"
        raise DataError(msg) from error
    except Exception as error:
        if isinstance(error, OSError) and not _is_of_content(error):
            msg = f"{path}: {reason(error)}"
            raise DataError(msg) from error
        # The libraries raise many types of exceptions for damaged files.
        lines = str(error).splitlines()
        why = f": {lines[0]}" if lines else ""
        msg = f"{path.name}: is damaged, or is no {path.suffix} file{why}"
        raise DataError(msg) from error


def _reader(path: Path) -> Callable[[Path], dict[str, tuple[Array, str]]]:
    """Return the reader for the suffix of a file, which must exist and not be empty."""
    readers = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors, ".csv": _csv}
    size = path.stat().st_size
    if path.is_dir():
        msg = f"{path}: {reason(IsADirectoryError())}"
        raise DataError(msg)
    suffix = path.suffix.lower()
    if suffix not in readers:
        msg = f"{path.name}: expected a file of kind {', '.join(readers)}"
        raise DataError(msg)
    if size == 0:
        msg = f"{path.name}: is empty"
        raise DataError(msg)
    return readers[suffix]


def _is_of_content(error: OSError) -> bool:
    """Whether a reader failed because an archive is damaged."""
    return error.errno in (None, errno.EINVAL)


def _npy(path: Path) -> dict[str, tuple[Array, str]]:
    with path.open("rb") as file:
        array = _load(file, path)
        if not isinstance(array, np.ndarray):
            msg = f"{path.name}: is an archive of arrays; expected the suffix .npz"
            raise DataError(msg)
    return {"": (array, array.dtype.name)}


def _npz(path: Path) -> dict[str, tuple[Array, str]]:
    with path.open("rb") as file:
        archive = _load(file, path)
        if isinstance(archive, np.ndarray):
            msg = f"{path.name}: is a single array; expected the suffix .npy"
            raise DataError(msg)
        try:
            arrays = {name: archive[name] for name in archive.files}
        except ValueError as error:
            if "pickle" in str(error):
                raise _pickled(path) from error
            raise
    # Members that are not .npy files are bytes.
    return {name: (a, a.dtype.name) for name, a in arrays.items() if isinstance(a, np.ndarray)}


def _load(file: BinaryIO, path: Path) -> Any:
    try:
        return np.load(file, allow_pickle=False)
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        # NumPy reports every unknown file as a pickle.
        file.seek(0)
        if "Object arrays" in str(error) or file.read(1) == _PICKLE:
            raise _pickled(path) from error
        msg = f"{path.name}: is no {path.suffix} file"
        raise DataError(msg) from error


def _pickled(path: Path) -> DataError:
    return DataError(
        f"{path.name}: holds a pickle, which could run code and is never loaded; save plain arrays "
        "of numbers with numpy.save or numpy.savez"
    )


def _csv(path: Path) -> dict[str, tuple[Array, str]]:
    # Spreadsheets write a byte order mark at the start.
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        lines = [(reader.line_num, line) for line in reader if line]
    if lines and not all(map(_is_number, lines[0][1])):  # names of the columns
        lines = lines[1:]
    for number, line in lines:
        wrong = [cell for cell in line if not _is_number(cell)]
        if wrong:
            msg = (
                f"{path.name}: got {wrong[0]!r} in line {number}; expected rows of numbers under "
                "at most one heading"
            )
            raise DataError(msg)
    rows = [[float(cell) for cell in line] for _, line in lines]
    if len({len(row) for row in rows}) != 1:
        msg = f"{path.name}: expected rows of numbers, all of one length"
        raise DataError(msg)
    array = np.asarray(rows, np.float64)
    return {"": (array[:, 0] if array.shape[1] == 1 else array, "float32")}


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _safetensors(path: Path) -> dict[str, tuple[Array, str]]:
    try:
        from safetensors import deserialize  # noqa: PLC0415 -- only this format needs it
    except ImportError as error:
        msg = f"{path.name}: needs safetensors: pip install 'xentx[cli]'"
        raise DataError(msg) from error
    # Its NumPy functions do not support bfloat16.
    tensors = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    unreadable = {
        name: tensor["dtype"]
        for name, tensor in tensors
        if tensor["dtype"] not in _SAFETENSORS_DTYPES
    }
    wanted = [name for name in (*LOGITS_NAMES, *TARGET_NAMES) if name in unreadable]
    if wanted:
        msg = (
            f"{path.name}: got {wanted[0]} of dtype {unreadable[wanted[0]]}; expected one of "
            f"{', '.join(_SAFETENSORS_DTYPES)}"
        )
        raise DataError(msg)
    return {name: _tensor(**tensor) for name, tensor in tensors if name not in unreadable}


def _tensor(*, dtype: str, shape: list[int], data: bytes) -> tuple[Array, str]:
    raw = np.frombuffer(data, _SAFETENSORS_DTYPES[dtype]).reshape(shape)
    if dtype == "BF16":
        # The upper half of a float32.
        return (raw.astype(np.uint32) << 16).view(np.float32), "bfloat16"
    return raw, raw.dtype.name
