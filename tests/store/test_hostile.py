"""Test damaged and hostile files of a store: readers get the written data or an nnbuild error."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_files import scratch
from hypothesis import given, settings
from hypothesis import strategies as st
from json_values import JSON
from small_data import run_config

from nnbuild.config.loading import parse_config, read_toml
from nnbuild.errors import Interrupted, NnbuildError
from nnbuild.models.serialization import load_model, refuse_code
from nnbuild.pipeline.run import retrain
from nnbuild.store import Store, champion
from nnbuild.store.filesystem import file_digest
from nnbuild.store.manifests import runs_table
from nnbuild.training import Checkpoints

TOML = '[model]\nname = "lab"\n\n[training]\nepochs = 3\nearly_stopping = {patience = 2}\n'


class StopsInTheLastEpoch:
    def step(self, epoch, epochs, *_):
        if epoch == epochs:
            raise Interrupted("stopped by signal 15", 15)

    def epoch(self, *_): ...


@pytest.fixture(scope="module")
def sound(tmp_path_factory, trained, small_folder) -> Path:
    """A store with a champion and a run that waits with its checkpoints."""
    root = shutil.copytree(trained, tmp_path_factory.mktemp("hostile") / "store")
    with pytest.raises(Interrupted):
        retrain(
            run_config(small_folder, training={"epochs": 3}), root, progress=StopsInTheLastEpoch()
        )
    (root / "run.toml").write_text(TOML)
    return root


def waiting(root):
    store = Store(root)
    return store.unfinished_run(store.unfinished_runs()[0].run_id)


def newest_checkpoint(path):
    """The identity is the newest's own, so that only damage is in question."""
    for each in sorted(path.parent.glob("*.json"), reverse=True):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            identity = json.loads(json.loads(each.read_bytes())["rest"])["identity"]
            return Checkpoints(path.parent, identity).newest()
    return Checkpoints(path.parent, {}).newest()


READERS: dict[str, Callable[[Path, Path], Any]] = {
    "store.json": lambda root, _: Store(root),
    "champion.json": lambda root, _: champion.history(Store(root)),
    "runs/*/manifest.json": lambda root, path: runs_table(Store(root).manifest(path.parent.name)),
    "runs/*/model.keras": lambda _, path: refuse_code(path.read_bytes(), str(path)),
    "tables/history/*/*.parquet": lambda root, _: Store(root).read_table("history"),
    "tables/predictions/*/*.parquet": lambda root, _: Store(root).read_table("predictions"),
    "staging/*/run.json": lambda root, _: (waiting(root).config, waiting(root).started_at),
    "staging/*/steps/*.json": lambda root, _: waiting(root).seconds(),
    "staging/*/tables/history.parquet": lambda root, path: Store(root).staged_history(
        path.parents[1].name
    ),
    "staging/*/checkpoints/*.json": lambda _, path: newest_checkpoint(path),
    "staging/*/checkpoints/*.npz": lambda _, path: newest_checkpoint(path),
    "run.toml": lambda _, path: parse_config(read_toml(path), path),
}


def harmless(sound: Path, pattern: str, change: Callable[[bytes], bytes]) -> None:
    """Change a file in a copy of the store and read it; expect a value or an nnbuild error."""
    with scratch() as folder:
        root = shutil.copytree(sound, folder / "store")
        path = max(root.glob(pattern))
        path.write_bytes(change(path.read_bytes()))
        told = "nothing"
        try:
            READERS[pattern](root, path)
        except NnbuildError as error:
            told = str(error)
        assert len(told.splitlines()) == 1


@pytest.mark.parametrize("pattern", READERS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_reader_damaged_file_is_refused(sound, pattern, data):
    def change(content: bytes) -> bytes:
        changed = bytearray(
            content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))]
        )
        for _ in range(data.draw(st.integers(0, 4)) if changed else 0):
            place = data.draw(
                st.integers(0, 60) | st.integers(-400, -1) | st.integers(0, len(changed) - 1)
            )
            changed[place % len(changed)] = data.draw(st.integers(0, 255))
        return bytes(changed) + data.draw(st.binary(max_size=4))

    harmless(sound, pattern, change)


@pytest.mark.parametrize("pattern", [each for each in READERS if each.endswith(".json")])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_reader_any_json_is_safe(sound, pattern, data):
    def change(content: bytes) -> bytes:
        value = json.loads(content)
        holder = value
        key = data.draw(st.sampled_from(sorted(holder)))
        while isinstance(holder[key], dict) and holder[key] and data.draw(st.booleans()):
            holder = holder[key]
            key = data.draw(st.sampled_from(sorted(holder)))
        if data.draw(st.booleans()):
            holder[key] = data.draw(JSON)
        else:
            del holder[key]
        return json.dumps(value).encode()

    harmless(sound, pattern, change)


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=60) | st.dictionaries(st.text(max_size=8), JSON, max_size=3).map(str))
def test_config_any_text_is_safe(text):
    with scratch() as folder:
        (folder / "run.toml").write_text(text, encoding="utf-8", errors="surrogateescape")
        with contextlib.suppress(NnbuildError):
            parse_config(read_toml(folder / "run.toml"), folder / "run.toml")


@settings(max_examples=30, deadline=None)
@given(
    st.text(max_size=30)
    | st.sampled_from(["..", "../x", "/etc", "a/../../b", ".", "~", "runs/../..", "\0"])
)
def test_names_cannot_leave_store(sound, name):
    store = Store(sound)
    for use in (store.unfinished_run, store.manifest, store.staged_history, store.read_table):
        with pytest.raises(NnbuildError):
            use(name)
    with pytest.raises(NnbuildError):
        store.partition(name, name)


def test_model_wrong_digest_is_not_loaded(sound):
    store = Store(sound)
    record = sound / "runs" / store.run_ids()[0]
    digest = store.manifest(record.name).files[f"runs/{record.name}/model.keras"].sha256
    assert digest == file_digest(record / "model.keras")
    with scratch() as folder:
        changed = folder / "model.keras"
        changed.write_bytes((record / "model.keras").read_bytes() + b"\0")
        with pytest.raises(NnbuildError, match="sha256"):
            load_model(changed, digest)
