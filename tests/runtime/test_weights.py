"""Reading weight folders: what TVM wrote is read as TVM reads it, and damage is one line before a byte is used."""

import contextlib
import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc_llm.runtime import checksums
from mlc_llm.runtime.errors import EngineError, ModelFileError
from mlc_llm.runtime.weights import WeightStore, aligned_empty

Index = dict[str, Any]


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((30, 20)).astype(np.float32)
    return {
        "half": normal.astype(np.float16),
        "brain": normal.astype(ml_dtypes.bfloat16),
        "single": normal,
        "codes": rng.integers(0, 1 << 32, (7, 9), np.uint32),
        "scalar": np.array(3, np.float16),
        "cube": normal.reshape(5, 6, 20).astype(np.float16),
    }


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder by TVM's own writer, of three shards."""
    import tvm
    from tvm.contrib import tvmjs

    folder = tmp_path_factory.mktemp("weights")
    with contextlib.redirect_stdout(None), pytest.MonkeyPatch.context() as patch:
        manager = tvmjs.TensorCacheShardingManager
        patch.setattr(tvmjs, "TensorCacheShardingManager", lambda a, b, cap, **more: manager(a, b, 2500, **more))
        arrays = {name: tvm.runtime.tensor(array) for name, array in tensors().items()}
        tvmjs.dump_tensor_cache(arrays, str(folder), show_progress=False)
    assert len(list(folder.glob("params_shard_*.bin"))) == 3
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "model"))


def read_index(folder: Path) -> Index:
    index: Index = json.loads((folder / "tensor-cache.json").read_text())
    return index


def write_index(folder: Path, index: Any) -> None:
    (folder / "tensor-cache.json").write_text(json.dumps(index))


