"""Names for what every framework has of its own: an array, and the namespace of its functions."""

from typing import Any

Array = Any
Namespace = Any
