"""What `mlc bench` makes a model do, and what it makes of it."""

import time
from typing import Any

import numpy as np
import pytest
from fake_model import FakeModel

from mlc_llm.runtime.artifact import KVCacheMetadata, LibraryMetadata
from mlc_llm.runtime.errors import EngineError, UsageError
from mlc_llm.runtime.model import Logits
from mlc_llm.serve import bench as bench_module
from mlc_llm.serve.bench import Workload, check_workload, peak_resident_bytes, step_bytes
from mlc_llm.serve.measure import DecodeResult, Measured, PrefillResult, measure_decode, measure_prefill


def metadata(**changes: Any) -> LibraryMetadata:
    fields: dict[str, Any] = {
        "model_type": "llama", "quantization": "q4f16_1", "context_window_size": 256, "prefill_chunk_size": 64,
        "max_batch_size": 4, "vocab_size": 100, "active_vocab_size": 100, "package_version": "0.1.0",
        "tvm_version": "0.27.0", "device": "cpu", "target": {}, "host_triple": "x86_64-linux-gnu", "model_hash": "0",
        "interface": "5",
        "kv_cache": KVCacheMetadata(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16),
        "params": [],
    }  # fmt: skip
    return LibraryMetadata(**{**fields, **changes})


def parameter(name: str, shape: list[int], dtype: str, *forms: tuple[list[int], str]) -> dict[str, Any]:
    steps = [{"func_name": "f", "in_shape": [], "out_shape": shape, "out_dtype": dtype} for shape, dtype in forms]
    return {"name": name, "shape": shape, "dtype": dtype, "preprocs": steps}


def test_prefill_is_whole_prompts_in_sequences_of_their_own() -> None:
    model = FakeModel(pages=10, max_num_sequence=1)
    result = measure_prefill(model, 40, rounds=3)
    assert model.computed == [40, 40, 40, 40]  # the first one warms up
    assert len(result.first_token_seconds.rounds) == 3
    assert not model.sequences


def decode(model: FakeModel, **changes: Any) -> DecodeResult:
    work = {"batch_size": 2, "depth": 6, "generate": 5, "rounds": 3, "step_bytes": 1000, "read_rate": lambda: 1e6}
    return measure_decode(model, **{**work, **changes})


def test_a_round_begins_at_the_depth_with_sequences_that_share_nothing() -> None:
    passes: list[tuple[int, ...]] = []

    def logits(tokens: tuple[int, ...]) -> Logits:
        passes.append(tokens)
        return np.zeros(259, np.float32)

    model = FakeModel(logits, pages=6)
    result = decode(model)
    prompts, steps = passes[:2], passes[2:]
    assert [len(prompt) for prompt in prompts] == [6, 6]
    assert prompts[0] != prompts[1]
    warm_up, measured = [7, 7, 8, 8, 9, 9, 10, 10], [7, 7, 8, 8, 9, 9, 10, 10, 11, 11]
    assert [len(tokens) for tokens in steps] == warm_up + 3 * measured
    assert len(result.step_seconds.rounds) == len(result.bandwidth_percent.rounds) == 3
    assert not model.sequences


def test_every_step_takes_the_likeliest_token() -> None:
    passes: list[tuple[int, ...]] = []

    def logits(tokens: tuple[int, ...]) -> Logits:
        passes.append(tokens)
        return (np.arange(259) == sum(tokens) % 259).astype(np.float32)

    decode(FakeModel(logits), batch_size=1, rounds=1)
    last = passes[-5:]
    assert [after[-1] for after in last[1:]] == [sum(before) % 259 for before in last[:-1]]


def test_a_failure_is_the_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FakeModel()
    model.fail_after = 4
    with pytest.raises(EngineError, match="the model failed"):
        decode(model)