def refusal(folder: Path, **options: Any) -> str:
    """The one line with which opening a folder fails."""
    with pytest.raises(ModelFileError) as caught:
        WeightStore(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def forget() -> None:
    """No folder counts as verified."""
    shutil.rmtree(os.environ["MLC_LLM_HOME"], ignore_errors=True)


# Reading


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("index_name", ["tensor-cache.json", "ndarray-cache.json"])
def test_a_folder_that_tvm_wrote_is_read_back(folder: Path, index_name: str, verify: bool) -> None:
    (folder / "tensor-cache.json").rename(folder / index_name)
    store = WeightStore(folder, verify=verify)
    expected = tensors()
    assert list(store.records) == list(expected)
    for name, array in expected.items():
        assert store.records[name].dtype == str(array.dtype)
        assert store.records[name].shape == list(array.shape)
        got = store.read(name)
        if name == "brain":
            np.testing.assert_array_equal(got, array.view(np.uint16))
        elif name == "single":
            np.testing.assert_array_equal(got, array.astype(ml_dtypes.bfloat16).astype(np.float32))
        else:
            np.testing.assert_array_equal(got, array)
        assert got.dtype == (np.uint16 if name == "brain" else array.dtype)
        assert got.shape == array.shape
        assert got.ctypes.data % 64 == 0
        assert got.flags.c_contiguous
        assert got.flags.writeable


def test_float32_that_is_stored_as_it_is_is_not_widened(tmp_path: Path) -> None:
    from tvm.contrib.tvmjs import dump_tensor_cache

    with contextlib.redirect_stdout(None):
        dump_tensor_cache({"x": tensors()["single"]}, str(tmp_path), encode_format="raw", show_progress=False)
    np.testing.assert_array_equal(WeightStore(tmp_path).read("x"), tensors()["single"])


def test_the_twin_index_that_declares_bfloat16_is_read_too(folder: Path) -> None:
    (folder / "tensor-cache-b16.json").replace(folder / "tensor-cache.json")
    expected = tensors()["single"].astype(ml_dtypes.bfloat16).view(np.uint16)
    np.testing.assert_array_equal(WeightStore(folder).read("single"), expected)


def test_widening_works_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tvm.contrib.tvmjs import dump_tensor_cache

    monkeypatch.setattr("mlc_llm.runtime.weights._WIDEN_BLOCK", 64)
    array = np.arange(-500, 501, dtype=np.float32)
    with contextlib.redirect_stdout(None):
        dump_tensor_cache({"pad": array[:3], "x": array}, str(tmp_path), show_progress=False)
    expected = array.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(WeightStore(tmp_path).read("x"), expected)


def test_reading_into_an_array_of_the_caller(folder: Path) -> None:
    store = WeightStore(folder)
    out = np.zeros((7, 9), np.uint32)
    store.read_into("codes", out)
    np.testing.assert_array_equal(out, tensors()["codes"])


@pytest.mark.parametrize(
    "out",
    [np.zeros((9, 7), np.uint32), np.zeros((7, 9), np.int64), np.zeros((9, 7), np.uint32).T, np.zeros(63, np.uint32)],
)
def test_an_array_that_does_not_fit_is_refused(folder: Path, out: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"codes is uint32 \[7, 9\]"):
        WeightStore(folder).read_into("codes", out)


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (1000, 7)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
def test_aligned_arrays(shape: tuple[int, ...], dtype: Any) -> None:
    for _ in range(5):
        array = aligned_empty(shape, dtype)
        assert array.ctypes.data % 64 == 0
        assert (array.shape, array.dtype, array.flags.c_contiguous) == (shape, np.dtype(dtype), True)
        array.fill(1)


def test_an_unknown_name_says_what_does_not_fit(folder: Path) -> None:
    with pytest.raises(ModelFileError, match=r"has no tensor model.norm.weight: .* different models or quantizations"):
        WeightStore(folder).read("model.norm.weight")


def test_nothing_is_read_after_close(folder: Path) -> None:
    store = WeightStore(folder)
    store.close()
    with pytest.raises(EngineError, match="closed"):
        store.read("half")


def test_no_file_stays_open(folder: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    store = WeightStore(folder)
    for name in store.records:
        store.read(name)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_shards_may_be_links_as_in_hugging_faces_cache(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    shard = folder / "params_shard_0.bin"
    shard.rename(tmp_path / "blobs" / "abc")
    shard.symlink_to(tmp_path / "blobs" / "abc")
    assert WeightStore(folder).read("half").shape == (30, 20)


# Damage


def test_flipped_bytes_are_found_by_the_sum(folder: Path) -> None:
    path = folder / "params_shard_1.bin"
    said = hashlib.md5(path.read_bytes()).hexdigest()
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    found = hashlib.md5(data).hexdigest()
    assert refusal(folder) == (
        f"{path}: md5 is {found}, tensor-cache.json says {said}: the file is damaged, compile or download it again"
    )
    WeightStore(folder, verify=False).read("half")


def test_a_truncated_shard(folder: Path) -> None:
    path = folder / "params_shard_0.bin"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-10])
    for verify in (True, False):
        assert refusal(folder, verify=verify) == (
            f"{path} has {size - 10} bytes, tensor-cache.json says {size}: "
            "the file is damaged, compile or download it again"
        )


def test_a_missing_shard(folder: Path) -> None:
    (folder / "params_shard_2.bin").unlink()
    assert refusal(folder) == (
        f"{folder}/params_shard_2.bin cannot be read: No such file or directory: compile or download the model again"
    )


def test_a_shard_that_is_no_file(folder: Path) -> None:
    (folder / "params_shard_2.bin").unlink()
    os.mkfifo(folder / "params_shard_2.bin")
    assert "params_shard_2.bin is not a regular file" in refusal(folder)


def test_a_folder_without_index(tmp_path: Path) -> None:
    assert "tensor-cache.json is missing: expected a weight index" in refusal(tmp_path)


def set_record(**fields: Any) -> Callable[[Index], None]:
    return lambda index: index["records"][0]["records"][0].update(fields)


def set_shard(**fields: Any) -> Callable[[Index], None]:
    return lambda index: index["records"][0].update(fields)


def repeat_record(index: Index) -> None:
    index["records"][1]["records"][0]["name"] = "half"


def repeat_shard(index: Index) -> None:
    index["records"].append(copy.deepcopy(index["records"][0]))


def overlap(index: Index) -> None:
    last = next(shard["records"] for shard in index["records"] if len(shard["records"]) > 1)[1]
    last["byteOffset"] -= 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            set_shard(dataPath="../model/params_shard_0.bin"),
            "'../model/params_shard_0.bin' is not a file inside the folder",
        ),
        (set_shard(dataPath="/etc/passwd"), "'/etc/passwd' is not a file inside the folder"),
        (set_shard(dataPath="a/../../b"), "is not a file inside the folder"),
        (set_shard(dataPath=""), "is not a file inside the folder"),
        (set_shard(dataPath="."), "is not a file inside the folder"),
        (set_shard(dataPath="params_shard_0.bin\0"), r"params_shard_0.bin\x00' is not a file inside"),
        (set_shard(dataPath="x" * 5000), "is not a file inside the folder"),
        (set_shard(dataPath="x" * 500), "File name too long"),
        (set_shard(format="zip"), "has format 'zip': expected 'raw-shard'"),
        (set_shard(nbytes=-1), "records.0.nbytes"),
        (set_shard(md5sum="abc"), "md5sum of params_shard_0.bin is not 32 hexadecimal digits"),
        (set_shard(md5sum="x" * 5000), "md5sum of params_shard_0.bin is not 32 hexadecimal digits"),
        (set_record(dtype="int4"), "'half' has unknown dtype 'int4'"),
        (set_record(format="zip"), "unknown dtype 'float16' or format 'zip'"),
        (set_record(shape=[30, 21]), "'half' has 1200 bytes: float16 [30, 21] takes 1260"),
        (
            set_record(dtype="float32", shape=[30, 20], nbytes=2400),
            "'half' has 2400 bytes: float32 [30, 20] takes 1200",
        ),
        (set_record(shape=[-30, -20]), "expected up to 8 positive sizes"),
        (set_record(shape=[0]), "expected up to 8 positive sizes"),
        (set_record(shape=[1] * 9), "expected up to 8 positive sizes"),
        (set_record(shape=[1 << 62] * 8), "expected up to 8 positive sizes"),
        (set_record(shape=[1 << 39] * 8), "'half' has 1200 bytes"),
        (set_record(byteOffset=1 << 62), "but params_shard_0.bin has"),
        (set_record(byteOffset=-2), "byteOffset"),
        (set_record(name=""), "'' is not the name of a tensor"),
        (set_record(name="a\nb"), r"'a\nb' is not the name of a tensor"),
        (set_record(name="x" * 5000), "is not the name of a tensor"),
        (repeat_record, "half is listed twice"),
        (repeat_shard, "params_shard_0.bin is listed twice"),
        (overlap, "overlaps"),
        (lambda index: index.update(records=[]), "lists 0 tensors in 0 shards"),
        (lambda index: index.update(records="x"), "records = 'x': input should be a valid list"),
        (lambda index: index.pop("records"), "records is missing"),
    ],
)
def test_a_wrong_index_is_one_line_that_says_where(folder: Path, change: Callable[[Index], Any], words: str) -> None:
    index = read_index(folder)
    change(index)
    write_index(folder, index)
    message = refusal(folder)
    assert words in message
    assert str(folder) in message
    assert len(message) < 1000


