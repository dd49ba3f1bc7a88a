"""`nnbuild run`: one run in this process, shown to a person or told as JSON."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.display import display_for
from flows.embedded_server import EmbeddedServer
from flows.printing import PlainConsole, print_json, print_values
from nnbuild.config import loading
from nnbuild.config.schema import RunConfig, resolve
from nnbuild.engines import describe_engine, engine_of_run
from nnbuild.errors import ConfigError, Interrupted, NnbuildError
from nnbuild.report import mlflow as tracking
from nnbuild.runtime.lazy_imports import gc_paused
from nnbuild.runtime.outward import outward
from nnbuild.runtime.signals import exiting_at_once
from nnbuild.store import Store

Settings = dict[str, Any]

_LOST = (
    "Prefect's embedded server ended during the run, so Prefect's record of it is incomplete; "
    "the run itself is committed"
)
_STOPPED = "stopped before anything began, and nothing was written; run the command again"


def run(
    options: Settings,
    path: Path | None,
    overrides: list[str],
    *,
    store: str | None,
    resume: str | None,
    mlflow: str | None = None,
    as_json: bool,
) -> None:
    """Retrain as a Prefect flow, and say where everything is.

    Raises:
        NnbuildError: what stopped the run.
    """
    began = time.perf_counter()
    place, config = prepared(options, path, overrides, store=store, mlflow=mlflow)
    if resume is not None:
        _require_same(place, resume, config)
    console = PlainConsole(stderr=True)
    start(console)
    try:
        run_id = retrained(config, place, console, resume)
    except NnbuildError as error:
        if as_json and error.exit_code == 1:
            print_json({"run_id": last_run(place), "status": "failed", "error": str(error)})
        raise
    summary = summarise(place, run_id, time.perf_counter() - began)
    if mlflow is not None:
        summary["mlflow"] = logged(place, run_id, mlflow, console)
    if as_json:
        print_json(summary)
    else:
        _show(summary)


def _require_same(place: Store, run_id: str, config: RunConfig) -> None:
    """Refuse settings that the run which is resumed does not have: it keeps its own."""
    from nnbuild.pipeline.run import waiting_run

    begun = loading.flattened(waiting_run(place, run_id, of=config).config.model_dump(mode="json"))
    for key, value in loading.flattened(config.model_dump(mode="json", exclude_unset=True)).items():
        if key != "dataset.data_dir" and value != begun.get(key):
            raise ConfigError(
                f"run {run_id} was begun with {key} {begun.get(key)}, not {value}; leave that out"
            )


def prepared(
    options: Settings,
    path: Path | None,
    overrides: list[str],
    *,
    store: str | None,
    mlflow: str | None,
) -> tuple[Store, RunConfig]:
    """The store and the config; what can be refused now is refused before anything is started."""
    config = configured(options, path, overrides)
    resolve(config)
    place = Store(store)
    if mlflow is not None:
        tracking.require_mlflow(mlflow, place)
    return place, config


def start(console: PlainConsole) -> None:
    """Import Prefect and TensorFlow, and start Prefect's server in the meantime.

    Raises:
        ConfigError: Prefect's surroundings do not allow a run.
    """
    with (
        _leaving_at_once(console),
        display_for(console).waiting("starting Prefect and TensorFlow"),
        gc_paused(),
        EmbeddedServer(),
    ):
        import flows.retrain  # noqa: F401  (while the server boots)
        import nnbuild.runtime.tensorflow  # noqa: F401  (as above)


@contextmanager
def _leaving_at_once(console: PlainConsole) -> Iterator[None]:
    """End at Ctrl-C in this block: nothing has begun, so nothing is lost."""
    terminal = os.dup(2)  # importing TensorFlow sets the descriptor itself aside

    def say(_code: int) -> None:
        clear = "\r\x1b[2K\x1b[?25h" if console.is_terminal else ""  # the spinner, and the cursor
        os.write(terminal, f"{clear}nnbuild: {_STOPPED}\n".encode())

    try:
        with exiting_at_once(say):
            yield
    finally:
        os.close(terminal)


def retrained(
    config: RunConfig, place: Store, console: PlainConsole, resume: str | None = None
) -> str:
    """Make one run by the flow, shown to whoever looks at the console.

    Returns:
        Its id.
    """
    from flows.cli import report
    from flows.embedded_server import embedded_server_is_lost
    from flows.outage import exit_without_server
    from flows.retrain import retrain
    from tasks.progress import shown_on

    display = display_for(console)

    def stopped(stop: Interrupted) -> int:
        display.close()
        return report(stop)

    try:
        with shown_on(display), exit_without_server(stopped):
            return retrain(config, str(place.root), resume).run_id
    except Exception:
        if display.committed_run is None or not embedded_server_is_lost():
            raise
        display.note(_LOST)
        return display.committed_run
    finally:
        display.close()


def logged(store: Store, run_id: str, uri: str, console: PlainConsole) -> str | None:
    """MLflow's id of the run. That it does not take the run is worth a warning: the run itself is committed."""
    with outward("MLflow", console.print_line):
        return tracking.log_run(store, run_id, uri)
    return None


