"""What a sweep goes over: the values of a grid, and the dimensions of a search, from their text."""

import itertools
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nnbuild.errors import ConfigError

Values = dict[str, Any]
_RANGE = re.compile(r"(?P<log>log:)?(?P<low>[^.\s,][^,\s]*?)\.\.(?P<high>[^,\s]+)")
_HOW = "log:1e-4..1e-1, 1..8, 0.1..0.5 or a,b,c"


class Dimension(NamedTuple):
    """One setting of a search.

    Attributes:
        choices: the values, where they are named one by one; empty for a range.
        low: lower end of a range; both ends are within it. Integers are drawn if both ends are integers.
        high: its upper end.
        log: whether the range is drawn from on a logarithmic scale.
    """

    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False

    def suggest(self, key: str, trial: Any) -> Any:
        """Let a trial of Optuna draw a value, or tell the one that it drew before."""
        if self.choices:
            return trial.suggest_categorical(key, list(self.choices))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(key, self.low, self.high, log=self.log)
        return trial.suggest_float(key, self.low, self.high, log=self.log)

    def extremes(self) -> tuple[Any, ...]:
        """Values that all the others lie between, or all of them."""
        return self.choices or (self.low, self.high)


def grid_values(key: str, text: str) -> tuple[Any, ...]:
    """The values of `--grid key=a,b`: TOML's where they can be, plain text where not.

    Raises:
        ConfigError: there are none, or one comes twice.
    """
    if text.strip().startswith("["):
        given = _toml(text)
        values = given if isinstance(given, list) else [given]
    else:
        values = [_toml(each) for each in text.split(",") if each.strip()]
    return require_values(key, values)


def require_values(key: str, values: Sequence[Any]) -> tuple[Any, ...]:
    """The values of a grid's key, if there are some and no two are alike.

    Raises:
        ConfigError: there are none, or one comes twice.
    """
    if not values:
        raise ConfigError(f"grid of {key} has no values; write it like {key}=0.001,0.01")
    if any(
        one == other and type(one) is type(other)
        for one, other in itertools.combinations(values, 2)
    ):
        raise ConfigError(f"grid of {key} has a value twice in {list(values)}; name each once")
    return tuple(values)


def _toml(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()
    except (ValueError, RecursionError) as error:  # such as an integer of thousands of digits
        raise ConfigError(f"a value that cannot be read: {error}; give another") from error


def dimension(key: str, text: str) -> Dimension:
    """The dimension of `--search key=text`.

    Raises:
        ConfigError: the text is none.
    """
    found = _RANGE.fullmatch(text.strip())
    if found is None:
        if text.startswith("log:") or not text.strip():
            raise ConfigError(f"search of {key} is {text!r}, expected {_HOW}")
        return Dimension(choices=grid_values(key, text))
    low, high = _number(key, text, found["low"]), _number(key, text, found["high"])
    log = found["log"] is not None
    if not low < high:
        raise ConfigError(
            f"search of {key} is {text!r}, from {low} to {high}; the lower end comes first"
        )
    if log and low <= 0:
        raise ConfigError(f"search of {key} is {text!r}, and a logarithmic range begins above 0")
    return Dimension(low=low, high=high, log=log)


def _number(key: str, text: str, end: str) -> float:
    for kind in (int, float):
        try:
            value = kind(end)
        except ValueError:
            continue
        if abs(value) < float("inf"):
            return value
    raise ConfigError(f"search of {key} is {text!r}, and {end!r} is no number; expected {_HOW}")


def points(grid: Mapping[str, Sequence[Any]]) -> list[Values]:
    """Every combination of a grid's values, the last key's changing fastest."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
