"""Separate the networks of a run in its history: its only one, or the members of an ensemble."""

from bisect import bisect_left
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, NamedTuple

import pyarrow as pa

from nnbuild.report.data import Curves, Points, curves
from nnbuild.store.manifests import Manifest
from nnbuild.store.step_results import FittedModel


class Networks(NamedTuple):
    """The networks of a run: one, or the members of an ensemble.

    Attributes:
        size: Number of networks.
        total: Number of epochs over all of them, as the history counts them.
        each: Number of epochs of each network, in order; None if the run does not record it.
    """

    size: int
    total: int
    each: tuple[int, ...] | None

    @property
    def epochs(self) -> str:
        """Return the number of epochs in words; for an ensemble also the number of networks."""
        if self.size == 1:
            return _epochs(self.total)
        if self.each is None:
            return f"{self.size} networks, {_epochs(self.total)} in all"
        if len({*self.each}) == 1:
            return f"{self.size} networks of {_epochs(self.each[0])} each"
        counts = ", ".join(map(str, self.each[:-1]))
        return f"{self.size} networks of {counts} and {_epochs(self.each[-1])}"

    def split(self, whole: Curves) -> list[Curves]:
        """Return the curves of each network, with epochs from 1.

        Args:
            whole: Curves of all networks, one after another.

        Returns:
            One item for each network; a single one with the curves as they are if the run does not
            record which epochs are whose.
        """
        if self.each is None:
            return [whole]
        ends = list(accumulate(self.each))
        members: list[dict[str, Points]] = [{} for _ in self.each]
        for name, points in whole.items():
            for epoch, value in points:
                number = min(bisect_left(ends, epoch), len(ends) - 1)
                own = epoch - ends[number] + self.each[number]
                members[number].setdefault(name, []).append((own, value))
        return list(members)


def _epochs(count: int) -> str:
    return f"{count} epoch{'' if count == 1 else 's'}"


def networks_of(fitted: FittedModel, config: Mapping[str, Any]) -> Networks:
    """Return the networks of a fit, and for how many epochs each was trained.

    The history numbers the epochs of the members of an ensemble one after another. Runs of earlier
    versions do not record how many each has: without early stopping, as many as were configured.

    Args:
        fitted: Result of the fit.
        config: Settings of the run.
    """
    size = int(config.get("model", {}).get("ensemble_size", 1))
    configured = int(config["training"].get("epochs") or 0)
    each = fitted.member_epochs or None
    if each is None and size == 1:
        each = (fitted.epochs,)
    elif each is None and fitted.epochs == size * configured:
        each = (configured,) * size
    return Networks(size, fitted.epochs, each)


def networks_in(manifest: Manifest) -> Networks:
    """Return the networks of a committed run; see `networks_of`."""
    return networks_of(manifest.steps.fit_model, manifest.config)


def curves_by_network(manifest: Manifest, history: pa.Table) -> list[Curves]:
    """Return the curves of each network of a run.

    Args:
        manifest: Manifest of the run.
        history: Its `history` table.

    Returns:
        One item for each network; none if the run does not record which epochs are whose.
    """
    networks = networks_in(manifest)
    return networks.split(curves(history)) if networks.each is not None else []
