"""Work that cannot be interrupted: done in a thread of its own, waited for until a deadline.

The threads are not daemons, so a program that ends waits for them: a native library would be torn down under them.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as DeadlineError
from typing import TypeVar

Result = TypeVar("Result")


class TooLateError(Exception):
    """The deadline is over; the message completes a sentence."""


class BoundedThreads:
    """At most `count` threads at once, each with a stack of its own size. Safe to use from several threads."""

    def __init__(self, count: int, stack_bytes: int) -> None:
        self._slots = threading.BoundedSemaphore(count)
        self._stack_bytes = stack_bytes

    def run(self, work: Callable[[], Result], seconds: float) -> Result:
        """What `work` returns or raises. Raises TooLateError after that long; the work goes on and keeps its place."""
        if not self._slots.acquire(timeout=seconds):
            raise TooLateError(f"has not begun after {seconds:g} s, for others take long; try again later")
        outcome: Future[Result] = Future()

        def thread() -> None:
            try:
                outcome.set_result(work())
            except BaseException as error:  # a panic in a native library is not an Exception
                outcome.set_exception(error)
            finally:
                self._slots.release()

        self._start(thread)
        try:
            return outcome.result(seconds)
        except DeadlineError:
            raise TooLateError(f"takes more than {seconds:g} s") from None

    def _start(self, target: Callable[[], None]) -> None:
        with _STACK_SIZE:
            before = threading.stack_size(self._stack_bytes)
            try:
                threading.Thread(target=target).start()
            except BaseException:
                self._slots.release()
                raise
            finally:
                threading.stack_size(before)


_STACK_SIZE = threading.Lock()  # there is one setting, for all threads that are started
