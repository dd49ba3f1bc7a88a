"""`nnbuild run --seeds N`: the same run with several seeds, and the spread of their metrics."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import typer

from flows.cli.console import PlainConsole, print_json, print_line, print_table
from flows.cli.outcome import print_outcome
from flows.cli.run import log_to_mlflow, run_flow, start_prefect, summarize_run
from nnbuild.errors import Caught, ConfigError, InputError, Interrupted, one_line

if TYPE_CHECKING:
    from nnbuild.config.schema import RunConfig
    from nnbuild.store import Store

Row = dict[str, Any]
_METRICS = ("test_accuracy", "test_loss", "fit_seconds", "seconds")
_RUN_COLUMNS = ("seed", "run_id", "status", *_METRICS, "outcome", "error")
_SPREAD_COLUMNS = ("metric", "runs", "mean", "standard_deviation", "low", "high")
_MAX_SEEDS = 1000


def run_seeds(
    config: RunConfig, store: Store, *, seeds: int, mlflow: str | None, as_json: bool
) -> None:
    """Train one run per seed, and print mean, standard deviation and confidence interval.

    Only the first run that succeeds goes through the promotion gate, whatever its metrics are, so
    that nothing is chosen on the test images. A failed run is recorded, and the others continue.

    Raises:
        NnbuildError: The input is invalid, which no seed would change, or a signal asked to stop;
            earlier runs stay committed.
        typer.Exit: A seed failed; the exit code is 1.
    """
    configs = _configs_by_seed(config, seeds)
    console = PlainConsole(stderr=True)
    start_prefect(console)
    rows: list[Row] = []
    for each in configs:
        if len(configs) > 1:
            console.print_line(f"seed {each.seed}, {len(rows) + 1} of {len(configs)}")
        has_succeeded = any(row["status"] == "succeeded" for row in rows)
        try:
            rows.append(
                _run_seed(_without_gate(each) if has_succeeded else each, store, console, mlflow)
            )
        except Interrupted as stop:
            if left := configs[len(rows) + 1 :]:
                stop.add_note(
                    f"then train the {len(left)} seeds that are left with the same options, and "
                    f"--seed {left[0].seed} --seeds {len(left)} --set gate.enabled=false"
                )
            raise
    _print_rows(rows, store, as_json=as_json)
    if any(row["status"] == "failed" for row in rows):
        raise typer.Exit(1)


def _configs_by_seed(config: RunConfig, seeds: int) -> list[RunConfig]:
    """Return one config per seed, from the config's own seed on.

    Raises:
        ConfigError: The number of seeds, or the last seed, is out of range.
    """
    if not 1 <= seeds <= _MAX_SEEDS:
        raise ConfigError(f"--seeds is {seeds}, expected 1 to {_MAX_SEEDS}")
    last = config.seed + seeds - 1
    if last >= 2**31:
        raise ConfigError(
            f"--seeds {seeds} from --seed {config.seed} ends at {last}, expected less than "
            f"{2**31}; reduce one of them"
        )
    return [config.model_copy(update={"seed": seed}) for seed in range(config.seed, last + 1)]


def _without_gate(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"gate": config.gate.model_copy(update={"enabled": False})})


def _run_seed(config: RunConfig, store: Store, console: PlainConsole, mlflow: str | None) -> Row:
    """Train one run and return its row, also if it failed."""
    before, started = set(store.run_ids()), time.perf_counter()
    with Caught(InputError, Interrupted) as caught:
        run_id = run_flow(config, store, console)
    if caught.error is not None:  # it is recorded, and the other seeds continue
        failed = max(set(store.run_ids()) - before, default=None)
        message = one_line(caught.error)
        console.print_line(f"seed {config.seed} failed: {message}")
        return {"seed": config.seed, "run_id": failed, "status": "failed", "error": message}
    row = summarize_run(store, run_id, time.perf_counter() - started) | {"seed": config.seed}
    if mlflow is not None:
        row["mlflow"] = log_to_mlflow(store, run_id, mlflow, console)
    return row


def _print_rows(rows: list[Row], store: Store, *, as_json: bool) -> None:
    flat = [
        row | {"fit_seconds": row["seconds"]["fit"], "seconds": row["seconds"]["whole"]}
        if "seconds" in row
        else row
        for row in rows
    ]
    succeeded = [row for row in flat if row["status"] == "succeeded"]
    statistics = _statistics(succeeded) if succeeded else {}
    if as_json:
        status = "succeeded" if len(succeeded) == len(rows) else "failed"
        print_json(
            {"status": status, "statistics": statistics, "runs": rows, "store": str(store.root)}
        )
        return
    columns = [name for name in _RUN_COLUMNS if any(name in row for row in flat)]
    print_table(flat, columns, "no runs")
    print_line("")
    spread = [{"metric": name, **values} for name, values in statistics.items()]
    print_table(spread, _SPREAD_COLUMNS, "no run succeeded")
    if succeeded:
        print_line("")
        print_line(f"run {succeeded[0]['run_id']} went to the gate")
        print_outcome(succeeded[0])


def _statistics(rows: list[Row]) -> dict[str, Row]:
    from nnbuild.evaluation.significance import mean_confidence_interval

    return {
        name: mean_confidence_interval([row[name] for row in rows])._asdict() for name in _METRICS
    }
