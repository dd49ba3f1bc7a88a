"""The commands' options and help texts. A command's work is imported when it runs, so that help is quick."""

from typing import Any


def load_app() -> Any:
    """Return the Typer application with every command; importing their modules adds them."""
    from flows.app import app
    from flows.signatures import (  # noqa: F401
        champion,
        export,
        insight,
        run,
        score,
        serving,
        sweep,
        tables,
        upkeep,
    )

    return app
