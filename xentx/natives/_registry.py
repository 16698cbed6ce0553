"""All records: xentx's tables, and those of other packages.

A package adds its losses to every tool with an entry point in the group ``xentx.natives``, whose
object is a `Native`, or an iterable of them::

    [project.entry-points."xentx.natives"]
    mylib = "mylib.xentx_records:NATIVES"

This module must not import the framework. `Native.call` names a function in a module that does.
"""

import functools
import importlib.metadata
from collections import Counter
from dataclasses import dataclass

from xentx.natives import records
from xentx.natives._native import Native
from xentx.natives.vocabulary import LossName

ENTRY_POINT_GROUP = "xentx.natives"


@dataclass(frozen=True, slots=True)
class BrokenPlugin:
    """An entry point that failed.

    Parameters
    ----------
    name
        Name of the entry point.
    reason
        The error.
    """

    name: str
    reason: str


@functools.cache
def plugins() -> tuple[tuple[Native, ...], tuple[BrokenPlugin, ...]]:
    """Load the entry points.

    Returns
    -------
    tuple of tuples
        Records of other packages, and broken plugins, which do not affect the others.
    """
    found: list[Native] = []
    broken: list[BrokenPlugin] = []
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            loaded = entry_point.load()
            given = [loaded] if isinstance(loaded, Native) else list(loaded)
            strangers = [record for record in given if not isinstance(record, Native)]
            if strangers:
                msg = f"got a {type(strangers[0]).__name__}; expected xentx.natives.Native"
                raise TypeError(msg)  # noqa: TRY301 -- one handler for all errors
            ids = Counter(
                record.id for record in (*records.XENTX, *records.NATIVES, *found, *given)
            )
            twice = [name for name, count in ids.items() if count > 1]
            if twice:
                msg = f"id {twice[0]!r} is taken"
                raise ValueError(msg)  # noqa: TRY301
        except Exception as error:  # noqa: BLE001 -- plugins can raise any error
            broken.append(BrokenPlugin(entry_point.name, f"{type(error).__name__}: {error}"))
        else:
            found.extend(given)
    return tuple(found), tuple(broken)


def natives(loss: LossName = "cross_entropy") -> tuple[Native, ...]:
    """List the records of the frameworks' own losses, installed or not.

    Parameters
    ----------
    loss
        The function of xentx that they are compared with.

    Returns
    -------
    tuple of Native
        xentx's records in order, then those of other packages.

    Examples
    --------
    >>> [native.id for native in natives() if native.framework == "numpy"][:2]
    ['scipy:log_softmax + gather', 'sklearn:log_loss']
    """
    return tuple(record for record in (*records.NATIVES, *plugins()[0]) if record.loss == loss)


def xentx_records(loss: LossName = "cross_entropy") -> tuple[Native, ...]:
    """List the records of a loss of xentx, one for each framework and compiler.

    Parameters
    ----------
    loss
        The function of xentx.

    Returns
    -------
    tuple of Native
        The records that the natives are compared with.

    Examples
    --------
    >>> [record.id for record in xentx_records()][:2]
    ['xentx:numpy', 'xentx:torch']
    """
    return tuple(record for record in records.XENTX if record.loss == loss)
