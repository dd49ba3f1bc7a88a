"""The page that a run ends in: one HTML file, made from its manifest and tables alone."""

from nnbuild.report.page import render

__all__ = ["render"]
