"""The Typer application, its commands and the options that they share."""

import functools
import importlib
import re
from typing import Annotated, Any, Literal

import typer

from nnbuild.runtime.text import sanitize_log_records

sanitize_log_records()  # of every command, whatever writes them

# Panels of `nnbuild --help`, by what users do.
TRAIN = "Train and score"
EXPLORE = "Explore results"
PUBLISH = "Choose and export the model"
MAINTAIN = "Check and repair"

# In the order of the help: commands appear as their modules are imported.
_COMMAND_MODULES = (
    "run",
    "score",
    "label",
    "sweep",
    "serve",
    "backtest",
    "runs",
    "analytics",
    "live",
    "champion",
    "export",
    "prune",
    "doctor",
)

app = typer.Typer(
    name="nnbuild",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Retrain an image classifier, score images and query every result.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="ROOT",
        help="Folder or URL of the store.",
        show_default="$NNBUILD_STORE or ./nnbuild-store",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")
]
RunnerOption = Annotated[
    Literal["local", "dask"],
    typer.Option(help="Where the work runs: in this process or on a Dask cluster."),
]
AddressOption = Annotated[
    str | None,
    typer.Option(metavar="tcp://HOST:PORT", help="Address of the Dask scheduler."),
]


@functools.cache  # building takes longer than most commands that end with a message
def load_commands() -> Any:
    """Return the group of all commands, which holds them in the order of the help."""
    for name in _COMMAND_MODULES:
        importlib.import_module(f"flows.cli.{name}")
    return typer.main.get_command(app)


def explicit_options(ctx: typer.Context, **values: Any) -> dict[str, Any]:
    """Return the values of the options that the user typed, without those that are defaults.

    A config file, or a job that is resumed, may set what the user did not type.
    """
    return {name: value for name, value in values.items() if _is_explicit(ctx, name)}


def _is_explicit(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def require_runner(runner: str, address: str | None) -> None:
    """Refuse a Dask runner without an address, and an address without a Dask runner.

    Raises:
        ConfigError: One of the two options is missing, or the address is invalid.
    """
    from nnbuild.errors import ConfigError

    if (runner == "dask") != (address is not None):
        raise ConfigError(
            "--runner dask and --address tcp://HOST:PORT go together; give both or neither "
            "(start a cluster with `dask scheduler`)"
        )
    if address is not None and not re.fullmatch(r"([a-z]+://)?[^\s/]+:\d+", address):
        raise ConfigError(f"--address {address!r}; expected a Dask scheduler, tcp://HOST:PORT")


def _print_version(requested: bool) -> None:
    if requested:
        from nnbuild.runtime.environment import code_version

        typer.echo(code_version())
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Take the options that come before a command."""
