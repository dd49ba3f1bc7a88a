"""Compile: a loss that takes logits."""

from prefect import task

from nnbuild import pipeline
from nnbuild.store import Run
from nnbuild.store.step_results import BuiltModel, CompiledModel, LoadedData
from tasks.prefect_side import STEP, logger, run_name


@task(name="compile", task_run_name=run_name("compile {run.config.model.name}"), **STEP)
def compile_network(run: Run, data: LoadedData, built: BuiltModel) -> CompiledModel:
    """Compile the network of a run; see `nnbuild.pipeline.compile_model`."""
    compiled = pipeline.compile_model(run, data, built)
    logger().info("from_logits=True; %d steps an epoch", compiled.steps_per_epoch)
    return compiled
