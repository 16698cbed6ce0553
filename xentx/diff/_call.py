"""Parse a call that a user wrote, such as ``torch:F.cross_entropy(weight=w)``.

It is never evaluated. It can name the records of `xentx.natives`, and set their options by the
names that the framework uses.
"""

import ast
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from xentx.natives import Native, natives, xentx_records

_COMPILED = re.compile(r"(.*)\[(\w+)\]")
_ARRAYS = ("weight", "sample_weight")
_INTEGERS = ("axis", "ignore_index")

_ALIASES = {("keras", "'none'"): "none", ("keras", "'mean'"): "mean"}
"""Names of reductions that the records do not list, by library."""


class CallError(ValueError):
    """A call that cannot be parsed. The message suggests similar names."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """A name in a call that stands for an array."""

    name: str

    def __str__(self) -> str:
        return self.name


Value = Symbol | float


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A native with options.

    Parameters
    ----------
    text
        As the user wrote it.
    native
        The record of what it calls.
    options
        Values of the given options, by xentx's names. Weights are symbols.
    reduction
        By xentx's name. The default is that of the native.
    """

    text: str
    native: Native
    options: Mapping[str, Value]
    reduction: str


@dataclass(frozen=True, slots=True)
class _Spelled:
    """The parts of a call after the colon."""

    path: str
    keywords: Mapping[str, ast.expr]
    compiled: str


def library(native: Native) -> str:
    """Return the part of an id before the colon."""
    return native.id.partition(":")[0]


def known() -> tuple[Native, ...]:
    """List what calls can name, xentx's own first."""
    return (*xentx_records(), *natives())


def parse(text: str) -> Call:
    """Parse a call.

    Parameters
    ----------
    text
        A native's id, or its library, a colon, and its name with options by the framework's names.
        Values are literals, or names that stand for arrays. Positional names, which stand for
        logits and target, are ignored.

    Returns
    -------
    Call
        The native and its options by xentx's names.

    Raises
    ------
    CallError
        If it cannot be parsed, or if there is no such native or option.

    Examples
    --------
    >>> call = parse("torch:F.cross_entropy(label_smoothing=0.1, weight=w)")
    >>> call.native.id, dict(call.options)["label_smoothing"], call.reduction
    ('torch:F.cross_entropy', 0.1, 'mean')
    """
    text = text.strip()
    exact = {native.id: native for native in known()}.get(text)
    if exact is not None:
        return Call(text=text, native=exact, options={}, reduction=default_reduction(exact))
    prefix, colon, rest = text.partition(":")
    libraries = sorted({library(native) for native in known()})
    if not colon or prefix not in libraries:
        named = prefix if colon else text
        msg = (
            f"{text!r}: got {named!r} for a library; expected one of {', '.join(libraries)} "
            f"and a colon, as in torch:F.cross_entropy(){_nearest(named, libraries)}"
        )
        raise CallError(msg)
    spelled = _spelled(rest)
    if spelled is None:
        msg = f"{text!r}: cannot be parsed; expected a call, as in torch:F.cross_entropy(weight=w)"
        raise CallError(msg)
    native, consumed = _native(text, prefix, spelled)
    options, reduction = _options(
        text, native, {k: v for k, v in spelled.keywords.items() if k not in consumed}
    )
    return Call(
        text=text,
        native=native,
        options=MappingProxyType(options),
        reduction=reduction or default_reduction(native),
    )


def keyword(spelling: str) -> str:
    """Return the keyword of an option, without the words that may follow it in the record."""
    return spelling.partition(" ")[0]


def setting(native: Native, reduction: str) -> tuple[str, str] | None:
    """Return the keyword and value of a reduction. None if the loss has no such keyword."""
    spelling = native.reductions[reduction].partition(",")[0]
    if spelling.startswith("("):
        return None
    name, equals, value = spelling.partition("=")
    return (name, value) if equals else ("reduction", repr(spelling))


def default_reduction(native: Native) -> str:
    """Return the default reduction."""
    for name, spelling in native.reductions.items():
        if spelling.endswith("the default") or spelling == "(as it is)":
            return name
    return "mean"


def _spelled(text: str) -> _Spelled | None:
    compiled = _COMPILED.fullmatch(text)
    if compiled is not None:
        text = compiled[1]
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError):
        return None
    keywords: dict[str, ast.expr] = {}
    path = _path(tree, keywords)
    return None if path is None else _Spelled(path, keywords, compiled[2] if compiled else "")


