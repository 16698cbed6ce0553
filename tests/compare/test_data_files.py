"""A user's own data: every kind of file, and no pickle ever."""

import json
import pickle
import sys

import numpy as np
import pytest

from xentx.compare.files import DataError, load

LOGITS = np.asarray([[1.0, 2.0, 0.5], [0.1, 0.5, 2.0]], np.float32)
TARGET = np.asarray([1, 2])


class Bomb:
    """Unpickled, it would be noticed."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def safetensors(path, **tensors):
    """Write the format by hand: {name: (dtype, shape, bytes)}."""
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
    check(load(path))  # what is not asked for may be anything
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


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"logits": LOGITS}, "expected target or targets"),
        ({"target": TARGET}, "expected logits or x"),
        ({"logits": LOGITS.astype(int), "target": TARGET}, "expected floats"),
        ({"logits": LOGITS, "target": TARGET[:1]}, r"targets of shape \(1,\)"),
        ({"logits": LOGITS, "target": np.asarray([0.5, 1.0])}, "such as 0.5"),
        ({"logits": LOGITS, "target": np.asarray([1, 3])}, "0 <= target < 3"),
        ({"logits": LOGITS[:, :0], "target": TARGET}, r"shape \(2, 0\)"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path, arrays, text):
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError, match=text):
        load(tmp_path / "data.npz")


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("data.txt", b"", "expected a file of kind .npy, .npz"),
        ("data.csv", b"1,2\n3\n", "all of one length"),
        ("data.csv", b"a,b\nc,d\n", "at most one heading"),
        ("data.npy", b"", "data.npy"),
        ("data.safetensors", b"", "no safetensors"),
        ("data.safetensors", b"\xff" * 20, "no safetensors"),
        ("data.safetensors", b"\x02" + b"\0" * 7 + b"[]", "no safetensors"),
    ],
)
def test_a_broken_file_is_said(tmp_path, name, content, text):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=text):
        load(tmp_path / name)


def test_safetensors_cut_short(tmp_path):
    path = safetensors(tmp_path / "data.safetensors", logits=("F32", [2, 3], LOGITS.tobytes()))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="no safetensors"):
        load(path)
