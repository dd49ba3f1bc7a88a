"""Tasks of the labelling flow, in their order: add labels, then compute live accuracy."""

from dataclasses import asdict
from datetime import UTC, datetime

from prefect import task

from nnbuild.live import Alarm, Ingested, LabelConfig, LiveConfig, ingest, watch
from nnbuild.report.live import COLUMNS, LIMITS, on_periods, on_shadows
from nnbuild.store import Store
from tasks.artifacts import artifact_key, retry_after, rounded, show_table
from tasks.displays import logger
from tasks.events import report_drop

_SHOWN_PERIODS = 30


@task(name="add labels", task_run_name="add labels", **retry_after(1, 10))
def add_labels(config: LabelConfig, store: str | None) -> Ingested:
    """Add the labels at an address to the store; see `nnbuild.live.ingest`."""
    done = ingest(config, store, required=False)  # the first labels may not have arrived yet
    row = asdict(done) | {"reasons": ", ".join(f"{n} {name}" for name, n in done.reasons.items())}
    key = artifact_key("nnbuild-labels", str(Store(store).root))
    show_table(key, [row], f"Labels of {config.input}")
    logger().info(
        "%d labelled, %d corrected, %d repeated, %d quarantined",
        done.labelled,
        done.corrected,
        done.repeated,
        done.quarantined,
    )
    return done


@task(name="live accuracy", task_run_name="live accuracy", **retry_after(1, 10))
def watch_live(config: LiveConfig, store: str | None) -> list[Alarm]:
    """Compute live accuracy, and report champions that have dropped; see `nnbuild.live.watch`."""
    root = str(Store(store).root)
    watched = watch(
        config, store, now=datetime.now(UTC), on_raised=lambda alarm: report_drop(root, alarm)
    )
    newest = sorted(watched.rows, key=lambda row: row["start"], reverse=True)[:_SHOWN_PERIODS]
    names = [*COLUMNS[1:], COLUMNS[0]]  # the page shows the first columns, and IDs are long
    rows = [{name: _short(row[name]) for name in names} for row in newest]
    key = artifact_key("nnbuild-live", root)
    sentences = [on_periods(watched.rows), *on_shadows(watched.shadows), LIMITS]
    show_table(key, rows, " ".join(sentences))
    return watched.raised


def _short(value: object) -> object:
    return rounded(value) if isinstance(value, float) else value
