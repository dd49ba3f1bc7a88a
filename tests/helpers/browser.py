"""Drive a headless Chromium by its DevTools protocol, for pages rendered by scripts."""

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from real_server import until
from websockets.sync.client import ClientConnection, connect

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
_OPTIONS = (
    *(
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--hide-scrollbars",
    ),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--remote-debugging-port=0",
    ),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


class Page:
    """One page of a browser."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._calls = socket, 0
        self.fetched: set[str] = set()
        self._call("Network.enable")
        self._call("Page.enable")

    def show(self, url: str, ready: str, seconds: float = 60) -> Any:
        """Open a URL, and wait for an expression on the page to be true; return its value."""
        self._call("Page.navigate", url=url)
        return until(lambda: self.value(ready), seconds, f"{ready} on {url}")

    def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"].get("value")

    def picture(self, path: Path, width: int, height: int, *, x: int = 0, y: int = 0) -> Path:
        """Save a part of the page as a PNG."""
        clip = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        found = self._call("Page.captureScreenshot", format="png", clip=clip)
        path.write_bytes(base64.b64decode(found["data"]))
        return path

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._calls += 1
        self._socket.send(json.dumps({"id": self._calls, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=30))
            if message.get("method") == "Network.requestWillBeSent":
                self.fetched.add(message["params"]["request"]["url"])
            if message.get("id") == self._calls:
                assert "error" not in message, message
                return message["result"]


@contextmanager
def browser(folder: Path, width: int = 1280, height: int = 1000) -> Iterator[Page]:
    """Run Chromium with an empty profile and one page while the block runs."""
    command = [
        str(CHROMIUM),
        *_OPTIONS,
        f"--user-data-dir={folder}",
        f"--window-size={width},{height}",
        "about:blank",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            port_file = folder / "DevToolsActivePort"
            port = until(
                lambda: port_file.exists() and port_file.read_text().partition("\n")[0],
                60,
                "port of Chromium",
            )
            pages = until(lambda: _pages(port), 30, "page of Chromium")
            with connect(pages[0]["webSocketDebuggerUrl"], max_size=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            process.wait(30)


def _pages(port: str) -> list[dict[str, Any]]:
    found = httpx.get(f"http://127.0.0.1:{port}/json/list", timeout=10).json()
    return [each for each in found if each["type"] == "page"]
