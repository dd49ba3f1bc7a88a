"""What a person sees of a run: a live line in a terminal, one line an epoch in a log. All of it on standard error."""

from contextlib import AbstractContextManager, nullcontext, suppress

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from flows.printing import PlainConsole
from nnbuild.runtime.text import sanitize

_SECONDS_BETWEEN_LINES = 10.0


def _figures(metrics: dict[str, float]) -> str:
    return "  ".join(f"{sanitize(name)} {value:.4g}" for name, value in metrics.items())


class LogDisplay:
    """One line for each thing worth knowing: for log files, pipes and CI."""

    def __init__(self, console: PlainConsole) -> None:
        self._console = console
        self._told_at = 0.0
        self.committed_run: str | None = None

    def waiting(self, text: str) -> AbstractContextManager[object]:  # noqa: ARG002
        """Something takes seconds: not worth a line."""
        return nullcontext()

    def note(self, text: str) -> None:
        """A remark."""
        self._console.print_line(text)

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, float], seconds: float) -> None:
        """An epoch's line."""
        self.note(f"epoch {epoch}/{epochs}  {_figures(metrics)}  {seconds:.1f} s")

    def step(
        self, epoch: int, epochs: int, done: int, steps: int, metrics: dict[str, float]
    ) -> None:
        """Steps are not worth a line."""

    def download(self, file: str, done: int, total: int | None) -> None:
        """A download is worth one line, when it is complete."""
        if done == total:
            self.note(f"downloaded {file}, {done:,} bytes")

    def scored(self, done: int, total: int, seconds: float) -> None:
        """Rows of a scoring job: a line at every so many seconds, and at the end."""
        if seconds - self._told_at > _SECONDS_BETWEEN_LINES or (
            done == total and seconds > _SECONDS_BETWEEN_LINES
        ):
            self._told_at = seconds
            rate = done / seconds
            self.note(
                f"scored {done:,} of {total:,} rows  {rate:,.0f} rows/s  {(total - done) / rate:.0f} s left"
            )

    def committed(self, run_id: str) -> None:
        """Remember the run, whose flow run can still fail to be reported to Prefect's server."""
        self.committed_run = run_id

    def close(self) -> None:
        """Nothing to put away."""


class TerminalDisplay(LogDisplay):
    """The same lines, and under them a bar that moves."""

    def __init__(self, console: PlainConsole) -> None:
        super().__init__(console)
        self._fit = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._downloads = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            console=console,
            transient=True,
        )
        self._bar: TaskID | None = None
        self._files: dict[str, TaskID] = {}

    def waiting(self, text: str) -> AbstractContextManager[object]:
        """Show that something is going on."""
        return self._console.status(text)

    def step(
        self, epoch: int, epochs: int, done: int, steps: int, metrics: dict[str, float]
    ) -> None:
        """Move the bar."""
        if self._bar is None:
            self._fit.start()
            self._bar = self._fit.add_task("fit", total=epochs * steps, figures="")
        self._fit.update(
            self._bar,
            completed=(epoch - 1) * steps + done,
            description=f"epoch {epoch}/{epochs}",
            figures=_figures(metrics),
        )
        if epoch == epochs and done == steps:
            self._fit.stop()
            self._fit.remove_task(self._bar)
            self._bar = None  # a sweep fits again

    def download(self, file: str, done: int, total: int | None) -> None:
        """Move the file's bar."""
        if file not in self._files:
            self._downloads.start()
            self._files[file] = self._downloads.add_task(sanitize(file), total=total)
        self._downloads.update(self._files[file], completed=done, total=total)
        if done == total:
            self._downloads.stop()
        super().download(file, done, total)

    def scored(self, done: int, total: int, seconds: float) -> None:
        """Move the bar of a scoring job."""
        if self._bar is None:
            self._fit.start()
            self._bar = self._fit.add_task("scoring", total=total, figures="")
        rate = f"{done:,} of {total:,} rows  {done / max(seconds, 1e-9):,.0f} rows/s"
        self._fit.update(self._bar, completed=done, figures=rate)

    def close(self) -> None:
        """Put the bars away, whatever happened; the terminal may be gone, and the run has its end."""
        with suppress(Exception):
            self._fit.stop()
            self._downloads.stop()


def display_for(console: PlainConsole) -> LogDisplay:
    """A live display in a terminal, lines elsewhere."""
    return TerminalDisplay(console) if console.is_terminal else LogDisplay(console)
