"""`nnbuild score --from DAY --to DAY`: what lies between two days and was not scored yet."""

from collections import Counter
from datetime import date
from typing import Any

from flows.commands.score import configured
from flows.printing import PlainConsole, jsonable, print_json, print_table
from nnbuild.errors import ConfigError, RunError
from nnbuild.scoring import backfill as score_days
from nnbuild.scoring.days import DayResult
from nnbuild.store import Store

_SHOWN = ("day", "status", "rows", "score_id", "drifted", "remark")
_AT_ONCE = 2


def require_alone(*, resume: str | None, runner: str | None, address: str | None) -> None:
    """Refuse what does not go with a range of days.

    Raises:
        ConfigError: naming it.
    """
    if resume is not None:
        raise ConfigError(
            "--resume is for one job; a range of days goes on by the same command again"
        )
    if runner not in (None, "local") or address is not None:
        raise ConfigError(
            "a range of days is scored in this process; leave --runner and --address away"
        )


def backfill(
    options: dict[str, Any],
    store: str | None,
    *,
    since: str | None,
    until: str | None,
    at_once: int | None,
    as_json: bool,
) -> None:
    """Score the days, and say what became of each.

    Raises:
        RunError: some of them could not be scored.
    """
    first, last = _day("--from", since), _day("--to", until)
    config, console = configured(options), PlainConsole(stderr=True)
    parts = score_days(
        config,
        first,
        last,
        store,
        at_once=_AT_ONCE if at_once is None else at_once,
        on_day_done=_line(console),
    )
    counts = Counter(each.status for each in parts)
    rows = [_row(each) for each in parts]
    if as_json:
        totals = {name: counts[name] for name in ("scored", "skipped", "missing", "failed")}
        print_json(
            {"days": [jsonable(row) for row in rows], **totals, "store": str(Store(store).root)}
        )
    else:
        print_table(rows, _SHOWN, "no days")
    if missing := [each.input for each in parts if each.status == "missing"]:
        console.print_line(f"{len(missing)} days have no input: {', '.join(missing)}")
    if counts["failed"]:
        raise RunError(
            f"{counts['failed']} of {len(parts)} days could not be scored; mend them and give the command again"
        )


def _line(console: PlainConsole) -> Any:
    def told(part: DayResult) -> None:
        about = part.remark or (
            f"{part.rows:,} rows" if part.status == "scored" else str(part.score_id)
        )
        console.print_line(f"{part.day} {part.status}  {about}")

    return told


def _row(part: DayResult) -> dict[str, Any]:
    return part.model_dump(mode="json", exclude={"drift", "run_id"}) | {
        "drifted": ", ".join(part.drift.exceeded)
    }


def _day(option: str, given: str | None) -> date:
    if given is None:
        raise ConfigError(
            f"a range of days has two ends; give {option} too, such as {option} 2026-11-01"
        )
    try:
        return date.fromisoformat(given)
    except ValueError as error:
        raise ConfigError(f"{option} {given!r} is no day, expected one like 2026-11-01") from error
