"""Build: the network, ending in a linear layer."""

from prefect import task

from nnbuild import pipeline
from nnbuild.store import Run
from nnbuild.store.step_results import BuiltModel, CheckedData, LoadedData
from tasks.prefect_side import STEP, logger, run_name


@task(name="build", task_run_name=run_name("build {run.config.model.name}"), **STEP)
def build(run: Run, data: LoadedData, checked: CheckedData) -> BuiltModel:  # noqa: ARG001  (it waits for the checks)
    """Build the network of a run; see `nnbuild.pipeline.build_model`."""
    built = pipeline.build_model(run, data)
    logger().info("%s: %d parameters, logits out", run.config.model.name, built.parameters)
    return built
