"""An S3 server on loopback, in this process."""

import threading

from moto.server import create_backend_app
from werkzeug.serving import make_server


class Service:
    """S3 in this process, which can refuse requests.

    Attributes:
        answer: Function of method and path of a request that returns the status and the S3 error
            code to refuse it with, or None.
    """

    def __init__(self):
        self.answer = lambda method, path: None  # noqa: ARG005
        self._s3 = create_backend_app("s3")  # not moto's search for the service of each request
        self._server = make_server("127.0.0.1", 0, self, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __call__(self, environ, start_response):
        refused = self.answer(environ["REQUEST_METHOD"], environ["PATH_INFO"])
        if refused is None:
            return self._s3(environ, start_response)
        status, code = refused
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response(status, [("Content-Type", "application/xml")])
        return [
            f"<Error><Code>{code}</Code><Message>refused by the test</Message></Error>".encode()
        ]

    def close(self):
        self._server.shutdown()
        self._server.server_close()
