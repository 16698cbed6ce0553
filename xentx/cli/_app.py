"""Commands and their options. What they do is imported when they run: ``--help`` is instant."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="One cross-entropy for every array framework: compare it with their own.",
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
    """What makes the exit status 1."""

    none = "none"
    xentx = "xentx"
    any = "any"


class TargetKind(StrEnum):
    """What a target is meant as."""

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
            help="numpy, torch, jax, tensorflow, keras; all of them by default.",
        ),
    ] = None,
    native: Annotated[
        list[str] | None,
        typer.Option(
            "--native", "-n", help="Ids of native losses, with * and ?; see `xentx natives`."
        ),
    ] = None,
    loss: Annotated[
        LossName,
        typer.Option(
            "--loss", "-l", help="What they are compared with; of binary_cross_entropy, each logit."
        ),
    ] = LossName.cross_entropy,
    regime: Annotated[
        list[str] | None,
        typer.Option(
            "--regime",
            "-r",
            help="Kinds of logits, or all; see `xentx regimes`. Default: worked-example, digits.",
        ),
    ] = None,
    dtype: Annotated[
        list[DType] | None,
        typer.Option(
            "--dtype",
            "-d",
            help="Dtypes of logits; float32 by default, or that of your own logits.",
        ),
    ] = None,
    logits: Annotated[
        Path | None,
        typer.Option(help="Your own logits: .npy, .npz, .safetensors or .csv."),
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option(help="Your own targets; by default beside the logits in their file."),
    ] = None,
    axis: Annotated[
        int | None,
        typer.Option(help="The axis of your logits that holds the classes; the last by default."),
    ] = None,
    ignore_index: Annotated[
        int | None,
        typer.Option(help="Class index of the rows of yours to leave out; -100 by default."),
    ] = None,
    corners: Annotated[
        bool, typer.Option("--corners/--no-corners", help="Look at corner cases as well.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the regimes' logits.")] = 0,
    time: Annotated[
        bool | None,
        typer.Option("--time/--no-time", help="Measure time; done by default, but not for --html."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            help="Frameworks to measure at once, each in its process, as is each of Keras's "
            "backends. Default: 1 where time is measured, else the number of processors.",
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON; its schema is xentx.compare.report.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            help="Write a page to this file: of many regimes, unless given, and all corners."
        ),
    ] = None,
    fail_on: Annotated[
        FailOn,
        typer.Option(help="What makes the exit status 1: xentx out of its tolerance, or any loss."),
    ] = FailOn.xentx,
) -> None:
    """Compare each framework's losses and gradients with xentx's and with the truth."""
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
    """List the native losses, and what those that can't run here need."""
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
            help="A row of logits, as 1.0,2.0,0.5. Several rows: repeat it, or put ; between them.",
        ),
    ],
    target: Annotated[
        list[str],
        typer.Option("--target", "-t", help="The right class of the row, or of each, as 1;2."),
    ],
    dtype: Annotated[
        DType, typer.Option("--dtype", "-d", help="Dtype of the logits.")
    ] = DType.float32,
    framework: Annotated[
        list[str] | None,
        typer.Option(
            "--framework", "-f", help="numpy, torch, jax, tensorflow; all of them by default."
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    notebook: Annotated[
        Path | None, typer.Option(help="Write a notebook that can be run to this file.")
    ] = None,
) -> None:
    """Explain the cross-entropy of your own rows, step by step, in each framework."""
    from xentx.cli import _explain  # noqa: PLC0415 -- see above

    _explain.run(
        logits=logits,
        target=target,
        dtype=dtype.value,
        frameworks=framework or (),
        as_markdown=markdown,
        notebook=notebook,
    )


@app.command()
def diff(
    a: Annotated[
        str, typer.Argument(help='A call, as "torch:F.cross_entropy(weight=w)": what is wanted.')
    ],
    b: Annotated[str, typer.Argument(help='Another, as "keras:CategoricalCrossentropy()": where.')],
    *,
    target: Annotated[
        TargetKind | None,
        typer.Option(help="What the target is; by default what A is used with."),
    ] = None,
    corners: Annotated[
        bool, typer.Option("--corners/--no-corners", help="Ask both the corner cases.")
    ] = True,
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON; its schema is xentx.diff.Comparison.")
    ] = False,
) -> None:
    """Say what differs between two losses as they are called, and what makes them equal."""
    from xentx.cli import _diff  # noqa: PLC0415 -- see above

    _diff.run(a=a, b=b, target=target and target.value, corners=corners, as_json=json)
