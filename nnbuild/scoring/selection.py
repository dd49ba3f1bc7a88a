"""What a job selects: the columns of the input to copy, and the filter of the rows to write."""

import ast
import operator
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nnbuild.errors import ConfigError, StoreError, suggestion
from nnbuild.store import Store, views
from nnbuild.store.schema_evolution import File, common_type, fits

_LOOK_BACK = 100  # newest scoring jobs to compare with
_KEY = "score_id"
_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_MAX_FILTER_LENGTH = 1000
_MAX_SHOWN = 200  # characters of a filter in a message
_EXPECTED = (
    "expected comparisons of a column with a value, joined by and, or, not: "
    "confidence < 0.6 and predicted == 3"
)
# Columns that only some jobs write: with `logits`, `top_k`, `coverage` or `energy`, for models of
# more classes or with class names, or where texts identify the rows.
_OPTIONAL = re.compile(
    r"(?:prob|logit|in_set)_[0-9]+|top_[0-9]+(?:_prob)?|set_size|energy|predicted_name|example_key"
)


def require_distinct_names(kept: Sequence[str], own: Sequence[str], output: str | None) -> None:
    """Refuse columns whose names some reader would confuse with another column.

    SQL ignores case, and most readers take a folder `key=value` above a file for a column. In the
    table `scores`, the columns of other jobs count too, such as those of `top_k`.

    Args:
        kept: Names of the input columns to copy.
        own: Names of the columns that nnbuild writes.
        output: Folder or URL for the rows; None for the table `scores`.

    Raises:
        ConfigError: Two names differ only in case or in their Unicode form.
    """
    keys = [] if output is None else list(_keys_of(output))
    taken = {_folded(name): f"nnbuild's own {name!r}" for name in own}
    taken |= {_folded(key): f"the folder {key}=… of the rows" for key in (*keys, _KEY)}
    folders = {_folded(key) for key in keys}
    for name in kept:
        reason = taken.get(_folded(name))
        if reason is None and output is None and _OPTIONAL.fullmatch(_folded(name)):
            reason = "nnbuild's own in jobs with other settings"
        if reason is not None:
            remedy = ", or choose another output" if _folded(name) in folders else ""
            raise ConfigError(
                f"cannot keep column {name!r}: its name is taken by {reason} "
                f"(many readers ignore case); rename the column of the input{remedy}",
                setting="keep",
                value=name,
            )
        taken[_folded(name)] = f"{name!r} of the input"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _keys_of(output: str) -> Iterator[str]:
    """Yield the partition keys among the folders of a path."""
    for folder in output.split("/"):
        key, equals, _ = folder.partition("=")
        if key and equals:
            yield key


def require_known_types(store: Store, kept: pa.Schema) -> None:
    """Refuse columns that readers could only merge with those of earlier jobs as text.

    Args:
        store: Store with the earlier jobs; the newest hundred are compared.
        kept: Schema of the input columns to copy.

    Raises:
        ConfigError: A column has no type in common with the same column of an earlier job; the
            message names both types and the job.
    """
    for difference in _differences(store, [File(kept, None)], kept.names):
        raise ConfigError(
            f"cannot keep column {difference}; rename the column of the input, or set output to "
            "store these rows separately",
            setting="keep",
        )


def require_known_types_in_files(store: Store, kept: pa.Schema, paths: Sequence[Path]) -> None:
    """Repeat `require_known_types` before the commit, when the values are known too.

    Raises:
        StoreError: Under the conditions of `require_known_types`.
    """
    files = []
    for path in paths:
        with views.reading_errors(path), pq.ParquetFile(path) as file:
            files.append(File(file.schema_arrow, file.metadata))
    for difference in _differences(store, files, kept.names):
        raise StoreError(
            f"cannot commit column {difference}; discard this job, then rename the column of the "
            "input or set output, and score again"
        )


def _differences(store: Store, files: Sequence[File], names: Sequence[str]) -> Iterator[str]:
    """Yield a description of each column that cannot be merged with that of an earlier job."""
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
                yield f"{name!r}: scoring job {score_id} has it as {known!r}, and SQL ignores case"
            elif not _can_merge(name, files, earlier):
                yield (
                    f"{name!r}: its type is {here} here and {there} in scoring job {score_id}, "
                    "and no type can hold the values of both"
                )


def _earlier(store: Store) -> Iterator[tuple[str, list[File]]]:
    """Yield the files of each earlier job in `scores`, newest first."""
    parts = views.newest_parts(store, "scores", _LOOK_BACK)
    for score_id, found in groupby(reversed(parts), key=lambda part: part.value):
        with suppress(StoreError):  # a damaged file must not block new jobs
            yield score_id, [part.file() for part in found]


def _can_merge(name: str, files: Sequence[File], earlier: Sequence[File]) -> bool:
    kinds = [each[0].schema.field(name).type for each in (files, earlier)]
    kind = common_type(*kinds)
    if kind is None:
        return False
    known = [file for file in (*files, *earlier) if file.metadata is not None]
    return all(fits(file, name, kind) for file in known)


def parse_filter(text: str, columns: Iterable[str]) -> pc.Expression:
    """Return an Arrow expression that is true for the rows to keep; a null counts as false.

    The text is never executed: it is parsed, and only comparisons are translated.

    Args:
        text: Comparisons of columns with numbers or strings, joined by `and`, `or`, `not` and
            parentheses.
        columns: Names of the available columns.

    Raises:
        ConfigError: The text is not such a filter, or names an unknown column.
    """
    try:
        if len(text) > _MAX_FILTER_LENGTH:
            raise _refused(text, f"{len(text)} characters, expected at most {_MAX_FILTER_LENGTH}")
        return _expression(ast.parse(text.strip(), mode="eval").body, text, sorted(columns))
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise _refused(text, f"not a filter; {_EXPECTED}") from error


def _expression(node: ast.expr, text: str, columns: list[str]) -> pc.Expression:
    if isinstance(node, ast.BoolOp):
        combine = operator.and_ if isinstance(node.op, ast.And) else operator.or_
        first, *others = (_expression(each, text, columns) for each in node.values)
        for other in others:
            first = combine(first, other)
        return first
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ~_expression(node.operand, text, columns)
    if isinstance(node, ast.Compare) and all(type(each) in _COMPARISONS for each in node.ops):
        sides = [_operand(each, text, columns) for each in (node.left, *node.comparators)]
        pairs = zip(sides, node.ops, sides[1:], strict=False)
        first, *others = (
            _COMPARISONS[type(compare)](left, right) for left, compare, right in pairs
        )
        for other in others:
            first &= other
        return first
    raise _refused(text, f"unsupported {ast.unparse(node)!r}; {_EXPECTED}")


def _operand(node: ast.expr, text: str, columns: list[str]) -> pc.Expression:
    if isinstance(node, ast.Name):
        if node.id not in columns:
            raise _refused(text, f"no column {node.id!r}; {suggestion(node.id, columns)}")
        return pc.field(node.id)
    negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
    constant = node.operand if isinstance(node, ast.UnaryOp) and negative else node
    if isinstance(constant, ast.Constant) and isinstance(constant.value, (int, float, str)):
        if negative and not isinstance(constant.value, str):
            return pc.scalar(-constant.value)
        return pc.scalar(constant.value)
    raise _refused(text, f"unsupported {ast.unparse(node)!r}; {_EXPECTED}")


def _refused(text: str, reason: str) -> ConfigError:
    """Return the error about a filter, of which the message shows the beginning."""
    return ConfigError(f"where filter {text[:_MAX_SHOWN]!r}: {reason}", setting="where", value=text)
