"""Addresses with a date: an address leads to its day and back."""

from datetime import date
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnbuild.runtime.date_patterns import (
    address_of_day,
    day_of_address,
    is_dated,
    require_whole_date,
    undated_part,
    wildcard,
)

PATTERNS = [
    "/srv/labelled/date={date}",
    "/srv/{date:%Y/%m/%d}/images",
    "/srv/{date:%Y}/{date:%m}/{date:%d}.parquet",
    "/srv/{date}/part-{date}.npz",
    "s3://bucket/100%/[x]*/{date:%Y%m%d}.parquet",
    "/srv/{date:%y-%j}",
]
DAYS = st.dates(date(1970, 1, 1), date(2060, 12, 31))


@pytest.mark.parametrize("pattern", PATTERNS)
@given(day=DAYS)
def test_address_leads_to_its_day(pattern, day):
    address = address_of_day(pattern, day)
    assert day_of_address(pattern, address) == day
    assert fnmatchcase(address, wildcard(pattern))
    assert address.startswith(undated_part(pattern))
    assert not is_dated(address)
    require_whole_date(pattern)


@pytest.mark.parametrize(
    "name", ["2026-13-01", "2026-1-01", "2026-10-01x", "", "latest", "2026-02-30", "٢٠٢٦-10-01"]
)
def test_other_address_has_no_day(name):
    assert day_of_address("/srv/date={date}", f"/srv/date={name}") is None


@pytest.mark.parametrize("format_", ["%m-%d", "%Y", "%d%b%Y", "%Y-%m", "week-%W"])
def test_incomplete_date_is_refused(format_):
    with pytest.raises(ValueError, match="which day it is"):
        require_whole_date(f"/srv/{{date:{format_}}}")
