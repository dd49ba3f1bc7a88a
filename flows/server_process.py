"""Run Prefect's server for the process that started this one, and end with that process.

`flows.embedded_server` executes this file as a script under Python's safe path, so it imports
nothing of nnbuild and nothing from the current folder.
"""

import os
import socket
import sys
import threading

SECONDS_TO_SHUT_DOWN = 3.0


def main(listening: int, lifeline: int) -> None:
    """Serve until the other end of a pipe is closed.

    Args:
        listening: File descriptor of a bound socket that listens already.
        lifeline: File descriptor of a pipe that only the starting process holds open.
    """
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    import uvicorn
    from prefect.server.api.server import create_app

    app = create_app(ephemeral=True, final=True)
    config = uvicorn.Config(app, log_level="error", lifespan="on")
    _SERVERS.append(uvicorn.Server(config))
    _SERVERS[0].run(sockets=[socket.socket(fileno=listening)])
    # Threads of the database driver can hold up the interpreter's own end for seconds.
    os._exit(0 if _SERVERS[0].started else 3)


_SERVERS: list["uvicorn.Server"] = []  # noqa: F821  (imported late: the lifeline comes first)


def _end_with_parent(lifeline: int) -> None:
    """Wait for the end of the pipe, then ask the server to stop and make sure that it does."""
    os.read(lifeline, 1)
    for server in _SERVERS:
        server.should_exit = True
    if _SERVERS:
        threading.Event().wait(SECONDS_TO_SHUT_DOWN)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
