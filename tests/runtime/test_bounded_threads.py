"""Work with a deadline."""

import threading

import pytest

from mlc_llm.runtime.bounded_threads import BoundedThreads, TooLateError

PATIENCE = 600.0


def recurse(depth: int) -> int:
    return depth and recurse(depth - 1)


def test_work_gives_its_result_or_its_error() -> None:
    threads = BoundedThreads(1, 1 << 20)
    assert threads.run(lambda: 7, PATIENCE) == 7
    with pytest.raises(ZeroDivisionError):
        threads.run(lambda: 1 // 0, PATIENCE)


def test_late_work_keeps_its_place_until_it_is_done() -> None:
    threads, go_on = BoundedThreads(1, 1 << 20), threading.Event()
    with pytest.raises(TooLateError, match="takes more than 0 s"):
        threads.run(go_on.wait, 0)
    with pytest.raises(TooLateError, match="has not begun after 0 s"):
        threads.run(lambda: 1, 0)
    go_on.set()
    assert threads.run(lambda: 1, PATIENCE) == 1


def test_the_stack_size_of_other_threads_stays() -> None:
    before = threading.stack_size()
    BoundedThreads(1, 64 << 20).run(lambda: recurse(500), PATIENCE)
    assert threading.stack_size() == before
