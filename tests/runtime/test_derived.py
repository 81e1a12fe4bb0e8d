"""Packed weights are kept for the next start: read where they are fresh and whole, and else made again."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_model

from mlc_llm.runtime import derived, parameters
from mlc_llm.runtime.errors import ModelFileError, UsageError
from mlc_llm.runtime.library import Library
from mlc_llm.runtime.parameters import load_parameters

Weights = list[np.ndarray[Any, Any]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder of its own, without packed weights."""
    source, folder = tiny_model.built(), tmp_path / "model"
    folder.mkdir()
    for path in source.iterdir():
        if path.is_file():
            os.link(path, folder / path.name)
    return folder


@pytest.fixture
def library(tmp_path: Path) -> Library:
    path = tmp_path / "tiny-cpu.so"
    path.write_bytes(tiny_model.library_path(tiny_model.built()).read_bytes())
    return Library.load(path)


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders whose stored weights are packed."""
    calls: list[Path] = []
    pack = parameters.pack_parameters

    def counted(library: Library, source: Any, folder: Path, progress: Any = None) -> Any:
        calls.append(folder)
        return pack(library, source, folder, progress)

    monkeypatch.setattr(parameters, "pack_parameters", counted)
    return calls


def load(folder: Path, library: Library) -> Weights:
    """The parameters of one start, copied."""
    reading = derived.start_reading(folder, library.path)
    tensors = load_parameters(library, folder, reading=reading)
    return [tensors[index].numpy().copy() for index in range(len(tensors))]


def kept(folder: Path) -> Path:
    return folder / derived.FOLDER_NAME / "tiny-cpu.bin"


def same(first: Weights, second: Weights) -> bool:
    return len(first) == len(second) and all(map(np.array_equal, first, second))


def touched(path: Path) -> None:
    """As if it had been written later."""
    moved = path.stat().st_mtime_ns + 10**10
    os.utime(path, ns=(moved, moved))


def test_the_second_start_reads_what_the_first_one_packed(folder: Path, library: Library, packings: list[Path]) -> None:
    first = load(folder, library)
    assert kept(folder).is_file()
    assert same(load(folder, library), first)
    assert len(packings) == 1
    assert [path.name for path in kept(folder).parent.iterdir()] == ["tiny-cpu.bin"]


@pytest.mark.parametrize("name", ["params_shard_0.bin", "tensor-cache.json"])
def test_another_file_of_the_folder_makes_them_stale(
    folder: Path, library: Library, packings: list[Path], name: str
) -> None:
    first = load(folder, library)
    data = (folder / name).read_bytes()
    (folder / name).unlink()  # the others are links
    (folder / name).write_bytes(data)
    touched(folder / name)
    assert same(load(folder, library), first)
    assert same(load(folder, library), first)
    assert len(packings) == 2


def test_another_library_makes_them_stale(folder: Path, library: Library, packings: list[Path]) -> None:
    load(folder, library)
    touched(library.path)
    load(folder, library)
    library.fingerprint += 1  # one that describes itself otherwise, with the same file name, size and time
    load(folder, library)
    load(folder, library)
    assert len(packings) == 3


def test_a_library_that_is_compiled_while_they_are_read_makes_them_stale(
    folder: Path, library: Library, packings: list[Path]
) -> None:
    load(folder, library)
    reading = derived.start_reading(folder, library.path)
    assert reading is not None
    touched(library.path)
    load_parameters(library, folder, reading=reading)
    assert len(packings) == 2


def flip(path: Path, offset: int) -> None:
    """Change a byte and keep the times, as a disk may."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("offset", [0, 30, 60])
def test_a_damaged_header_is_noticed(folder: Path, library: Library, packings: list[Path], offset: int) -> None:
    first = load(folder, library)
    flip(kept(folder), offset)
    assert same(load(folder, library), first)
    assert len(packings) == 2


@pytest.mark.parametrize("size", [0, 10, 100, 5000, -1])
def test_a_file_that_is_cut_is_noticed(folder: Path, library: Library, packings: list[Path], size: int) -> None:
    first = load(folder, library)
    os.truncate(kept(folder), size if size >= 0 else kept(folder).stat().st_size + size)
    assert same(load(folder, library), first)
    assert len(packings) == 2


def test_a_file_that_was_touched_is_summed_once_and_read(folder: Path, library: Library, packings: list[Path]) -> None:
    first, time = load(folder, library), kept(folder).stat().st_mtime_ns
    touched(kept(folder))
    assert same(load(folder, library), first)
    assert kept(folder).stat().st_mtime_ns == time
    assert len(packings) == 1


