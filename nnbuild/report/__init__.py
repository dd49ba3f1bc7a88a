"""The report of a run: one HTML file, generated from its manifest and tables.

render, rebuild ── page.py, page.html, head.html   the page, charts as files
   ├── sections.py                                 the content of each section
   ├── data.py                                     values from the tables and the manifest
   ├── text.py                                     sentences
   ├── charts.py, svg.py                           charts
   ├── examples.py                                 test images
   └── names.py                                    names that users chose, in all of these
comparison.py, live.py, across.html                pages over several runs
mlflow.py                                          runs in MLflow
"""

from nnbuild.report.page import rebuild, render

__all__ = ["rebuild", "render"]
