"""Check: is the data fit to train on?"""

from prefect import task

from nnbuild import pipeline
from nnbuild.errors import CheckError
from nnbuild.store import Run
from nnbuild.store.step_results import CheckedData, LoadedData
from tasks.prefect_side import STEP, logger, run_name, show_table
from tasks.telling import CHECK_FAILED, announce


@task(name="check", task_run_name=run_name("check {data.name}"), **STEP)
def check(run: Run, data: LoadedData) -> CheckedData:
    """Check the data of a run; see `nnbuild.pipeline.check_data`."""
    try:
        checked = pipeline.check_data(run, data)
    except CheckError as error:
        announce(
            CHECK_FAILED,
            run.run_id,
            {"dataset": data.name, "digest": data.digest, "reason": str(error)},
        )
        raise
    show_table(
        "nnbuild-data-checks",
        (each.model_dump() for each in checked.checks),
        f"Checks on {data.name}",
    )
    for each in checked.checks:
        if not each.passed:
            logger().warning(
                "%s: %s, expected %s. %s", each.name, each.measured, each.bound, each.detail
            )
    return checked
