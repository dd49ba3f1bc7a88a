"""The command line: `nnbuild`. Each command's module is imported when the command runs, so that help is quick."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="nnbuild",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Retrain an image classifier that ends in logits; keep every output as a Parquet table.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Store = Annotated[
    str | None, typer.Option("--store", metavar="ROOT", help="Store; $NNBUILD_STORE or ./nnbuild-store if not given.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


@app.command(epilog="Example: nnbuild run --dataset mnist --model convnet --epochs 12 --seed 0")
def run(
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME|PATH", help="mnist, fashion-mnist, kmnist, digits, or a path to images.")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder with the dataset's files; $NNBUILD_DATA_DIR if not given."),
    ] = None,
    fallback: Annotated[
        str | None, typer.Option(metavar="digits", help="Train on these if the dataset cannot be had.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Named network, or package.module:function of your own.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(metavar="N", help="Passes over the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", help="Images per step.")] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Of the split, the weights and the order of examples.")
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="Settings; options go over them.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting: training.learning_rate=0.01.")
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard logs beside the run.")] = False,  # noqa: FBT002
    store: Store = None,
    resume: Annotated[str | None, typer.Option(metavar="RUN_ID", help="Go on with a run that was stopped.")] = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Retrain, evaluate, score and commit one run."""
    from flows.commands import run as command

    options: dict[str, Any] = {
        "dataset": {"name": dataset, "data_dir": data_dir or os.environ.get("NNBUILD_DATA_DIR"), "fallback": fallback},
        "model": {"name": model},
        "training": {"epochs": epochs, "batch_size": batch_size, "tensorboard": tensorboard or None},
        "seed": seed,
    }
    command.run(options, config, settings or [], store=store, resume=resume, as_json=as_json)


@app.command(epilog="Example: nnbuild runs --json")
def runs(store: Store = None, as_json: Json = False) -> None:  # noqa: FBT002
    """List the runs, those that wait to be resumed among them."""
    from flows.commands import tables

    tables.runs(store, as_json=as_json)


@app.command(epilog="Example: nnbuild history 20261123T030000000Z-4f2a1c --wide --csv")
def history(
    run_ids: Annotated[list[str] | None, typer.Argument(metavar="[RUN_ID…]", help="All runs if not given.")] = None,
    wide: Annotated[bool, typer.Option("--wide", help="One row an epoch, one column a metric.")] = False,  # noqa: FBT002
    csv: Annotated[bool, typer.Option("--csv", help="As CSV on standard output.")] = False,  # noqa: FBT002
    store: Store = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Show the history of runs: every metric at every epoch."""
    from flows.commands import tables

    tables.history(run_ids or [], store, wide=wide, csv=csv, as_json=as_json)


@app.command(epilog="Example: nnbuild report 20261123T030000000Z-4f2a1c")
def report(
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="A committed run.")],
    store: Store = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Make the report of a committed run again, from its tables."""
    from flows.commands import report as command

    command.report(run_id, store, as_json=as_json)


@app.command(epilog="Example: nnbuild doctor --store ./nnbuild-store")
def doctor(
    data_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="$NNBUILD_DATA_DIR if not given.")] = None,
    store: Store = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Say what is installed, reachable and writable, and what would make a run fail."""
    from flows.commands import doctor as command

    command.doctor(store, data_dir, as_json=as_json)


@app.command(epilog="Example: nnbuild version")
def version() -> None:
    """Print the version."""
    from nnbuild.machine import code_version

    typer.echo(code_version())


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: runs a command and exits with its code; the user's own mistakes are one line on standard error."""
    sys.exit(invoke(arguments))


def invoke(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 on success, 1 on a failed run, 2 on bad input or usage, 128 + the signal's number when stopped.
    """
    command = typer.main.get_command(app)
    try:
        code = command.main(args=arguments, prog_name="nnbuild", standalone_mode=False)
    except typer.TyperException as error:
        return _tell(_usage(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  (so that the interpreter's own flush is quiet)
        return 0
    except Exception as error:
        from nnbuild.errors import NnbuildError

        if not isinstance(error, NnbuildError):
            raise
        return _tell(
            " ".join([str(error), *(f"({note})" for note in getattr(error, "__notes__", ()))]), error.exit_code
        )
    return code if isinstance(code, int) else 0


def _usage(error: Any) -> str:
    message = " ".join(error.format_message().split())
    return f"{message.rstrip('.')}; see nnbuild --help"


def _tell(message: str, code: int) -> int:
    print(f"nnbuild: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    return code


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on one line of standard output."""
    print(json.dumps(value, allow_nan=False), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
