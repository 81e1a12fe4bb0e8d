"""`--overrides` and `--opt`: what is honoured is returned, everything else is refused by name."""

from dataclasses import replace

import pytest

from mlc_llm.compiler.optimization import LEVELS, Optimization, parse_opt
from mlc_llm.compiler.overrides import check_applied, parse_overrides, trained_context
from mlc_llm.runtime.errors import UsageError


def test_pairs_are_parsed_as_upstream_writes_them() -> None:
    text = "context_window_size=4096;prefill_chunk_size=512; sliding_window_size=-1;max_batch_size=1;"
    assert parse_overrides(text) == {
        "context_window_size": 4096,
        "prefill_chunk_size": 512,
        "sliding_window_size": -1,
        "max_batch_size": 1,
    }
    assert parse_overrides("") == {}
    assert parse_overrides("kv_cache_dtype=int8") == {"kv_cache_dtype": "int8"}


def test_one_device_is_accepted() -> None:
    text = "tensor_parallel_shards=1;pipeline_parallel_stages=1;disaggregation=false"
    assert parse_overrides(text) == {
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "disaggregation": 0,
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("context_windowsize=1", ["'context_windowsize'", "did you mean 'context_window_size'?"]),
        ("temperature=1", ["'temperature' is unknown", "prefill_chunk_size"]),
        ("context_window_size", ["no value", "key=value"]),
        ("context_window_size=", ["''", "not an integer"]),
        ("context_window_size=4k", ["'4k'", "not an integer"]),
        ("context_window_size=1.5", ["'1.5'", "not an integer"]),
        ("context_window_size=0", ["=0", "1..16777216"]),
        ("context_window_size=-1", ["=-1", "1..16777216"]),
        ("sliding_window_size=-2", ["=-2", "or -1"]),
        ("attention_sink_size=-5", ["=-5", "0..16777216 or -1"]),
        ("max_batch_size=100000", ["=100000", "1..65536"]),
        ("tensor_parallel_shards=2", ["=2", "expected 1", "one device"]),
        ("pipeline_parallel_stages=0", ["=0", "expected 1"]),
        ("kv_cache_dtype=int4", ["kv_cache_dtype='int4' is unknown", "auto or int8"]),
        ("disaggregation=true", ["disaggregation=true", "one process"]),
        ("max_batch_size=1;max_batch_size=2", ["twice", "1 and 2"]),
        (f"context_window_size={'9' * 5000}", ["not an integer"]),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(text: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        parse_overrides(text)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_the_context_ends_where_the_model_was_trained_to() -> None:
    config = {"max_position_embeddings": 2048, "context_window_size": 2048}
    check_applied({"context_window_size": 2048}, config)
    with pytest.raises(UsageError, match=r"context_window_size=4096 is out of range.*1\.\.2048"):
        check_applied({"context_window_size": 4096}, {**config, "context_window_size": 4096})


@pytest.mark.parametrize(
    ("scaling", "context"),
    [
        (None, 4096),
        ({"rope_type": "linear", "factor": 2.0}, 8192),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}, 16384),
        # Llama 3.1 counts the stretched positions already
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 512}, 4096),
    ],
)
def test_rope_scaling_stretches_the_trained_context(scaling: dict[str, object] | None, context: int) -> None:
    assert trained_context({"max_position_embeddings": 4096, "rope_scaling": scaling}) == context


def test_an_override_that_the_model_did_not_take_is_an_error() -> None:
    with pytest.raises(UsageError, match="has sliding_window_size = -1 and cannot change it"):
        check_applied({"sliding_window_size": 512}, {"sliding_window_size": -1, "context_window_size": 64})
    with pytest.raises(UsageError, match=r"prefill_chunk_size=128 is out of range: expected 1\.\.64"):
        check_applied({"prefill_chunk_size": 128}, {"prefill_chunk_size": 64, "context_window_size": 64})


@pytest.mark.parametrize("level", ["O0", "O1", "O2", "O3"])
def test_levels_of_optimisation(level: str) -> None:
    assert parse_opt(level, "cuda") == replace(LEVELS[level], activation_bits=16)
    assert parse_opt(level, "cpu") == replace(LEVELS[level], cuda_graph=False)


def test_upstreams_flags_are_accepted_where_they_ask_for_nothing() -> None:
    text = "flashinfer=0;cublas_gemm=0;faster_transformer=0;cudagraph=0;cutlass=0;ipc_allreduce_strategy=NONE"
    assert parse_opt(text, "cpu") == Optimization()


def test_the_precision_of_activations_is_a_choice() -> None:
    assert parse_opt("O3", "cpu").activation_bits == 8
    assert parse_opt("O2", "cpu").activation_bits == 16
    assert parse_opt("activation_bits=32", "cpu") == Optimization(activation_bits=32)
    assert parse_opt("O3;activation_bits=16;cublas_gemm=0", "cpu") == Optimization(passes=3)
    assert parse_opt("O3", "vulkan").activation_bits == 16
    with pytest.raises(UsageError, match=r"^--opt activation_bits=8: expected 16, 32 on vulkan$"):
        parse_opt("activation_bits=8", "vulkan")


def test_cuda_alone_records_graphs() -> None:
    assert not parse_opt("O2", "cuda").cuda_graph
    assert parse_opt("O3", "cuda").cuda_graph
    assert parse_opt("cudagraph=1", "cuda") == Optimization(cuda_graph=True)
    assert parse_opt("O3;cudagraph=0", "cuda") == Optimization(passes=3)
    with pytest.raises(UsageError, match=r"^--opt cudagraph=1: has no meaning on vulkan: expected cudagraph=0$"):
        parse_opt("cudagraph=1", "vulkan")
    with pytest.raises(UsageError, match=r"^--opt cudagraph=yes: expected 0 or 1$"):
        parse_opt("cudagraph=yes", "cuda")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("activation_bits=4", ["activation_bits=4", "expected 8, 16, 32"]),
        ("fast;activation_bits=8", ["'fast;activation_bits=8'", "O0, O1"]),
        ("O4", ["'O4'", "O0, O1, O2, O3"]),
        ("", ["''", "O0"]),
        ("cublas_gemm=1", ["cublas_gemm=1", "cpu", "cublas_gemm=0"]),
        ("ipc_allreduce_strategy=AUTO", ["expected ipc_allreduce_strategy=NONE"]),
        ("flashinferr=0", ["did you mean 'flashinfer'?"]),
    ],
)
def test_optimisations_that_the_device_lacks_are_refused(text: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        parse_opt(text, "cpu")
    assert all(word in str(error.value) for word in words), str(error.value)
