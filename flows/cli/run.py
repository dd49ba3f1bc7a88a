"""`nnbuild run`: retrain in this process, as a Prefect flow."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from flows.cli.app import TRAIN, JsonOption, StoreOption, app, explicit_options
from flows.cli.console import (
    PlainConsole,
    display_for,
    exiting_at_once,
    print_json,
    print_line,
    print_values,
)
from flows.cli.settings import load_config, nest_options
from nnbuild.config.presets import DATASETS, PRESETS
from nnbuild.errors import ConfigError, Interrupted, NnbuildError

if TYPE_CHECKING:
    from collections.abc import Callable

    from flows.cli.console import LogDisplay
    from nnbuild.config.schema import RunConfig
    from nnbuild.pipeline.unchanged import Unchanged
    from nnbuild.store import Store
    from nnbuild.store.manifests import Manifest


T = TypeVar("T")

BY_NETWORK = "set by the network"

DatasetOption = Annotated[
    str,
    typer.Option(metavar="NAME|PATH", help=f"{', '.join(DATASETS)}, or a path to images."),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder with the files of the named dataset.",
        show_default="$NNBUILD_DATA_DIR",
    ),
]
ModelOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help=f"{', '.join(PRESETS)}, or your own network as package.module:function, installed or "
        "in the current folder.",
    ),
]
EpochsOption = Annotated[
    int | None,
    typer.Option(metavar="N", help="Passes over the training images.", show_default=BY_NETWORK),
]

ConfigOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE.toml", help="Settings from a file; options take precedence."),
]


@app.command(
    rich_help_panel=TRAIN,
    epilog="Example: nnbuild run --dataset mnist --model convnet --epochs 12 --seed 0",
)
def run(
    ctx: typer.Context,
    dataset: DatasetOption = "mnist",
    data_dir: DataDirOption = None,
    fallback: Annotated[
        Literal["digits"] | None,
        typer.Option(help="Dataset to train on if the requested one is unavailable."),
    ] = None,
    model: ModelOption = "convnet",
    ensemble_size: Annotated[
        int, typer.Option(metavar="N", help="Networks to train and average as one ensemble.")
    ] = 1,
    epochs: EpochsOption = None,
    batch_size: Annotated[
        int | None,
        typer.Option(metavar="N", help="Images per training step.", show_default=BY_NETWORK),
    ] = None,
    dtype_policy: Annotated[
        Literal["float32", "mixed_bfloat16", "mixed_float16"] | None,
        typer.Option(
            metavar="DTYPE",
            help="Data type of the computations: float32, mixed_bfloat16 or mixed_float16.",
            show_default=BY_NETWORK,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(metavar="N", help="Seed of the split, the weights and the order of examples."),
    ] = 0,
    seeds: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Train N runs, with seeds from --seed on, and print their spread."
        ),
    ] = None,
    config: ConfigOption = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any setting, such as training.learning_rate=0.01. May be repeated.",
        ),
    ] = None,
    as_of: Annotated[
        str | None,
        typer.Option(
            metavar="DAY",
            help="Make the run of a past day again, such as 2026-10-01; the dataset's path has "
            "{date}.",
        ),
    ] = None,
    unchanged: Annotated[
        Literal["skip", "run"] | None,
        typer.Option(
            metavar="POLICY",
            help="What to do if data, settings and code are those of an earlier run, or too few "
            "images are new: skip or run.",
            show_default="skip if the dataset's path has {date}, otherwise run",
        ),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard logs into the run's folder.")
    ] = False,
    mlflow: Annotated[
        str | None,
        typer.Option(metavar="URI", help="MLflow server or database to log the committed run to."),
    ] = None,
    store: StoreOption = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN_ID", help="Interrupted run to resume.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Retrain, evaluate, score and commit one run."""
    started = time.perf_counter()
    if seeds is not None and resume is not None:
        raise ConfigError("--resume resumes one run, --seeds starts several; remove one of them")
    from flows.embedded_server import start_server_early

    start_server_early()
    options = explicit_options(
        ctx,
        dataset=dataset,
        data_dir=data_dir,
        fallback=fallback,
        model=model,
        ensemble_size=ensemble_size,
        epochs=epochs,
        batch_size=batch_size,
        dtype_policy=dtype_policy,
        tensorboard=tensorboard,
        seed=seed,
        as_of=as_of,
    )
    run_config = load_config(nest_options(options), config, settings or [], store)
    target = _open_target(run_config, store, mlflow)
    if seeds is not None:
        from flows.cli.seeds import run_seeds

        run_seeds(run_config, target, seeds=seeds, mlflow=mlflow, as_json=as_json)
        return
    if resume is not None:
        _require_same_settings(target, resume, run_config)
    elif (same := _unchanged_since(target, run_config, unchanged)) is not None:
        _report_skip(same, as_json=as_json)
        return
    console = PlainConsole(stderr=True)
    start_prefect(console)
    try:
        run_id = run_flow(run_config, target, console, resume)
    except NnbuildError as error:
        if as_json and error.exit_code == 1:
            latest = max(target.run_ids(), default=None)
            print_json({"run_id": latest, "status": "failed", "error": str(error)})
        raise
    summary = summarize_run(target, run_id, time.perf_counter() - started)
    if mlflow is not None:
        summary["mlflow"] = log_to_mlflow(target, run_id, mlflow, console)
    if as_json:
        print_json(summary)
    else:
        _print_summary(summary)


