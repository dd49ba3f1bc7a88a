"""Run Prefect's server for the process that started this one, and exit with that process.

`flows.embedded_process` executes this file as a script under Python's safe path, so it imports
nothing of nnbuild and nothing from the current folder.
"""

import gc
import json
import os
import socket
import sys
import threading
from contextlib import suppress
from importlib import import_module
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import uvicorn

SECONDS_TO_SHUT_DOWN = 15.0
"""Storing the last events takes 0.3 s, and more than 3 s on a very busy machine."""
LIBRARIES = (
    "uvicorn",
    "fastapi",
    "sqlalchemy.ext.asyncio",
    "docket",
    "asyncpg",
    "httpx",
    "jinja2",
    "jsonschema",
    "pydantic_settings",
    "rich.console",
    "websockets.asyncio.client",
)
"""What Prefect's server imports, and what takes half of its import; independent of its settings."""
_SERVERS: list["uvicorn.Server"] = []


def main(listening: int) -> None:
    """Serve until standard input ends.

    The first line of standard input is the server's environment, a JSON object. The process may be
    started before its settings are known.

    Args:
        listening: File descriptor of a bound, listening socket.
    """
    environment: SimpleQueue[dict[str, str]] = SimpleQueue()
    # Before the imports, which take seconds.
    threading.Thread(target=_exit_with_parent, args=(environment,), daemon=True).start()
    # Searching the imported objects for cycles takes a fifth of the start, and finds none.
    gc.disable()
    for name in LIBRARIES:
        with suppress(ImportError):
            import_module(name)
    variables = environment.get()
    os.environ.clear()
    os.environ.update(variables)
    import uvicorn
    from prefect.server.api.server import create_app

    gc.freeze()  # create_app collects garbage, and would search all that was imported
    app = create_app(ephemeral=True, final=True)
    gc.freeze()
    gc.enable()
    config = uvicorn.Config(app, log_level="error", lifespan="on")
    _SERVERS.append(uvicorn.Server(config))
    _SERVERS[0].run(sockets=[socket.socket(fileno=listening)])
    # Threads of the database driver can delay the interpreter's own exit for seconds.
    os._exit(0 if _SERVERS[0].started else 3)


def _exit_with_parent(environment: "SimpleQueue[dict[str, str]]") -> None:
    """Hand over the environment; at the end of the input stop the server and make sure it stops."""
    if line := sys.stdin.buffer.readline():
        environment.put(json.loads(line))
        sys.stdin.buffer.read()
    for server in _SERVERS:
        server.should_exit = True
    if _SERVERS:
        threading.Event().wait(SECONDS_TO_SHUT_DOWN)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
