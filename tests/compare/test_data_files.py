"""Data files of users: every kind of file. Pickles are never loaded."""

import json
import os
import pickle
import re
import sys

import ml_dtypes
import numpy as np
import pytest

from xentx.compare import user_regime
from xentx.compare.files import DataError, load, reason

LOGITS = np.asarray([[1.0, 2.0, 0.5], [0.1, 0.5, 2.0]], np.float32)
TARGET = np.asarray([1, 2])


class Bomb:
    """A class that fails the test if it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def safetensors(path, **tensors):
    """Write a file in the safetensors format, from {name: (dtype, shape, bytes)}."""
    header, buffer = {"__metadata__": {"by": "hand"}}, b""
    for name, (dtype, shape, data) in tensors.items():
        offsets = [len(buffer), len(buffer) + len(data)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        buffer += data
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + buffer)
    return path


def check(loaded, logits=LOGITS, dtype="float32"):
    values, target, name = loaded
    np.testing.assert_array_equal(values, logits)
    assert values.dtype == np.float64
    np.testing.assert_array_equal(target, TARGET)
    assert target.dtype == np.int64
    assert name == dtype


def test_npy(tmp_path):
    np.save(tmp_path / "x.npy", LOGITS)
    np.save(tmp_path / "t.npy", TARGET.astype(np.uint8))
    check(load(tmp_path / "x.npy", tmp_path / "t.npy"))


@pytest.mark.parametrize("names", [("logits", "target"), ("x", "y"), ("logits", "labels")])
def test_npz(tmp_path, names):
    np.savez(tmp_path / "data.npz", **dict(zip(names, (LOGITS.astype("f8"), TARGET), strict=True)))
    check(load(tmp_path / "data.npz"), dtype="float64")


def test_csv_with_and_without_a_heading(tmp_path):
    lines = "\n".join(f"{','.join(map(str, x))},{t}" for x, t in zip(LOGITS, TARGET, strict=True))
    (tmp_path / "a.csv").write_text(lines)
    (tmp_path / "b.csv").write_text(f"cat,dog,bird,target\n{lines}\n\n")
    wanted = LOGITS.astype(str).astype(float)
    check(load(tmp_path / "a.csv"), wanted)
    check(load(tmp_path / "b.csv"), wanted)


def test_csv_with_targets_of_their_own(tmp_path):
    np.savetxt(tmp_path / "x.csv", LOGITS, delimiter=",")
    (tmp_path / "t.csv").write_text("target\n1\n2\n")
    check(load(tmp_path / "x.csv", tmp_path / "t.csv"))


def test_safetensors_of_its_own_library(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file({"logits": LOGITS, "labels": TARGET}, tmp_path / "data.safetensors")
    check(load(tmp_path / "data.safetensors"))


def test_safetensors(tmp_path):
    path = safetensors(
        tmp_path / "data.safetensors",
        logits=("F32", [2, 3], LOGITS.tobytes()),
        target=("I64", [2], TARGET.astype("<i8").tobytes()),
    )
    check(load(path))


def test_safetensors_bfloat16(tmp_path):
    halves = (LOGITS.view(np.uint32) >> 16).astype("<u2")
    path = safetensors(
        tmp_path / "data.safetensors",
        logits=("BF16", [2, 3], halves.tobytes()),
        target=("I32", [2], TARGET.astype("<i4").tobytes()),
    )
    check(load(path), (LOGITS.view(np.uint32) & 0xFFFF0000).view(np.float32), "bfloat16")


def test_safetensors_of_a_dtype_that_numpy_lacks(tmp_path):
    path = safetensors(
        tmp_path / "data.safetensors",
        logits=("F32", [2, 3], LOGITS.tobytes()),
        target=("I64", [2], TARGET.astype("<i8").tobytes()),
        other=("F8_E4M3", [2], b"\0\0"),
    )
    check(load(path))  # dtypes of tensors that are not loaded do not matter
    path = safetensors(path, logits=("F8_E4M3", [2, 3], b"\0" * 6))
    with pytest.raises(DataError, match="got logits of dtype F8_E4M3; expected one of F16, BF16"):
        load(path)


def test_safetensors_without_its_library(tmp_path, monkeypatch):
    path = safetensors(tmp_path / "data.safetensors", logits=("F32", [2, 3], LOGITS.tobytes()))
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(DataError, match=r"needs safetensors: pip install 'xentx\[cli\]'"):
        load(path)


def test_soft_targets(tmp_path):
    soft = np.asarray([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])
    np.savez(tmp_path / "data.npz", logits=LOGITS, target=soft)
    np.testing.assert_array_equal(load(tmp_path / "data.npz")[1], soft)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_pickle_is_refused_and_not_loaded(tmp_path, suffix):
    path = tmp_path / f"data.{suffix}"
    bombs = np.asarray([Bomb()], dtype=object)
    np.save(path, bombs) if suffix == "npy" else np.savez(path, logits=bombs)
    with pytest.raises(DataError, match="holds a pickle, which could run code"):
        load(path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match="pickle"):
        load(path)


CUBE = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)
SQUARE = np.arange(18.0, dtype=np.float32).reshape(2, 3, 3)
ONE_HOT = np.asarray([[0, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"logits": LOGITS}, "holds logits; expected target or targets or labels or y"),
        ({"target": TARGET}, "holds target; expected logits or x"),
        (
            {"logits": LOGITS.astype(int), "target": TARGET},
            "logits of dtype int64; expected floats",
        ),
        (
            {"logits": LOGITS.astype(ml_dtypes.bfloat16), "target": TARGET},
            "logits of dtype void16; expected floats (hint: save bfloat16 as float32)",
        ),
        (
            {"logits": LOGITS, "target": TARGET[:1]},
            "targets of shape (1,) for logits of shape (2, 3) with classes on axis 1; expected "
            "class indices in shape (2,) or probabilities in shape (2, 3)",
        ),
        (
            {"logits": LOGITS, "target": ONE_HOT},
            "targets of dtype int64 in the shape of the logits, (2, 3); expected probabilities as "
            "floats, or class indices in shape (2,) (hint: save target.astype(numpy.float32), or "
            "target.argmax(1))",
        ),
        (
            {"logits": LOGITS, "target": ONE_HOT.astype(bool)},
            "targets of dtype bool in the shape of the logits, (2, 3); expected probabilities",
        ),
        ({"logits": LOGITS, "target": np.asarray([0.5, 1.0])}, "targets such as 0.5; expected"),
        ({"logits": LOGITS, "target": np.asarray([np.nan, 1.0])}, "targets such as nan; expected"),
        ({"logits": LOGITS, "target": np.asarray([1e30, 1.0])}, "targets such as 1e+30; expected"),
        ({"logits": LOGITS, "target": np.asarray(["a", "b"])}, "targets of dtype str32; expected"),
        ({"logits": LOGITS, "target": TARGET * 1j}, "targets of dtype complex128; expected"),
        (
            {"logits": LOGITS, "target": np.asarray([1, 3])},
            "a target of 3; expected 0 <= target < 3, or --ignore-index 3 for rows to ignore",
        ),
        (
            {"logits": LOGITS, "target": np.asarray([-100, -100])},
            "only targets of -100, which are ignored; expected others",
        ),
        ({"logits": LOGITS[:, :0], "target": TARGET}, "logits of shape (2, 0); expected rows"),
        (
            {"logits": CUBE, "target": np.zeros((2, 4), int)},
            "class indices in shape (2, 3) or probabilities in shape (2, 3, 4) (hint: --axis 1)",
        ),
        (
            {"logits": SQUARE, "target": np.zeros((2, 3), int)},
            "--axis: got none for logits of shape (2, 3, 3) and targets of shape (2, 3); expected "
            "the axis of the classes, 1 or 2",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_errors(tmp_path, arrays, text):
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError, match=re.escape(text)):
        load(tmp_path / "data.npz")


def test_the_wrong_file_is_named(tmp_path):
    np.save(tmp_path / "x.npy", LOGITS)
    np.save(tmp_path / "t.npy", np.asarray([1, 7]))
    with pytest.raises(DataError, match=r"^t\.npy: got a target of 7; expected 0 <= target < 3"):
        load(tmp_path / "x.npy", tmp_path / "t.npy")


def test_rows_to_ignore(tmp_path):
    """A batch of a language model has targets of -100 at positions without a prediction."""
    logits = np.concatenate([LOGITS, [[np.nan, 0.0, 0.0]], LOGITS]).astype(np.float32)
    target = np.asarray([1, 2, -100, 0, 0])
    np.savez(tmp_path / "data.npz", logits=logits, target=target)
    values, classes, _ = load(tmp_path / "data.npz")
    np.testing.assert_array_equal(classes, target)
    regime = user_regime("data.npz", values, classes)
    case = regime.case("float32", 0)
    np.testing.assert_array_equal(case.logits, logits[[0, 1, 3, 4]])
    np.testing.assert_array_equal(case.target, [1, 2, 0, 0])
    assert regime.description == (
        "your own logits and targets, without 1 of 5 rows, whose target is -100"
    )


def test_rows_to_ignore_by_another_index(tmp_path):
    np.savez(tmp_path / "data.npz", logits=LOGITS, target=np.asarray([1, 255]))
    with pytest.raises(DataError, match="a target of 255; expected 0 <= target < 3, or --ignore"):
        load(tmp_path / "data.npz")
    values, classes, _ = load(tmp_path / "data.npz", ignore_index=255)
    (rows, kept) = user_regime("data.npz", values, classes, ignore_index=255).generate(None)
    np.testing.assert_array_equal(rows, LOGITS[:1])
    np.testing.assert_array_equal(kept, [1])


def test_an_index_to_ignore_among_probabilities(tmp_path):
    np.savez(tmp_path / "data.npz", logits=LOGITS, target=ONE_HOT.astype(float))
    with pytest.raises(DataError, match="--ignore-index: got 3 with probabilities; expected class"):
        load(tmp_path / "data.npz", ignore_index=3)


@pytest.mark.parametrize("axis", [0, 1, 2, -2, None])
def test_another_class_axis(tmp_path, axis):
    last = axis is None
    rows = CUBE.shape[:-1] if last else tuple(np.delete(CUBE.shape, axis))
    target = np.arange(np.prod(rows)).reshape(rows) % 2
    for t, name in ((target, "indices"), (CUBE / 100, "probabilities")):
        np.savez(tmp_path / f"{name}.npz", logits=CUBE, target=t)
        values, classes, _ = load(tmp_path / f"{name}.npz", axis=axis)
        moved = np.moveaxis(CUBE, -1 if last else axis, -1)
        np.testing.assert_array_equal(values, moved)
        wanted = target if name == "indices" else moved / 100
        np.testing.assert_array_equal(classes, wanted)


def test_the_class_axis_of_square_logits(tmp_path):
    target = np.asarray([[0, 1, 2], [2, 1, 0]])
    np.savez(tmp_path / "data.npz", logits=SQUARE, target=target)
    values, _, _ = load(tmp_path / "data.npz", axis=1)
    np.testing.assert_array_equal(values, SQUARE.transpose(0, 2, 1))
    # with 2 dimensions, the class axis is the last one
    np.savez(tmp_path / "two.npz", logits=SQUARE[0], target=target[0])
    np.testing.assert_array_equal(load(tmp_path / "two.npz")[0], SQUARE[0])


@pytest.mark.parametrize("axis", [3, -4])
def test_a_class_axis_out_of_range(tmp_path, axis):
    np.savez(tmp_path / "data.npz", logits=CUBE, target=np.zeros((2, 4), int))
    text = f"--axis: got {axis} for logits of shape (2, 3, 4); expected -3 <= axis < 3"
    with pytest.raises(DataError, match=re.escape(text)):
        load(tmp_path / "data.npz", axis=axis)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("data.txt", b"1", "expected a file of kind .npy, .npz"),
        ("data.csv", b"", r"data\.csv: is empty"),
        ("data.csv", b"1,2\n3\n", "all of one length"),
        ("data.csv", b"a,b\n", "all of one length"),
        ("data.csv", b"1\n2\n", "holds one column; expected --target"),
        ("data.csv", b"a,b\nc,d\n", "got 'c' in line 2; expected .* at most one heading"),
        ("data.csv", b"1,2\n3,\n", "got '' in line 2; expected rows of numbers"),
        ("data.csv", b"1,2\n\xff,3\n", r"data\.csv: is damaged, or is no \.csv file"),
        ("data.npy", b"", r"data\.npy: is empty"),
        ("data.npy", b"1,2,3", r"data\.npy: is no \.npy file"),
        ("data.npy", b"\x93NUMPY\1\0", r"data\.npy: is damaged, or is no \.npy file"),
        ("data.npz", b"1,2,3", r"data\.npz: is no \.npz file"),
        ("data.npz", b"PK\3\4" + b"\0" * 40, r"data\.npz: is damaged, or is no \.npz file"),
        ("data.safetensors", b"", r"data\.safetensors: is empty"),
        ("data.safetensors", b"\xff" * 20, r"is damaged, or is no \.safetensors file"),
        ("data.safetensors", b"\x02" + b"\0" * 7 + b"[]", "is damaged, or is no"),
    ],
)
def test_a_broken_file_is_an_error(tmp_path, name, content, text):
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=text) as caught:
        load(tmp_path / name)
    assert "\n" not in str(caught.value)


def written(tmp_path, kind):
    """Write a file of each kind. Return its path, and the file with the targets."""
    path = tmp_path / f"data.{kind}"
    if kind == "npy":
        np.save(path, LOGITS)
        np.save(tmp_path / "target.npy", TARGET)
        return path, tmp_path / "target.npy"
    if kind == "npz":
        np.savez(path, logits=LOGITS, target=TARGET)
    elif kind == "csv":
        path.write_text("a,b,c,target\n1.0,2.0,0.5,1\n0.25,0.5,2.0,2\n")
    else:
        target = ("I64", [2], TARGET.astype("<i8").tobytes())
        safetensors(path, logits=("F32", [2, 3], LOGITS.tobytes()), target=target)
    return path, None


@pytest.mark.parametrize("kind", ["npy", "npz", "csv", "safetensors"])
def test_a_file_cut_short_anywhere(tmp_path, kind):
    """Loading raises a DataError, or loads the rest of a text file. It leaves no file open."""
    if kind == "safetensors":
        pytest.importorskip("safetensors")
    path, target = written(tmp_path, kind)
    whole = path.read_bytes()
    refused = 0
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        try:
            load(path, target)
        except DataError:
            refused += 1
    assert refused == len(whole) if kind != "csv" else refused > len(whole) // 2


@pytest.mark.parametrize("kind", ["npy", "npz", "csv", "safetensors"])
def test_a_file_with_bytes_of_chance(tmp_path, kind):
    if kind == "safetensors":
        pytest.importorskip("safetensors")
    path, target = written(tmp_path, kind)
    whole = path.read_bytes()
    rng = np.random.default_rng(13)
    refused = 0
    for _ in range(300):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[rng.integers(len(whole), size=4)] = rng.integers(256, size=4)
        path.write_bytes(damaged.tobytes())
        try:
            load(path, target)
        except DataError:
            refused += 1
    assert refused > 100


def test_a_missing_file(tmp_path):
    for name in ("x.npy", "folder/x.npz", "x.txt"):
        with pytest.raises(DataError, match=f"{name}: there is no such file or folder$"):
            load(tmp_path / name)


def test_a_folder(tmp_path):
    (tmp_path / "x.npy").mkdir()
    for path in (tmp_path, tmp_path / "x.npy"):
        with pytest.raises(DataError, match=f"{path}: is a folder; expected a file$"):
            load(path)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PermissionError(13, "Permission denied", "x.npy"), "permission denied"),
        (NotADirectoryError(20, "Not a directory", "x.npy"), "not a directory"),
        (OSError(28, "No space left on device"), "no space left on device"),
        (OSError("what a library says"), "what a library says"),
    ],
)
def test_errors_of_the_system_are_texts(error, text):
    assert reason(error) == text


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_a_file_without_read_permission(tmp_path):
    np.save(tmp_path / "x.npy", LOGITS)
    (tmp_path / "x.npy").chmod(0)
    with pytest.raises(DataError, match=r"x\.npy: permission denied$"):
        load(tmp_path / "x.npy")


def test_an_array_that_does_not_fit_into_the_memory(tmp_path):
    header = {"descr": "<f8", "fortran_order": False, "shape": (2**50, 3)}
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(DataError, match=r"x\.npy: (holds an array that does not fit|is damaged)"):
        load(tmp_path / "x.npy")


def test_a_suffix_in_capitals(tmp_path):
    np.savez(tmp_path / "data.npz", logits=LOGITS, target=TARGET)
    (tmp_path / "data.npz").rename(tmp_path / "DATA.NPZ")
    check(load(tmp_path / "DATA.NPZ"))


def test_csv_with_the_mark_that_spreadsheets_write(tmp_path):
    """The byte order mark does not turn the first row into column names."""
    lines = "\n".join(f"{','.join(map(str, x))},{t}" for x, t in zip(LOGITS, TARGET, strict=True))
    (tmp_path / "a.csv").write_text(lines, encoding="utf-8-sig")
    check(load(tmp_path / "a.csv"), LOGITS.astype(str).astype(float))


def test_safetensors_cut_short(tmp_path):
    path = safetensors(tmp_path / "data.safetensors", logits=("F32", [2, 3], LOGITS.tobytes()))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="is damaged, or is no"):
        load(path)
