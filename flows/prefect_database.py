"""Find out which work the embedded server can skip at its start, from Prefect's SQLite database.

Prefect applies its migrations, registers block types and starts the services of automations each
time. An embedded server serves one command, and mostly with a database that is up to date.
"""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

_MIGRATIONS = Path("server", "database", "_migrations", "versions", "sqlite")
_REVISION = re.compile(r"^(down_)?revision(?:: [^=]+)? = [\"'](\w+)[\"']", re.MULTILINE)
_URL = re.compile(r"sqlite\+aiosqlite:///(?P<path>[^?]+)")

# Without blocks, flows and results use no block documents; a user's own blocks stay registered.
_NO_BLOCKS = {
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
    "PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
}
# The embedded server has no UI, which is the only reader of these streams.
_NO_STREAMS = {
    "PREFECT_SERVER_LOGS_STREAM_OUT_ENABLED": "false",
    "PREFECT_API_EVENTS_STREAM_OUT_ENABLED": "false",
}
# By default, each of the three states of a task is written in its own transaction. Nobody watches
# the embedded server, which writes what is left when it stops.
_BATCHES = {
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "2",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "100",
}
_NO_MIGRATIONS = {"PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false"}
AUTOMATIONS_OFF = {"PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false"}


def settings_for_quick_start(connection_url: str, prefect: Path) -> dict[str, str]:
    """Return the settings of Prefect's server that skip work without an effect.

    A database that cannot be read skips nothing that concerns it, so that the server's own start
    reports the problem.

    Args:
        connection_url: Setting `PREFECT_SERVER_DATABASE_CONNECTION_URL`.
        prefect: Folder of the package prefect.
    """
    settings = _NO_BLOCKS | _NO_STREAMS | _BATCHES
    url = _URL.fullmatch(connection_url.split("?", 1)[0])
    if url is None or not Path(url["path"]).exists():
        return settings
    try:
        revisions, automations = _read(Path(url["path"]))
    except sqlite3.Error:
        return settings
    if revisions == latest_revisions(prefect):
        settings |= _NO_MIGRATIONS
    return settings if automations else settings | AUTOMATIONS_OFF


def _read(database: Path) -> tuple[set[str], int]:
    """Return the revisions of a database, and its number of automations."""
    uri = f"{database.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=0)) as connection:
        revisions = {
            row[0] for row in connection.execute("SELECT version_num FROM alembic_version")
        }
        (automations,) = connection.execute("SELECT count(*) FROM automation").fetchone()
    return revisions, automations


def latest_revisions(prefect: Path) -> set[str]:
    """Return the revisions that no other migration of the installed Prefect follows.

    Args:
        prefect: Folder of the package prefect.
    """
    followed: set[str] = set()
    revisions: set[str] = set()
    for path in (prefect / _MIGRATIONS).glob("*.py"):
        for down, revision in _REVISION.findall(path.read_text(encoding="utf-8")):
            (followed if down else revisions).add(revision)
    return revisions - followed
