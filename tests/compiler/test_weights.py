"""Shards and index: byte for byte what TVM's own writer gives, all or nothing, and one line for every bad source."""

import contextlib
import errno
import hashlib
import json
import os
import resource
import shutil
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mlc_llm.compiler.model.architecture import Weight
from mlc_llm.compiler.quantization.group import quantize
from mlc_llm.compiler.quantization.scheme import get_scheme
from mlc_llm.compiler.shards import ShardWriter
from mlc_llm.compiler.source.source import TensorSpec
from mlc_llm.compiler.weights import bfloat16_bits, convert_weights, plan_weights
from mlc_llm.runtime.artifact import ParamMetadata
from mlc_llm.runtime.errors import EngineError, ModelFileError
from mlc_llm.runtime.weights import WeightStore


class MemorySource:
    """A source whose tensors are arrays, or functions that make them when they are read."""

    name = "memory"
    fingerprint = "0"

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.config: dict[str, Any] = {}
        self.generation_config: dict[str, Any] = {}
        self._arrays = tensors
        self.tensors = {name: TensorSpec(array.shape, str(array.dtype)) for name, array in tensors.items()}

    def read(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def write_tokenizer(self, folder: Path) -> list[str]:
        raise NotImplementedError


def random(*shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * 0.1).astype(dtype)


WEIGHTS = [
    Weight("embed.weight", ("embed.weight",), (50, 64), "embedding"),
    Weight("layer.qkv.weight", ("layer.q.weight", "layer.k.weight", "layer.v.weight"), (64, 40), "linear"),
    Weight("layer.o.weight", ("layer.o.weight",), (40, 64), "linear"),
    Weight("layer.norm.weight", ("layer.norm.weight",), (40,)),
    Weight("lm_head.weight", ("lm_head.weight",), (50, 64), "head"),
]


def tensors(dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """In the order of a file, which is not the model's."""
    shapes = {
        "lm_head.weight": (50, 64),
        "layer.k.weight": (16, 40),
        "layer.norm.weight": (40,),
        "layer.o.weight": (40, 64),
        "layer.q.weight": (32, 40),
        "layer.v.weight": (16, 40),
        "embed.weight": (50, 64),
    }
    return {name: random(*shape, dtype=dtype, seed=i) for i, (name, shape) in enumerate(shapes.items())}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names_in_order(folder: Path) -> list[str]:
    index = json.loads((folder / "tensor-cache.json").read_text())
    return [record["name"] for shard in index["records"] for record in shard["records"]]


# What is written


def dump_with_tvm(
    arrays: Mapping[str, Any], folder: Path, metadata: Any, cap_mb: int, encode_format: str = "f32-to-bf16"
) -> None:
    from tvm.contrib.tvmjs import dump_tensor_cache

    with contextlib.redirect_stdout(None):
        dump_tensor_cache(
            arrays, str(folder), encode_format, meta_data=metadata, shard_cap_mb=cap_mb, show_progress=False
        )


@pytest.mark.parametrize(
    "kibibytes",
    [
        [100, 200, 300],
        [600, 600, 100],  # the second does not fit and is large: a file of its own, numbered first
        [600, 500, 100],  # the second does not fit and is small: the first is closed
        [512, 512, 512],
        [1024, 1, 1023, 1, 5000, 300, 400, 500, 511, 512],
        [1023, 1, 1],
    ],
)
def test_shards_are_those_of_tvms_writer(tmp_path: Path, kibibytes: list[int]) -> None:
    arrays = {f"t{i}": random(size, 512, dtype=np.float16, seed=i) for i, size in enumerate(kibibytes)}
    dump_with_tvm(arrays, tmp_path / "tvm", {"ParamSize": 1}, cap_mb=1)
    with ShardWriter(tmp_path / "ours", 0, shard_bytes=1 << 20) as writer:
        for name, array in arrays.items():
            writer.add(ParamMetadata(name=name, shape=list(array.shape), dtype="float16"), array)
        writer.finish({"ParamSize": 1})
    assert contents(tmp_path / "ours") == contents(tmp_path / "tvm")


@pytest.mark.parametrize(
    "name", ["q0f16", "q0f32", "q0bf16", "q4f16_1", "q4f16_0", "q4f16_2", "q4f32_1", "q4bf16_1", "q8f16_1"]
)
def test_the_folder_is_the_one_tvm_writes_of_the_same_tensors(tmp_path: Path, name: str) -> None:
    """The tensors are made here the slow way: joined whole, rounded, quantized."""
    import tvm

    scheme, source = get_scheme(name), tensors(ml_dtypes.bfloat16)
    dtype = {"float16": np.float16, "float32": np.float32, "bfloat16": ml_dtypes.bfloat16}[scheme.model_dtype]
    arrays: dict[str, np.ndarray] = {}
    for weight in [WEIGHTS[i] for i in (4, 1, 3, 2, 0)]:  # where the first source tensor of each stands in the file
        whole = np.concatenate([source[s] for s in weight.sources]).astype(dtype)
        if scheme.is_quantized(weight.kind):
            stem = weight.name.removesuffix("weight")
            turned = name.endswith("_0") and weight.kind != "embedding"
            arrays[f"{stem}q_weight"], arrays[f"{stem}q_scale"] = quantize(whole, scheme, transposed=turned)
        else:
            arrays[weight.name] = whole
    size = sum(array.nbytes for array in arrays.values())
    count = sum(array.size for array in source.values())
    metadata = {"ParamSize": len(arrays), "ParamBytes": float(size), "BitsPerParam": size * 8.0 / count}
    converted = {k: tvm.runtime.tensor(v) for k, v in arrays.items()}
    dump_with_tvm(converted, tmp_path / "tvm", metadata, 32, "raw" if name == "q0f32" else "f32-to-bf16")

    summary = convert_weights(MemorySource(source), WEIGHTS, scheme, tmp_path / "ours")
    assert contents(tmp_path / "ours") == contents(tmp_path / "tvm")
    assert summary == plan_weights(WEIGHTS, scheme)
    assert (summary.parameters, summary.bytes, summary.records) == (count, size, len(arrays))
    shards = (tmp_path / "ours").glob("params_shard_*.bin")
    assert summary.file_bytes == sum(path.stat().st_size for path in shards)
    assert (tmp_path / "ours" / "tensor-cache-b16.json").exists() == (name == "q4f32_1")


@pytest.mark.parametrize("name", ["q4f16_1", "q4f32_1", "q0f16", "q0f32"])
def test_tvms_runtime_loads_the_folder(tmp_path: Path, name: str) -> None:
    import tvm

    convert_weights(MemorySource(tensors()), WEIGHTS, get_scheme(name), tmp_path)
    tvm.get_global_func("vm.builtin.tensor_cache.load")(str(tmp_path), tvm.cpu().dlpack_device_type(), 0)
    get = tvm.get_global_func("vm.builtin.tensor_cache.get")
    try:
        store = WeightStore(tmp_path)
        assert len(store.records) == plan_weights(WEIGHTS, get_scheme(name)).records
        for record in store.records.values():
            loaded = get(record.name)
            assert (list(loaded.shape), str(loaded.dtype)) == (record.shape, record.dtype)
            np.testing.assert_array_equal(store.read(record.name), loaded.numpy())
    finally:
        tvm.get_global_func("vm.builtin.tensor_cache.clear")()


def test_float32_is_stored_as_bfloat16_rounded_to_even_and_never_to_infinity() -> None:
    from tvm.contrib.tvmjs import _convert_f32_to_bf16

    bits = np.random.default_rng(0).integers(0, 1 << 32, 200_000, np.uint32)
    edges = np.array([0x7F7EFFFF, 0x7F7F0000, 0x7F7FFFFF, 0xFF7FFFFF, 0x3F808000, 0x3F818000, 0, 1 << 31], np.uint32)
    values = np.concatenate([bits, edges]).view(np.float32)
    values = values[np.isfinite(values)]
    result = bfloat16_bits(values)
    np.testing.assert_array_equal(result, _convert_f32_to_bf16(values))
    assert np.isfinite((result.astype(np.uint32) << 16).view(np.float32)).all()
    inside = np.abs(values) < 3e38
    np.testing.assert_array_equal(result[inside], values[inside].astype(ml_dtypes.bfloat16).view(np.uint16))


def test_the_scales_of_q4f32_1_are_rounded_only_after_the_codes_were_computed(tmp_path: Path) -> None:
    source = tensors()
    convert_weights(MemorySource(source), WEIGHTS, get_scheme("q4f32_1"), tmp_path)
    q_weight, q_scale = quantize(source["layer.o.weight"], get_scheme("q4f32_1"), transposed=False)
    store = WeightStore(tmp_path)
    np.testing.assert_array_equal(store.read("layer.o.q_weight"), q_weight)
    stored = q_scale.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(store.read("layer.o.q_scale"), stored)
    assert (stored != q_scale).any()


def test_a_transform_sees_the_joined_tensor_in_float32(tmp_path: Path) -> None:
    seen: list[tuple[Any, tuple[int, ...]]] = []

    def plus_one(array: np.ndarray) -> np.ndarray:
        seen.append((array.dtype, array.shape))
        return array + 1

    source = {"a": random(3, dtype=ml_dtypes.bfloat16), "b": random(2, dtype=ml_dtypes.bfloat16)}
    convert_weights(MemorySource(source), [Weight("n.weight", ("a", "b"), (5,), "plain", plus_one)],
                    get_scheme("q0f16"), tmp_path)  # fmt: skip
    assert seen == [(np.float32, (5,))]
    expected = (np.concatenate([source["a"], source["b"]]).astype(np.float32) + 1).astype(np.float16)
    np.testing.assert_array_equal(WeightStore(tmp_path).read("n.weight"), expected)


def test_progress_ends_with_every_byte(tmp_path: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    summary = convert_weights(
        MemorySource(tensors()), WEIGHTS, get_scheme("q4f16_1"), tmp_path, progress=lambda *call: calls.append(call)
    )
    assert [name for _, _, name in calls] == [WEIGHTS[i].name for i in (4, 1, 3, 2, 0)]
    assert [done for done, _, _ in calls] == sorted({done for done, _, _ in calls})
    assert calls[-1][:2] == (summary.file_bytes, summary.file_bytes)
    assert {total for _, total, _ in calls} == {summary.file_bytes}


def test_the_plan_of_a_billion_parameters_reads_nothing() -> None:
    weights = [Weight("a.weight", ("a.weight",), (128256, 2048), "embedding")]
    summary = plan_weights(weights, get_scheme("q4f16_1"))
    assert summary.parameters == 128256 * 2048
    assert summary.bits_per_parameter == 4.5
    assert plan_weights(weights, get_scheme("q0f32")).file_bytes == 4 * summary.parameters
    assert plan_weights(weights, get_scheme("q0f32")).bytes == 4 * summary.parameters


class GeneratedSource(MemorySource):
    """Tensors that exist only while they are used."""

    def __init__(self, count: int, shape: tuple[int, int]) -> None:
        super().__init__({})
        self.tensors = {f"t{i}.weight": TensorSpec(shape, "float16") for i in range(count)}

    def read(self, name: str) -> np.ndarray:
        return np.full(self.tensors[name].shape, 0.5, np.float16)


@pytest.mark.parametrize("name", ["q4f16_1", "q0f32"])
def test_peak_memory_is_a_shard_and_a_few_tensors_not_the_model(tmp_path: Path, name: str) -> None:
    source = GeneratedSource(40, (2048, 1024))  # 4 MiB each, 160 MiB in all
    weights = [Weight(n, (n,), spec.shape, "linear") for n, spec in source.tensors.items()]
    tracemalloc.start()
    try:
        convert_weights(source, weights, get_scheme(name), tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (2 * 32 + 6 * 4) << 20


# Sources that do not fit


def convert(source: Mapping[str, np.ndarray], folder: Path, scheme: str = "q4f16_1") -> None:
    convert_weights(MemorySource(source), WEIGHTS, get_scheme(scheme), folder / "out")


def assert_refused(folder: Path, source: Mapping[str, np.ndarray], *words: str, scheme: str = "q4f16_1") -> None:
    with pytest.raises(ModelFileError) as caught:
        convert(source, folder, scheme)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert not (folder / "out").exists()


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    source = tensors()
    del source["layer.k.weight"]
    assert_refused(tmp_path, source, "layer.k.weight is missing", "layer.qkv.weight")


@pytest.mark.parametrize("shape", [(16, 39), (17, 40), (640,), (16, 40, 1), ()])
def test_a_wrong_shape_is_named(tmp_path: Path, shape: tuple[int, ...]) -> None:
    assert_refused(
        tmp_path, tensors() | {"layer.k.weight": random(*shape)}, "layer.k.weight", str(list(shape)), "[64, 40]"
    )


def test_the_shape_after_a_transform_is_checked(tmp_path: Path) -> None:
    weights = [Weight("n.weight", ("n",), (5,), "plain", lambda array: array[:4])]
    with pytest.raises(ModelFileError, match=r"n gives \[4\]: expected \[5\] for n.weight"):
        convert_weights(MemorySource({"n": random(5)}), weights, get_scheme("q0f16"), tmp_path)


def test_a_source_that_reads_another_shape_than_it_announced_is_refused(tmp_path: Path) -> None:
    source = MemorySource({"n": random(5)})
    source.tensors = {"n": TensorSpec((6,), "float32")}
    with pytest.raises(ModelFileError, match=r"tensor n has shape \[5\]: expected \[6\]"):
        convert_weights(source, [Weight("n.weight", ("n",), (6,))], get_scheme("q0f16"), tmp_path)


def test_tensors_that_would_be_dropped_are_named(tmp_path: Path) -> None:
    extra = {f"layer.extra{i}.bias": random(4) for i in range(5)}
    assert_refused(tmp_path, tensors() | extra, "layer.extra0.bias", "layer.extra2.bias", "and 2 more")


def test_tables_of_rope_and_a_tied_head_are_no_weights(tmp_path: Path) -> None:
    source = tensors() | {"model.layers.0.self_attn.rotary_emb.inv_freq": random(4)}
    convert_weights(MemorySource(source), WEIGHTS[:4], get_scheme("q4f16_1"), tmp_path)
    assert not any("lm_head" in name or "inv_freq" in name for name in names_in_order(tmp_path))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["layer.k.weight", "layer.norm.weight", "embed.weight"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_nan_and_infinity_are_refused(tmp_path: Path, name: str, value: float, dtype: Any) -> None:
    for scheme in ("q4f16_1", "q0f32", "q4bf16_1"):
        source = tensors(dtype)
        source[name].reshape(-1)[7] = value
        assert_refused(tmp_path, source, name, "NaN or infinite", "damaged", scheme=scheme)


def test_signalling_nan_is_refused_like_any_other(tmp_path: Path) -> None:
    source = tensors(ml_dtypes.bfloat16)
    source["layer.norm.weight"].view(np.uint16)[3] = 0x7F81
    for scheme in ("q4f16_1", "q0bf16"):
        assert_refused(tmp_path, source, "layer.norm.weight", "NaN", scheme=scheme)


@pytest.mark.parametrize("name", ["layer.v.weight", "layer.norm.weight"])
def test_overflow_of_float16_is_refused_with_a_way_out(tmp_path: Path, name: str) -> None:
    source = tensors()
    source[name].reshape(-1)[7] = 65520.0  # rounds to infinity
    assert_refused(tmp_path, source, name, "beyond the range of float16", "q4f32_1")
    source[name].reshape(-1)[7] = 65519.0  # rounds to 65504
    convert(source, tmp_path)


# All or nothing


def old_folder(folder: Path) -> dict[str, bytes]:
    convert_weights(MemorySource(tensors()), WEIGHTS, get_scheme("q4f16_1"), folder)
    (folder / "mlc-chat-config.json").write_text("{}")
    return contents(folder)


def interrupt(done: int, total: int, name: str) -> None:
    if name == "layer.o.weight":
        raise KeyboardInterrupt


@pytest.mark.parametrize("existing", [True, False])
def test_an_interruption_leaves_what_was_there(tmp_path: Path, existing: bool) -> None:
    folder = tmp_path / "a" / "model"
    before = old_folder(folder) if existing else {}
    with pytest.raises(KeyboardInterrupt):
        convert_weights(MemorySource(tensors()), WEIGHTS, get_scheme("q0f16"), folder, progress=interrupt)
    assert (contents(folder) if existing else {}) == before
    assert folder.exists() == existing


def test_an_interruption_while_moving_into_place_leaves_no_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_folder(tmp_path)
    replace = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        if self.suffix == ".json":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_weights(MemorySource(tensors()), WEIGHTS, get_scheme("q0f16"), tmp_path)
    assert sorted(contents(tmp_path)) == ["mlc-chat-config.json", "params_shard_0.bin"]


def test_new_weights_replace_all_of_the_old_ones(tmp_path: Path) -> None:
    old_folder(tmp_path)
    for name in ("params_shard_1.bin", "params_shard_27.bin", "ndarray-cache.json", "tensor-cache-b16.json"):
        (tmp_path / name).write_bytes(b"old")
    (tmp_path / "params_shard_1.bin.txt").write_text("not ours")
    (tmp_path / ".weights.tmp").mkdir()  # of a process that was killed
    (tmp_path / ".weights.tmp" / "params_shard_3.bin").write_bytes(b"old")
    convert_weights(MemorySource(tensors()), WEIGHTS, get_scheme("q0f16"), tmp_path)
    assert sorted(contents(tmp_path)) == [
        "mlc-chat-config.json",
        "params_shard_0.bin",
        "params_shard_1.bin.txt",
        "tensor-cache.json",
    ]
    assert len(WeightStore(tmp_path).records) == 5


def test_two_writers_of_one_folder_do_not_meet(tmp_path: Path) -> None:
    before = old_folder(tmp_path)
    with ShardWriter(tmp_path, 0), pytest.raises(EngineError, match="another process is writing weights here"):
        convert_weights(MemorySource(tensors()), WEIGHTS, get_scheme("q0f16"), tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("existing", [True, False])
def test_too_little_room_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool
) -> None:
    folder = tmp_path / "model"
    before = old_folder(folder) if existing else {}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 12345))
    need = plan_weights(WEIGHTS, get_scheme("q0f16")).file_bytes + (1 << 20)
    with pytest.raises(EngineError, match=rf"model: disk full: the weights take {need} bytes, 12345 are free: make"):
        convert_weights(MemorySource(tensors()), WEIGHTS, get_scheme("q0f16"), folder)
    assert (contents(folder) if existing else {}) == before
    assert folder.exists() == existing


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """The operating system refuses larger files: a write that fails halfway."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_halfway_leaves_what_was_there(tmp_path: Path) -> None:
    before = old_folder(tmp_path)
    message = f"{tmp_path}: cannot write weights: File too large"
    with pytest.raises(EngineError, match=message), files_up_to(10_000):
        convert_weights(MemorySource(tensors()), WEIGHTS, get_scheme("q0f16"), tmp_path)
    assert contents(tmp_path) == before


def test_a_disk_that_fills_up_while_writing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    real_open = Path.open

    def full(self: Path, mode: str = "r", **options: Any) -> Any:
        if self.name.startswith("params_shard"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_open(self, mode, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(
        EngineError, match=r"^[^\n]*model: disk full: the weights take \d+ bytes, \d+ are free: [^\n]*$"
    ):
        convert_weights(MemorySource(tensors()), WEIGHTS, get_scheme("q0f16"), folder)
    assert not folder.exists()


def test_a_folder_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(EngineError, match="out: cannot write weights: File exists"):
        convert(tensors(), tmp_path)


def test_the_index_has_the_md5_of_every_shard(tmp_path: Path) -> None:
    convert_weights(MemorySource(tensors()), WEIGHTS, get_scheme("q4f16_1"), tmp_path)
    for shard in json.loads((tmp_path / "tensor-cache.json").read_text())["records"]:
        assert hashlib.md5((tmp_path / shard["dataPath"]).read_bytes()).hexdigest() == shard["md5sum"]
