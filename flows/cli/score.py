"""`nnbuild score`: one scoring job, or one per day of a range, in this process without Prefect."""

from __future__ import annotations

import time
from collections import Counter
from datetime import date
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flows.cli.app import (
    TRAIN,
    AddressOption,
    JsonOption,
    RunnerOption,
    StoreOption,
    app,
    explicit_options,
    require_runner,
)
from flows.cli.console import (
    PlainConsole,
    display_for,
    exiting_at_once,
    print_json,
    print_table,
    print_values,
    to_json_row,
)
from flows.cli.settings import Settings, option_of, parse_options
from nnbuild.errors import ConfigError, RunError

if TYPE_CHECKING:
    from nnbuild.scoring import ScoreConfig, ScoredJob
    from nnbuild.scoring.days import DayResult

_DAY_COLUMNS = ("day", "status", "rows", "score_id", "drifted", "remark")
_DAY_STATUSES = ("scored", "skipped", "missing", "failed")


@app.command(
    rich_help_panel=TRAIN,
    epilog="Example: nnbuild score --input 'images/*.parquet' --keep customer_id "
    "--where 'confidence < 0.6'",
)
def score(
    ctx: typer.Context,
    input: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|GLOB|URL",
            help="Images to score: Parquet file, folder, glob or URL; IDX file, .npz, or pictures.",
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            metavar="RUN_ID|FILE",
            help="Model to score with: champion, champion:DATASET, a run ID, or a model file.",
        ),
    ] = "champion",
    digest: Annotated[
        str | None,
        typer.Option(metavar="SHA256", help="SHA-256 of the model file, required for .onnx."),
    ] = None,
    shadow: Annotated[
        str | None,
        typer.Option(
            metavar="RUN_ID",
            help="Run that scores the same rows alongside the model, into the table "
            "shadow_scores; newest for the newest run that was not promoted.",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="New folder or URL for the scored rows.",
            show_default="table scores of the store",
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B", help="Input columns to copy to the output; repeatable."),
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(
            "--id",
            metavar="COLUMN",
            help="Column of integers or texts that identify the images.",
            show_default="row number",
        ),
    ] = None,
    day: Annotated[
        str | None,
        typer.Option(
            metavar="DAY",
            help="Day of the images, for nnbuild live.",
            show_default="day of the job",
        ),
    ] = None,
    image_column: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Parquet column of the images.",
            show_default="image, img or images",
        ),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Parquet column of the labels.",
            show_default="label, labels, fine_label or target",
        ),
    ] = None,
    pixel_max: Annotated[
        float | None,
        typer.Option(
            metavar="VALUE",
            help="Pixel value of white, such as 1, 255 or 65535.",
            show_default="inferred from the data",
        ),
    ] = None,
    max_brightness_ratio: Annotated[
        float,
        typer.Option(
            metavar="FACTOR",
            help="Largest ratio between the mean brightness of the input and of the reference.",
        ),
    ] = 10.0,
    logits: Annotated[bool, typer.Option("--logits", help="Also write the logits.")] = False,
    top_k: Annotated[
        int | None, typer.Option(metavar="K", help="Also write the K most probable classes.")
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Condition of the rows to write, such as confidence < 0.6."
        ),
    ] = None,
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="Divide the logits by the run's temperature.")
    ] = False,
    coverage: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            help="Also write sets of classes that contain the true class with this probability, "
            "such as 0.95.",
        ),
    ] = None,
    energy: Annotated[
        bool,
        typer.Option("--energy", help="Also write the energy, -log(sum(exp(logits)))."),
    ] = False,
    engine: Annotated[
        Literal["auto", "onnx", "keras"],
        typer.Option(
            help="Engine that runs the model. auto is ONNX Runtime, or Keras for a run without an "
            "ONNX model."
        ),
    ] = "auto",
    batch_size: Annotated[
        int, typer.Option(metavar="N", help="Images per batch; fewer if they are large.")
    ] = 4096,
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", help="Cores to use.", show_default="number of processors"),
    ] = None,
    on_error: Annotated[
        Literal["stop", "quarantine"],
        typer.Option(help="What to do with rows that cannot be scored."),
    ] = "stop",
    drift_psi: Annotated[
        float,
        typer.Option(
            metavar="INDEX",
            help="Population stability index above which drift is reported.",
        ),
    ] = 0.2,
    drift_ks: Annotated[
        float,
        typer.Option(
            metavar="DISTANCE",
            help="Kolmogorov-Smirnov distance above which drift is reported.",
        ),
    ] = 0.2,
    shard_rows: Annotated[
        int, typer.Option(metavar="N", help="Approximate number of input rows per output file.")
    ] = 262_144,
    runner: RunnerOption = "local",
    address: AddressOption = None,
    first_day: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="DAY", help="First day to score; needs {date} in --input, and --to."
        ),
    ] = None,
    last_day: Annotated[
        str | None, typer.Option("--to", metavar="DAY", help="Last day to score.")
    ] = None,
    max_parallel: Annotated[
        int, typer.Option(metavar="N", help="Largest number of days to score in parallel.")
    ] = 2,
    resume: Annotated[
        str | None, typer.Option(metavar="SCORE_ID", help="Interrupted scoring job to resume.")
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score any number of images into the table of probabilities."""
    options = explicit_options(
        ctx,
        input=input,
        model=model,
        digest=digest,
        shadow=shadow,
        output=output,
        id_column=id_column,
        day=day,
        image_column=image_column,
        label_column=label_column,
        pixel_max=pixel_max,
        max_brightness_ratio=max_brightness_ratio,
        logits=logits,
        top_k=top_k,
        where=where,
        calibrated=calibrated,
        coverage=coverage,
        energy=energy,
        engine=engine,
        batch_size=batch_size,
        threads=threads,
        on_error=on_error,
        shard_rows=shard_rows,
        drift_psi=drift_psi,
        drift_ks=drift_ks,
    )
    if keep:
        options["keep"] = [name for each in keep for name in each.split(",")]
    days = explicit_options(ctx, first_day=first_day, last_day=last_day, max_parallel=max_parallel)
    if days:
        _refuse_for_days(resume=resume, runner=runner, address=address, day=day)
        range_of_days = _day("from", first_day), _day("to", last_day)
        config = score_config(options, ctx.command)
        _score_days(config, range_of_days, store, max_parallel=max_parallel, as_json=as_json)
    else:
        started = time.perf_counter()
        cores = options.pop("threads", None) if resume is not None else None
        job_config = _job_config(options, resume, ctx.command)
        require_runner(runner, address)
        job = _score_once(job_config, store, resume=resume, threads=cores, address=address)
        _report_job(job, store, round(time.perf_counter() - started, 3), as_json=as_json)


def _score_once(
    config: ScoreConfig | None,
    root: str | None,
    *,
    resume: str | None,
    threads: int | None,
    address: str | None,
) -> ScoredJob:
    console = PlainConsole(stderr=True)
    with exiting_at_once(console):
        from nnbuild.runtime.lazy_imports import start_arrow_without_pandas
        from nnbuild.runtime.outward import Harmless
        from nnbuild.scoring import score as run_job

        import_module("nnbuild.engines.onnx")
        start_arrow_without_pandas()
    display = display_for(console)
    progress = Harmless(display, console.print_line)
    try:
        return run_job(
            config, root, resume=resume, threads=threads, address=address, progress=progress
        )
    finally:
        display.close()


def _report_job(job: ScoredJob, root: str | None, seconds: float, *, as_json: bool) -> None:
    from nnbuild.store import Store

    if as_json:
        print_json(job.model_dump() | {"seconds": seconds, "store": str(Store(root).root)})
    else:
        _print_job(job, seconds)


def _job_config(options: Settings, resume: str | None, command: Any) -> ScoreConfig | None:
    """Return the config of a new job, None for one that is resumed and has its own."""
    from nnbuild.runtime.date_patterns import is_dated

    if resume is not None:
        if options:
            raise ConfigError(
                "--resume uses the options that the job was started with, except --threads; remove "
                f"{', '.join(option_of(command, each) or each for each in options)}"
            )
        return None
    config = score_config(options, command)
    if is_dated(config.input):
        raise ConfigError(
            f"--input {config.input!r} contains {{date}}; give --from and --to, such as "
            "--from 2026-11-01 --to 2026-11-07"
        )
    return config


def score_config(options: Settings, command: Any = None) -> ScoreConfig:
    """Return the config of a scoring job.

    Args:
        options: Fields of `ScoreConfig`.
        command: Command with their options; see `parse_options`.

    Raises:
        ConfigError: The input is missing, or a value is invalid; the message names the option.
    """
    from nnbuild.scoring import ScoreConfig

    if "input" not in options:
        raise ConfigError("nothing to score; give --input PATH, or --resume SCORE_ID")
    return parse_options(ScoreConfig, options, command)


def _print_job(job: ScoredJob, seconds: float) -> None:
    from nnbuild.engines import describe_engine

    rows = f"{job.rows:,} scored, {job.written:,} written, {job.quarantined:,} quarantined"
    print_values(
        {
            "scoring job": job.score_id,
            "run": job.run_id or "none (model file)",
            "shadow": job.shadow_run_id or "none",
            "rows": rows,
            "time": f"{seconds:.1f} s",
            "engine": describe_engine(job.engine, job.engine_reason),
            "output": job.output,
            "drift": _describe_drift(job),
        }
    )


def _describe_drift(job: ScoredJob) -> str:
    if not job.drift.exceeded:
        return job.drift.remark or "none"
    measures = [
        f"{each.statistic} of {each.measure} {each.value:.2f}, over {each.threshold:.2f}"
        for each in job.drift.measures
        if each.exceeded
    ]
    return f"EXCEEDED: {'; '.join(measures)}"


def _refuse_for_days(
    *, resume: str | None, runner: str, address: str | None, day: str | None
) -> None:
    """Refuse options that do not apply to a range of days.

    Raises:
        ConfigError: One of them is present.
    """
    if resume is not None:
        raise ConfigError(
            "--resume applies to a single job; to resume a range of days, repeat its command "
            "without --resume"
        )
    if day is not None:
        raise ConfigError("a range of days gives each job its own day; remove --day")
    if runner != "local" or address is not None:
        raise ConfigError(
            "a range of days is scored in this process; remove --runner and --address"
        )


def _day(name: str, text: str | None) -> date:
    from nnbuild.runtime.date_patterns import parse_day

    if text is None:
        raise ConfigError(
            f"a range of days needs --from and --to; give --{name} too, such as --{name} 2026-11-01"
        )
    return parse_day(text, name)


def _score_days(
    config: ScoreConfig,
    days: tuple[date, date],
    root: str | None,
    *,
    max_parallel: int,
    as_json: bool,
) -> None:
    """Score each day of a range and print one row per day.

    Raises:
        RunError: Some days could not be scored.
    """
    from nnbuild.scoring import backfill
    from nnbuild.store import Store

    console = PlainConsole(stderr=True)

    def print_day(result: DayResult) -> None:
        scored = f"{result.rows:,} rows" if result.status == "scored" else str(result.score_id)
        console.print_line(f"{result.day} {result.status}  {result.remark or scored}")

    results = backfill(config, *days, root, max_parallel=max_parallel, on_day_done=print_day)
    counts: Counter[str] = Counter(each.status for each in results)
    rows = [_day_row(each) for each in results]
    if as_json:
        totals = {name: counts[name] for name in _DAY_STATUSES}
        print_json(
            {"days": [to_json_row(row) for row in rows], **totals, "store": str(Store(root).root)}
        )
    else:
        print_table(rows, _DAY_COLUMNS, "no days")
    if missing := [each.input for each in results if each.status == "missing"]:
        console.print_line(f"{len(missing)} days have no input: {', '.join(missing)}")
    if counts["failed"]:
        raise RunError(
            f"{counts['failed']} of {len(results)} days could not be scored; fix their input and "
            "repeat the command"
        )


def _day_row(result: DayResult) -> dict[str, Any]:
    return result.model_dump(mode="json", exclude={"drift", "run_id"}) | {
        "drifted": ", ".join(result.drift.exceeded)
    }
