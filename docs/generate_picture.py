"""Write docs/confident_rows.svg: errors of each framework's own loss and of xentx.

For each gap, 200 rows of 10 classes are drawn in float32. The target has the largest logit, and the
gap is its distance from the second largest. The truth is computed in extended precision::

    python docs/generate_picture.py
"""  # noqa: INP001 -- a script

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

PICTURE = Path(__file__).with_name("confident_rows.svg")
ROWS, CLASSES = 200, 10
GAPS = tuple(half / 2 for half in range(49))  # 0 to 24
TARGET = np.zeros(ROWS, np.int64)

Losses = Callable[[np.ndarray], np.ndarray]

# The plot's area in the picture, and the exponents of 10 at its lower and upper edge.
LEFT, RIGHT, TOP, BOTTOM = 60, 540, 44, 290
LOWEST, HIGHEST = -8.5, 0.5
# Legible on white and on black.
GREY, GREEN = "#808890", "#1a9e6c"
COLOURS = ("#3b82f6", "#e5484d", "#e8b43a", "#9b6bd6")  # of the frameworks' own losses


def logits_of(gap: float) -> np.ndarray:
    """Draw rows whose first class leads by the gap."""
    logits = np.random.default_rng(0).normal(size=(ROWS, CLASSES)).astype(np.float32)
    logits[:, 0] = logits[:, 1:].max(axis=1) + np.float32(gap)
    return logits


def truth(logits: np.ndarray) -> np.ndarray:
    """Compute the losses from the gaps between the logits, in extended precision."""
    wide = logits.astype(np.longdouble)
    return np.log1p(np.exp(wide[:, 1:] - wide[:, :1]).sum(axis=1))


def frameworks() -> tuple[dict[str, Losses], dict[str, Losses]]:
    """Return the frameworks' own losses, and xentx's in each of them."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import jax.numpy as jnp  # noqa: PLC0415 -- after the variable
    import optax  # noqa: PLC0415
    import scipy.special  # noqa: PLC0415
    import tensorflow as tf  # noqa: PLC0415
    import torch  # noqa: PLC0415

    import xentx  # noqa: PLC0415

    own = {
        "SciPy": lambda x: -scipy.special.log_softmax(x, axis=-1)[:, 0],
        "PyTorch": lambda x: torch.nn.functional.cross_entropy(
            torch.tensor(x), torch.tensor(TARGET), reduction="none"
        ).numpy(),
        "JAX (Optax)": lambda x: np.asarray(
            optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(x), TARGET)
        ),
        "TensorFlow": lambda x: tf.nn.sparse_softmax_cross_entropy_with_logits(TARGET, x).numpy(),
    }
    arrays = {"numpy": np.asarray, "torch": torch.tensor, "jax": jnp.asarray, "tf": tf.constant}

    def ours(array: Callable[[np.ndarray], object]) -> Losses:
        return lambda x: np.asarray(xentx.cross_entropy(array(x), TARGET, reduction="none"))

    return own, {name: ours(array) for name, array in arrays.items()}


def largest_errors(losses: Losses) -> list[float]:
    """Return the largest relative error at each gap."""
    found = []
    for gap in GAPS:
        logits = logits_of(gap)
        true = truth(logits)
        found.append(float(np.max(np.abs(losses(logits) - true) / true)))
    return found


def position(gap: float, error: float) -> tuple[float, float]:
    """Place a point of the plot in the picture."""
    x = LEFT + (RIGHT - LEFT) * gap / GAPS[-1]
    share = (math.log10(error) - LOWEST) / (HIGHEST - LOWEST)
    return round(x, 1), round(BOTTOM - (BOTTOM - TOP) * share, 1)


def text(x: float, y: float, words: str, anchor: str = "start", style: str = "") -> str:
    """Write words at a point."""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{GREY}"{style}>{words}</text>'


def axes() -> Iterator[str]:
    """Draw the axes, their ticks and their names."""
    yield text(
        LEFT,
        22,
        "Relative error of the loss of a correct row, in float32",
        style=' font-weight="bold"',
    )
    for exponent in range(-8, 1, 2):
        _, y = position(0, 10.0**exponent)
        yield f'<path d="M{LEFT} {y}H{RIGHT}" stroke="{GREY}" stroke-opacity=".3"/>'
        power = f'10<tspan dy="-5" font-size="10">{exponent}</tspan>'
        yield text(LEFT - 8, y + 4, power, "end")
    for gap in range(0, int(GAPS[-1]) + 1, 4):
        x, _ = position(gap, 1.0)
        yield f'<path d="M{x} {BOTTOM}v5" stroke="{GREY}"/>'
        yield text(x, BOTTOM + 20, str(gap), "middle")
    yield f'<path d="M{LEFT} {BOTTOM}H{RIGHT}" stroke="{GREY}"/>'
    name = "logit of the target minus the largest other logit"
    yield text((LEFT + RIGHT) / 2, BOTTOM + 42, name, "middle")


def curve(errors: Sequence[float], colour: str, width: float) -> str:
    """Draw a curve of errors."""
    points = " ".join(f"{x},{y}" for x, y in map(position, GAPS, errors))
    style = f'fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"'
    return f'<polyline points="{points}" {style}/>'


def render(own: dict[str, list[float]], ours: list[float]) -> str:
    """Return the picture.

    Parameters
    ----------
    own
        The errors of each framework's own loss.
    ours
        The largest of xentx's errors in the frameworks.
    """
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 345" role="img"'
        ' font-family="system-ui, sans-serif" font-size="13">',
        "<title>Relative error of the loss for confident rows: all digits are lost by the"
        " frameworks' own losses and kept by xentx</title>",
        *axes(),
    ]
    # Each is narrower than the one before: where they coincide, all can be seen.
    widths = (8.5, 6, 3.5, 1.5)
    for errors, colour, width in zip(own.values(), COLOURS, widths, strict=True):
        lines.append(curve(errors, colour, width))
    lines.append(curve(ours, GREEN, 3))
    y = position(0, 1.0)[1] + 4
    for name, colour in zip(own, COLOURS, strict=True):
        lines.append(f'<path d="M{RIGHT + 12} {y - 4}h16" stroke="{colour}" stroke-width="3"/>')
        lines.append(text(RIGHT + 34, y, name))
        y += 18
    y = position(0, ours[-1])[1] + 4
    lines.append(f'<path d="M{RIGHT + 12} {y - 4}h16" stroke="{GREEN}" stroke-width="3"/>')
    lines.append(text(RIGHT + 34, y, "xentx, in all four", style=' font-weight="bold"'))
    lines.append("</svg>")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the picture in its place."""
    own, ours = frameworks()
    errors = map(largest_errors, ours.values())
    largest = [max(at_gap) for at_gap in zip(*errors, strict=True)]
    picture = render({name: largest_errors(losses) for name, losses in own.items()}, largest)
    PICTURE.write_text(picture, "utf-8")


if __name__ == "__main__":
    main()
