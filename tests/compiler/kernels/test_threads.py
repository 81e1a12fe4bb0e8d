"""The threads of a model library, called as TVM's kernels and runtime call them."""

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlc_llm.compiler.kernels import cpu
from mlc_llm.compiler.link import find_linker
from mlc_llm.compiler.target.cpu import native_triple

SOURCE = Path(cpu.__path__[0]) / "threads.c"


class Loop(ctypes.Structure):
    _fields_ = [("sync_handle", ctypes.c_void_p), ("num_task", ctypes.c_int32)]


class FFIAny(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("padding", ctypes.c_uint32), ("integer", ctypes.c_int64)]


BODY = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.POINTER(Loop), ctypes.c_void_p)
LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int, BODY, ctypes.c_void_p, ctypes.c_int)
RAISE = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p)
Run = Callable[[int, int], int]  # (chunk, chunks) -> 0 when it went well


class Library:
    """A shared library of nothing but the threads."""

    def __init__(self, path: Path) -> None:
        self.loaded = ctypes.CDLL(str(path))
        self.errors: list[tuple[str, str]] = []
        self._raise = RAISE(lambda kind, message: self.errors.append((kind.decode(), message.decode())))
        ctypes.c_void_p.in_dll(self.loaded, "__TVMFFIErrorSetRaisedFromCStr").value = ctypes.cast(
            self._raise, ctypes.c_void_p
        ).value

    def set_num_threads(self, *values: int, kind: int = 1) -> int:
        arguments = (FFIAny * max(1, len(values)))(*(FFIAny(kind, 0, value) for value in values))
        function = self.loaded["__tvm_ffi_set_num_threads"]
        return int(function(None, arguments, len(values), ctypes.byref(FFIAny())))

    def launch(self, run: Run, num_task: int = 0) -> int:
        function = LAUNCH(ctypes.c_void_p.in_dll(self.loaded, "__TVMBackendParallelLaunch").value)
        return int(function(BODY(lambda chunk, loop, data: run(chunk, loop.contents.num_task)), None, num_task))

    def close(self) -> None:
        handle = self.loaded._handle
        ctypes.CDLL(None).dlclose(ctypes.c_void_p(handle))


