"""Cores, instruction sets and memory of the machine, as the kernel tells them."""

import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlc_llm.runtime import processor
from mlc_llm.runtime.errors import UsageError


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty /proc and /sys to fill."""
    for name in ("_CPUINFO", "_MEMINFO", "_CGROUP", "_GROUPS", "_CPUS"):
        monkeypatch.setattr(processor, name, tmp_path / name)
    for name in ("_CGROUP", "_CPUS"):
        (tmp_path / name).mkdir()
    processor.cpu_features.cache_clear()
    return tmp_path


@pytest.fixture(autouse=True)
def _fresh_features() -> None:
    processor.cpu_features.cache_clear()


@pytest.mark.parametrize(("machine", "triple"), [("AMD64", "x86_64"), ("arm64", "aarch64"), ("riscv64", "riscv64")])
def test_the_architecture_is_spelled_as_in_triples(machine: str, triple: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=machine))
    assert processor.host_architecture() == triple


@pytest.mark.parametrize("name", ["flags\t\t", "Features\t"])
def test_features_come_from_the_first_processor(kernel: Path, name: str) -> None:
    (kernel / "_CPUINFO").write_text(f"processor\t: 0\n{name}: fma avx512_vnni\n\nprocessor\t: 1\n{name}: other\n")
    assert processor.cpu_features() == {"fma", "avx512_vnni"}


def test_features_are_empty_where_the_kernel_tells_none(kernel: Path) -> None:
    assert processor.cpu_features() == frozenset()
    processor.cpu_features.cache_clear()
    (kernel / "_CPUINFO").write_text("processor\t: 0\n")
    assert processor.cpu_features() == frozenset()


def siblings(kernel: Path, cpu: int, text: str) -> None:
    folder = kernel / "_CPUS" / f"cpu{cpu}" / "topology"
    folder.mkdir(parents=True)
    (folder / "thread_siblings_list").write_text(text + "\n")


def test_siblings_of_a_core_count_once(kernel: Path) -> None:
    for cpu in range(4):
        siblings(kernel, cpu, f"{cpu % 2},{cpu % 2 + 2}")
    assert processor.physical_cores([0, 1, 2, 3]) == 2
    assert processor.physical_cores([0, 2]) == 1
    assert processor.physical_cores([7, 8]) == 2  # nothing is known of them


V1 = "3:memory:/m\n2:cpu,cpuacct:/docker/7\n1:name=systemd:/\n"


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("", {}, math.inf),
        ("0::/\n", {}, math.inf),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "nonsense"}, math.inf),
        ("0::/a.slice/b:c\n", {"a.slice/b:c/cpu.max": "300000 100000\n"}, 3.0),
        ("0::/a.slice/b\n", {"a.slice/b/cpu.max": "max 100000\n", "a.slice/cpu.max": "50000 100000\n"}, 0.5),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        (V1, {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3.0),
        (V1, {"cpu/docker/7/cpu.cfs_quota_us": "200000", "cpu/docker/7/cpu.cfs_period_us": "100000"}, 2.0),
    ],
)
def test_the_quota_of_the_control_group(kernel: Path, groups: str, files: dict[str, str], quota: float) -> None:
    (kernel / "_GROUPS").write_text(groups)
    for name, text in files.items():
        path = kernel / "_CGROUP" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    assert processor.cpu_quota() == quota


@pytest.mark.parametrize(("quota", "threads"), [("max 100000", 3), ("150000 100000", 2), ("1000 100000", 1)])
def test_threads_are_cores_that_this_process_may_use(
    kernel: Path, quota: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLC_NUM_THREADS", "TVM_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 2, 5})
    (kernel / "_GROUPS").write_text("0::/\n")
    (kernel / "_CGROUP" / "cpu.max").write_text(quota)
    assert processor.num_threads() == threads


@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "3", "TVM_NUM_THREADS": "256"}, 256),
        ({"TVM_NUM_THREADS": "5", "MLC_NUM_THREADS": "1"}, 1),
        ({"MLC_NUM_THREADS": "", "TVM_NUM_THREADS": "5"}, 5),
    ],
)
def test_the_user_may_say_how_many_threads(
    variables: dict[str, str], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLC_NUM_THREADS", "TVM_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processor.num_threads() == threads


@pytest.mark.parametrize("value", ["0", "-1", "257", "two", "1.5", "\u0663", "9" * 5000])
def test_a_number_of_threads_that_is_none_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLC_NUM_THREADS", value)
    with pytest.raises(UsageError, match=r"MLC_NUM_THREADS is .*: expected a whole number from 1 to 256"):
        processor.num_threads()
    assert processor.num_threads(2) == 2


@pytest.mark.parametrize("wanted", [0, -1, 257, True, 1.5, "2"])
def test_a_number_of_threads_in_a_program_is_checked_too(wanted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLC_NUM_THREADS", "2")
    with pytest.raises(UsageError, match=r"num_threads is .*: expected a whole number from 1 to 256"):
        processor.num_threads(wanted)


def test_memory_is_what_both_the_machine_and_the_group_have_left(kernel: Path) -> None:
    assert processor.available_memory() == 1 << 62  # nobody says
    (kernel / "_MEMINFO").write_text("MemTotal:  9000 kB\nMemAvailable:  1000 kB\n")
    assert processor.available_memory() == 1000 * 1024
    (kernel / "_CGROUP" / "memory.max").write_text("max\n")
    (kernel / "_CGROUP" / "memory.current").write_text("100000\n")
    assert processor.available_memory() == 1000 * 1024
    (kernel / "_CGROUP" / "memory.max").write_text("300000\n")
    assert processor.available_memory() == 200000
    (kernel / "_CGROUP" / "memory.current").write_text("400000\n")
    assert processor.available_memory() == 0
