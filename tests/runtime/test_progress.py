"""The rows and the rate that a scoring job reports."""

import pytest

from nnbuild.runtime import progress
from nnbuild.runtime.progress import NullProgress, RowProgress


class Rows(NullProgress):
    def __init__(self):
        self.reports = []

    def scored(self, done, total, rate):
        self.reports.append((done, total, rate))


@pytest.mark.parametrize("before", [0, 900])
def test_rate_leaves_out_rows_of_before(monkeypatch, before):
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    rows = Rows()
    counter = RowProgress(rows, before, 1000)
    for count in (40, 0, 60):
        now[0] += 2.0
        counter.add(count)
    assert rows.reports == [(before + 40, 1000, 20.0), (before + 100, 1000, 100 / 6)]
