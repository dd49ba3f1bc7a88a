"""Export: the network as ONNX, for scoring without TensorFlow."""

from prefect import task

from nnbuild import pipeline
from nnbuild.store import Run
from nnbuild.store.step_results import ExportedModel, FittedModel, LoadedData
from tasks.prefect_side import STEP, logger, run_name


@task(name="export", task_run_name=run_name("export {run.config.model.name}"), **STEP)
def export(run: Run, data: LoadedData, fitted: FittedModel) -> ExportedModel:
    """Export the network of a run; see `nnbuild.pipeline.export_model`."""
    exported = pipeline.export_model(run, data, fitted)
    if exported.path is None:
        logger().warning("not exported to ONNX: %s; scoring will use Keras", exported.remark)
    else:
        logger().info(
            "exported to ONNX; logits within %.1e of Keras's", exported.largest_difference
        )
    return exported
