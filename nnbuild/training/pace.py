"""How many steps to make before looking up: enough to be quick, few enough to hear a signal soon."""

from dataclasses import dataclass

_LOOK_UP_SECONDS = 0.25


@dataclass
class Pace:
    """Learns how long a step takes; its answers change when the run looks up, never what it computes."""

    steps: int = 1

    def learn(self, steps: int, seconds: float) -> None:
        """Take note of how long so many steps took."""
        wanted = int(steps * _LOOK_UP_SECONDS / max(seconds, 1e-6))
        # Growing tenfold at the most: the first call also traces the function, and the second does not.
        self.steps = max(1, min(wanted, steps * 10))
