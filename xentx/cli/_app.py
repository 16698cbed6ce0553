"""The commands and their options. Their code is imported when they run, so ``--help`` is fast."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Compare, explain and translate the cross-entropy losses of array frameworks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class DType(StrEnum):
    """Dtypes of logits."""

    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"
    float64 = "float64"


class LossName(StrEnum):
    """Functions of xentx."""

    cross_entropy = "cross_entropy"
    binary_cross_entropy = "binary_cross_entropy"


class FailOn(StrEnum):
    """Which failures set the exit status to 1."""

    none = "none"
    xentx = "xentx"
    any = "any"


class TargetKind(StrEnum):
    """Kinds of targets."""

    indices = "indices"
    probabilities = "probabilities"


@app.command()
def compare(
    *,
    framework: Annotated[
        list[str] | None,
        typer.Option(
            "--framework",
            "-f",
            help="numpy, torch, jax, tensorflow or keras. Default: all.",
        ),
    ] = None,
    native: Annotated[
        list[str] | None,
        typer.Option(
            "--native",
            "-n",
            help="Ids of native losses; * and ? are wildcards. See `xentx natives`.",
        ),
    ] = None,
    loss: Annotated[
        LossName,
        typer.Option(
            "--loss", "-l", help="The function of xentx that the native losses are compared with."
        ),
    ] = LossName.cross_entropy,
    regime: Annotated[
        list[str] | None,
        typer.Option(
            "--regime",
            "-r",
            help="Kinds of logits, or all. See `xentx regimes`. Default: worked-example, digits.",
        ),
    ] = None,
    dtype: Annotated[
        list[DType] | None,
        typer.Option(
            "--dtype",
            "-d",
            help="Dtypes of the logits. Default: float32, or the dtype of your file.",
        ),
    ] = None,
    logits: Annotated[
        Path | None,
        typer.Option(help="A file with your logits: .npy, .npz, .safetensors or .csv."),
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option(help="A file with your targets. Default: the file of the logits."),
    ] = None,
    axis: Annotated[
        int | None,
        typer.Option(help="The class axis of your logits. Default: the last axis."),
    ] = None,
    ignore_index: Annotated[
        int | None,
        typer.Option(help="Rows of your file with this target are left out. Default: -100."),
    ] = None,
    corners: Annotated[
        bool, typer.Option("--corners/--no-corners", help="Also compare corner cases.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the regimes' logits.")] = 0,
    time: Annotated[
        bool | None,
        typer.Option("--time/--no-time", help="Measure times. Default: yes, but no with --html."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            help="The number of frameworks, or backends of Keras, to measure at once, each in its "
            "own process. Default: 1 if times are measured, else the number of processors.",
        ),
    ] = None,
    every: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Print a row for each loss, in 140 characters. Default: losses of a framework "
            "with equal results share a row, in 100 characters.",
        ),
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON. The schema is xentx.compare.report.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            help="Write an HTML page to this file, with all corner cases and, by default, many "
            "kinds of logits."
        ),
    ] = None,
    fail_on: Annotated[
        FailOn,
        typer.Option(help="Exit with status 1 if xentx, or any loss, is out of its tolerance."),
    ] = FailOn.xentx,
) -> None:
    """Compare the losses and gradients of each framework with xentx and with the true values."""
    from xentx.cli import _compare  # noqa: PLC0415 -- see above

    raise typer.Exit(
        _compare.run(
            frameworks=framework or (),
            losses=native or (),
            loss=loss.value,
            regimes=regime,
            dtypes=[kind.value for kind in dtype or ()],
            logits=logits,
            target=target,
            axis=axis,
            ignore_index=ignore_index,
            corners=corners,
            seed=seed,
            timed=time,
            jobs=jobs,
            every=every,
            as_json=json,
            html=html,
            fail_on=fail_on.value,
        )
    )


@app.command()
def info() -> None:
    """Show the backends, their versions and engines."""
    from xentx.cli import _info  # noqa: PLC0415 -- see above

    _info.info()


@app.command()
def natives() -> None:
    """List the native losses, and what is missing for those that cannot run here."""
    from xentx.cli import _info  # noqa: PLC0415 -- see above

    _info.natives()


@app.command()
def regimes() -> None:
    """List the kinds of logits to compare on."""
    from xentx.cli import _info  # noqa: PLC0415 -- see above

    _info.regimes()


@app.command()
def explain(
    *,
    logits: Annotated[
        list[str],
        typer.Option(
            "--logits",
            "-x",
            help="A row of logits, such as 1.0,2.0,0.5. Separate rows with ; or repeat the option.",
        ),
    ],
    target: Annotated[
        list[str],
        typer.Option("--target", "-t", help="The target of each row, such as 1;2."),
    ],
    dtype: Annotated[
        DType, typer.Option("--dtype", "-d", help="Dtype of the logits.")
    ] = DType.float32,
    framework: Annotated[
        list[str] | None,
        typer.Option("--framework", "-f", help="numpy, torch, jax or tensorflow. Default: all."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Print every step, with the results of each framework.")
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print every step as Markdown.")
    ] = False,
    notebook: Annotated[Path | None, typer.Option(help="Write a notebook to this file.")] = None,
) -> None:
    """Explain the cross-entropy of your rows step by step, in each framework."""
    from xentx.cli import _explain  # noqa: PLC0415 -- see above

    _explain.run(
        logits=logits,
        target=target,
        dtype=dtype.value,
        frameworks=framework or (),
        full=full,
        as_markdown=markdown,
        notebook=notebook,
    )


@app.command()
def diff(
    a: Annotated[
        str,
        typer.Argument(help='The call that you want, such as "torch:F.cross_entropy(weight=w)".'),
    ],
    b: Annotated[
        str,
        typer.Argument(
            help='The loss that you port to, such as "keras:CategoricalCrossentropy()".'
        ),
    ],
    *,
    target: Annotated[
        TargetKind | None,
        typer.Option(help="The kind of target. Default: the kind that A is used with."),
    ] = None,
    corners: Annotated[
        bool, typer.Option("--corners/--no-corners", help="Also compare corner cases.")
    ] = True,
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON. The schema is xentx.diff.Comparison.")
    ] = False,
) -> None:
    """List the differences between two losses, and the call that makes them equal."""
    from xentx.cli import _diff  # noqa: PLC0415 -- see above

    _diff.run(a=a, b=b, target=target and target.value, corners=corners, as_json=json)
