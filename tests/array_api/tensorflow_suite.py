"""Run array-api-tests on a namespace that is a subset of the standard (``pytest -p``).

The suite expects a complete namespace. This plugin deselects tests of functions that
``xentx_tensorflow._namespace`` does not have, so functions that are added later are tested too. It
also deselects tests of the methods and operators of tensors, which belong to TensorFlow.
"""

import re
from typing import Any

import pytest
import tensorflow as tf

from xentx_tensorflow import _namespace

PRESENT = {*vars(_namespace), *vars(_namespace.__array_namespace_info__)}

# Modules that test nothing of the namespace, but whose test names do not show it.
ABSENT = {"test_array_object.py", "test_linalg.py", "test_set_functions.py"}

# The suite needs these names to be imported and to query dtypes. The environment variable
# ARRAY_API_TESTS_SKIP_DTYPES excludes tests of complex dtypes.
_namespace.empty = _namespace.zeros
_namespace.complex64, _namespace.complex128 = tf.complex64, tf.complex128


class Shape(tuple):
    """A shape that is a tuple, as the suite requires. The standard does not require it."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        """Support the attributes of TensorShape, which TensorFlow uses."""
        return getattr(tf.TensorShape(self), name)


EagerTensor = type(tf.constant(0))
tensor_shape = EagerTensor.shape.fget
EagerTensor.shape = property(lambda x: Shape(tensor_shape(x)))

# The suite compares results with ``==``, which in TensorFlow rejects mixed dtypes.
EagerTensor.__eq__ = _namespace.equal


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests of missing functions."""
    from array_api_tests.stubs import name_to_func

    # For example test_flip, test_func_signature[flip], test_has_names[manipulation-flip].
    lacking = "|".join(map(re.escape, name_to_func.keys() - PRESENT))
    is_about_lacking = re.compile(
        rf"array_|__i|.*imag\(|(?:\w+-)?(?:{lacking})(?![A-Za-z0-9])"
    ).match

    def is_kept(item: pytest.Item) -> bool:
        callspec = getattr(item, "callspec", None)
        name = callspec.id if callspec else item.name.removeprefix("test_")
        return item.path.name not in ABSENT and not is_about_lacking(name)

    config.hook.pytest_deselected(items=[item for item in items if not is_kept(item)])
    items[:] = filter(is_kept, items)
