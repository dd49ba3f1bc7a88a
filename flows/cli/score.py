"""`nnbuild score`: a scoring job in this process, without Prefect and, with ONNX Runtime, without TensorFlow."""

import time
from typing import Any

from pydantic import ValidationError

from flows.display import display_for
from flows.printing import PlainConsole, print_json, print_values
from nnbuild.engines import describe_engine
from nnbuild.errors import ConfigError
from nnbuild.runtime.outward import Harmless
from nnbuild.scoring import ScoreConfig, ScoredJob
from nnbuild.scoring import score as score_input
from nnbuild.scoring.days import is_dated
from nnbuild.store import Store


def score(
    options: dict[str, Any],
    store: str | None,
    *,
    resume: str | None,
    runner: str | None,
    address: str | None,
    as_json: bool,
) -> None:
    """Score, commit, and say where the rows are.

    Raises:
        NnbuildError: what stopped the job.
    """
    began = time.perf_counter()
    config = _new(options, resume)
    require_runner(runner, address)
    console = PlainConsole(stderr=True)
    display = display_for(console)
    watch = Harmless(display, console.print_line)
    try:
        scored = score_input(config, store, resume=resume, address=address, watch=watch)
    finally:
        display.close()
    seconds = round(time.perf_counter() - began, 3)
    if as_json:
        print_json(scored.model_dump() | {"seconds": seconds, "store": str(Store(store).root)})
    else:
        _show(scored, seconds)


def require_runner(runner: str | None, address: str | None) -> None:
    """Refuse a runner that does not exist, or an address without one.

    Raises:
        ConfigError: with what is expected.
    """
    if runner not in (None, "local", "dask"):
        raise ConfigError(f"--runner {runner!r}: expected local or dask")
    if (runner == "dask") != (address is not None):
        raise ConfigError(
            "--runner dask and --address tcp://HOST:PORT go together; start a cluster by `dask scheduler`"
        )


def _new(options: dict[str, Any], resume: str | None) -> ScoreConfig | None:
    if resume is not None:
        if options:
            given = ", ".join(options)
            raise ConfigError(
                f"--resume goes on with the options that the job was begun with; leave {given} away"
            )
        return None
    config = configured(options)
    if is_dated(config.input):
        raise ConfigError(
            f"--input {config.input!r} holds a {{date}}; give --from and --to, such as --from 2026-11-01"
        )
    return config


def configured(options: dict[str, Any]) -> ScoreConfig:
    """The options as a config.

    Raises:
        ConfigError: one cannot be used, or there is no input.
    """
    if "input" not in options:
        raise ConfigError("nothing to score; give --input PATH, or --resume SCORE_ID")
    try:
        return ScoreConfig.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        name = "--id" if field == "id_column" else "--" + field.replace("_", "-")
        raise ConfigError(f"{name} {first['input']!r}: {first['msg']}") from error


def _drift(scored: ScoredJob) -> str:
    if not scored.drift.exceeded:
        return scored.drift.remark or "none"
    passed = [each for each in scored.drift.measures if each.exceeded]
    told = [
        f"{each.statistic} of {each.measure} {each.value:.2f}, over {each.threshold:.2f}"
        for each in passed
    ]
    return f"EXCEEDED: {'; '.join(told)}"


def _show(scored: ScoredJob, seconds: float) -> None:
    rows = {
        "scoring job": scored.score_id,
        "run": scored.run_id or "a model file",
        "rows": f"{scored.rows:,} scored, {scored.written:,} written, {scored.quarantined:,} quarantined",
        "seconds": f"{seconds:.1f}",
        "engine": describe_engine(scored.engine, scored.engine_reason),
        "output": scored.output,
        "drift": _drift(scored),
    }
    print_values(rows)
