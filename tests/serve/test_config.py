"""Modes set how much an engine keeps; memory sets the bounds."""

from typing import Any

import pytest

from mlc_llm.runtime.artifact import LibraryMetadata
from mlc_llm.runtime.errors import EngineError, UsageError
from mlc_llm.serve.config import EngineConfig, Limits, choose_limits

GIB = 1 << 30


def metadata(**fields: Any) -> LibraryMetadata:
    """A library of 8 sequences with contexts of 16384 tokens of 1 KiB each, and parameters of 64 MiB."""
    transposed = {"func_name": "t", "in_shape": [1 << 20, 16], "out_shape": [16, 1 << 20], "out_dtype": "bfloat16"}
    cache = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64}
    return LibraryMetadata.model_validate(
        {
            "model_type": "tiny",
            "quantization": "q0f16",
            "context_window_size": 16384,
            "prefill_chunk_size": 512,
            "max_batch_size": 8,
            "vocab_size": 1000,
            "active_vocab_size": 1000,
            "kv_cache": cache,
            "params": [
                {"name": "a", "shape": [1 << 20, 16], "dtype": "float32", "preprocs": [transposed]},
                {"name": "b", "shape": [1 << 14, 1 << 9], "dtype": "uint32"},
            ],
            "memory_usage": {"prefill": 1 << 20},
            "interface": "5",
            "package_version": "0",
            "tvm_version": "0",
            "device": "cpu",
            "target": {},
            "host_triple": "",
            "model_hash": "",
            **fields,
        }
    )


def limits(
    mode: str = "local", memory: int = 64 * GIB, library: LibraryMetadata | None = None, **config: Any
) -> Limits:
    return choose_limits(mode, EngineConfig(**config), library or metadata(), memory)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("local", Limits(4, 8192, 512)), ("interactive", Limits(1, 16384, 512)), ("server", Limits(8, 8 * 16384, 512))],
)
def test_what_a_mode_keeps(mode: str, expected: Limits) -> None:
    assert limits(mode) == expected


def test_a_device_limits_the_size_of_a_buffer_which_a_cache_is() -> None:
    wanted, bytes_per_token = EngineConfig(), metadata().kv_cache.bytes_per_token
    found = choose_limits("local", wanted, metadata(), 64 * GIB, None, 5000 * bytes_per_token)
    assert 4000 < found.max_total_sequence_length < 5000
    assert found.note is not None


def test_a_library_for_few_sequences_or_a_short_context() -> None:
    assert limits(library=metadata(max_batch_size=2, context_window_size=2048)) == Limits(2, 2048, 512)


def test_values_of_the_user_win() -> None:
    chosen = limits(max_num_sequence=6, max_total_sequence_length=300, prefill_chunk_size=100)
    assert chosen == Limits(6, 300, 100)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "fast"}, "mode is 'fast': expected one of local, interactive, server"),
        ({"max_num_sequence": 9}, "max_num_sequence is 9: the library takes 1 to 8"),
        ({"max_num_sequence": 0}, "max_num_sequence is 0: the library takes 1 to 8"),
        ({"max_total_sequence_length": 0}, "max_total_sequence_length is 0: expected at least 1"),
        (
            {"prefill_chunk_size": 513},
            "prefill_chunk_size is 513: the library takes 1 to 512; for more, run `mlc compile` with --overrides "
            "prefill_chunk_size=N",
        ),
        ({"gpu_memory_utilization": 0.0}, "gpu_memory_utilization is 0.0: expected more than 0, at most 1"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization is 1.5: expected more than 0, at most 1"),
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        limits(**fields)
    assert str(caught.value) == message


def memory_for(tokens: int) -> int:
    """Free memory in which the smallest library has room for just that many tokens."""
    fixed = (32 << 20) + (32 << 20) + (1 << 20) + 512 * 16 * 65 * 4 + 4 * 4 * 1000 + (48 << 20)
    return int((fixed + tokens * 1024) / 0.85) + 1


def test_memory_shrinks_the_context_and_says_so() -> None:
    chosen = limits(memory=memory_for(1000))
    assert chosen == Limits(4, 992, 512, "memory for 992 tokens is free: the context is 992 instead of 8192 tokens")
    assert limits("server", memory=memory_for(40000), max_num_sequence=4).note is None


def test_a_draft_model_takes_its_part_of_memory() -> None:
    alone = choose_limits("server", EngineConfig(max_num_sequence=4), metadata(), memory_for(150000))
    beside = choose_limits("server", EngineConfig(max_num_sequence=4), metadata(), memory_for(150000), metadata())
    assert beside.max_total_sequence_length < alone.max_total_sequence_length


def test_too_little_memory_is_an_error_with_the_figures() -> None:
    with pytest.raises(EngineError, match=r"not enough memory: the model takes \d+ MiB and a KV cache of 256 "):
        limits(memory=memory_for(200))
    with pytest.raises(EngineError, match="a KV cache of 5000 tokens 4 MiB, but only"):
        limits(memory=memory_for(1000), max_total_sequence_length=5000)


def test_the_type_of_keys_and_values_counts() -> None:
    cache = {**metadata().kv_cache.model_dump(), "dtype": "float32"}
    assert limits(memory=memory_for(1000), library=metadata(kv_cache=cache)).max_total_sequence_length == 496
