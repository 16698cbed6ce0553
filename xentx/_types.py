"""Names for the types that differ between frameworks: arrays and namespaces of functions.

The frameworks' array types have no common base, so `Array` is Any. `ArrayT` is for public
functions: they return arrays of the same type as their first argument. For NumPy, a result of 0
dimensions is a scalar, which has the attributes of an array.
"""

from typing import Any, TypeVar

Array = Any
ArrayT = TypeVar("ArrayT")
Namespace = Any
