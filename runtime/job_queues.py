"""The answers of a scheduler, by how far they are."""

from collections import deque
from collections.abc import MutableSequence
from contextlib import suppress
from typing import Any

from .job import Job, Work


class JobQueues:
    """Waiting answers, the oldest first, and running ones. Other threads only add to `arrived` and `given_up`."""

    def __init__(self) -> None:
        self.arrived: deque[Work] = deque()
        self.given_up: deque[Work] = deque()
        self.waiting: deque[Work] = deque()
        self.prefilling: list[Work] = []
        self.decoding: list[Job] = []
        self._submitted = 0

    @property
    def running(self) -> list[Work]:
        """Those with a sequence."""
        return [*self.prefilling, *self.decoding]

    def any_is_due(self) -> bool:
        """Whether there is anything to do for those that arrived or run; for all threads."""
        due = self.arrived or self.given_up or self.prefilling or any(job.is_read for job in list(self.decoding))
        return bool(due)

    def first_waiting(self) -> list[Work]:
        """The oldest of those that wait, if any; for all threads."""
        try:
            return [self.waiting[0]]
        except IndexError:
            return []

    def accept_arrived(self) -> None:
        """Number the answers that came meanwhile."""
        while self.arrived:
            job = self.arrived.popleft()
            self._submitted += 1
            job.number = self._submitted
            self.waiting.append(job)

    def put_back(self, job: Work) -> None:
        """Let a running answer wait, before younger ones."""
        self.remove(job)
        place = next((i for i, other in enumerate(self.waiting) if other.number > job.number), len(self.waiting))
        self.waiting.insert(place, job)

    def remove(self, job: Work) -> None:
        """Take an answer out, wherever it is."""
        queues: tuple[MutableSequence[Any], ...] = (self.waiting, self.prefilling, self.decoding)
        for jobs in queues:
            with suppress(ValueError):
                jobs.remove(job)