def test_figures_are_per_second_of_the_machines_own_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(0, 1000, 10))
    monkeypatch.setattr("mlc_llm.serve.measure.perf_counter", lambda: float(next(ticks)))
    result = decode(FakeModel(), rounds=2, read_rate=iter([500.0, 1500.0, 1000.0, 3000.0]).__next__)
    assert result.step_seconds.rounds == (2.0, 2.0)  # 10 seconds for 5 steps
    assert result.tokens_per_second.rounds == (1.0, 1.0)  # of 2 sequences
    assert result.bandwidth_percent.rounds == (50.0, 25.0)
    assert PrefillResult(30, Measured((10.0, 2.0))).tokens_per_second.rounds == (3.0, 15.0)


def test_a_step_reads_the_weights_and_what_the_sequences_hold() -> None:
    matrix = parameter("model.layers.0.mlp.q_weight", [8, 8], "uint32", ([2, 8, 4], "int32"), ([2, 2, 4, 4], "float16"))
    embedding = parameter("model.embed_tokens.q_weight", [100, 8], "float32")
    head = parameter("lm_head.q_weight", [100, 8], "uint8")
    weights = 2 * 2 * 4 * 4 * 2
    per_token = 2 * 2 * 2 * 16 * 2
    tied = metadata(params=[matrix, embedding])
    assert step_bytes(tied, 1, 10, 1) == weights + 3200 + 11 * per_token
    assert step_bytes(tied, 3, 10, 3) == weights + 3200 + 3 * 12 * per_token
    assert step_bytes(metadata(params=[matrix, embedding, head]), 1, 10, 1) == weights + 800 + 11 * per_token


@pytest.mark.parametrize(
    ("work", "tokens"),
    [
        (Workload(prompt_lengths=(512,), generate=128), 512),
        (Workload(prompt_lengths=(5, 33), generate=1, depths=(1,)), 48),
        (Workload(prompt_lengths=(1,), generate=8, depths=(8, 40), batch_sizes=(1, 3)), 144),
    ],
)
def test_the_cache_holds_the_largest_of_all_in_whole_pages(work: Workload, tokens: int) -> None:
    assert work.cache_tokens(16) == tokens


@pytest.mark.parametrize(
    ("work", "line"),
    [
        (Workload(prompt_lengths=(8, 257)), "--prompt-length 257: the library's context holds 256 tokens"),
        (Workload((8,), 100, (1,), (4, 200)),
         "--depth 200 and --generate 100 make 300 tokens: the library's context holds 256"),
        (Workload((8,), 1, (1, 5)), "--batch-size 5: the library takes at most 4 sequences"),
    ],
)  # fmt: skip
def test_what_the_library_cannot_do_is_said_at_once(work: Workload, line: str) -> None:
    with pytest.raises(UsageError) as error:
        check_workload(work, metadata())
    assert str(error.value) == line


def test_work_up_to_the_limits_is_accepted() -> None:
    check_workload(Workload((256,), 56, (4,), (200,)), metadata())


def test_the_peak_of_memory_stays_when_the_memory_is_given_back() -> None:
    before = peak_resident_bytes()
    block = np.ones(64 << 20, np.uint8)
    del block
    assert peak_resident_bytes() >= before
    assert peak_resident_bytes() > 64 << 20


def test_a_kernel_that_does_not_tell_the_memory(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "_STATUS", tmp_path / "status")
    with pytest.raises(EngineError, match="does not tell the memory"):
        peak_resident_bytes()
    (tmp_path / "status").write_text("Name:\tx\n")
    with pytest.raises(EngineError, match="does not tell the memory"):
        peak_resident_bytes()


def test_measuring_really_waits_for_the_model() -> None:
    class Slow(FakeModel):
        waited = 0.0

        def prefill(self, sequence: int, tokens: Any) -> Any:
            begin = time.perf_counter()
            result = super().prefill(sequence, tokens)
            while time.perf_counter() - begin < 0.002:
                pass
            return result

    assert min(measure_prefill(Slow(), 8, rounds=2).first_token_seconds.rounds) >= 0.002
