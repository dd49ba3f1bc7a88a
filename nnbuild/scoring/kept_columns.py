"""The columns that users carry through to `scores`: names and types that every reader can tell apart."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from nnbuild.errors import ConfigError, StoreError
from nnbuild.store import Store, views
from nnbuild.store.schema_evolution import File, common_type, fits

_LOOK_BACK = 100  # scoring jobs, the newest first
_KEY = "score_id"
# Columns that only some jobs write: by --logits, by --top-k, by models of more classes.
_OPTIONAL = re.compile(r"(?:prob|logit)_[0-9]+|top_[0-9]+(?:_prob)?")


def require_distinct_names(kept: Sequence[str], own: Sequence[str], output: str | None) -> None:
    """Refuse columns whose names some reader takes for that of another column.

    SQL ignores case, and a folder named `key=value` above a file is a column to most readers. In
    the table `scores` the columns of other jobs count as well, such as those of `--top-k`.

    Args:
        kept: Columns of the input to carry through.
        own: Columns that nnbuild writes.
        output: Folder or URL that the rows go to; None for the table `scores`.

    Raises:
        ConfigError: Two names are the same but for case, or for how Unicode spells them.
    """
    keys = [] if output is None else list(_keys_of(output))
    taken = {_folded(name): f"their own {name!r}" for name in own}
    taken |= {_folded(key): f"the folder {key}=… that the rows are in" for key in (*keys, _KEY)}
    folders = {_folded(key) for key in keys}
    for name in kept:
        reason = taken.get(_folded(name))
        if reason is None and output is None and _OPTIONAL.fullmatch(_folded(name)):
            reason = "nnbuild's own in jobs with other options"
        if reason is not None:
            remedy = " or give another --output" if _folded(name) in folders else ""
            raise ConfigError(
                f"--keep {name}: the scores have a column of that name already, {reason} "
                f"(many readers ignore case); rename the input's{remedy}"
            )
        taken[_folded(name)] = f"{name!r} of the input"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _keys_of(output: str) -> Iterator[str]:
    """Yield the keys of the partitions that a path leads through."""
    for folder in output.split("/"):
        key, equals, _ = folder.partition("=")
        if key and equals:
            yield key


def require_known_types(store: Store, kept: Any) -> None:
    """Refuse columns that a reader of `scores` could show as text only, beside those of earlier jobs.

    Args:
        store: Store with the earlier jobs, of which the newest hundred are looked at.
        kept: Arrow schema of the columns to carry through.

    Raises:
        ConfigError: A column's type has none in common with its type in an earlier job; the
            message names both and the job.
    """
    for difference in _differences(store, [File(kept, None)], kept.names):
        raise ConfigError(
            f"--keep {difference}; rename the input's column, or give --output to keep these rows apart"
        )


def require_known_types_in_files(store: Store, kept: Any, paths: Sequence[Path]) -> None:
    """Refuse to commit files as `require_known_types` does: by now their values are known too.

    Raises:
        StoreError: As `require_known_types`.
    """
    files = []
    for path in paths:
        with views.reading_errors(path), pq.ParquetFile(path) as file:
            files.append(File(file.schema_arrow, file.metadata))
    for difference in _differences(store, files, kept.names):
        raise StoreError(
            f"cannot commit the column {difference}; discard this job by `nnbuild doctor --repair "
            "--discard`, and score again with the column renamed, or with --output"
        )


def _differences(store: Store, files: Sequence[File], names: Sequence[str]) -> Iterator[str]:
    """Yield a description of each column that does not go with that of an earlier job."""
    if not names or not files:
        return
    for score_id, earlier in _earlier(store):
        columns = {_folded(name): name for name in earlier[0].schema.names}
        for name in names:
            known = columns.get(_folded(name))
            if known is None:
                continue
            here, there = (
                each[0].schema.field(column).type
                for each, column in ((files, name), (earlier, known))
            )
            if known != name:
                yield f"{name}: scoring job {score_id} has it as {known!r}, and SQL ignores case"
            elif not _go_together(name, files, earlier):
                yield (
                    f"{name}: it is {here} here and {there} in scoring job {score_id}, "
                    "and no type holds the values of both"
                )


def _earlier(store: Store) -> Iterator[tuple[str, list[File]]]:
    """Yield the files of each earlier job that wrote to `scores`, the newest first."""
    ids = store.score_ids()[-_LOOK_BACK:]
    parts = views.committed_parts(store, "scores", ids) if ids else []
    for score_id, found in groupby(reversed(parts), key=lambda part: part.value):
        with suppress(StoreError):  # a damaged file is no reason to refuse a new job
            yield score_id, [part.file() for part in found]


def _go_together(name: str, files: Sequence[File], earlier: Sequence[File]) -> bool:
    kinds = [each[0].schema.field(name).type for each in (files, earlier)]
    kind = common_type(*kinds)
    if kind is None:
        return False
    known = [file for file in (*files, *earlier) if file.metadata is not None]
    return all(fits(file, name, kind) for file in known)