@pytest.fixture(scope="module", params=["as C", "as C++"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The threads, compiled as either language that a compiler which links libraries may take the file for."""
    output = tmp_path_factory.mktemp("threads") / "threads.so"
    language = "c" if request.param == "as C" else "c++"
    compiler = find_linker(native_triple()).command
    flags = ["-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-shared", "-pthread"]
    subprocess.run([compiler, *flags, "-x", language, str(SOURCE), "-o", str(output)], check=True)
    return output


@pytest.fixture
def library(built: Path) -> Iterator[Library]:
    library = Library(built)
    library.set_num_threads(2)
    yield library
    library.close()


def test_every_part_of_a_loop_runs_once(library: Library) -> None:
    for threads, parts in ((1, 1), (2, 16), (5, 20), (8, 48)):  # 96 parts are shared out evenly where that is possible
        assert library.set_num_threads(threads) == 0
        for wanted in (0, 1, 2, 3, 7, 100):
            done: list[tuple[int, int]] = []

            def run(chunk: int, chunks: int, done: list[tuple[int, int]] = done) -> int:
                done.append((chunk, chunks))
                return 0

            assert library.launch(run, wanted) == 0
            chunks = done[0][1]
            assert sorted(done) == [(chunk, chunks) for chunk in range(chunks)]
            assert chunks == 1 if threads == 1 else chunks == (wanted or parts)


def test_the_number_of_threads_changes_between_loops(library: Library) -> None:
    """As where another engine is loaded while one computes."""
    with ThreadPoolExecutor(2) as pool:
        for threads in (4, 1, 3, 2) * 5:
            begun, may_end = threading.Event(), threading.Event()

            def body(chunk: int, chunks: int, begun: Any = begun, may_end: Any = may_end) -> int:
                begun.set()
                return 0 if may_end.wait(60) else 1

            loop = pool.submit(library.launch, body, 8)
            assert begun.wait(60)
            change = pool.submit(library.set_num_threads, threads)
            may_end.set()
            assert (loop.result(60), change.result(60)) == (0, 0)


class HeldUp:
    """A loop of eight parts, of which the worker takes two and stays in the first of them until the launcher has done
    all others."""

    def __init__(self, library: Library) -> None:
        self._library, self._launcher, self._mutex = library, threading.get_ident(), threading.Lock()

    def run(self, milliseconds: float) -> bool:
        """Whether a worker came at all, and was then held up, at the end for some time more."""
        left, others_done, came, in_time = set(range(8)), threading.Event(), [], []

        def body(chunk: int, chunks: int) -> int:
            with self._mutex:
                hold = threading.get_ident() != self._launcher and not came
                came.extend([True] * hold)
            if hold:
                in_time.append(others_done.wait(60))
                threading.Event().wait(milliseconds / 1000)
            with self._mutex:
                left.discard(chunk)
                if len(left) == 2:
                    others_done.set()
            return 0

        assert self._library.launch(body, 8) == 0
        assert not left or not came
        assert all(in_time)
        return bool(came)


def test_a_thread_that_is_held_up_is_relieved_of_all_parts_that_it_has_not_taken(library: Library) -> None:
    held_up = HeldUp(library)
    assert any(held_up.run(0) for _ in range(1000))  # until the worker was quick enough to get a part


def test_a_thread_that_was_held_up_for_long_is_left_out_for_some_time(library: Library) -> None:
    held_up = HeldUp(library)

    def parts() -> int:
        seen: list[int] = []
        library.launch(lambda chunk, chunks: seen.append(chunks) or 0)
        return seen[0]

    for _ in range(1000):
        if held_up.run(20) and parts() == 1:  # the launcher alone
            break
    else:
        raise AssertionError("it was never left out")
    wait_until(lambda: parts() == 16)


def test_loops_inside_of_loops_and_of_several_threads_run_too(library: Library) -> None:
    done: list[int] = []

    def inner(chunk: int, chunks: int) -> int:
        assert chunks == 1
        done.append(chunk)
        return 0

    assert library.launch(lambda chunk, chunks: library.launch(inner)) == 0
    assert len(done) == 16

    def many(thread: int) -> int:
        parts: list[float] = []

        def run(chunk: int, chunks: int) -> int:
            parts.append(1 / chunks)
            return 0

        for _ in range(200):
            parts.clear()
            assert library.launch(run) == 0
            assert sum(parts) == 1
        return thread

    with ThreadPoolExecutor(4) as executor:
        assert list(executor.map(many, range(4))) == [0, 1, 2, 3]


def test_a_part_that_fails_fails_the_loop_after_all_parts(library: Library) -> None:
    done: list[int] = []

    def run(chunk: int, chunks: int) -> int:
        done.append(chunk)
        return -1 if chunk == 5 else 0

    assert library.launch(run) == -1
    assert sorted(done) == list(range(16))
    assert library.errors == [("RuntimeError", "a kernel failed")]
    assert library.launch(lambda chunk, chunks: 0) == 0


@pytest.mark.parametrize(("values", "kind"), [((), 1), ((2, 2), 1), ((0,), 1), ((-1,), 1), ((2,), 3)])
def test_what_is_no_number_of_threads(library: Library, values: tuple[int, ...], kind: int) -> None:
    assert library.set_num_threads(*values, kind=kind) == -1
    assert library.errors == [("ValueError", "set_num_threads takes the number of threads, at least 1")]


def threads() -> dict[str, str]:
    """The state of each thread of this process: "S" is asleep."""
    states = {}
    for task in Path("/proc/self/task").iterdir():
        states[task.name] = (task / "stat").read_text().rpartition(")")[2].split()[0]
    return states


def wait_until(condition: Callable[[], Any]) -> None:
    for _ in range(200):
        if condition():
            return
        threading.Event().wait(0.05)
    raise AssertionError("it never happened")


def test_idle_workers_sleep_and_an_unloaded_library_has_none(built: Path) -> None:
    before = set(threads())
    library = Library(built)
    library.set_num_threads(4)
    assert set(threads()) == before  # none before they are needed
    library.launch(lambda chunk, chunks: 0)
    workers = set(threads()) - before
    assert len(workers) == 3
    wait_until(lambda: all(threads()[worker] == "S" for worker in workers))
    library.launch(lambda chunk, chunks: 0)  # they wake up again
    library.close()
    wait_until(lambda: not set(threads()) & workers)


FORK = """
import os, sys
sys.path.insert(0, sys.argv[1])
from test_threads import Library
library = Library(sys.argv[2])
library.set_num_threads(3)
library.launch(lambda chunk, chunks: 0)
child = os.fork()
count = []
library.launch(lambda chunk, chunks: count.append(chunk) or 0)
assert sorted(count) == list(range(24)), count
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_process_has_threads_of_its_own(built: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORK, str(Path(__file__).parent), str(built)]
    subprocess.run(command, check=True, timeout=300, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