def _open_target(config: RunConfig, root: str | None, mlflow: str | None) -> Store:
    """Return the store of a run, after refusing what can be refused before anything starts."""
    from nnbuild.config.schema import resolve
    from nnbuild.store import Store

    resolve(config)
    store = Store(root)
    if mlflow is not None:
        from nnbuild.report.mlflow import require_mlflow

        require_mlflow(mlflow, store)
    return store


def _unchanged_since(store: Store, config: RunConfig, policy: str | None) -> Unchanged | None:
    """Return the run that a new one would repeat, if it is to be skipped then."""
    from nnbuild.runtime.date_patterns import is_dated

    if (policy or ("skip" if is_dated(config.dataset.name) else "run")) == "run":
        return None
    from nnbuild.pipeline.unchanged import unchanged_since

    return unchanged_since(store, config, datetime.now(UTC))


def _report_skip(same: Unchanged, *, as_json: bool) -> None:
    if as_json:
        skipped = {"status": "skipped", "outcome": "skipped", "reason": same.reason}
        print_json({"run_id": None, **skipped, "last_run": same.run_id})
    else:
        print_line(f"skipped: {same.reason}; to run anyway, give --unchanged run")


def _require_same_settings(store: Store, run_id: str, config: RunConfig) -> None:
    """Refuse settings that differ from those of the run to resume, which keeps its own."""
    from nnbuild.config.loading import flatten
    from nnbuild.pipeline.run import waiting_run

    recorded = flatten(waiting_run(store, run_id, config).config.model_dump(mode="json"))
    for key, value in flatten(config.model_dump(mode="json", exclude_unset=True)).items():
        if key != "dataset.data_dir" and value != recorded.get(key):
            raise ConfigError(
                f"cannot change {key} from {recorded.get(key)} to {value} when resuming run "
                f"{run_id}; remove that setting, or start a new run"
            )


def start_prefect(console: PlainConsole) -> None:
    """Import Prefect and TensorFlow while Prefect's server starts.

    Raises:
        ConfigError: The environment of Prefect does not allow a run.
    """
    from flows.embedded_server import EmbeddedServer
    from nnbuild.runtime.lazy_imports import gc_paused, import_blocked

    with (
        exiting_at_once(console),
        display_for(console).waiting("starting Prefect and TensorFlow"),
        gc_paused(),
        EmbeddedServer(),
    ):
        import_module("flows.retrain")  # while the server starts
        # Keras would import scikit-learn and SciPy's statistics for its wrappers of scikit-learn's
        # interface, which takes a quarter of its import. A network of the user can import them.
        with import_blocked("sklearn"):
            import_module("nnbuild.runtime.tensorflow")


def run_flow(
    config: RunConfig, store: Store, console: PlainConsole, resume: str | None = None
) -> str:
    """Run the retraining flow once and show its progress on the console.

    Returns:
        Run ID.
    """
    from flows.retrain import retrain

    return show_flow(
        lambda: retrain(config, str(store.root), resume).run_id,
        console,
        lambda display: display.committed_run,
    )


