"""Call the command line in this process, as a user would."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import prefect.context
import pytest

from flows.cli.main import invoke


@dataclass(frozen=True)
class Outcome:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Return the object on the last line of standard output."""
        return json.loads(self.out.splitlines()[-1])


def call(capfd: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Call `nnbuild` with these arguments."""
    capfd.readouterr()
    with _server_unpublished():
        code = invoke([str(each) for each in arguments])
    out, err = capfd.readouterr()
    return Outcome(code, out, err)


@contextmanager
def _server_unpublished() -> Iterator[None]:
    """Reset the environment variables that a command sets for its embedded server."""
    before = dict(os.environ)
    try:
        yield
    finally:
        if os.environ.get("PREFECT_API_URL") != before.get("PREFECT_API_URL"):
            for name in [each for each in os.environ if each not in before]:
                del os.environ[name]
            os.environ.update(before)
            prefect.context.refresh_global_settings_context()


def tree_digest(root: Path) -> str:
    """Return a digest of all paths below a folder and the bytes of all files."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes() if path.is_file() else b"/")
    return digest.hexdigest()
