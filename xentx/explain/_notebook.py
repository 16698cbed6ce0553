"""An explanation as a notebook that can be run.

Each step has a cell of text, as in the Markdown, and a cell of code. If a framework is missing when
the notebook runs, its cell prints the reason.
"""

import importlib
import os
import tempfile
from pathlib import Path
from typing import Any

from xentx.explain import _markdown
from xentx.explain._explanation import Explanation, Snippet

_INDENT = " " * 4

_SHOW = """
print("two steps:", two_steps)
print("one step: ", one_step)
print("xentx:    ", ours)
print("gradient: ", gradient)
""".strip()

_BFLOAT16 = """
try:
    from ml_dtypes import bfloat16 as dtype
except ImportError as error:
    dtype = np.float32
    print(f"NumPy has no bfloat16; the code below uses float32: {error}")
""".strip()


def notebook(explanation: Explanation) -> Any:
    """Make the notebook.

    Parameters
    ----------
    explanation : Explanation
        What `explain` returned.

    Returns
    -------
    nbformat.NotebookNode
        A valid notebook that has not been run.
    """
    v4: Any = importlib.import_module("nbformat.v4")  # which has no types
    cells = [
        v4.new_markdown_cell(_markdown.opening(explanation)),
        v4.new_code_cell(_setup(explanation)),
    ]
    for number, step in enumerate(explanation.steps, 1):
        cells.append(v4.new_markdown_cell(_markdown.section(number, step)))
        code = [step.code, *map(_guarded, step.snippets)]
        cells.extend(v4.new_code_cell(source) for source in code if source)
    closing = _markdown.closing(explanation)
    if closing:
        cells.append(v4.new_markdown_cell("\n\n".join(closing)))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"  # nbformat's are random, and files should be reproducible
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return v4.new_notebook(
        cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}}
    )


def write(explanation: Explanation, path: Path) -> None:
    """Write the notebook. A failure leaves no partial file.

    Parameters
    ----------
    explanation : Explanation
        What `explain` returned.
    path : Path
        The file. An existing file is replaced.
    """
    nbformat: Any = importlib.import_module("nbformat")
    book = notebook(explanation)
    nbformat.validate(book)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8"
    ) as file:
        unfinished = Path(file.name)
        try:
            nbformat.write(book, file)
            file.close()
            unfinished.chmod(0o666 & ~_umask())  # temporary files are readable by the user only
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _setup(explanation: Explanation) -> str:
    logits = [list(row) for row in explanation.logits]
    named = f"dtype = np.{explanation.dtype}"
    dtype = _BFLOAT16 if explanation.dtype == "bfloat16" else named
    return f"""
# pip install xentx, and any of torch, jax, optax, tensorflow and scipy
from math import inf, nan

import numpy as np
import xentx

np.seterr(all="ignore")  # overflows are expected
np.set_printoptions(floatmode="unique")  # all digits

{dtype}
values = {logits!r}
x = np.asarray(values, dtype)
t = np.asarray({list(explanation.target)!r})
rows = np.arange(len(x))
""".strip()


def _guarded(snippet: Snippet) -> str:
    body = f"{snippet.body}\n{_SHOW}"
    return "\n".join(
        (
            "try:",
            _indented(snippet.imports),
            "except Exception as error:  # missing, or broken",
            f'{_INDENT}print(f"{snippet.framework}: left out, {{error}}")',
            "else:",
            _indented(body),
        )
    )


def _indented(code: str) -> str:
    return "\n".join(f"{_INDENT}{line}" if line else line for line in code.splitlines())
