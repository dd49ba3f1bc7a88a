"""Check: is the data fit to train on?"""

from prefect import task

from nnbuild import steps
from nnbuild.results import CheckedData, LoadedData
from nnbuild.store import Run
from tasks.prefect_side import STEP, logger, show_table


@task(name="check", task_run_name="check {data.name}", **STEP)
def check(run: Run, data: LoadedData) -> CheckedData:
    """Check the data of a run; see `nnbuild.steps.check_data`."""
    checked = steps.check_data(run, data)
    show_table("nnbuild-data-checks", (each.model_dump() for each in checked.checks), f"Checks on {data.name}")
    for each in checked.checks:
        if not each.passed:
            logger().warning("%s: %s, expected %s. %s", each.name, each.measured, each.bound, each.detail)
    return checked
