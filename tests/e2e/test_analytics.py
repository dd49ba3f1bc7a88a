"""Test queries over many runs: documented ones, hostile ones, and during commits."""

import json
import re
import shutil
import threading
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pytest
from command_line import call, tree_digest
from label_data import job_with_ids, label_file, labelled, watched
from score_data import ROWS, parquet, scored
from small_data import run_config, small_arrays

from nnbuild.errors import ConfigError
from nnbuild.live import measure_slices, write_slices
from nnbuild.pipeline.run import retrain
from nnbuild.report import comparison, text
from nnbuild.store import Store, analysis, schemas
from nnbuild.store.query import query

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "analytics.md"
DOCUMENT = PAGE.read_text(encoding="utf-8")
OTHER_TABLES = {  # those that a run alone does not have
    "dataset_parts",
    "score_jobs",
    "drift",
    "labels",
    "label_jobs",
    "live",
    "live_shadows",
    "live_alarms",
    "live_slices",
    "slices",
}
QUESTIONS = re.findall(r"^```sql\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def labelled_store(_three_runs, tmp_path_factory):
    """A store with three runs, jobs of different columns, labels and corrections, and live rows."""
    folder = tmp_path_factory.mktemp("labelled")
    store = Store(shutil.copytree(_three_runs[0], folder / "store"))
    job_with_ids(store, folder)
    path = parquet(folder / "keys.parquet", key=[f"k{row}" for row in range(ROWS)])
    scored(store, input=path, id_column="key", top_k=2)
    predicted = store.read_table("scores", store.score_ids()[0])["predicted"].to_pylist()
    wrong = [(label + 1) % 3 for label in predicted]
    for number, labels in enumerate((wrong, predicted)):
        labelled(
            store, label_file(folder / f"{number}.parquet", id=list(range(ROWS)), label=labels)
        )
    watched(store)
    sites = [("north", "south", None)[row % 3] for row in range(ROWS)]
    path = parquet(folder / "sites.parquet", customer=list(range(900, 900 + ROWS)), site=sites)
    dataset = {"name": str(path), "keep": ["site"]}
    run = retrain(run_config(path, dataset=dataset, gate={"enabled": False}), store.root)
    scored(store, input=path, id_column="customer", keep=["site"], model=run.run_id)
    write_slices(store, measure_slices(store, "site", "week"), "site", "week")
    return store


@pytest.mark.parametrize("question", QUESTIONS, ids=range(1, len(QUESTIONS) + 1))
def test_documented_queries_run(labelled_store, question):
    assert len(query(labelled_store, question)) > 0


def test_documented_queries_are_eighteen():
    assert len(QUESTIONS) == 18


def test_corrections_that_changed_the_picture_are_found(labelled_store):
    question = next(each for each in QUESTIONS if "lag(label)" in each)
    found = query(labelled_store, question).to_pandas()
    first = found[found.example_id < ROWS]
    assert set(first.example_id) == set(range(ROWS))
    assert (first.label != first.before).all()


def test_jobs_of_different_columns_are_read_together(labelled_store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nnbuild-store").symlink_to(labelled_store.root)
    programs = re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)
    expected = labelled_store.read_table("scores")
    recipes = [each for each in programs if "scores =" in each]
    assert len(recipes) == 3
    for program in recipes:
        names = {}
        exec(compile(program, "analytics.md", "exec"), names)  # noqa: S102
        scores = names["scores"]
        assert len(scores) == len(expected)
        assert set(scores.columns) == set(expected.column_names)
        keys = scores["example_key"]
        assert (keys.is_null() if hasattr(keys, "is_null") else keys.isna()).sum() == 2 * ROWS


def test_documented_queries_are_correct(gated_runs):
    store, runs = gated_runs
    found = query(store, QUESTIONS[0]).to_pandas()
    history = store.read_table("history").to_pandas()
    losses = history[history.metric == "val_loss"]
    for row in found.itertuples():
        of_run = losses[losses.run_id == row.run_id]
        assert row.val_loss == of_run.value.min()
        assert row.epoch == of_run.epoch[of_run.value.idxmin()]
    assert list(found.run_id) == sorted(runs)


def test_documented_code_runs(gated_runs, tmp_path, monkeypatch):
    store, _ = gated_runs
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nnbuild-store").symlink_to(store.root)
    programs = re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert len(programs) == 5
    for program in programs[:2]:
        exec(compile(program, "analytics.md", "exec"), {})  # noqa: S102


def test_spark_reads_every_table(gated_runs):
    sql = pytest.importorskip("pyspark.sql", reason="pyspark is not installed; it is no dependency")
    store, _ = gated_runs
    spark = sql.SparkSession.builder.master("local[1]").getOrCreate()
    try:
        for name in sorted({*schemas.STATIC_SCHEMAS, "predictions"} - OTHER_TABLES):
            spark.read.parquet(str(store.root / "tables" / name)).createOrReplaceTempView(name)
            counted = spark.sql(f"select count(*) from {name}").collect()[0][0]  # noqa: S608
            assert counted == len(store.read_table(name))
    finally:
        spark.stop()


HOSTILE = [
    "create table t as select 1",
    "drop view runs",
    "insert into runs select * from runs",
    "delete from runs",
    "copy runs to '{at}/out.csv'",
    "copy (select 1) to '{at}/out.parquet' (format parquet)",
    "select * from read_csv('/etc/passwd')",
    "select * from read_text('/etc/passwd')",
    "select * from read_blob('/etc/passwd')",
    "select * from '/etc/passwd'",
    "select * from read_parquet('{at}/store/tables/runs/*/*')",
    "select * from glob('/etc/*')",
    "select * from 'http://127.0.0.1:9/x.csv'",
    "select * from read_csv('http://127.0.0.1:9/x.csv')",
    "attach '{at}/x.db' as x",
    "install httpfs",
    "load httpfs",
    "set enable_external_access = true",
    "pragma database_list",
    "export database '{at}/dump'",
    "call pragma_version()",
    "select 1; select 2",
    "select 1; copy runs to '{at}/out.csv'",
    "",
    "selec 1",
    "select * from rums",
    "select nothing from runs",
    "select * from store",
    "with x as (select 1) insert into runs select * from x",
    "select getenv('HOME')",
    "prepare p as select 1",
    "explain analyze copy runs to '{at}/out.csv'",
]


@pytest.mark.parametrize("statement", HOSTILE)
def test_sql_other_statements_are_refused(capfd, gated_runs, tmp_path, statement):
    store, _ = gated_runs
    before = tree_digest(store.root)
    outcome = call(capfd, "sql", statement.format(at=tmp_path), "--store", store.root)
    assert (outcome.code, outcome.out) == (2, "")
    assert len(outcome.err.splitlines()) == 1
    assert tree_digest(store.root) == before
    assert list(tmp_path.iterdir()) == []


def test_sql_output_formats(capfd, gated_runs, tmp_path):
    store, runs = gated_runs
    statement = "select run_id, test_accuracy from runs order by run_id"
    at = ("--store", store.root)
    rows = call(capfd, "sql", statement, "--json", *at).json["rows"]
    assert [row["run_id"] for row in rows] == sorted(runs)
    assert call(capfd, "sql", statement, "--csv", *at).out.splitlines()[0] == "run_id,test_accuracy"
    assert call(capfd, "sql", statement, "--parquet", tmp_path / "answer.parquet", *at).code == 0
    assert pd.read_parquet(tmp_path / "answer.parquet").run_id.tolist() == sorted(runs)
    assert call(capfd, "sql", statement, "--csv", "--json", *at).code == 2


def test_sql_output_in_store_is_refused(capfd, gated_runs):
    store, runs = gated_runs
    before, part = tree_digest(store.root), store.partition("runs", runs[0]) / "part-0.parquet"
    at = ("--store", store.root)
    for command in (
        ["sql", "select 1", "--parquet"],
        ["compare", *runs, "--html"],
        ["trends", "--html"],
    ):
        outcome = call(capfd, *command, part, *at)
        assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (2, "", 1)
        assert "is in the store" in outcome.err
    assert tree_digest(store.root) == before


def test_other_schema_version_is_refused(capfd, gated_runs, tmp_path):
    import pyarrow.parquet as pq

    store, runs = gated_runs
    copy = Store(shutil.copytree(store.root, tmp_path / "store"))
    part = copy.partition("runs", runs[0]) / "part-0.parquet"
    table = pq.ParquetFile(part).read()
    pq.write_table(table.replace_schema_metadata({b"nnbuild.schema_version": b"0"}), part)
    outcome = call(capfd, "sql", "select * from runs", "--store", copy.root)
    assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (2, "", 1)
    assert "schema version 0" in outcome.err
    assert len(query(copy, "select * from history")) > 0


def test_run_without_row_is_invisible(gated_runs, tmp_path):
    store, runs = gated_runs
    copy = Store(shutil.copytree(store.root, tmp_path / "store"))
    shutil.rmtree(copy.partition("runs", runs[1]))
    for table in ("history", "predictions", "runs"):
        seen = {
            row["run_id"]
            for row in query(copy, f"select distinct run_id from {table}").to_pylist()  # noqa: S608
        }
        assert seen == {runs[0], runs[2]}


def test_compare_uses_paired_test(capfd, gated_runs):
    store, (first, second, third) = gated_runs
    rows = analysis.compare(store, [first, second, third])
    assert [row["run_id"] for row in rows] == [first, second, third]
    assert [row["training.learning_rate"] for row in rows[1:]] == [
        0.02,
        rows[0]["training.learning_rate"],
    ]
    assert {name for row in rows for name in row if "." in name} == {"training.learning_rate"}
    assert rows[0]["difference"] is None
    assert rows[1]["difference"] == pytest.approx(rows[1]["accuracy"] - rows[0]["accuracy"])
    assert rows[1]["only_it"] - rows[1]["only_first"] == round(rows[1]["difference"] * 45)
    assert (rows[2]["difference"], rows[2]["p_worse"]) == (0, 1)
    assert len({row["test_set"] for row in rows}) == 1
    shown = call(capfd, "compare", first, second, "--store", store.root).out
    assert f"{second} (lab) is " in shown.splitlines()[-1]
    told = call(capfd, "compare", first, second, "--store", store.root, "--json").json
    assert json.dumps(told["runs"][1]["p_better"]) == json.dumps(rows[1]["p_better"])
    for wrong in ([first], [first, first], []):
        with pytest.raises(ConfigError):
            analysis.compare(store, wrong)


def test_compare_needs_the_same_images(store, tmp_path):
    """Equal labels of other images are no pairs."""
    path = tmp_path / "other.npz"
    np.savez(path, **small_arrays(classes=3, shape=(8, 8, 1), train=120, test=45, seed=1))
    other = retrain(run_config(path), store.root).run_id
    rows = analysis.compare(store, [store.run_ids()[0], other])
    assert rows[0]["test_set"] != rows[1]["test_set"]
    assert rows[1]["difference"] is None
    assert "its test images differ" in text.on_pair(rows[1])
    page = comparison.trends_page(analysis.trends(store))
    assert "The test images changed once" in page


def test_comparison_pages_are_complete(capfd, gated_runs, tmp_path):
    store, runs = gated_runs
    at = ("--store", store.root)
    assert call(capfd, "compare", *runs, "--html", tmp_path / "compare.html", *at).code == 0
    assert call(capfd, "trends", "--html", tmp_path / "trends.html", *at).code == 0
    for name in ("compare", "trends"):
        page = (tmp_path / f"{name}.html").read_text()
        assert all(run in page for run in runs)
        assert "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")
    assert "promoted" in (tmp_path / "trends.html").read_text()
    assert [row["promoted"] for row in analysis.trends(store)] == [True, True, False]