def _path(node: ast.expr, keywords: dict[str, ast.expr]) -> str | None:
    """Return the dotted names, joined by plus signs, and collect keywords on the way."""
    parts: list[str | None] = [None]
    joint = ""
    match node:
        case ast.Name(id=name):
            parts = [name]
        case ast.Attribute(value=value, attr=name):
            parts, joint = [_path(value, keywords), name], "."
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            parts, joint = [_path(left, keywords), _path(right, keywords)], " + "
        case ast.Call(func=func, args=args, keywords=given) if all(
            isinstance(argument, ast.Name) for argument in args
        ):
            names = [item.arg for item in given]
            if None not in names and keywords.keys().isdisjoint(names):
                keywords.update((str(item.arg), item.value) for item in given)
                parts = [_path(func, keywords)]
    known_parts = [part for part in parts if part is not None]
    return joint.join(known_parts) if len(known_parts) == len(parts) else None


def _native(text: str, prefix: str, spelled: _Spelled) -> tuple[Native, frozenset[str]]:
    """Find the native, and the keywords that belong to its name."""
    found: list[tuple[int, Native, frozenset[str]]] = []
    settled: set[str] = set()
    for native in known():
        own = _spelled(native.id.partition(":")[2])
        if library(native) != prefix or own is None or own.compiled != spelled.compiled:
            continue
        if spelled.path != own.path and not f".{native.name}".endswith(f".{spelled.path}"):
            continue
        settled.update(own.keywords)
        if all(
            name in spelled.keywords and _same(value, spelled.keywords[name])
            for name, value in own.keywords.items()
        ):
            found.append((len(own.keywords), native, frozenset(own.keywords)))
    if not found:
        ids = [native.id for native in known()]
        wanted = f"{prefix}:{spelled.path}"
        msg = (
            f"{text!r}: no loss is called {wanted}; `xentx natives` lists them"
            f"{_nearest(wanted, ids)}"
        )
        raise CallError(msg)
    _, native, consumed = max(found, key=lambda item: item[0])
    # from_logits=False, which is the default, belongs to the name as well.
    off = {name for name in settled if _is_off(spelled.keywords.get(name))}
    return native, consumed | off


def _is_off(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and not node.value


def _same(a: ast.expr, b: ast.expr) -> bool:
    return ast.unparse(a).rpartition(".")[2] == ast.unparse(b).rpartition(".")[2]


def _options(
    text: str, native: Native, given: Mapping[str, ast.expr]
) -> tuple[dict[str, Value], str | None]:
    spellings = {keyword(spelling): name for name, spelling in native.options.items()}
    settings = [setting(native, name) for name in native.reductions]
    choosers = {chosen[0] for chosen in settings if chosen is not None}
    options: dict[str, Value] = {}
    reduction: str | None = None
    for name, node in given.items():
        if name in choosers:
            reduction = _reduction(text, native, name, node)
        elif name in spellings:
            options[spellings[name]] = _value(text, name, spellings[name], node)
        else:
            has = [*spellings, *sorted(choosers)]
            msg = (
                f"{text!r}: {native.id} has no option {name!r}; it has {', '.join(has) or 'none'}"
                f"{_nearest(name, has)}"
            )
            raise CallError(msg)
    return options, reduction


def _reduction(text: str, native: Native, name: str, node: ast.expr) -> str:
    got = ast.unparse(node)
    spelled: dict[str, str] = {}
    for reduction in native.reductions:
        chosen = setting(native, reduction)
        if chosen is not None and chosen[0] == name:
            spelled[chosen[1]] = reduction
    for value, reduction in spelled.items():
        if value.rpartition(".")[2] == got.rpartition(".")[2]:
            return reduction
    alias = _ALIASES.get((library(native), got))
    if alias in spelled.values():
        return str(alias)
    msg = (
        f"{text!r}: {name}: got {got}; expected one of {', '.join(spelled)}"
        f"{_nearest(got, list(spelled))}"
    )
    raise CallError(msg)


def _value(text: str, name: str, option: str, node: ast.expr) -> Value:
    if isinstance(node, ast.Name) and option in _ARRAYS:
        return Symbol(node.id)
    wanted = "a name that stands for an array, such as w"
    if option not in _ARRAYS:
        wanted = "an integer" if option in _INTEGERS else "a number"
        value = _literal(node)
        if isinstance(value, int) or (isinstance(value, float) and option not in _INTEGERS):
            return value
    msg = f"{text!r}: {name}: got {ast.unparse(node)}; expected {wanted}"
    raise CallError(msg)


def _literal(node: ast.expr) -> Any:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError):
        return None
    return None if isinstance(value, bool) else value


def _nearest(name: str, names: Iterable[str]) -> str:
    lowered: dict[str, str] = {}
    for candidate in names:
        lowered.setdefault(candidate.lower(), candidate)
    close: Sequence[str] = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)
    return f". Did you mean {' or '.join(lowered[match] for match in close)}?" if close else ""