def configured(options: Settings, path: Path | None, overrides: list[str]) -> RunConfig:
    """The config of a run: the file, the settings over it, the options over both."""
    return configured_from(loading.read_toml(path) if path else {}, options, path, overrides)


def configured_from(
    file: Settings, options: Settings, path: Path | None, overrides: list[str]
) -> RunConfig:
    """As `configured`, from what was read of the file at `path`."""
    given = dict(file)
    for override in overrides:
        given = loading.merged(given, loading.setting(override))
    return loading.checked(loading.merged(given, _given(options)), path)


def _given(options: Settings) -> Settings:
    """The options that were given, without the empty sections."""
    kept = {
        key: _given(value) if isinstance(value, dict) else value for key, value in options.items()
    }
    return {key: value for key, value in kept.items() if value is not None and value != {}}


def last_run(store: Store) -> str | None:
    """The id of the run that was committed last, succeeded or failed."""
    return max(store.run_ids(), default=None)


def summarise(store: Store, run_id: str, whole: float) -> Settings:
    """The object that `--json` prints: figures, seconds, and absolute paths."""
    record = store.root / "runs" / run_id
    manifest = store.manifest(run_id)
    row, seconds = manifest["row"], manifest["seconds"]
    report = record / "report.html"
    engine, reason = engine_of_run(manifest)
    return {
        "run_id": run_id,
        "status": row["status"],
        "dataset": row["dataset"],
        "model_name": row["model"],
        "epochs": row["epochs"],
        "test_accuracy": row["test_accuracy"],
        "test_loss": row["test_loss"],
        "promoted": row["promoted"],
        "seconds": {
            "fit": round(seconds["fit_model"], 3),
            "score": round(seconds["score_test_set"], 3),
            "whole": round(whole, 3),
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


def _show(summary: Settings) -> None:
    """The same for a person."""
    seconds = summary["seconds"]
    rows = {
        "run": summary["run_id"],
        "dataset": summary["dataset"],
        **({"mlflow": summary["mlflow"]} if summary.get("mlflow") else {}),
        "network": f"{summary['model_name']}, {summary['epochs']} epochs",
        "test accuracy": f"{summary['test_accuracy']:.4f}",
        "test loss": f"{summary['test_loss']:.4f}",
        "scoring": describe_engine(summary["engine"], summary["engine_reason"]),
        "seconds": f"{seconds['whole']:.1f} in all, {seconds['fit']:.1f} of fit, {seconds['score']:.1f} of scoring",
    }
    places = {
        name: summary[name]
        for name in ("history", "predictions", "model", "report", "manifest")
        if summary[name]
    }
    print_values({**rows, **places})
