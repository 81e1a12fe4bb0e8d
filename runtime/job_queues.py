"""The answers of a scheduler, by how far they are."""

from collections import deque
from contextlib import suppress

from .job import Job


class JobQueues:
    """Waiting answers, the oldest first, and running ones. Other threads only add to `arrived` and `given_up`."""

    def __init__(self) -> None:
        self.arrived: deque[Job] = deque()
        self.given_up: deque[Job] = deque()
        self.waiting: deque[Job] = deque()
        self.prefilling: list[Job] = []
        self.decoding: list[Job] = []
        self._submitted = 0

    @property
    def running(self) -> list[Job]:
        """Those with a sequence."""
        return [*self.prefilling, *self.decoding]

    def first_waiting(self) -> list[Job]:
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

    def put_back(self, job: Job) -> None:
        """Let a running answer wait, before younger ones."""
        self.remove(job)
        place = next((i for i, other in enumerate(self.waiting) if other.number > job.number), len(self.waiting))
        self.waiting.insert(place, job)

    def remove(self, job: Job) -> None:
        """Take an answer out, wherever it is."""
        for jobs in (self.waiting, self.prefilling, self.decoding):
            with suppress(ValueError):
                jobs.remove(job)
