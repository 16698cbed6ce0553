"""Which backend an array has: by its type, the type's base classes, and by explicit request."""

import importlib
import importlib.metadata
import inspect

import numpy as np
import pytest

import xentx
from xentx import _kernel_engine

B = np.array([[1.0, 2.0, 0.5], [0.1, 0.5, 2.0]], np.float32)
TARGET = np.array([1, 2])
KERNEL = _kernel_engine.KERNEL
ENGINE = f"kernel ({KERNEL.instruction_set()})" if KERNEL else "portable"


def engine_of(framework):
    """Expected engine for arrays on this CPU, and the start of the reason."""
    version = importlib.metadata.version("jax") if framework == "jax" else ""
    if KERNEL and version and tuple(map(int, version.split(".")[:2])) < (0, 7):
        return "portable", f"JAX {version} is older than 0.7"
    if framework == "strict":
        return "portable", "the CPU kernel takes no arrays of array_api_strict"
    return ENGINE, _kernel_engine.NO_KERNEL or ""


@pytest.fixture
def eager(route):
    """A route that is not traced."""
    if route.traced:
        pytest.skip("its arrays are those of the eager route")
    return route


def test_value_is_an_array_of_the_same_framework(eager):
    logits = eager.array(B)
    for function in (xentx.cross_entropy, xentx.nll_loss):
        assert xentx.backend_of(function(logits, TARGET)) == xentx.backend_of(logits)
    value, gradient = xentx.value_and_grad(xentx.cross_entropy)(logits, TARGET)
    assert xentx.backend_of(value) == xentx.backend_of(gradient) == xentx.backend_of(logits)


def test_backend_of(eager):
    info = xentx.backend_of(eager.array(B))
    assert info.name == {"strict": "array_api_strict"}.get(eager.name, eager.name)
    engine, reason = engine_of(eager.name)
    assert info.engine == engine
    assert (info.reason or "").startswith(reason)
    assert (info.reason is None) == info.engine.startswith("kernel")
    assert info.version


def test_backends_lists_what_is_installed(frameworks):
    listed = {info.name: info for info in xentx.backends()}
    for framework in frameworks:
        assert listed[framework].version
        assert listed[framework].engine in {ENGINE, engine_of(framework)[0]}
    for info in listed.values():
        assert (info.version is None) == (info.engine is None)
        assert (info.reason is not None) == (info.engine == "portable")


def test_loaded_backends_have_the_info_of_their_arrays(eager):
    listed = {info.name: info for info in xentx.backends(load=True)}
    if eager.name == "strict":
        assert "strict" not in listed
    else:
        assert listed[eager.name] == xentx.backend_of(eager.array(B))


def test_version():
    assert xentx.__version__ == importlib.metadata.version("xentx")


def test_subclass_defined_by_a_user():
    class Labelled(np.ndarray):
        pass

    np.testing.assert_allclose(
        xentx.cross_entropy(B.view(Labelled), TARGET), xentx.cross_entropy(B, TARGET)
    )


def test_subclass_of_a_tensor(frameworks):
    if "torch" not in frameworks:
        pytest.skip("torch was not requested")
    import torch

    parameter = torch.nn.Parameter(torch.tensor(B))
    xentx.cross_entropy(parameter, TARGET).backward()
    assert torch.any(parameter.grad != 0)


def test_functions_bound_to_a_backend(eager):
    """Each adapter has the functions of xentx, which reject arrays of other frameworks."""
    if eager.name == "strict":
        pytest.skip("no backend of its own")
    bound = importlib.import_module(f"xentx_{eager.name}")
    functions = {name for name in xentx.__all__ if inspect.isfunction(getattr(xentx, name))}
    assert set(bound.__all__) >= functions - {"backend_of", "backends"}
    logits = eager.array(B)
    value = float(xentx.cross_entropy(logits, TARGET))
    assert float(bound.cross_entropy(logits, TARGET)) == value
    found, _ = bound.value_and_grad(bound.cross_entropy)(logits, TARGET)
    assert float(found) == value
    for name in functions:
        function = getattr(bound, name, None)
        if hasattr(function, "computes"):
            first = next(iter(inspect.signature(function).parameters))
            words = f"{first}: got a list; expected a {eager.name} array"
            with pytest.raises(TypeError, match=words):
                function([[1.0]], [0])


def test_lists_and_numpy_arrays_with_every_framework(route):
    """Lists of indices and NumPy arrays are accepted with logits of any framework."""
    expected = xentx.cross_entropy(B, TARGET, weight=np.array([1, 2, 3]))
    for target in ([1, 2], TARGET, TARGET.astype(np.uint8)):
        value = route.value(
            lambda x, t=target: xentx.cross_entropy(x, t, weight=np.array([1, 2, 3])), B
        )
        np.testing.assert_allclose(value, expected, rtol=3e-7)
    value = route.value(lambda x: xentx.cross_entropy(x, 1), B[0])
    np.testing.assert_allclose(value, 0.46436878, rtol=1e-6)


def test_public_names():
    assert sorted(xentx.__all__) == [name for name in dir(xentx) if name in xentx.__all__]
    for name in xentx.__all__:
        assert getattr(xentx, name).__doc__
