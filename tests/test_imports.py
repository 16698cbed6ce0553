"""Finding the backend of an array imports no other framework. The check itself is tested."""

import subprocess
import sys
import textwrap

import pytest

from xentx.testing import FRAMEWORKS

OTHERS = ("torch", "jax", "jaxlib", "tensorflow", "keras", "array_api_strict", "scipy", "sklearn")
USE = """
    import numpy as np
    import xentx

    logits = np.zeros((2, 3), np.float32)
    xentx.value_and_grad(xentx.cross_entropy)(logits, [0, 1], weight=[1.0, 2.0, 3.0])
    xentx.nll_loss(xentx.log_softmax(logits), [0, 1])
    for bad in (None, object(), [1.0], "logits"):
        try:
            xentx.cross_entropy(bad, [0])
        except TypeError:
            pass
    xentx.backends()
    xentx.backend_of(logits)
"""


def imported_by(program: str) -> list[str]:
    """Modules of OTHERS that a new interpreter has imported after `program`."""
    program = textwrap.dedent(program) + (
        f"\nimport sys\nprint([m for m in {OTHERS} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout.strip().removeprefix("[").removesuffix("]").replace("'", "").split(", ")


def test_numpy_needs_no_framework():
    assert imported_by(USE) == [""]


@pytest.mark.parametrize("framework", OTHERS)
def test_the_check_of_imports_can_fail(framework):
    """A program that imports a module with the name of a framework is detected."""
    program = f"import sys, types\nsys.modules[{framework!r}] = types.ModuleType({framework!r})\n"
    assert framework in imported_by(textwrap.dedent(USE) + program)


@pytest.mark.parametrize("framework", FRAMEWORKS[1:])
def test_one_framework_imports_no_other(framework, frameworks):
    """The only other imports are the framework's own: Keras imports any installed framework."""
    if framework not in frameworks:
        pytest.skip(f"{framework} was not requested")
    make, array = {
        "torch": ("import torch", "torch.zeros(2, 3)"),
        "jax": ("import jax", "jax.numpy.zeros((2, 3))"),
        "tensorflow": ("import tensorflow as tf", "tf.zeros((2, 3))"),
    }[framework]
    alone = imported_by(f"{make}; {array}")
    assert imported_by(f"{make}; import xentx; xentx.cross_entropy({array}, [0, 1])") == alone


def test_torch_imports_no_compiler(frameworks):
    """Dynamo imports Triton, whose import can crash after TensorFlow's."""
    if "torch" not in frameworks:
        pytest.skip("torch was not requested")
    program = """
        import sys
        import torch
        assert "torch._dynamo" not in sys.modules
        import xentx
        import xentx_torch

        logits = torch.zeros(2, 3, requires_grad=True)
        target = torch.tensor([0, 1])
        xentx.cross_entropy(logits, target).backward()
        xentx.value_and_grad(xentx.linear_cross_entropy)(logits, torch.zeros(4, 3), target)
        xentx.per_row(logits, target)
        xentx_torch.CrossEntropyLoss()(logits, target)
        imported = {"torch._dynamo", "triton"} & set(sys.modules)
        assert not imported, imported
    """
    subprocess.run([sys.executable, "-P", "-c", textwrap.dedent(program)], check=True)
