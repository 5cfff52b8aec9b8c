"""A progress line for long runs: steps, the bound, steps per second, time left. Silent off a terminal."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Bar:
    """A rich progress bar that shows the latest metrics."""

    def __init__(self, name: str, total: int, shown: bool):
        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metric]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (shown and console.is_terminal),
        )
        self.task = self.bar.add_task(name, total=total, metric="compiling", rate="")

    def update(self, completed: int, metric: str, rate: float) -> None:
        """Show where the run is."""
        self.bar.update(self.task, completed=completed, metric=metric, rate=f"{rate:,.0f} steps/s")

    def __enter__(self) -> Bar:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
