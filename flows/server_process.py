"""Run Prefect's server for the process that started this one, and exit with that process.

`flows.embedded_server` executes this file as a script under Python's safe path, so it imports
nothing of nnbuild and nothing from the current folder.
"""

import gc
import os
import socket
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import uvicorn

SECONDS_TO_SHUT_DOWN = 3.0
_SERVERS: list["uvicorn.Server"] = []


def main(listening: int, lifeline: int) -> None:
    """Serve until the other end of a pipe is closed.

    Args:
        listening: File descriptor of a bound, listening socket.
        lifeline: File descriptor of a pipe that only the starting process holds open.
    """
    # Before the imports, which take seconds.
    threading.Thread(target=_exit_with_parent, args=(lifeline,), daemon=True).start()
    # Searching the imported objects for cycles takes a fifth of the start, and finds none.
    gc.disable()
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


def _exit_with_parent(lifeline: int) -> None:
    """Wait for the end of the pipe, then stop the server and make sure that it stops."""
    os.read(lifeline, 1)
    for server in _SERVERS:
        server.should_exit = True
    if _SERVERS:
        threading.Event().wait(SECONDS_TO_SHUT_DOWN)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
