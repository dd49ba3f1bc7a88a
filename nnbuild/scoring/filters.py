"""Row filters such as `confidence < 0.6 and predicted == 3`: comparisons only, never executed."""

import ast
import operator
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow.compute as pc

from nnbuild.errors import ConfigError, suggestion

_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_LONGEST = 1000
_EXPECTED = (
    "expected comparisons of a column with a value, joined by and, or, not: "
    "confidence < 0.6 and predicted == 3"
)


def parse_filter(text: str, columns: Iterable[str]) -> pc.Expression:
    """Return an Arrow expression that is true for the rows to keep; a null counts as false.

    Args:
        text: Comparisons of columns with numbers or strings, joined by `and`, `or`, `not` and
            parentheses.
        columns: Names of the available columns.

    Raises:
        ConfigError: The text is not such a filter, or names an unknown column.
    """
    try:
        if len(text) > _LONGEST:
            raise ConfigError(
                f"the where filter has {len(text)} characters, expected at most {_LONGEST}"
            )
        return _expression(ast.parse(text.strip(), mode="eval").body, text, sorted(columns))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"invalid where filter {text!r}; {_EXPECTED}") from error


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
    raise ConfigError(f"where filter {text!r}: unsupported {ast.unparse(node)!r}; {_EXPECTED}")


def _operand(node: ast.expr, text: str, columns: list[str]) -> pc.Expression:
    if isinstance(node, ast.Name):
        if node.id not in columns:
            raise ConfigError(
                f"where filter {text!r}: no column {node.id!r}; {suggestion(node.id, columns)}"
            )
        return pc.field(node.id)
    negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
    constant = node.operand if isinstance(node, ast.UnaryOp) and negative else node
    if isinstance(constant, ast.Constant) and isinstance(constant.value, (int, float, str)):
        if negative and not isinstance(constant.value, str):
            return pc.scalar(-constant.value)
        return pc.scalar(constant.value)
    raise ConfigError(f"where filter {text!r}: unsupported {ast.unparse(node)!r}; {_EXPECTED}")
