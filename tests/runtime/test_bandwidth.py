"""The probe reads all of its buffer, and the caches that the buffer must not fit into are found."""

from itertools import pairwise
from pathlib import Path

import pytest

from mlc_llm.runtime import bandwidth
from mlc_llm.runtime.bandwidth import ReadProbe, cache_bytes

MIB = 1 << 20


@pytest.mark.parametrize("threads", [1, 3])
def test_every_part_is_read_as_often_as_counted(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = ReadProbe(threads, 3 * MIB)
    parts: list[tuple[int, int]] = []

    def scan(address: int, byte: int, nbytes: int) -> None:
        parts.append((address, nbytes))

    monkeypatch.setattr(probe, "_memchr", scan)
    monkeypatch.setattr(bandwidth, "perf_counter", iter([10.0, 12.0]).__next__)
    rate = probe.measure()
    assert rate * 2.0 == sum(nbytes for _, nbytes in parts)
    passes = len(parts) // threads
    ranges = sorted(set(parts))
    assert sorted(parts) == sorted(ranges * passes)
    assert sum(nbytes for _, nbytes in ranges) == probe.nbytes
    assert all(start + nbytes == after for (start, nbytes), (after, _) in pairwise(ranges))


def test_the_c_library_reads_it_to_the_end() -> None:
    probe = ReadProbe(1, MIB)
    assert probe.measure() > 0
    start = probe._buffer.ctypes.data
    assert probe._memchr(start, 1, MIB) is None
    probe._buffer[-1] = 1
    assert probe._memchr(start, 1, MIB) == start + MIB - 1


def cpu_folder(root: Path, cpus: dict[int, tuple[str, str]]) -> None:
    """What the kernel says of the caches: size, and which processors share it."""
    for cpu, (size, shared) in cpus.items():
        folder = root / f"cpu{cpu}/cache/index3"
        folder.mkdir(parents=True)
        (folder / "size").write_text(f"{size}\n")
        (folder / "shared_cpu_list").write_text(f"{shared}\n")


@pytest.mark.parametrize(
    ("cpus", "expected"),
    [
        ({0: ("32768K", "0-1"), 1: ("32768K", "0-1")}, 32 * MIB),
        ({0: ("96M", "0"), 1: ("32M", "1")}, 128 * MIB),
        ({0: ("32M", "0"), 1: ("large", "1")}, 32 * MIB),
        ({}, 0),
    ],
)
def test_caches_that_are_shared_count_once(
    cpus: dict[int, tuple[str, str]], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_folder(tmp_path, cpus)
    monkeypatch.setattr(bandwidth, "_CPUS", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    assert cache_bytes() == expected


def test_the_buffer_is_larger_than_the_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "cache_bytes", lambda: 80 * MIB)
    assert ReadProbe(1).nbytes == 320 * MIB
