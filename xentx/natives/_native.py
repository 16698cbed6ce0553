"""The record of one native loss, and of what it needs installed.

What a record refers to in code is a string, ``"module:attribute"`` as in entry points: code that
imports a framework is loaded when it is called and not when it is listed.
"""

import importlib
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Self, get_args

from xentx._registry import installed_version
from xentx.natives.vocabulary import (
    FLOATS,
    INTEGERS,
    Input,
    LossName,
    Option,
    Reduction,
    Target,
)

_REFERENCE = re.compile(r"[\w.]+:[\w.]+")


def _refuse(what: str, got: object, wanted: str) -> None:
    msg = f"{what}: got {got!r}; expected {wanted}"
    raise ValueError(msg)


def _release(version: str) -> tuple[int, ...]:
    """Return the comparable part of a version: (2, 13, 0) of "2.13.0+cpu"."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def resolve(reference: str) -> Any:
    """Import what a ``"module:attribute"`` names."""
    module, _, attributes = reference.partition(":")
    value: Any = importlib.import_module(module)
    for attribute in attributes.split("."):
        value = getattr(value, attribute)
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """A library that a native needs.

    Parameters
    ----------
    module
        Its import name.
    distributions
        Names that it is installed under, the one to suggest first.
    since
        Its first version that has the native, as far as the record knows.

    Examples
    --------
    >>> Requirement(module="numpy", distributions=("numpy",)).missing() is None
    True
    >>> Requirement(module="nowhere", distributions=("nowhere",)).missing()
    'needs nowhere: pip install nowhere'
    """

    module: str
    distributions: tuple[str, ...]
    since: str = "0"

    def __post_init__(self) -> None:
        if not self.module.replace(".", "").isidentifier():
            _refuse("module", self.module, "an import name")
        if not self.distributions:
            _refuse("distributions", self.distributions, "at least one name")
        if not _release(self.since):
            _refuse("since", self.since, "a version")

    def version(self) -> str | None:
        """Installed version, found without an import; None where it is not installed."""
        return installed_version(self.module, self.distributions)

    def missing(self) -> str | None:
        """Say what to do to meet the requirement; None where it is met."""
        version = self.version()
        name = self.distributions[0]
        if version is None:
            return f"needs {name}: pip install {name}"
        if version != "unknown" and _release(version) < _release(self.since):
            return f"needs {name} {self.since}, found {version}: pip install '{name}>={self.since}'"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Native:
    """A cross-entropy of a framework.

    Parameters
    ----------
    id
        Short and unique: the framework, optionally its backend in brackets, a colon, and the name
        that users write.
    name
        Full public name.
    framework
        The framework of its arrays and its autodiff, a name of `runtime_of`.
    backend
        The backend of its framework. None for that of the process.
    loss
        The function of xentx that it is compared with.
    call
        ``"module:function"``. The function takes ``(logits, target, *, reduction, ...)``, with a
        keyword for each entry of `options`, and returns the loss.
    gradient
        ``"module:function"`` with the same arguments that returns the gradient, for libraries
        without autodiff. None if the framework's autodiff computes it.
    needs
        The libraries that must be installed.
    programs
        Programs of which one must be on the PATH.
    takes
        The kind of its first argument. For probabilities, the call applies the library's softmax.
    targets
        The kinds of its target. If that is "probabilities" only, class indices are converted by the
        framework's one-hot function.
    class_axis
        The axis of the classes, in words.
    axis
        The default class axis. It is the only one unless `options` has an axis.
    options
        Its options: xentx's name and its own name of each.
    reductions
        Its reductions: xentx's name and its own name of each. A reduction in parentheses is not an
        option, but code that users write after the loss.
    logits_dtypes, target_dtypes
        Names of the supported dtypes.
    documentation
        Address of its documentation.
    compiled
        Whether loss and gradient run under the framework's compiler.
    max_classes
        The largest number of classes that it is measured with, or None.
    finite_logits
        Whether the call needs finite logits, although the loss may not.
    slow
        Whether it takes so long that it is measured only if it is named.
    caveat
        For a bad example, what is wrong with it. It is measured, but no tolerance is checked.
    """

    id: str
    name: str
    framework: str
    backend: str | None = None
    loss: LossName = "cross_entropy"
    call: str
    gradient: str | None = None
    needs: tuple[Requirement, ...]
    programs: tuple[str, ...] = ()
    takes: Input = "logits"
    targets: tuple[Target, ...] = ("indices",)
    class_axis: str
    axis: int = -1
    options: Mapping[str, str] = field(default_factory=dict)
    reductions: Mapping[str, str]
    logits_dtypes: tuple[str, ...] = FLOATS
    target_dtypes: tuple[str, ...] = INTEGERS
    documentation: str
    compiled: bool = False
    max_classes: int | None = None
    finite_logits: bool = False
    slow: bool = False
    caveat: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w+(\[\w+\])?:\S.*", self.id):
            _refuse("id", self.id, "framework:spelling")
        for reference in (self.call, self.gradient or self.call):
            if not _REFERENCE.fullmatch(reference):
                _refuse(f"{self.id}: call", reference, "module:function")
        if not self.needs:
            _refuse(f"{self.id}: needs", self.needs, "at least one requirement")
        if not self.documentation.startswith("https://"):
            _refuse(f"{self.id}: documentation", self.documentation, "an https address")
        vocabulary: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
            ("loss", [self.loss], get_args(LossName)),
            ("takes", [self.takes], get_args(Input)),
            ("targets", self.targets, get_args(Target)),
            ("options", self.options, get_args(Option)),
            ("reductions", self.reductions, get_args(Reduction)),
        )
        for name, values, known in vocabulary:
            unknown = [value for value in values if value not in known]
            if unknown or not (values or name == "options"):
                _refuse(f"{self.id}: {name}", unknown, f"some of {', '.join(known)}")
        # The mappings of a frozen record are immutable too.
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))
        object.__setattr__(self, "reductions", MappingProxyType(dict(self.reductions)))

    @property
    def is_xentx(self) -> bool:
        """Whether it is a loss of xentx."""
        return self.id.startswith("xentx:")

    def __hash__(self) -> int:
        # Mappings are not hashable, and ids are unique.
        return hash(self.id)

    def missing(self) -> str | None:
        """Return the reason why it cannot run here, or None. Nothing is imported."""
        reasons = (requirement.missing() for requirement in self.needs)
        reason = next((reason for reason in reasons if reason is not None), None)
        if reason is None and self.programs and not any(map(shutil.which, self.programs)):
            reason = f"needs a program on the PATH: {' or '.join(self.programs)}"
        return reason

    def version(self) -> str | None:
        """Version of its library. None if it is not installed."""
        return self.needs[0].version()

    def load(self) -> Callable[..., Any]:
        """Import the function that `call` names, and so its framework."""
        function: Callable[..., Any] = resolve(self.call)
        return function

    def load_gradient(self) -> Callable[..., Any] | None:
        """Import the function that `gradient` names."""
        return None if self.gradient is None else resolve(self.gradient)

    def on_backend(self, backend: str) -> Self:
        """Return the record of the same loss on one backend of its framework."""
        owner, _, spelling = self.id.partition(":")
        name = f"{self.name} on {backend}"
        return replace(self, id=f"{owner}[{backend}]:{spelling}", name=name, backend=backend)

    def under_compiler(self, suffix: str, **changes: Any) -> Self:
        """Return the record of the same loss under its framework's compiler."""
        changes = {"name": f"{self.name} under {suffix}"} | changes
        return replace(self, id=f"{self.id}[{suffix}]", compiled=True, **changes)
