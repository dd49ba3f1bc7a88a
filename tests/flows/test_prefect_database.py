"""The embedded server skips only work that has no effect on the database that it opens."""

import sqlite3
from contextlib import closing
from pathlib import Path

import prefect
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from flows.prefect_database import latest_revisions, settings_for_quick_start

PREFECT = Path(prefect.__file__).parent
MIGRATE = "PREFECT_SERVER_DATABASE_MIGRATE_ON_START"
AUTOMATE = "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED"
LATEST = object()


@pytest.fixture
def settings(tmp_path):
    """Return a function that creates a database and returns the settings for its server."""

    def of(revision, automations):
        path = tmp_path / "prefect.db"
        revisions = latest_revisions(PREFECT) if revision is LATEST else {revision}
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
            connection.execute("CREATE TABLE automation (id TEXT)")
            connection.executemany(
                "INSERT INTO alembic_version VALUES (?)", [(each,) for each in revisions]
            )
            connection.executemany("INSERT INTO automation VALUES (?)", [("a",)] * automations)
            connection.commit()
        return settings_for_quick_start(f"sqlite+aiosqlite:///{path}", PREFECT)

    return of


def test_latest_revisions_are_those_of_alembic():
    folder = PREFECT / "server" / "database"
    config = Config(folder / "alembic.ini")
    config.set_main_option("script_location", str(folder / "_migrations"))
    config.set_main_option("version_locations", str(folder / "_migrations" / "versions" / "sqlite"))
    assert latest_revisions(PREFECT) == set(ScriptDirectory.from_config(config).get_heads())


@pytest.mark.parametrize("automations", [0, 2])
@pytest.mark.parametrize("revision", [LATEST, "older", "27d8f4e1a6c9x"])
def test_settings_skip_what_has_no_effect(settings, revision, automations):
    values = settings(revision, automations)
    assert (values.get(MIGRATE) == "false") == (revision is LATEST)
    assert (values.get(AUTOMATE) == "false") == (automations == 0)


@pytest.mark.parametrize("content", [b"", b"not a database" * 100, None])
def test_settings_leave_unreadable_databases_alone(tmp_path, content):
    path = tmp_path / "prefect.db"
    if content is not None:
        path.write_bytes(content)
    values = settings_for_quick_start(f"sqlite+aiosqlite:///{path}", PREFECT)
    assert not {MIGRATE, AUTOMATE} & values.keys()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+asyncpg://host/prefect",
        "sqlite+aiosqlite:///file::memory:?cache=shared&uri=true&check_same_thread=false",
    ],
)
def test_settings_read_only_sqlite_files(url):
    assert not {MIGRATE, AUTOMATE} & settings_for_quick_start(url, PREFECT).keys()


def test_settings_of_locked_database_are_safe(settings, tmp_path):
    settings(LATEST, 0)
    path = tmp_path / "prefect.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        values = settings_for_quick_start(f"sqlite+aiosqlite:///{path}", PREFECT)
    assert not {MIGRATE, AUTOMATE} & values.keys()
