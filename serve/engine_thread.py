"""A thread that runs an engine's steps, and brings their events to an event loop."""

import asyncio
import sys
import threading
import traceback
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress

from ..runtime.errors import EngineError
from ..runtime.events import Event, Finish
from ..runtime.job import MOST_UNREAD, Work
from ..runtime.scheduler import Scheduler

_TERMINATED = "the engine is terminated: make a new AsyncMLCEngine"


class EngineThread:
    """Runs steps while there is something to do. Streams may be opened on any event loop."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._streams: dict[_Stream, None] = {}
        self._errands: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._wake = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="mlc-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether steps are run, or would be."""
        return self._thread.is_alive() and not self._stopped

    async def stream(self, jobs: Sequence[Work]) -> AsyncGenerator[tuple[int, Event], None]:
        """The events of several answers as they come, each with the index of its job.

        Closing the iterator gives up what is not finished, after the step that runs at most. Raises EngineError when
        the model fails or the engine is terminated, OverloadedError when too many answers wait.
        """
        stream = _Stream(jobs)
        unfinished = dict(enumerate(jobs))
        try:
            for job in jobs:
                self.check_running()
                self._scheduler.submit(job)
            self._streams[stream] = None
            self._notify()
            while unfinished:
                came = False
                for index, job in list(unfinished.items()):
                    while job.events:
                        event, came = job.events.popleft(), True
                        if len(job.events) >= MOST_UNREAD - 1:  # only after it is taken: the thread looks at once
                            self._notify()
                        if type(event) is Finish:
                            del unfinished[index]
                        yield index, event
                    if job.error is not None:
                        raise job.error
                if not came:
                    self.check_running()
                    await stream.wait()
        finally:
            self._streams.pop(stream, None)
            for job in unfinished.values():
                self._scheduler.cancel(job)
            self._notify()

    async def between_steps(self, errand: Callable[[], None]) -> None:
        """Have the thread call `errand` when no step runs; whoever asked for the scheduler's lock might never get it
        from a thread that takes it for step after step."""
        self.check_running()
        done: Future[None] = Future()
        self._errands.append((errand, done))
        self._notify()
        if not self._thread.is_alive():  # it ended meanwhile, and may not have seen the errand
            self._refuse_errands()
        await asyncio.wrap_future(done)

    def stop(self) -> None:
        """End the thread after the step that runs, and all streams. A second call does nothing."""
        self._stopped = True
        self._notify()
        self._thread.join()
        self.wake_streams()
        self._refuse_errands()

    def wake_streams(self) -> None:
        """Let every stream look at its jobs."""
        _wake(list(self._streams))

    def check_running(self) -> None:
        """Raise EngineError when the thread was stopped."""
        if self._stopped:
            raise EngineError(_TERMINATED)

    def _run_errands(self) -> None:
        while self._errands:
            errand, done = self._errands.popleft()
            if not done.set_running_or_notify_cancel():  # nobody waits for it any more
                continue
            try:
                done.set_result(errand())
            except Exception as error:
                done.set_exception(error)

    def _refuse_errands(self) -> None:
        with suppress(IndexError):
            while True:
                _, done = self._errands.popleft()
                if done.set_running_or_notify_cancel():
                    done.set_exception(EngineError(_TERMINATED))

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopped or self._errands or self._scheduler.busy)
            if self._stopped:
                return
            self._run_errands()
            try:
                self._scheduler.step()
            except Exception as error:  # a defect: those who wait must hear of it, and the engine go on
                traceback.print_exc(file=sys.stderr)
                self._scheduler.fail_all(EngineError(f"the engine failed: {type(error).__name__}: {error}"))
            _wake([stream for stream in list(self._streams) if stream.has_news()])


class _Stream:
    """Somebody on an event loop who waits for events of some jobs."""

    def __init__(self, jobs: Sequence[Work]) -> None:
        self._jobs = jobs
        self.loop = asyncio.get_running_loop()
        self.came = asyncio.Event()

    def has_news(self) -> bool:
        return any(job.events or job.error is not None for job in self._jobs)

    async def wait(self) -> None:
        if not self.has_news():
            await self.came.wait()
        self.came.clear()


def _wake(streams: Iterable[_Stream]) -> None:
    """Let streams look at their jobs, from any thread. It takes a system call for each event loop, not each stream."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Stream]] = {}
    for stream in streams:
        by_loop.setdefault(stream.loop, []).append(stream)
    for loop, woken in by_loop.items():
        with suppress(RuntimeError):  # the loop is closed, so nobody waits
            loop.call_soon_threadsafe(_tell, woken)


def _tell(streams: Iterable[_Stream]) -> None:
    for stream in streams:
        stream.came.set()
