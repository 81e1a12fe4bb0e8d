"""What the compile driver tells whoever watches it: a bar, a log, a test. The default says nothing."""

from collections.abc import Callable
from typing import Protocol

from ..runtime.hub import Progress as DownloadProgress


class Progress(Protocol):
    """Calls arrive in order and from one thread: a stage begins, advances, and ends where the next one begins."""

    def stage(self, name: str, total: int | None = None) -> None:
        """A stage begins. `total` counts its units (bytes of weights), None where nobody knows."""

    def advance(self, amount: int, what: str = "") -> None:
        """`amount` more units of the stage are done; `what` names the thing at hand, as a tensor."""

    def skip(self, name: str, why: str) -> None:
        """A stage is left out, as "weights": "up to date"."""

    def note(self, text: str) -> None:
        """One line that the user should see, as "another mlc compile is writing dist/x: waiting"."""


class Silent:
    """Progress that nobody watches."""

    def stage(self, name: str, total: int | None = None) -> None:
        pass

    def advance(self, amount: int, what: str = "") -> None:
        pass

    def skip(self, name: str, why: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass


SILENT = Silent()


def steps(progress: Progress, total: int) -> Callable[[int, int, str], None]:
    """A callback for work that reports (done, of how many, what): steps of a stage that has `total` units."""
    shown = 0

    def report(done: int, count: int, what: str) -> None:
        nonlocal shown
        position = done * total // max(count, 1)
        progress.advance(position - shown, what)
        shown = position

    return report


def downloads(progress: Progress) -> DownloadProgress:
    """A callback for downloads, which report (bytes done, bytes in all, what): a stage for each thing that comes."""
    reports: dict[str, Callable[[int, int, str], None]] = {}

    def report(done: int, total: int, what: str) -> None:
        if what not in reports:
            progress.stage(f"download {what}", total or None)
            reports[what] = steps(progress, total)
        reports[what](done, total, "")

    return report
