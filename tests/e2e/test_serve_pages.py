"""The pages of Prefect's UI about a finished run, in a browser."""

import subprocess
import sys
from urllib.parse import urlsplit

import numpy as np
import pytest
from artifact_keys import kind_of
from browser import CHROMIUM, browser
from PIL import Image
from real_server import ROOT

from nnbuild.store import Store

STORE_URL = "https://files.test/nn"


@pytest.fixture(scope="module")
def finished(real_prefect, tmp_path_factory, small_folder):
    """The store of two finished runs, and the IDs of their flow runs."""
    settings = {
        "dataset": {"name": str(small_folder)},
        "model": {"name": "lab"},
        "training": {"epochs": 3},
    }
    root = tmp_path_factory.mktemp("finished") / "store"
    # In a process of its own: a process reports its tasks to the first server that it has used.
    program = (
        "from flows.retrain import *\n"
        f"for seed in (7, 8): retrain(RunConfig(**{settings}, seed=seed), {str(root)!r})"
    )
    subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=real_prefect.environment | {"NNBUILD_STORE_URL": STORE_URL},
        check=True,
        capture_output=True,
    )
    return Store(root), [Store(root).manifest(each).flow_run_id for each in Store(root).run_ids()]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; apt-get install chromium")
def test_pages_show_epochs_decision_and_images(real_prefect, finished, tmp_path):
    """An artifact that is stored correctly can still break its page."""
    store, flow_runs = finished
    criteria = {"flow_run_id": {"any_": [flow_runs[1]]}}
    keys = {
        kind_of(each["key"]): each["id"]
        for each in real_prefect.ask("/artifacts/filter", artifacts=criteria)
    }
    history = store.read_table("history", store.run_ids()[1]).to_pylist()
    decision = store.read_table("decisions", store.run_ids()[1]).to_pylist()[0]
    ui = real_prefect.url.removesuffix("/api") + "/v2"
    rows = "[...document.querySelectorAll('table tbody tr')]"
    cells = f"{rows}.map(row => [...row.cells].map(each => each.innerText))"
    loaded = "each.src.startsWith('data:image/svg') && each.complete && each.naturalWidth"
    images = f"[...document.images].filter(each => {loaded})"
    place = f"{images}.map(each => each.getBoundingClientRect().toJSON())[0]"
    with browser(tmp_path / "profile") as page:
        text = page.show(
            f"{ui}/runs/flow-run/{flow_runs[1]}",
            "/Completed/.test(document.body.innerText) && document.body.innerText",
        )
        assert "model:lab" in text
        assert f"lab-{store.manifest(store.run_ids()[1]).row.dataset}-" in text

        details = page.show(
            f"{ui}/runs/flow-run/{flow_runs[1]}?tab=Details",
            "/State Message/i.test(document.body.innerText) && document.body.innerText",
        )
        verdict = "promoted" if decision["promoted"] else "not promoted"
        assert f"test accuracy {100 * decision['accuracy']:.2f} %, {verdict}" in details

        def table(key):
            return page.show(f"{ui}/artifacts/artifact/{keys[key]}", f"({cells}).length && {cells}")

        epochs = table("nnbuild-epochs")
        losses = [each["value"] for each in history if each["metric"] == "loss"]
        assert [row[0] for row in epochs] == ["1", "2", "3"]
        assert [float(row[1]) for row in epochs] == pytest.approx(losses, rel=1e-4)
        decided = dict(table("nnbuild-decision"))
        assert decided["champion"] == store.run_ids()[0] == decision["champion"]
        assert decided["reason"] == decision["reason"]
        assert decided["decision"] == ("promoted" if decision["promoted"] else "not promoted")
        assert float(decided["p_worse"]) == pytest.approx(decision["p_worse"], rel=1e-4)
        for key in ("nnbuild-loss", "nnbuild-confusion"):
            at = page.show(f"{ui}/artifacts/artifact/{keys[key]}", place)
            assert at["width"] > 300
            path = page.picture(
                tmp_path / f"{key}.png", at["width"], at["height"], x=at["x"], y=at["y"]
            )
            pixels = np.asarray(Image.open(path).convert("RGB"), int)
            colored = (pixels.max(axis=2) - pixels.min(axis=2)) > 60
            assert colored.mean() > 0.002  # lines or squares
        shown = page.show(
            f"{ui}/artifacts/artifact/{keys['nnbuild-report']}",
            "/test accuracy/.test(document.body.innerText) && document.body.innerText",
        )
        assert "report.html" in shown
        report = f"{STORE_URL}/runs/{store.run_ids()[1]}/report.html"
        links = "[...document.links].map(each => each.href)"
        found = page.show(
            f"{ui}/artifacts/artifact/{keys['nnbuild-report']}",
            f"{links}.some(each => each.endsWith('report.html')) && {links}",
        )
        assert report in found
        page.show(
            f"{ui}/artifacts/artifact/{keys['nnbuild-files']}",
            "[...document.links].some(each => each.href.endsWith('manifest.json'))",
        )
        strangers = {
            each
            for each in page.fetched
            if not each.startswith((ui.removesuffix("/v2"), "data:", "blob:"))
        }
    # Prefect's page asks for its analytics, in vain where no name is resolved; ours for nothing.
    assert all(urlsplit(each).hostname.endswith(".amplitude.com") for each in strangers), strangers