def test_readers_during_commits_see_whole(store, small_folder):
    """Read every table with pandas, pyarrow, Polars and DuckDB until all runs are committed."""
    trouble: list[BaseException] = []
    over = threading.Event()
    rounds = 0

    def commit():
        try:
            for seed in range(2):
                retrain(run_config(small_folder, seed=seed), store.root)
        except BaseException as error:  # noqa: BLE001
            trouble.append(error)
        finally:
            over.set()

    writer = threading.Thread(target=commit)
    writer.start()
    last = False
    while not last:
        last = over.is_set()
        rounds += 1
        for name in sorted({*schemas.STATIC_SCHEMAS, "predictions"} - OTHER_TABLES):
            schema = (
                schemas.predictions(3) if name == "predictions" else schemas.STATIC_SCHEMAS[name]
            )
            folder = store.root / "tables" / name
            by_arrow = ds.dataset(folder, partitioning="hive").to_table()
            by_pandas = pd.read_parquet(folder)
            by_polars = pl.read_parquet(folder / "**/*.parquet", hive_partitioning=True)
            parts = duckdb.read_parquet(f"{folder}/*/*", hive_partitioning=True)
            by_duck = parts.to_arrow_table()
            for columns in (
                by_arrow.column_names,
                by_pandas.columns,
                by_polars.columns,
                by_duck.column_names,
            ):
                assert set(columns) == {*schema.names, "run_id"}
            assert 0 < len(by_arrow) <= len(by_pandas) <= len(by_polars) <= len(by_duck)
            for field in schema:
                assert by_arrow.schema.field(field.name).type == field.type
        whole = store.read_table("runs")
        for run_id in whole["run_id"].to_pylist():
            assert store.read_table("predictions", run_id).num_rows == 45
    writer.join()
    assert trouble == []
    assert rounds > 1
    assert len(store.run_ids()) == 3
