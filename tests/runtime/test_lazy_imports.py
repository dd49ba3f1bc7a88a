"""Imports that are blocked fail inside the block only."""

import gc
import importlib
import importlib.util
import sys

import pytest

from nnbuild.runtime.lazy_imports import import_blocked


def test_blocked_import_fails_only_in_the_block():
    name = "this"  # a module of the standard library that nothing imports
    assert name not in sys.modules
    with import_blocked(name), pytest.raises(ImportError):
        importlib.import_module(name)
    assert importlib.util.find_spec(name) is not None


def test_blocked_import_keeps_imported_modules():
    with import_blocked("gc"):
        assert importlib.import_module("gc") is gc
