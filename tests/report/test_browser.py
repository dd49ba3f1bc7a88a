"""The report in a real browser: no errors, no requests, and a layout that fits on a phone."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_data import AT, decided, made

from nnbuild import report
from nnbuild.report import comparison, data

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
# Chromium looks for updates and the time by itself: no name is resolved, so none is reached.
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
    ),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr"),
)
RUNS = [f"20261124T09471362{place}Z-e132da" for place in range(3)]
JOBS = [
    {
        "score_id": run,
        "run_id": run,
        "measured_at": AT,
        "rows": 5000,
        "psi": 0.1,
        "ks": 0.2,
        "exceeded": "ink",
    }
    for run in RUNS
]
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
# A window of Chromium is at least 500 pixels wide; a frame can be as narrow as a phone.
PROBE = """<!doctype html><meta charset="utf-8"><body>
<iframe style="width: 390px; height: 800px; border: 0" srcdoc="{}">
</iframe><script>onload = () => {{
  const inside = document.querySelector("iframe").contentWindow, page = inside.document;
  const wide = [...page.querySelectorAll("body *")]
    .filter(each => !each.parentElement.closest(".scroll, svg")
      && each.getBoundingClientRect().right > inside.innerWidth + 0.5)
    .map(each => each.outerHTML.slice(0, 99));
  const broken = [...page.images].filter(each => !each.complete || !each.naturalWidth).length;
  document.body.dataset.found = JSON.stringify({{width: inside.innerWidth, wide, broken,
    images: page.images.length, page: page.documentElement.scrollWidth}});
}}</script>"""

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here; apt-get install chromium"
)


def browse(page: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(CHROMIUM), *QUIET, f"--user-data-dir={folder / 'profile'}", *options, page.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


def console(finished) -> list[str]:
    return [line for line in finished.stderr.splitlines() if "CONSOLE" in line]


def fetched(log: Path) -> set[str]:
    """Return the URLs that a page requested, from Chromium's network log."""
    events = json.loads(log.read_text(encoding="utf-8"))["events"]
    asked = [event["params"] for event in events if "initiator" in event.get("params", {})]
    # Requests of the browser itself have no origin as initiator.
    of_page = {each["url"] for each in asked if each["initiator"] != "not an origin"}
    return {url for url in of_page if not url.startswith(("file:", "data:"))}


def on_a_phone(folder: Path, text: str) -> dict[str, Any]:
    """Measure a page in a window of 390 pixels; fail if it overflows or an image is broken."""
    page = write(folder / "probe.html", PROBE.format(html.escape(text)))
    out = browse(page, folder, "--dump-dom").stdout
    found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', out)[1]))
    assert found["width"] == 390
    assert found["page"] <= 390
    assert found["wide"] == []
    assert found["broken"] == 0
    return found


def write(page: Path, text: str) -> Path:
    page.write_text(text, encoding="utf-8")
    return page


@pytest.mark.parametrize("width", [390, 1180])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_logs_and_fetches_nothing(tmp_path, width, scheme):
    page = write(tmp_path / "report.html", report.render(*made(shape=(28, 28, 1))))
    log, shot = tmp_path / "net.json", tmp_path / "shot.png"
    finished = browse(
        page,
        tmp_path,
        f"--log-net-log={log}",
        f"--window-size={width},1600",
        f"--screenshot={shot}",
        f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
    )
    assert console(finished) == []
    assert fetched(log) == set()
    pixels = np.asarray(Image.open(shot).convert("L"), float)
    assert pixels.shape == (1600, width)
    assert pixels.std() > 10
    assert (np.median(pixels) < 60) == (scheme == "dark")


def test_probes_detect_what_they_look_for(tmp_path):
    text = report.render(*made())
    log = tmp_path / "net.json"
    loud = '<img src="http://127.0.0.1:9/x.png"><script>console.error("loud")</script></body>'
    finished = browse(
        write(tmp_path / "loud.html", POLICY.sub("", text).replace("</body>", loud)),
        tmp_path,
        f"--log-net-log={log}",
        f"--screenshot={tmp_path / 'shot.png'}",
    )
    assert any("loud" in line for line in console(finished))
    assert "http://127.0.0.1:9/x.png" in fetched(log)


def test_policy_of_page_stops_a_fetch(tmp_path):
    text = report.render(*made())
    log = tmp_path / "net.json"
    page = write(
        tmp_path / "loud.html",
        text.replace("</body>", '<img src="http://127.0.0.1:9/x.png"></body>'),
    )
    finished = browse(
        page, tmp_path, f"--log-net-log={log}", f"--screenshot={tmp_path / 'shot.png'}"
    )
    assert any("Content Security Policy" in line for line in console(finished))
    assert fetched(log) == set()


@pytest.mark.parametrize(
    "given",
    [
        {"shape": (28, 28, 1)},
        {
            "classes": 40,
            "images": 300,
            "names": [f"{each} unbrokenlongnameofaclass{'x' * 60}" for each in range(40)],
        },
    ],
    ids=["digits", "long names"],
)
def test_report_fits_on_a_phone(tmp_path, given):
    manifest, tables, images = made(**given)
    manifest.steps.decide = decided(champion=RUNS[0], reason="it is better")
    assert on_a_phone(tmp_path, report.render(manifest, tables, images, JOBS))["images"] >= 64


def test_comparison_fits_on_a_phone(tmp_path):
    rows = [
        {"run_id": run, "model": "lab", "accuracy": 0.9, "difference": None, "promoted": True}
        for run in RUNS
    ]
    curves = {run: [data.curves(made()[1]["history"])] for run in RUNS}
    assert on_a_phone(tmp_path, comparison.comparison_page(rows, curves))
    trend = {
        "finished_at": AT,
        "loss": 0.1,
        "expected_calibration_error": 0.01,
        "seconds": 100.5,
        "test_set": None,
    }
    assert on_a_phone(tmp_path, comparison.trends_page([row | trend for row in rows], JOBS))
