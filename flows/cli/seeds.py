"""`nnbuild run --seeds N`: the same run with several seeds, and how far their figures lie apart."""

import time
from pathlib import Path
from typing import Any

import typer

from flows.commands import run as single
from flows.printing import PlainConsole, print_json, print_line, print_table
from nnbuild.config.schema import RunConfig
from nnbuild.errors import ConfigError, InputError, Interrupted
from nnbuild.evaluation.significance import mean_confidence_interval
from nnbuild.store import Store

Settings = dict[str, Any]
_FIGURES = ("test_accuracy", "test_loss", "fit_seconds", "seconds")
_RUN_COLUMNS = ("seed", "run_id", "status", *_FIGURES, "promoted", "error")
_SPREAD_COLUMNS = ("figure", "runs", "mean", "standard_deviation", "low", "high")
_MOST_SEEDS = 1000


def run(
    options: Settings,
    path: Path | None,
    overrides: list[str],
    *,
    seeds: int,
    store: str | None,
    resume: str | None,
    mlflow: str | None,
    as_json: bool,
) -> None:
    """Make a run for each seed, the failed ones included, and tell mean, deviation and confidence interval.

    Only one run goes to the gate, so that the test images are asked once: that of the first seed which does not
    fail, whatever its figures are.

    Raises:
        NnbuildError: bad input, which no seed would mend, or a signal; the runs before it stand.
        typer.Exit: with 1, once a seed has failed.
    """
    if resume is not None:
        raise ConfigError(
            "--resume goes on with one run, --seeds begins several; leave one of them away"
        )
    place, config = single.prepared(options, path, overrides, store=store, mlflow=mlflow)
    configs = configs_of(config, seeds)
    console = PlainConsole(stderr=True)
    single.start(console)
    rows: list[Settings] = []
    for each in configs:
        if len(configs) > 1:
            console.print_line(f"seed {each.seed}, {len(rows) + 1} of {len(configs)}")
        gated = not any(row["status"] == "succeeded" for row in rows)
        rows.append(_made(each if gated else _without_gate(each), place, console, mlflow))
    _tell(rows, place, as_json=as_json)
    if any(row["status"] == "failed" for row in rows):
        raise typer.Exit(1)


def configs_of(config: RunConfig, seeds: int) -> list[RunConfig]:
    """The config with each of so many seeds, from its own on.

    Raises:
        ConfigError: there are none, too many, or a seed becomes too large.
    """
    if not 1 <= seeds <= _MOST_SEEDS:
        raise ConfigError(f"--seeds is {seeds}, expected 1 to {_MOST_SEEDS}")
    last = config.seed + seeds - 1
    if last >= 2**31:
        raise ConfigError(
            f"--seeds {seeds} from seed {config.seed} on ends at {last}, expected less than {2**31}"
        )
    return [config.model_copy(update={"seed": seed}) for seed in range(config.seed, last + 1)]


def _without_gate(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"gate": config.gate.model_copy(update={"enabled": False})})


def _made(config: RunConfig, place: Store, console: PlainConsole, mlflow: str | None) -> Settings:
    """One run, as a row; a failure for good is a row too."""
    before, began = set(place.run_ids()), time.perf_counter()
    try:
        run_id = single.retrained(config, place, console)
    except (InputError, Interrupted):
        raise
    except Exception as error:  # noqa: BLE001  (it is recorded, and the other seeds go on)
        failed = max(set(place.run_ids()) - before, default=None)
        told = " ".join(str(error).split())
        console.print_line(f"seed {config.seed} failed: {told}")
        return {"seed": config.seed, "run_id": failed, "status": "failed", "error": told}
    row = single.summarise(place, run_id, time.perf_counter() - began) | {"seed": config.seed}
    if mlflow is not None:
        row["mlflow"] = single.logged(place, run_id, mlflow, console)
    return row


def _tell(rows: list[Settings], place: Store, *, as_json: bool) -> None:
    flat = [
        row | {"fit_seconds": row["seconds"]["fit"], "seconds": row["seconds"]["whole"]}
        if "seconds" in row
        else row
        for row in rows
    ]
    finished = [row for row in flat if row["status"] == "succeeded"]
    spreads = (
        {
            name: mean_confidence_interval([row[name] for row in finished])._asdict()
            for name in _FIGURES
        }
        if finished
        else {}
    )
    if as_json:
        status = "succeeded" if len(finished) == len(rows) else "failed"
        print_json(
            {"status": status, "statistics": spreads, "runs": rows, "store": str(place.root)}
        )
        return
    shown = [name for name in _RUN_COLUMNS if any(name in row for row in flat)]
    print_table(flat, shown, "no runs")
    print_line("")
    print_table(
        [{"figure": name, **values} for name, values in spreads.items()],
        _SPREAD_COLUMNS,
        "no run succeeded",
    )