def show_flow(
    flow: Callable[[], T], console: PlainConsole, result_of: Callable[[LogDisplay], T | None]
) -> T:
    """Call a flow and show its progress on the console.

    Prefect fails a flow run whose end it cannot report to its server. If the result is known by
    then, that is a note, because every result is committed.

    Args:
        flow: Function that calls the flow.
        console: Console of standard error.
        result_of: Function that returns the result that the flow has shown on the display; None if
            there is none yet.

    Returns:
        Result of the flow.
    """
    from flows.cli.main import report_error
    from flows.embedded_server import exit_without_server
    from nnbuild.runtime.signals import request_to_stop
    from tasks.displays import attach_displays

    display = display_for(console)

    def report_stop(stop: Interrupted) -> int:
        display.close()
        return report_error(stop)

    try:
        with attach_displays(display), exit_without_server(report_stop):
            return flow()
    except NnbuildError:
        raise
    except Exception as error:
        result = result_of(display)
        if result is None or request_to_stop(error) is not None:
            raise
        display.note(_incomplete_record(error))
        return result
    finally:
        display.close()


def _incomplete_record(error: Exception) -> str:
    """Return the note on a flow run that failed after all its results were committed."""
    from flows.embedded_process import embedded_server_is_lost
    from nnbuild.runtime.outward import describe

    reason = "its embedded server ended" if embedded_server_is_lost() else describe(error)
    return f"Prefect's record of the run is incomplete ({reason}); the results are committed"


def log_to_mlflow(store: Store, run_id: str, uri: str, console: PlainConsole) -> str | None:
    """Log a committed run to MLflow; a failure is a warning, because the run itself is committed.

    Returns:
        ID of the run in MLflow, None after a failure.
    """
    from nnbuild.report import mlflow as tracking
    from nnbuild.runtime.outward import outward

    with outward("MLflow", console.print_line):
        return tracking.log_run(store, run_id, uri)
    return None


def summarize_run(store: Store, run_id: str, total_seconds: float) -> dict[str, Any]:
    """Return the object that `--json` prints: metrics, seconds and absolute paths."""
    from flows.cli.outcome import summarize_outcome
    from nnbuild.engines import engine_of_run
    from nnbuild.store.step_results import FittedModel, Scored

    record = store.root / "runs" / run_id
    manifest = store.manifest(run_id)
    row, seconds = manifest.row, manifest.seconds
    report = record / "report.html"
    engine, reason = engine_of_run(manifest)
    return {
        "run_id": run_id,
        "status": row.status,
        "dataset": row.dataset,
        "model_name": row.model,
        "epochs": row.epochs,
        "test_accuracy": row.test_accuracy,
        "test_loss": row.test_loss,
        "promoted": row.promoted,
        **summarize_outcome(store, manifest),
        "seconds": {
            "fit": round(seconds[FittedModel.step], 3),
            "score": round(seconds[Scored.step], 3),
            "whole": round(total_seconds - _seconds_waited(manifest), 3),
        },
        "history": str(store.partition("history", run_id)),
        "predictions": str(store.partition("predictions", run_id)),
        "report": str(report) if report.exists() else None,
        "model": str(record / "model.keras"),
        "onnx": str(record / "model.onnx") if engine == "onnx" else None,
        "engine": engine,
        "engine_reason": reason,
        "manifest": str(record / "manifest.json"),
        "store": str(store.root),
    }


def _seconds_waited(manifest: Manifest) -> float:
    """Return how long the run waited for a person's approval, which is not its own time."""
    decided = manifest.steps.decide
    return decided.seconds_waited if decided else 0.0


def _print_summary(summary: dict[str, Any]) -> None:
    from flows.cli.outcome import print_outcome
    from nnbuild.engines import describe_engine

    seconds, epochs = summary["seconds"], summary["epochs"]
    rows = {
        "run": summary["run_id"],
        "dataset": summary["dataset"],
        **({"mlflow": summary["mlflow"]} if summary.get("mlflow") else {}),
        "network": f"{summary['model_name']}, {epochs} epoch{'s' if epochs != 1 else ''}",
        "test accuracy": f"{summary['test_accuracy']:.4f}",
        "test loss": f"{summary['test_loss']:.4f}",
        "scoring": describe_engine(summary["engine"], summary["engine_reason"]),
        "time": f"{seconds['whole']:.1f} s total (fit {seconds['fit']:.1f} s, "
        f"scoring {seconds['score']:.1f} s)",
    }
    paths = {
        name: summary[name]
        for name in ("history", "predictions", "model", "report", "manifest")
        if summary[name]
    }
    print_values({**rows, **paths})
    print_outcome(summary)
