"""The pipeline: the steps of a run, the promotion decision, the commit, and repairs.

The package offers the functions of the steps, such as `nnbuild.pipeline.fit_model`, listed in
`nnbuild.pipeline.registry`. A step takes the run and the results of earlier steps, writes its files
to the run's staging folder, and returns a small result. It can be called again: what the run has
already is loaded. Readers see nothing of it before `nnbuild.pipeline.commit`.

The function of a step is imported when it is first used: most of them need TensorFlow, which takes
seconds, and loading and committing do not.
"""

from typing import TYPE_CHECKING, Any

from nnbuild.pipeline import registry
from nnbuild.pipeline.promotion import record_approval as record_approval
from nnbuild.pipeline.promotion import revoke_decision as revoke_decision
from nnbuild.pipeline.promotion import shared_name as shared_name
from nnbuild.pipeline.reporting import confusion_picture as confusion_picture
from nnbuild.pipeline.reporting import curve_picture as curve_picture

if TYPE_CHECKING:
    from nnbuild.pipeline.data import check_data as check_data
    from nnbuild.pipeline.data import load_data as load_data
    from nnbuild.pipeline.evaluation import calibrate_model as calibrate_model
    from nnbuild.pipeline.evaluation import evaluate_model as evaluate_model
    from nnbuild.pipeline.evaluation import score_test_set as score_test_set
    from nnbuild.pipeline.export import export_model as export_model
    from nnbuild.pipeline.promotion import decide as decide
    from nnbuild.pipeline.reporting import write_report as write_report
    from nnbuild.pipeline.training import build_model as build_model
    from nnbuild.pipeline.training import compile_model as compile_model
    from nnbuild.pipeline.training import fit_model as fit_model
    from nnbuild.pipeline.training import persist_history as persist_history


def __getattr__(name: str) -> Any:
    for step in registry.STEPS:
        if step.name == name:
            return step.function()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
