"""IDs: they sort by time, whatever the clock does."""

from datetime import UTC, datetime, timedelta

import pytest

from nnbuild.store.ids import is_run_id, new_run_id

NOW = datetime(2026, 11, 26, 23, 59, 59, 999_000, tzinfo=UTC)


@pytest.mark.parametrize(
    "newest_at",
    [NOW - timedelta(days=1), NOW, NOW + timedelta(microseconds=1), NOW + timedelta(days=9)],
)
@pytest.mark.parametrize("ending", ["000000", "ffffff"])
def test_new_id_sorts_after_newest(newest_at, ending):
    newest = f"{new_run_id(newest_at)[:-6]}{ending}"
    new = new_run_id(NOW, newest)
    assert is_run_id(new)
    assert new > newest
