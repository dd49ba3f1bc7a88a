"""Write the generated parts of the reference pages: options, settings, networks and tables.

A page keeps its own text. Only what is between a pair of markers is replaced:

    <!-- generated: command run -->
    …
    <!-- end -->

Run `python docs/_generate.py` after a change to an option, a setting or a schema; a test fails
until then. The pages are committed, so that they can be read without building the site.
"""

import argparse
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from flows.cli.app import load_commands
from nnbuild.config import presets
from nnbuild.config.schema import ModelConfig, RunConfig, TrainingConfig
from nnbuild.scoring.config import ScoreConfig
from nnbuild.store import data_dictionary, schemas
from nnbuild.sweep.space import SweepConfig

DOCS = Path(__file__).parent
_SECTION = re.compile(
    r"^<!-- generated: (?P<kind>\w+) (?P<name>[\w-]+) -->\n.*?^<!-- end -->$",
    re.DOTALL | re.MULTILINE,
)
_SETTINGS: dict[str, type[BaseModel]] = {
    "run": RunConfig,
    "score": ScoreConfig,
    "sweep": SweepConfig,
}
_COMMON = ("--store", "--json", "--help")
_YOUR_OWN = "your own"
_WIDTH = 100
_OBVIOUS = {"string", "boolean", "object", None}  # the default and the description show it
_TYPES = {"float": "float32", "double": "float64"}  # Arrow's names of C types


def commands() -> dict[str, Any]:
    """Return the commands of the command line by name."""
    group: Any = load_commands()
    return dict(group.commands)


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "|" + "".join(f" {cell} |" if cell else " |" for cell in line) for line in lines
    )


def command_section(name: str) -> str:
    """Return the summary, the options and the example of a command."""
    command = commands()[name]
    summary = command.help.strip().splitlines()[0]
    parts = [textwrap.fill(summary, _WIDTH, break_on_hyphens=False)]
    rows = list(option_rows(command))
    if rows:
        parts.append(table(["option", "description", "default"], iter(rows)))
    shared = [f"`{each}`" for each in _COMMON if _has_option(command, each)]
    if shared:
        parts.append(f"Also {', '.join(shared)}.")
    example = (command.epilog or "").removeprefix("Example: ")
    if example:
        parts.append(f"```text\n{example}\n```")
    return "\n\n".join(parts)


def option_rows(command: Any) -> Iterator[Sequence[str]]:
    """Yield each option and argument of a command with its description and default."""
    for each in command.params:
        if not set(each.opts) & set(_COMMON):
            yield [_option(each), each.help or "", _default(each)]


def _has_option(command: Any, option: str) -> bool:
    return any(option in each.opts for each in command.params)


def _option(parameter: Any) -> str:
    """Return an option with its value, or the name of an argument.

    Alternatives are written with commas and `or`: a bar within code ends the cell of a table in
    some Markdown processors, and an escaped one shows its backslash in others.
    """
    if parameter.param_type_name == "argument":
        return _alternatives(parameter.metavar or parameter.name.upper())
    name = "/".join([*parameter.opts, *parameter.secondary_opts])
    value = parameter.metavar or "|".join(_choices(parameter.type_descriptor.annotation))
    if not value:
        return f"`{name}`"
    if "|" in value:
        return f"`{name}` {_alternatives(value)}"
    return f"`{name} {value}`"


def _choices(annotation: Any) -> list[str]:
    """Return the values of an option that is annotated as an enumeration or a literal."""
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [str(each.value) for each in annotation]
    return [str(each) for each in get_args(annotation) if isinstance(each, str)]


def _alternatives(metavar: str) -> str:
    *first, last = (f"`{each}`" for each in metavar.split("|"))
    return f"{', '.join(first)} or {last}" if first else last


def _default(parameter: Any) -> str:
    """Return the default as help shows it: the value, or what the command says that it is."""
    default = parameter.default
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    if parameter.secondary_opts:
        return f"`{(parameter.opts if default else parameter.secondary_opts)[0]}`"
    if parameter.required or default is None or default is False:
        return ""
    return f"`{default.value if isinstance(default, Enum) else default}`"


def settings_section(name: str) -> str:
    """Return the settings of a configuration: default, description and values."""
    model = _SETTINGS[name]
    schema = model.model_json_schema()
    rows = _settings(model, schema, schema.get("$defs", {}), "")
    return table(["setting", "default", "description and values"], rows)


