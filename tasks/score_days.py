"""Score a range of days: those that the model has not scored yet."""

from datetime import date

from prefect import task

from nnbuild.errors import RunError
from nnbuild.scoring import ScoreConfig, backfill
from nnbuild.scoring.days import Part
from nnbuild.store import Store
from tasks.prefect_side import STEP, logger, show_table
from tasks.telling import tell_of_drift


@task(name="score days", task_run_name="score {first} to {last}", **STEP)
def score_days(config: ScoreConfig, first: date, last: date, store: str | None) -> list[Part]:
    """Score the days of a range; see `nnbuild.scoring.backfill`. Call it directly, so that signals reach it."""
    root = str(Store(store).root)

    def told(part: Part) -> None:
        logger().info("%s %s %s", part.day, part.status, part.remark or part.score_id)
        if part.status == "scored":
            tell_of_drift(root, str(part.score_id), part.run_id, part.rows, part.drift)

    parts = backfill(config, first, last, root, told=told)
    rows = [each.model_dump(mode="json", exclude={"drift"}) for each in parts]
    show_table("nnbuild-days", rows, f"{config.input} from {first} to {last}")
    if failed := [str(each.day) for each in parts if each.status == "failed"]:
        raise RunError(
            f"{', '.join(failed)} could not be scored; see the log, mend them, and run again"
        )
    return parts
