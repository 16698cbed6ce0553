"""Compile the Triton kernels for GPUs without a GPU: they use registers and wide accesses."""

import importlib.util
import itertools
import os
import re
import subprocess
from dataclasses import dataclass

import pytest

from xentx._calls import precision_of
from xentx._core._spec import LossSpec
from xentx.testing import requested_frameworks

if "torch" not in requested_frameworks():
    pytest.skip("PyTorch is not requested", allow_module_level=True)
if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 is set: nothing is compiled", allow_module_level=True)

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from xentx_torch._backend import BACKEND
from xentx_torch._triton import _kernels, _launch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
}
OPTIONS = {
    "plain": {},
    "soft": {"soft": True},
    "smoothing": {"label_smoothing": 0.1},
    "weight": {"weight": True},
    "everything": {
        "label_smoothing": 0.1,
        "weight": True,
        "z_loss": 0.1,
        "logit_softcap": 30.0,
        "temperature": 0.7,
    },
}
FORWARD = {
    "losses": {"LOSSES": True, "FIELDS": False, "LOGS": False},
    "fields": {"LOSSES": True, "FIELDS": True, "LOGS": False},
    "logs": {"LOSSES": False, "FIELDS": False, "LOGS": True},
}
GRADIENT = {"losses": {"FIELDS": False}, "fields": {"FIELDS": True}}
CLASSES = 32768


@dataclass(frozen=True)
class Variant:
    """A kernel with a dtype and options."""

    gradient: bool
    dtype: torch.dtype
    options: str
    part: str

    @property
    def id(self):
        kind = "gradient" if self.gradient else "forward"
        return f"{kind}-{self.part}-{self.options}-{str(self.dtype).removeprefix('torch.')}"


def all_variants():
    for dtype, name in itertools.product(POINTERS, OPTIONS):
        for part in FORWARD:
            if part != "logs" or name == "plain":
                yield Variant(False, dtype, name, part)
        for part in GRADIENT:
            yield Variant(True, dtype, name, part)


# All variants for one target, and the most common ones for the others.
FEW = [v for v in all_variants() if v.options == "plain" and v.part != "fields"]
CASES = [
    (target, variant)
    for target in TARGETS
    for variant in (all_variants() if target == "sm_90" else FEW)
    if variant.dtype in (torch.bfloat16, torch.float32) or target == "sm_90"
]


def arguments(variant):
    """Arguments of the launcher for contiguous logits."""
    options = dict(OPTIONS[variant.options])
    logits = torch.empty(2, CLASSES, dtype=variant.dtype, device="meta")
    weight = torch.empty(CLASSES, device="meta") if options.pop("weight", False) else None
    target = None
    if variant.part != "logs":
        target = torch.empty(2, dtype=torch.int64, device="meta")
        if options.get("soft"):
            target = torch.empty_like(logits)
    name = BACKEND.dtype_name(logits)
    spec = LossSpec(
        "cross_entropy",
        1,
        CLASSES,
        precision_of(BACKEND, torch.empty(()), name, exact=False),
        ignore_index=None if options.get("soft") or target is None else -100,
        **options,
    )
    given = _launch.Given(spec, logits, target, weight)
    parts = GRADIENT if variant.gradient else FORWARD
    flags = parts[variant.part]
    return given, {**given.options(given.rows(), CLASSES, fields=flags["FIELDS"]), **flags}


def built(target, variant):
    """Compile a variant with the options of the launcher."""
    kernel = _kernels.xentx_gradient if variant.gradient else _kernels.xentx_forward
    given, options = arguments(variant)
    warps, fusion = options.pop("num_warps"), options.pop("enable_fp_fusion")
    if TARGETS[target].backend == "hip":
        warps //= 2
    soft = given.target is not None and given.spec.soft
    wide = POINTERS[given.compute]
    special = {
        **dict.fromkeys(("X", "Y", "G"), POINTERS[variant.dtype]),
        "T": POINTERS[variant.dtype] if soft else "*i64",
        "STATE": "*fp64",
        "CORRECT": "*i8",
        "PREDICTION": "*i64",
        **dict.fromkeys(("smoothing", "z_loss", "cap", "temperature"), "fp64"),
        **dict.fromkeys(("ln2_high", "ln2_low"), "fp64"),
    }
    ones = {"x_c", "y_c", "g_c", *(("t_c",) if soft else ())}
    wholes = {f"{a}_{b}" for a in ("x", "y", "g", *("t" if soft else "")) for b in "fn"}
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in ones or (name in options and name.isupper()):
            signature[name] = "constexpr"
            constants[(i,)] = options.get(name, 1)
            continue
        signature[name] = special.get(name, wide if name.isupper() else "i32")
        if name.isupper() or name in wholes | {"classes"}:
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    settings = {"num_warps": warps, "enable_fp_fusion": fusion}
    return triton.compile(source, target=TARGETS[target], options=settings)


def cuda_use(done, target, folder):
    """Registers, bytes of stack, and accesses of 128 bits, as ptxas reports them."""
    code = folder / "kernel.ptx"
    code.write_text(done.asm["ptx"])
    number = TARGETS[target].arch
    name = f"--gpu-name=sm_{number}{'a' if number >= 90 else ''}"
    command = [get_ptxas(number).path, "-v", name, str(code), "-o", os.devnull]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    stack, stores, loads = re.search(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text
    ).groups()
    assert (int(stack), int(stores), int(loads)) == (0, 0, 0), text
    wide = r"\.global\S*\.v(?:4\.b32|2\.b64)"
    return tuple(len(re.findall(way + wide, done.asm["ptx"])) for way in ("ld", "st"))


def hip_use(done):
    """The same for AMD's assembly."""
    text = done.asm["amdgcn"]
    for name in ("vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size"):
        assert int(re.search(rf"\.{name}:\s+(\d+)", text)[1]) == 0, name
    ways = (r"(?:global|buffer)_load_dwordx4", r"(?:global|buffer)_store_dwordx4")
    return tuple(len(re.findall(way, text)) for way in ways)


@pytest.mark.parametrize(("target", "variant"), CASES, ids=lambda case: getattr(case, "id", case))
def test_compiled(target, variant, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    done = built(target, variant)
    hip = TARGETS[target].backend == "hip"
    loads, stores = hip_use(done) if hip else cuda_use(done, target, tmp_path)
    assert loads > 0
    assert (stores > 0) == (variant.gradient or variant.part == "logs")
