"""Sweeps: many runs over a grid or a search space, and the best of them by validation."""

from nnbuild.sweep.runner import SweepResult, SweepRunner, make_sweep
from nnbuild.sweep.space import SweepConfig, sweep_config
from nnbuild.sweep.study import require_possible
from nnbuild.sweep.sweep import Sweep, Trial, TrialResult, open_sweep, sweep_context
from nnbuild.sweep.trial import make_trial

__all__ = [
    "Sweep",
    "SweepConfig",
    "SweepResult",
    "SweepRunner",
    "Trial",
    "TrialResult",
    "make_sweep",
    "make_trial",
    "open_sweep",
    "require_possible",
    "sweep_config",
    "sweep_context",
]
