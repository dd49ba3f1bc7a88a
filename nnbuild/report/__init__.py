"""The page that a run ends in: one HTML file, made from its manifest and tables alone.

render ── page.py, page.html, head.html     what stands where
   ├── sections.py                          what each section is filled with
   ├── figures.py                           what the tables say
   ├── words.py, formats.py                 the same in sentences
   ├── charts.py, matrix.py, svg.py         and in pictures
   ├── examples.py                          the images
   └── facts.py                             how the run was made
rebuild ── rebuilding.py                    for a run that is committed
across.py, across.html                      pages over several runs
"""

from nnbuild.report.page import rebuild, render

__all__ = ["rebuild", "render"]