def test_a_shard_that_changes_while_the_model_loads_is_refused(folder: Path) -> None:
    store = WeightStore(folder)
    path = folder / "params_shard_0.bin"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ModelFileError, match=r"params_shard_0.bin changed while the model was loading"):
        store.read("half")
    path.unlink()
    with pytest.raises(ModelFileError, match=r"params_shard_0.bin cannot be read: No such file"):
        store.read("half")


# Checksums are computed once


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the shards that were hashed."""
    names: list[str] = []
    real = checksums._md5

    def md5(shard: checksums.Shard) -> str:
        names.append(shard.path.name)
        return real(shard)

    monkeypatch.setattr(checksums, "_md5", md5)
    return names


def test_an_unchanged_folder_is_hashed_once(folder: Path, hashed: list[str]) -> None:
    WeightStore(folder)
    assert sorted(hashed) == ["params_shard_0.bin", "params_shard_1.bin", "params_shard_2.bin"]
    WeightStore(folder)
    assert len(hashed) == 3


def test_a_touched_shard_is_hashed_again(folder: Path, hashed: list[str]) -> None:
    WeightStore(folder)
    path = folder / "params_shard_0.bin"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    WeightStore(folder)
    assert len(hashed) == 6


def test_a_damaged_folder_is_not_remembered(folder: Path, hashed: list[str]) -> None:
    data = (folder / "params_shard_0.bin").read_bytes()
    (folder / "params_shard_0.bin").write_bytes(b"\0" * len(data))
    for _ in range(2):
        assert "md5 is" in refusal(folder)
    assert hashed.count("params_shard_0.bin") == 2


def test_a_sum_that_changes_in_the_index_is_compared_again(folder: Path) -> None:
    WeightStore(folder)
    index = read_index(folder)
    index["records"][0]["md5sum"] = "0" * 32
    write_index(folder, index)
    assert f"says {'0' * 32}" in refusal(folder)


def test_shards_without_a_sum_are_read(folder: Path, hashed: list[str]) -> None:
    index = read_index(folder)
    for shard in index["records"]:
        del shard["md5sum"]
    write_index(folder, index)
    assert WeightStore(folder).read("half").shape == (30, 20)
    assert hashed == []


def test_a_cache_that_cannot_be_written_costs_only_time(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLC_LLM_HOME", str(tmp_path / "file" / "cache"))
    WeightStore(folder)
    WeightStore(folder)
    assert len(hashed) == 6


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"MLC_LLM_HOME": "a", "XDG_CACHE_HOME": "b", "HOME": "c"}, "a/verified"),
        ({"XDG_CACHE_HOME": "b", "HOME": "c"}, "b/mlc_llm/verified"),
        ({"HOME": "c"}, "c/.cache/mlc_llm/verified"),
    ],
)
def test_where_it_is_remembered(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name in ("MLC_LLM_HOME", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
        if name in variables:
            monkeypatch.setenv(name, str(tmp_path / variables[name]))
    WeightStore(folder)
    assert len(list((tmp_path / expected).iterdir())) == 1


# Fuzz

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(-4, 2500)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["float16", "float32", "bfloat16", "raw", "f32-to-bf16", "params_shard_1.bin", "../x", "half"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON document."""
    if isinstance(node, dict):
        keys: list[Any] = list(node)
    elif isinstance(node, list):
        keys = list(range(len(node)))
    else:
        return []
    return [(node, key) for key in keys] + [place for key in keys for place in places(node[key])]


