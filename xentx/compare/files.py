"""A user's own logits and targets, from files that hold data and never code.

A pickle runs what it holds, so none is ever loaded: object arrays in .npy and .npz are refused.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

LOGITS_NAMES = ("logits", "x")
TARGET_NAMES = ("target", "targets", "labels", "y")

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
    """A file that logits or targets can't be had from, and why."""


def load(logits: Path, target: Path | None = None) -> tuple[Array, Array, str]:
    """Load logits and targets.

    Parameters
    ----------
    logits : Path
        A file with the suffix .npy, .npz, .safetensors or .csv. An .npz or .safetensors file names
        its arrays: "logits" or "x", and "target", "targets", "labels" or "y". Without a file of
        targets, a .csv has the class index in its last column.
    target : Path, optional
        A file of class indices, or of probabilities in the shape of the logits.

    Returns
    -------
    logits : ndarray of float64
        Values of the logits, classes on the last axis.
    target : ndarray
        Class indices as int64 or probabilities as float64.
    dtype : str
        Name of the dtype that the logits were stored in; float32 for text.

    Raises
    ------
    DataError
        If a file is of another kind, needs a pickle, lacks an array, or the shapes don't agree.
    OSError
        If a file can't be read.
    """
    arrays = _read(logits)
    x, dtype = _pick(arrays, LOGITS_NAMES, logits)
    if target is not None:
        t, _ = _pick(_read(target), TARGET_NAMES, target)
    elif "" not in arrays:
        t, _ = _pick(arrays, TARGET_NAMES, logits)
    elif logits.suffix == ".csv":
        x, t = x[:, :-1], x[:, -1]
    else:
        msg = f"{logits.name}: holds one array; expected --target with the file of the targets"
        raise DataError(msg)
    return _check(logits.name, x, t, dtype)


def _check(name: str, x: Array, t: Array, dtype: str) -> tuple[Array, Array, str]:
    if dtype not in ("float16", "bfloat16", "float32", "float64"):
        msg = f"{name}: got logits of dtype {dtype}; expected floats"
        raise DataError(msg)
    if x.ndim == 0 or x.size == 0:
        msg = f"{name}: got logits of shape {x.shape}; expected rows of at least one class"
        raise DataError(msg)
    rows = x.shape[:-1]
    if t.shape == rows:
        indices = t.astype(np.int64)
        if not np.array_equal(indices, t):
            msg = f"{name}: got targets such as {t[indices != t].flat[0]}; expected class indices"
            raise DataError(msg)
        outside = (indices < 0) | (indices >= x.shape[-1])
        if outside.any():
            got = indices[outside].flat[0]
            msg = f"{name}: got a target of {got}; expected 0 <= target < {x.shape[-1]}"
            raise DataError(msg)
        return x.astype(np.float64), indices, dtype
    if t.shape == x.shape and t.dtype.kind == "f":
        return x.astype(np.float64), t.astype(np.float64), dtype
    msg = (
        f"{name}: got targets of shape {t.shape} for logits of shape {x.shape}; expected class "
        f"indices in shape {rows} or probabilities in shape {x.shape}"
    )
    raise DataError(msg)


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


def _read(path: Path) -> dict[str, tuple[Array, str]]:
    """Arrays of a file by name, each with the name of its dtype; a lone one is called ""."""
    readers = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors, ".csv": _csv}
    reader = readers.get(path.suffix)
    if reader is None:
        msg = f"{path.name}: expected a file of kind {', '.join(readers)}"
        raise DataError(msg)
    return reader(path)


def _numpy(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise _refusal(path, error) from error


def _refusal(path: Path, error: Exception) -> DataError:
    if "pickle" in str(error).lower():
        return DataError(
            f"{path.name}: holds a pickle, which could run code and is never loaded; save plain "
            "arrays of numbers with numpy.save or numpy.savez"
        )
    return DataError(f"{path.name}: {error}")


def _npy(path: Path) -> dict[str, tuple[Array, str]]:
    array = _numpy(path)
    if not isinstance(array, np.ndarray):
        msg = f"{path.name}: is an archive of arrays; expected the suffix .npz"
        raise DataError(msg)
    return {"": (array, array.dtype.name)}


def _npz(path: Path) -> dict[str, tuple[Array, str]]:
    archive = _numpy(path)
    if isinstance(archive, np.ndarray):
        msg = f"{path.name}: is a single array; expected the suffix .npy"
        raise DataError(msg)
    try:
        with archive:
            return {name: (archive[name], archive[name].dtype.name) for name in archive.files}
    except ValueError as error:
        raise _refusal(path, error) from error


def _csv(path: Path) -> dict[str, tuple[Array, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        lines = [line for line in csv.reader(file) if line]
    try:
        rows = _floats(lines)
    except ValueError:  # a line of column names
        try:
            rows = _floats(lines[1:])
        except ValueError as error:
            msg = f"{path.name}: {error}; expected rows of numbers under at most one heading"
            raise DataError(msg) from error
    if len({len(row) for row in rows}) != 1:
        msg = f"{path.name}: expected rows of numbers, all of one length"
        raise DataError(msg)
    array = np.asarray(rows, np.float64)
    return {"": (array[:, 0] if array.shape[1] == 1 else array, "float32")}


def _floats(lines: list[list[str]]) -> list[list[float]]:
    return [[float(cell) for cell in line] for line in lines]


def _safetensors(path: Path) -> dict[str, tuple[Array, str]]:
    try:
        from safetensors import SafetensorError, deserialize  # noqa: PLC0415 -- others need it not
    except ImportError as error:
        msg = f"{path.name}: needs safetensors: pip install 'xentx[cli]'"
        raise DataError(msg) from error
    try:
        # Its functions for NumPy have no bfloat16.
        tensors = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        msg = f"{path.name}: is no safetensors file: {error}"
        raise DataError(msg) from error
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