def test_a_file_that_was_changed_is_made_again(folder: Path, library: Library, packings: list[Path]) -> None:
    first = load(folder, library)
    flip(kept(folder), -70)
    touched(kept(folder))
    assert same(load(folder, library), first)
    assert same(load(folder, library), first)
    assert len(packings) == 2


def test_shards_are_still_checked_before_they_are_packed(folder: Path, library: Library) -> None:
    (folder / "params_shard_0.bin").unlink()
    with pytest.raises(ModelFileError, match=r"params_shard_0\.bin cannot be read"):
        load(folder, library)
    assert not kept(folder).exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_folder(
    folder: Path, library: Library, packings: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLC_LLM_HOME", str(tmp_path / "cache"))
    folder.chmod(0o555)
    check_cache(folder, library, packings, tmp_path / "cache")


def test_a_folder_that_cannot_be_written(
    folder: Path, library: Library, packings: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLC_LLM_HOME", str(tmp_path / "cache"))
    (folder / derived.FOLDER_NAME).write_text("a file where the folder would be")
    check_cache(folder, library, packings, tmp_path / "cache")


def check_cache(folder: Path, library: Library, packings: list[Path], cache: Path) -> None:
    first = load(folder, library)
    assert len(list(cache.glob("derived/model-*/tiny-cpu.bin"))) == 1
    assert same(load(folder, library), first)
    assert len(packings) == 1


def test_a_disk_that_is_nearly_full_is_left_alone(
    folder: Path, library: Library, packings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = os.statvfs_result((4096, 4096, 1000, 10, 10, 1, 1, 1, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    load(folder, library)
    load(folder, library)
    assert len(packings) == 2
    assert list((folder / derived.FOLDER_NAME).iterdir()) == []


@pytest.mark.parametrize(
    ("policy", "packed", "exists"), [("OFF", 2, False), ("READONLY", 2, False), ("REDO", 2, True), ("ON", 1, True)]
)
def test_the_policy(
    folder: Path, library: Library, packings: list[Path], monkeypatch: pytest.MonkeyPatch,
    policy: str, packed: int, exists: bool,
) -> None:  # fmt: skip
    monkeypatch.setenv("MLC_DERIVED_WEIGHTS_POLICY", policy)
    load(folder, library)
    load(folder, library)
    assert (len(packings), kept(folder).exists()) == (packed, exists)


def test_kept_weights_are_read_where_nothing_may_be_written(
    folder: Path, library: Library, packings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(folder, library)
    monkeypatch.setenv("MLC_DERIVED_WEIGHTS_POLICY", "READONLY")
    load(folder, library)
    assert len(packings) == 1


def test_an_unknown_policy_is_refused(folder: Path, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLC_DERIVED_WEIGHTS_POLICY", "maybe")
    with pytest.raises(UsageError, match="MLC_DERIVED_WEIGHTS_POLICY is 'maybe': expected ON, OFF, REDO or READONLY"):
        load(folder, library)


def test_the_oldest_of_many_libraries_go(folder: Path, library: Library) -> None:
    place = kept(folder).parent
    place.mkdir()
    for age in range(6):
        (place / f"old{age}.bin").write_bytes(b"")
        os.utime(place / f"old{age}.bin", (1000 - age, 1000 - age))
    load(folder, library)
    assert {path.name for path in place.iterdir()} == {"tiny-cpu.bin", "old0.bin", "old1.bin", "old2.bin"}


def test_starts_at_the_same_time_leave_one_whole_file(folder: Path, library: Library, packings: list[Path]) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from mlc_llm.runtime.library import Library\n"
        "from mlc_llm.runtime.parameters import load_parameters\n"
        "print(len(load_parameters(Library.load(Path(sys.argv[2])), Path(sys.argv[1]))))\n"
    )
    command = [sys.executable, "-c", code, str(folder), str(library.path)]
    starts = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    counts = {start.communicate(timeout=120)[0] for start in starts}
    assert [start.returncode for start in starts] == [0] * 4
    assert len(counts) == 1
    assert [path.name for path in kept(folder).parent.iterdir()] == ["tiny-cpu.bin"]
    load(folder, library)
    assert packings == []


def test_a_large_file_is_read_in_shares(
    folder: Path, library: Library, packings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derived, "num_threads", lambda: 3)
    monkeypatch.setattr(derived, "_LEAST_SHARE", 1 << 12)
    monkeypatch.setattr(derived, "_MOST_AT_ONCE", 1 << 10)
    monkeypatch.setattr(derived, "_PIECE", 1 << 11)
    first = load(folder, library)
    touched(kept(folder))
    assert same(load(folder, library), first)
    assert len(packings) == 1
