"""The configuration of a sweep: the values of a grid, and the dimensions of a search."""

import hashlib
import itertools
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, JsonValue, ValidationError

from nnbuild.config import loading
from nnbuild.config.schema import RunConfig, resolve
from nnbuild.config.sections import Section, TrialTag
from nnbuild.errors import ConfigError, suggestion

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

Values = dict[str, Any]
_RANGE = re.compile(r"(?P<log>log:)?(?P<low>[^.\s,][^,\s]*?)\.\.(?P<high>[^,\s]+)")
_FORMS = "log:1e-4..1e-1, 1..8, 0.1..0.5 or a,b,c"
_VARIED = ("model", "training")
_MAX_RUNS = 10_000
_DEFAULT_TRIALS = 20


class Dimension(NamedTuple):
    """Range or choices of one setting of a search.

    Attributes:
        choices: Values of a list; empty for a range.
        low: Lower end of a range, included. If both ends are integers, integers are drawn.
        high: Upper end of a range, included.
        log: Whether to draw from the range on a logarithmic scale.
    """

    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False

    def suggest(self, key: str, trial: "BaseTrial") -> Any:
        """Draw a value for a trial of Optuna, or return the one that was drawn before.

        Args:
            key: Dotted key of the setting.
            trial: Trial of Optuna.
        """
        if self.choices:
            return trial.suggest_categorical(key, list(self.choices))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(key, self.low, self.high, log=self.log)
        return trial.suggest_float(key, self.low, self.high, log=self.log)

    def extremes(self) -> tuple[Any, ...]:
        """Return the ends of a range, or all choices."""
        return self.choices or (self.low, self.high)


def grid_values(key: str, text: str) -> tuple[Any, ...]:
    """Parse the values of a grid, such as `a,b`: as TOML where possible, otherwise as plain text.

    Args:
        key: Dotted key of the setting, for messages.
        text: Values, separated by commas, or a TOML array.

    Raises:
        ConfigError: There are no values, or two are equal.
    """
    if text.strip().startswith("["):
        parsed = _parse_toml(text)
        values = parsed if isinstance(parsed, list) else [parsed]
    else:
        values = [_parse_toml(each) for each in text.split(",") if each.strip()]
    return require_values(key, values)


def require_values(key: str, values: Sequence[Any]) -> tuple[Any, ...]:
    """Return the values of a setting of a grid, if there are some and no two are equal.

    Raises:
        ConfigError: There are no values, or two are equal.
    """
    if not values:
        raise ConfigError(f"grid of {key} has no values; write it like {key}=0.001,0.01")
    if any(
        one == other and type(one) is type(other)
        for one, other in itertools.combinations(values, 2)
    ):
        raise ConfigError(f"grid of {key} has a value twice in {list(values)}; name each once")
    return tuple(values)


