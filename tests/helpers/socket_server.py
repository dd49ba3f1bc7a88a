"""A server on loopback with arbitrary answers, or none."""

import socket
import threading
from contextlib import contextmanager


@contextmanager
def server(answer):
    """Start a server that answers requests with a function of the connection.

    Args:
        answer: Function of the connection, and of an event that is set when the block ends.

    Yields:
        URL of the server, and the list of requests so far.
    """
    requests, stopped = [], threading.Event()

    def serve(connection):
        with connection:
            requests.append(connection.recv(65536))
            try:
                answer(connection, stopped)
            except OSError:  # the client closed the connection
                return

    def accept(listening):
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, args=(listening,), daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", requests
        stopped.set()
        listening.shutdown(socket.SHUT_RDWR)


def sending(text):
    return lambda connection, _: connection.sendall(text)