def _settings(
    model: type[BaseModel], schema: dict[str, Any], shared: dict[str, Any], prefix: str
) -> Iterator[Sequence[str]]:
    for name, field in model.model_fields.items():
        described = schema["properties"].get(name, {})
        nested = _model_of(field.annotation)
        if nested is RunConfig:  # of a sweep: the settings of the run have a table of their own
            continue
        default = "" if nested else _setting_default(prefix, name, field)
        values = "" if nested else _values(described)
        texts = ((field.description or "").rstrip("."), values[:1].upper() + values[1:])
        yield [f"`{prefix}{name}`", default, " ".join(f"{each}." for each in texts if each)]
        if nested:
            yield from _settings(nested, shared[nested.__name__], shared, f"{prefix}{name}.")


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section that an annotation stands for, alone or as `Section | None`."""
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((each for each in candidates if _is_model(each)), None)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _setting_default(prefix: str, name: str, field: Any) -> str:
    if prefix in {"model.", "training."} and presets.preset_values(name):
        return "[by network](#defaults-of-the-networks)"
    if field.default is None or field.default is PydanticUndefined:
        return ""
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _values(described: dict[str, Any]) -> str:
    """Return which values a setting takes, from its JSON schema; empty if that is obvious."""
    if "anyOf" in described:
        kinds = [each for each in described["anyOf"] if each.get("type") != "null"]
        return " or ".join(dict.fromkeys(_values(each) for each in kinds))
    if "enum" in described:
        return f"one of {', '.join(f'`{each}`' for each in described['enum'])}"
    if "const" in described:
        return f"`{described['const']}`"
    if described.get("type") == "array":
        values = _values(described.get("items", {})).removeprefix("one of ")
        return f"a list of {values}" if values else "a list"
    if "title" in described and "description" not in described and "minLength" in described:
        title = described["title"]  # one of two alternatives, which Prefect's form labels like this
        return f"`{title}`" if ":" in title else f"a {title[0].lower()}{title[1:]}"
    kind = described.get("type")
    return "" if kind in _OBVIOUS else f"{kind}{_bounds(described)}"


def _bounds(described: dict[str, Any]) -> str:
    signs = {
        "minimum": "≥",
        "exclusiveMinimum": ">",
        "maximum": "≤",
        "exclusiveMaximum": "<",
    }
    bounds = [f"{sign} {described[key]}" for key, sign in signs.items() if key in described]
    return f", {', '.join(bounds)}" if bounds else ""


def networks_section(name: str) -> str:
    """Return the settings that each named network brings, one column a network."""
    networks = [*presets.PRESETS, _YOUR_OWN]
    rows = []
    for group, section in (("model", ModelConfig), ("training", TrainingConfig)):
        for setting in section.model_fields:
            if values := presets.preset_values(setting):
                cells = [_cell(values.get(each)) for each in networks]
                rows.append([f"`{group}.{setting}`", *cells])
    heads = [each if each == _YOUR_OWN else f"`{each}`" for each in networks]
    return table([name, *heads], iter(rows))


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def table_section(name: str) -> str:
    """Return the columns of a table: name, type, whether it may be null, and description."""
    key, schema = schemas.partition_key(name), schemas.documented(name)
    texts = data_dictionary.describe(name)
    rows: list[Sequence[str]] = [[f"`{key}`", "string", "", "Partition key, in the folder's name."]]
    for field in schema:
        stem = "prob_*" if field.name == "prob_0" else field.name
        nullable = "yes" if field.nullable else ""
        rows.append(
            [f"`{stem}`", _TYPES.get(str(field.type), str(field.type)), nullable, texts[stem]]
        )
    return table(["column", "type", "null", "description"], iter(rows))


_SECTIONS = {
    "command": command_section,
    "settings": settings_section,
    "networks": networks_section,
    "table": table_section,
}


def generate(text: str) -> str:
    """Return a page with its generated sections replaced."""

    def section(match: re.Match[str]) -> str:
        content = _SECTIONS[match["kind"]](match["name"])
        return f"<!-- generated: {match['kind']} {match['name']} -->\n\n{content}\n\n<!-- end -->"

    return _SECTION.sub(section, text)


def stale_pages() -> dict[Path, str]:
    """Return the pages whose generated sections are out of date, with their new text."""
    pages = {page: page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md"))}
    return {page: new for page, old in pages.items() if (new := generate(old)) != old}


def main() -> None:
    """Write the pages, or only name those that are out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail if stale")
    check = parser.parse_args().check
    stale = stale_pages()
    for page, text in stale.items():
        print(f"{'stale' if check else 'written'}: {page.relative_to(DOCS.parent)}")  # noqa: T201
        if not check:
            page.write_text(text, encoding="utf-8")
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
