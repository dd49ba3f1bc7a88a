"""Make the shards of a scoring job in this process, and say which are left to make."""

from collections.abc import Sequence

from nnbuild.data.streams import InputChunk
from nnbuild.engines import Engine
from nnbuild.runtime import fault_injection
from nnbuild.runtime.progress import ProgressCallback, RowProgress
from nnbuild.scoring.batch import ShadowContext, ShardContext
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.job import Job, row_schema, shards_of
from nnbuild.scoring.models import engine_of
from nnbuild.scoring.selection import parse_filter
from nnbuild.scoring.shadow import PairedEngine, shadow_schema
from nnbuild.scoring.shards import Shard, finished, make_shards
from nnbuild.store.filesystem import make_durable_dir


def shard_context(job: Job) -> ShardContext:
    """Return the context for making the shards of a job."""
    schema = row_schema(job.config, job.model, job.source)
    return ShardContext(
        config=job.config,
        source=job.source,
        engine=lambda: job_engine(job, job.config),
        classes=job.model.classes,
        schema=schema,
        temperature=job.temperature,
        where=parse_filter(job.config.where, schema.names) if job.config.where else None,
        class_names=job.model.class_names,
        energy_edges=job.model.energy_edges,
        set_threshold=job.model.set_threshold,
        shadow=_shadow_context(job),
    )


def _shadow_context(job: Job) -> ShadowContext | None:
    if job.shadow is None:
        return None
    return ShadowContext(
        str(job.shadow.run_id),
        shadow_schema(job.config, job.shadow, job.source.identifier()),
        (job.shadow.temperature or 1.0) if job.config.calibrated else 1.0,
        job.shadow.set_threshold,
    )


def job_engine(job: Job, config: ScoreConfig) -> Engine:
    """Return the engine of a job: its model, and its shadow if there is one.

    Args:
        job: The job.
        config: Its settings, with the number of threads to use.
    """
    engine = engine_of(job.model, config, job.folder)
    if job.shadow is None:
        return engine
    shadow = engine_of(job.shadow, config, job.folder, file="shadow.keras")
    return PairedEngine(engine, shadow)


def progress_of(
    job: Job, *, is_verified: bool = True
) -> tuple[list[Shard], list[tuple[int, list[InputChunk]]]]:
    """Return the finished shards, and the number and chunks of each pending shard.

    Args:
        job: The job.
        is_verified: Whether to read the files of the finished shards; see `finished`.
    """
    done: list[Shard] = []
    pending: list[tuple[int, list[InputChunk]]] = []
    for number, chunks in enumerate(shards_of(job)):
        shard = finished(job.folder, number, shadow=job.shadow is not None, is_verified=is_verified)
        if shard is not None:
            done.append(shard)
        else:
            pending.append((number, chunks))
    return done, pending


def rows_of(shards: Sequence[Shard]) -> int:
    """Return the number of input rows of shards."""
    return sum(each.rows + each.quarantined for each in shards)


def score_input(job: Job, progress: ProgressCallback | None = None) -> list[Shard]:
    """Make the missing shards in this process.

    Raises:
        DataError: A row cannot be scored, and `on_error` is `stop`.
        ContractError: The output of the model is not a finite array of logits.
    """
    context = shard_context(job)
    done, pending = progress_of(job)
    counter = RowProgress(progress, rows_of(done), job.total)
    make_durable_dir(job.folder / "rows")
    for result in make_shards(context, pending, job.folder):
        if isinstance(result, Shard):
            done.append(result)
        else:
            counter.add(result)
    fault_injection.failpoint("score:shards")
    return sorted(done, key=lambda each: each.name)