def only_model_file_errors(folder: Path, verify: bool) -> None:
    message = ""
    try:
        store = WeightStore(folder, verify=verify)
        for name, record in store.records.items():
            assert list(store.read(name).shape) == record.shape
    except ModelFileError as error:
        message = str(error)
    assert "\n" not in message
    message.encode()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_mutated_index_raises_only_model_file_errors(
    pristine: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    index = read_index(pristine)
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(places(index)))
        if data.draw(st.booleans()):
            container[key] = data.draw(JSON_VALUES)
        else:
            del container[key]
        if not places(index):
            break
    folder = tmp_path_factory.mktemp("fuzz")
    for shard in pristine.glob("params_shard_*.bin"):
        (folder / shard.name).symlink_to(shard)
    write_index(folder, index)
    only_model_file_errors(folder, verify=data.draw(st.booleans()))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_mutated_bytes_raise_only_model_file_errors(
    pristine: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Of the index or of a shard: overwritten, cut off or with bytes put in."""
    folder = Path(shutil.copytree(pristine, tmp_path_factory.mktemp("fuzz") / "model"))
    path = folder / data.draw(st.sampled_from(["tensor-cache.json", "params_shard_0.bin", "params_shard_1.bin"]))
    content = path.read_bytes()
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, min(len(content), start + 50)))
    path.write_bytes(content[:start] + data.draw(st.binary(max_size=8)) + content[stop:])
    forget()
    only_model_file_errors(folder, verify=data.draw(st.booleans()))
    if path.suffix == ".bin" and path.read_bytes() != content:
        refusal(folder)
