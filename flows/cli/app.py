"""The application that the commands are added to, and the options that they share."""

from typing import Annotated

import typer

from nnbuild.runtime.logs import sanitize_log_records

sanitize_log_records()  # of every command, whatever writes them

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
    str | None,
    typer.Option(
        "--store", metavar="ROOT", help="Store; $NNBUILD_STORE or ./nnbuild-store if not given."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
