"""Let array-api-tests run on a namespace that is a subset of the standard (``pytest -p``).

The suite takes a whole namespace for granted. This plugin leaves it the tests of the functions
that ``xentx_tensorflow._namespace`` has, so that one added there is tested from then on. Tests of
a tensor's own methods and operators go too: these are TensorFlow's, and nobody else's to change.
"""

import re
from typing import Any

import pytest
import tensorflow as tf

from xentx_tensorflow import _namespace

PRESENT = {*vars(_namespace), *vars(_namespace.__array_namespace_info__)}

# Modules about what the namespace has nothing of, but for tests that do not say so by their names.
ABSENT = {"test_array_object.py", "test_linalg.py", "test_set_functions.py"}

# Names without which the suite cannot be imported, or cannot ask about dtypes. Its environment
# variable ARRAY_API_TESTS_SKIP_DTYPES then says that nothing complex is to be tested.
_namespace.empty = _namespace.zeros
_namespace.complex64, _namespace.complex128 = tf.complex64, tf.complex128


class Shape(tuple):
    """A shape that is a tuple, as the suite will have it, where the standard does not insist."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        """Be a TensorShape too, for TensorFlow's own sake."""
        return getattr(tf.TensorShape(self), name)


EagerTensor = type(tf.constant(0))
tensor_shape = EagerTensor.shape.fget
EagerTensor.shape = property(lambda x: Shape(tensor_shape(x)))

# The suite compares results with ``==``, which in TensorFlow refuses mixed dtypes.
EagerTensor.__eq__ = _namespace.equal


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests of what the namespace lacks."""
    from array_api_tests.stubs import name_to_func

    # As in test_flip, test_func_signature[flip], test_has_names[manipulation-flip].
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
