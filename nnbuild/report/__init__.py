"""The page that a run ends in: one HTML file, made from its manifest and tables alone.

render ── page.py, page.html, page.css      what stands where
   ├── figures.py                           what the tables say
   ├── words.py                             the same in sentences
   ├── charts.py, matrix.py, svg.py         and in pictures
   ├── examples.py                          the images
   └── facts.py                             how the run was made
rebuild ── rebuilding.py                    for a run that is committed
"""

from nnbuild.report.page import Champion, render
from nnbuild.report.rebuilding import rebuild

__all__ = ["Champion", "rebuild", "render"]
