"""How a compilation shows itself on stderr: bars on a terminal, plain lines elsewhere, nothing when asked."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


class Lines:
    """One line a stage, with the seconds it took; for logs and pipes. Follows compiler.progress.Progress."""

    def __init__(self, out: TextIO, title: str | None) -> None:
        self.out = out
        self.title = title
        self._unsaid = title
        self._name: str | None = None
        self._start = 0.0

    def stage(self, name: str, total: int | None = None) -> None:
        self.finish()
        if self._unsaid is not None:
            self.note(self._unsaid)
            self._unsaid = None
        self._name, self._start = name, time.perf_counter()

    def advance(self, amount: int, what: str = "") -> None:
        pass

    def skip(self, name: str, why: str) -> None:
        self.finish()
        if self.title is None:
            self.note(f"{name}: {why}")

    def note(self, text: str) -> None:
        print(text, file=self.out, flush=True)

    def finish(self) -> None:
        """The stage at hand is done."""
        if self._name is not None:
            self.note(f"{self._name}: {time.perf_counter() - self._start:.1f} s")
        self._name = None


class Bars(Lines):
    """A bar for each stage, in bytes where the total is known."""

    def __init__(self, bars: "RichProgress", out: TextIO, title: str | None) -> None:
        super().__init__(out, title)
        self.bars = bars
        self._task: TaskID | None = None

    def stage(self, name: str, total: int | None = None) -> None:
        super().stage(name, total)
        self._task = self.bars.add_task(name, total=total, what="")

    def advance(self, amount: int, what: str = "") -> None:
        if self._task is not None:
            self.bars.update(self._task, advance=amount, what=what)

    def note(self, text: str) -> None:
        self.bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def finish(self) -> None:
        """The stage at hand is done: its bar is full."""
        if self._task is not None:
            total = self.bars.tasks[self._task].total or 1
            self.bars.update(self._task, total=total, completed=total, what="")
        self._task = None


@contextmanager
def show_progress(title: str | None = None, out: TextIO | None = None) -> Iterator[Lines]:
    """The progress that suits `out` (stderr by default), for one compilation.

    With a `title` a compilation that finds everything up to date shows nothing, and any other begins with that line.
    """
    out = out or sys.stderr
    if not out.isatty():
        lines = Lines(out, title)
        yield lines
        lines.finish()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description:<10}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[what]}", style="dim", markup=False),
        console=Console(file=out),
    ) as progress:
        bars = Bars(progress, out, title)
        yield bars
        bars.finish()
