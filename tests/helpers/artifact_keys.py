"""Kinds of artifacts, by their keys."""

import re


def kind_of(key: str) -> str:
    """Return the kind of an artifact; its key continues with the store and the dataset."""
    return re.match("nnbuild-(data-checks|[a-z]+)", key)[0]
