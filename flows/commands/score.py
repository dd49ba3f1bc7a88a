"""`nnbuild score`: a scoring job in this process, without Prefect and, with ONNX Runtime, without TensorFlow."""

import time
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from flows.display import display_for
from flows.printing import print_json
from nnbuild.errors import ConfigError
from nnbuild.scoring import jobs
from nnbuild.scoring.commit import ScoredJob, commit_job
from nnbuild.scoring.config import ScoreConfig


def score(options: dict[str, Any], store: str | None, *, resume: str | None, as_json: bool) -> None:
    """Score, commit, and say where the rows are.

    Raises:
        NnbuildError: what stopped the job.
    """
    began = time.perf_counter()
    job = _opened(options, store, resume)
    display = display_for(Console(stderr=True))
    try:
        with jobs.working_on(job):
            scored = commit_job(job, jobs.score_input(job, display))
    finally:
        display.close()
    seconds = round(time.perf_counter() - began, 3)
    if as_json:
        print_json(scored.model_dump() | {"seconds": seconds, "store": str(job.store.root)})
    else:
        _show(scored, seconds)


def _opened(options: dict[str, Any], store: str | None, resume: str | None) -> jobs.Job:
    if resume is not None:
        if options:
            given = ", ".join(options)
            raise ConfigError(f"--resume goes on with the options that the job was begun with; leave {given} away")
        return jobs.resume_job(resume, store)
    if "input" not in options:
        raise ConfigError("nothing to score; give --input PATH, or --resume SCORE_ID")
    try:
        config = ScoreConfig.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        name = "--" + str(first["loc"][0]).replace("_", "-").removesuffix("-column")
        raise ConfigError(f"{name} {first['input']!r}: {first['msg']}") from error
    return jobs.open_job(config, store)


def _show(scored: ScoredJob, seconds: float) -> None:
    rows = {
        "scoring job": scored.score_id,
        "run": scored.run_id or "a model file",
        "rows": f"{scored.rows:,} scored, {scored.written:,} written, {scored.quarantined:,} quarantined",
        "seconds": f"{seconds:.1f}",
        "output": scored.output,
    }
    for name, value in rows.items():
        print(f"{name:14} {value}")  # noqa: T201  (a path must not be wrapped or cut)