def _parse_toml(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()
    except (ValueError, RecursionError) as error:  # such as an integer of thousands of digits
        raise ConfigError(f"a value cannot be read: {error}; give another") from error


def dimension(key: str, text: str) -> Dimension:
    """Parse a dimension of a search, such as `1..8`, `log:1e-4..1e-1` or `a,b`.

    Args:
        key: Dotted key of the setting, for messages.
        text: Range or choices.

    Raises:
        ConfigError: The text is not a valid dimension.
    """
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        if text.startswith("log:") or not text.strip():
            raise ConfigError(f"search of {key} is {text!r}, expected {_FORMS}")
        return Dimension(choices=grid_values(key, text))
    low, high = _number(key, text, match["low"]), _number(key, text, match["high"])
    log = match["log"] is not None
    if not low < high:
        raise ConfigError(
            f"search of {key} is {text!r}, from {low} to {high}; the lower end comes first"
        )
    if log and low <= 0:
        raise ConfigError(
            f"search of {key} is {text!r}, but a logarithmic range has to begin above 0"
        )
    return Dimension(low=low, high=high, log=log)


def _number(key: str, text: str, end: str) -> float:
    for kind in (int, float):
        try:
            value = kind(end)
        except ValueError:
            continue
        if abs(value) < float("inf"):
            return value
    raise ConfigError(
        f"search of {key} is {text!r}, but {end!r} is not a number; expected {_FORMS}"
    )


def points(grid: Mapping[str, Sequence[Any]]) -> list[Values]:
    """Return every combination of a grid's values; the last key changes fastest."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


class SweepConfig(Section):
    """Configuration of a sweep: a grid, or a search with Optuna."""

    run: RunConfig = Field(RunConfig(), description="Configuration that all trials share")
    grid: dict[str, tuple[JsonValue, ...]] = Field(
        {}, description="Values of each setting; every combination is a trial"
    )
    search: dict[str, str] = Field(
        {}, description="Range or choices of each setting, as log:1e-4..1e-1 or a,b"
    )
    trials: int | None = Field(
        None, ge=1, le=_MAX_RUNS, description="Total number of trials of a search"
    )
    seeds: int = Field(
        1, ge=1, le=1000, description="Number of runs of each trial, with consecutive seeds"
    )
    objective: Literal["val_accuracy", "val_loss"] = Field(
        "val_accuracy", description="Validation metric by which trials are compared"
    )
    prune: bool = Field(
        default=True, description="Stop trials of a search that are worse than the median so far"
    )
    storage: str | None = Field(
        None, description="URL of Optuna's storage; an SQLite file in the store if not given"
    )

    def digest(self) -> str:
        """Return the SHA-256 of what decides the trials, 64 hexadecimal digits.

        More trials, or another storage, do not change it: they continue the same sweep.
        """
        text = self.model_dump_json(exclude={"trials": True, "storage": True, "run": {"trial"}})
        return hashlib.sha256(text.encode()).hexdigest()

    def dimensions(self) -> dict[str, Dimension]:
        """Return the dimensions of a search by dotted key."""
        return {key: dimension(key, text) for key, text in self.search.items()}

    def config_of(
        self, values: Mapping[str, Any], *, seed: int = 0, tag: TrialTag | None = None
    ) -> RunConfig:
        """Return the configuration of one run.

        Args:
            values: Values of the settings that vary, by dotted key.
            seed: Number of the trial's seed, from 0.
            tag: Sweep and number of the trial.

        Raises:
            ConfigError: A setting is unknown, has the wrong type, or is out of bounds.
        """
        settings: Values = self.run.model_dump(exclude_unset=True)
        for key, value in values.items():
            nested: Any = value
            for name in reversed(key.split(".")):
                nested = {name: nested}
            settings = loading.merge(settings, nested)
        config = loading.parse_config(settings | {"seed": self.run.seed + seed, "trial": tag})
        return resolve(config)


def sweep_config(settings: Mapping[str, Any], run: RunConfig) -> SweepConfig:
    """Return the configuration of a sweep, and check every value of its grid or search.

    Args:
        settings: Fields of `SweepConfig`; `grid` has lists or text by dotted key.
        run: Configuration that all trials share.

    Raises:
        ConfigError: Nothing varies, a setting is unknown or cannot vary, or a value is invalid.
    """
    known = set(SweepConfig.model_fields) - {"run"}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ConfigError(f"unknown key 'sweep.{unknown[0]}'; {suggestion(unknown[0], known)}")
    grid = {
        key: grid_values(key, values)
        if isinstance(values, str)
        else require_values(key, _as_list(values))
        for key, values in _table(settings, "grid").items()
    }
    try:
        config = SweepConfig.model_validate(
            {**settings, "grid": grid, "search": _table(settings, "search"), "run": run}
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(
            f"{'.'.join(map(str, first['loc'][:2]))} is {first['input']!r}, "
            f"{loading.as_clause(first['msg'])}"
        ) from error
    _require_grid_or_search(config)
    if config.search and config.trials is None:
        config = config.model_copy(update={"trials": _DEFAULT_TRIALS})
    _require_valid_points(config)
    return config


def split_file(path: Path | None) -> tuple[Values, Values]:
    """Read the settings of the runs, and those of the sweep under `[sweep]`, from a TOML file."""
    run = loading.read_toml(path) if path else {}
    sweep = run.pop("sweep", {})
    if not isinstance(sweep, dict):
        raise ConfigError(f"{path}: sweep is {sweep!r}, expected a table; see docs/guide/sweeps.md")
    return run, sweep


def _table(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a table by dotted keys, however deep TOML has nested it."""
    table = settings.get(name) or {}
    if not isinstance(table, Mapping):
        raise ConfigError(
            f"sweep.{name} is {table!r}, expected a table of settings; see docs/guide/sweeps.md"
        )
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            nested = _table({name: value}, name)
            flat |= {f"{key}.{rest}": each for rest, each in nested.items()}
        else:
            flat[key] = value
    return flat


def _as_list(values: Any) -> list[Any]:
    return list(values) if isinstance(values, (list, tuple)) else [values]


def _require_grid_or_search(config: SweepConfig) -> None:
    """Refuse a sweep in which nothing can vary, or which varies a setting that cannot."""
    if bool(config.grid) == bool(config.search):
        problem = "both a grid and a search are given" if config.grid else "nothing varies"
        raise ConfigError(f"{problem}; give either a grid (KEY=A,B) or a search (KEY=LOW..HIGH)")
    if config.grid and config.trials is not None:
        raise ConfigError(
            f"trials is {config.trials}, which applies to a search only; a grid runs every "
            "combination, so remove it",
            setting="trials",
            value=config.trials,
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


def _require_valid_points(config: SweepConfig) -> None:
    """Check every point of a grid, or each extreme value of a search with the other settings."""
    count = len(points(config.grid)) if config.grid else int(config.trials or 0)
    if count * config.seeds > _MAX_RUNS:
        raise ConfigError(
            f"the sweep has {count * config.seeds} runs, expected at most {_MAX_RUNS}; give fewer "
            "values"
        )
    if config.run.seed + config.seeds > 2**31:
        raise ConfigError(
            f"seeds is {config.seeds} and seed is {config.run.seed}, expected all seeds to be "
            f"below {2**31}; give smaller numbers"
        )
    extremes = [
        {key: value} for key, each in config.dimensions().items() for value in each.extremes()
    ]
    for values in points(config.grid) if config.grid else extremes:
        resolved = config.config_of(values)
        if config.objective == "val_accuracy" and "accuracy" not in resolved.training.metrics:
            raise ConfigError(
                "objective val_accuracy needs the metric accuracy; add it to training.metrics, or "
                "use val_loss",
                setting="objective",
                value=config.objective,
            )
