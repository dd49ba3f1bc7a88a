"""What a sweep goes over: the values of a grid, and the dimensions of a search, from their text."""

import hashlib
import itertools
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, JsonValue, ValidationError

from nnbuild.config import loading
from nnbuild.config.schema import RunConfig, resolve
from nnbuild.config.sections import Section, TrialTag
from nnbuild.errors import ConfigError, suggestion

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


_VARIED = ("model", "training")
_MOST_RUNS = 10_000
_TRIALS = 20


class SweepConfig(Section):
    """A sweep over a grid, or a search by Optuna."""

    run: RunConfig = Field(RunConfig(), description="What every trial has in common")
    grid: dict[str, tuple[JsonValue, ...]] = Field(
        {}, description="Values of each setting, all combined"
    )
    search: dict[str, str] = Field(
        {}, description="Range or choices of each setting, as log:1e-4..1e-1 or a,b"
    )
    trials: int | None = Field(None, ge=1, le=_MOST_RUNS, description="Of a search, in all")
    seeds: int = Field(
        1, ge=1, le=1000, description="Runs of each trial, with the seeds from the run's own on"
    )
    objective: Literal["val_accuracy", "val_loss"] = Field(
        "val_accuracy", description="What trials are compared by"
    )
    prune: bool = Field(
        default=True, description="Give up trials of a search that are below the median so far"
    )
    storage: str | None = Field(
        None, description="Optuna's storage; an SQLite file in the store if not given"
    )

    def digest(self) -> str:
        """sha256 of what decides the trials, 64 hexadecimal digits; more trials or another storage are the same."""
        told = self.model_dump_json(exclude={"trials": True, "storage": True, "run": {"trial"}})
        return hashlib.sha256(told.encode()).hexdigest()

    def dimensions(self) -> dict[str, Dimension]:
        """What a search goes over."""
        return {key: dimension(key, text) for key, text in self.search.items()}

    def config_of(
        self, values: Mapping[str, Any], *, seed: int = 0, tag: TrialTag | None = None
    ) -> RunConfig:
        """The config of one run.

        Args:
            values: of the settings that vary, by dotted key.
            seed: from 0, which of the trial's seeds.
            tag: what says which trial it is.

        Raises:
            ConfigError: a setting is unknown, ill-typed or out of bounds.
        """
        told: Values = self.run.model_dump(exclude_unset=True)
        for key, value in values.items():
            nested: Any = value
            for name in reversed(key.split(".")):
                nested = {name: nested}
            told = loading.merge(told, nested)
        config = loading.parse_config(told | {"seed": self.run.seed + seed, "trial": tag})
        return resolve(config)


def sweep_config(given: Mapping[str, Any], run: RunConfig) -> SweepConfig:
    """A sweep's config from its options, each setting of it tried.

    Args:
        given: the fields of `SweepConfig` that were given; `grid` holds lists or text by key.
        run: what every trial has in common.

    Raises:
        ConfigError: nothing is varied, a setting is unknown or may not vary, or a value is refused.
    """
    known = set(SweepConfig.model_fields) - {"run"}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ConfigError(f"unknown key 'sweep.{unknown[0]}'; {suggestion(unknown[0], known)}")
    grid = {
        key: grid_values(key, values)
        if isinstance(values, str)
        else require_values(key, _listed(values))
        for key, values in _table(given, "grid").items()
    }
    try:
        config = SweepConfig.model_validate(
            {**given, "grid": grid, "search": _table(given, "search"), "run": run}
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(
            f"{'.'.join(map(str, first['loc'][:2]))} is {first['input']!r}: {first['msg']}"
        ) from error
    _require_one_way(config)
    if config.search and config.trials is None:
        config = config.model_copy(update={"trials": _TRIALS})
    _require_values_that_fit(config)
    return config


def options_of(texts: Sequence[str], option: str) -> dict[str, str]:
    """The keys and texts of `--grid key=text`, given as often as one likes.

    Raises:
        ConfigError: there is no `=`, or a key comes twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(
                f"{option} {text!r} is not of the form key=values; write it like training.epochs=2,4"
            )
        if key.strip() in found:
            raise ConfigError(f"{option} names {key.strip()} twice; give all its values at once")
        found[key.strip()] = value
    return found


def split_file(path: Path | None) -> tuple[Values, Values]:
    """The settings of a run, and those of the sweep under `[sweep]`, from a TOML file."""
    told = loading.read_toml(path) if path else {}
    sweep = told.pop("sweep", {})
    if not isinstance(sweep, dict):
        raise ConfigError(f"{path}: sweep is {sweep!r}, expected a table; see docs/sweep.md")
    return told, sweep


def _table(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A table of dotted keys, however deep TOML has nested them."""
    table = given.get(name) or {}
    if not isinstance(table, Mapping):
        raise ConfigError(
            f"sweep.{name} is {table!r}, expected a table of settings; see docs/sweep.md"
        )
    flat: dict[str, Any] = {}
    for key, value in table.items():
        below = _table({name: value}, name) if isinstance(value, Mapping) else None
        flat |= (
            {key: value}
            if below is None
            else {f"{key}.{rest}": each for rest, each in below.items()}
        )
    return flat


def _listed(values: Any) -> list[Any]:
    return (
        values
        if isinstance(values, list)
        else list(values)
        if isinstance(values, tuple)
        else [values]
    )


def _require_one_way(config: SweepConfig) -> None:
    if bool(config.grid) == bool(config.search):
        told = "both a grid and a search are given" if config.grid else "nothing varies"
        raise ConfigError(
            f"{told}; give --grid KEY=A,B or --search KEY=LOW..HIGH, as often as there are settings"
        )
    if config.grid and config.trials is not None:
        raise ConfigError(
            "--trials belongs to a search, and a grid has as many as it has points; leave it away"
        )
    for key in (*config.grid, *config.search):
        if key.split(".")[0] not in _VARIED or "." not in key:
            near = suggestion(key, _keys())
            raise ConfigError(
                f"{key!r} cannot vary, only settings of {' and '.join(_VARIED)} can; {near}"
            )


def _keys() -> list[str]:
    sections = ((name, RunConfig.model_fields[name].annotation) for name in _VARIED)
    return [
        f"{name}.{field}" for name, kind in sections for field in getattr(kind, "model_fields", {})
    ]


def _require_values_that_fit(config: SweepConfig) -> None:
    """Try every point of a grid, or every extreme value of a search beside the base's others."""
    count = len(points(config.grid)) if config.grid else int(config.trials or 0)
    if count * config.seeds > _MOST_RUNS:
        raise ConfigError(
            f"the sweep has {count * config.seeds} runs, at most {_MOST_RUNS} are made; take fewer values"
        )
    if config.run.seed + config.seeds > 2**31:
        raise ConfigError(
            f"seeds is {config.seeds} from seed {config.run.seed} on, expected all below {2**31}"
        )
    extremes = [
        {key: value} for key, each in config.dimensions().items() for value in each.extremes()
    ]
    tried = points(config.grid) if config.grid else extremes
    for values in tried:
        resolved = config.config_of(values)
        if config.objective == "val_accuracy" and "accuracy" not in resolved.training.metrics:
            raise ConfigError(
                "objective val_accuracy needs the metric accuracy; add it, or take --objective val_loss"
            )
