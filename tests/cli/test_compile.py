"""`mlc compile`, `convert_weight` and `gen_config`: flags arrive where they should, or are refused."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlc_llm.cli.options import QUANTIZATIONS
from mlc_llm.compiler import compile as driver
from mlc_llm.compiler.quantization.scheme import SCHEMES
from mlc_llm.compiler.weights import WeightSummary

Run = Callable[..., tuple[int, str, str]]
RESULT = driver.CompileResult(
    Path("dist/x-q4f16_1-MLC"), Path("dist/libs/x-q4f16_1-cpu.so"), "llama", "q4f16_1", "cpu",
    {"config": "built", "weights": "up to date", "library": "built"},
)  # fmt: skip
PLAN = driver.CompilePlan(
    folder=Path("dist/x-q4f16_1-MLC"), library=Path("dist/libs/x-q4f16_1-cpu.so"), model_type="llama",
    quantization="q4f16_1", device="cpu", parameters=134_515_008, weight_bytes=75 << 20, file_bytes=75 << 20,
    bits_per_weight=4.68, context_window_size=2048, prefill_chunk_size=512, kv_bytes_per_token=23040,
    kv_cache_bytes=45 << 20, activation_bytes=10 << 20, memory_bytes=130 << 20,
)  # fmt: skip


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the compiler is asked; it answers at once."""
    seen: list[Any] = []

    def compile_model(options: driver.CompileOptions, progress: driver.Progress) -> driver.CompileResult:
        seen.append(options)
        progress.stage("weights", 10)
        progress.advance(10, "w")
        progress.skip("library", "up to date")
        return RESULT

    def convert_weight(*args: Any, progress: Any, **options: Any) -> WeightSummary:
        seen.append((args, options))
        return WeightSummary(parameters=1000, bytes=600, file_bytes=600, records=3)

    monkeypatch.setattr(driver, "compile_model", compile_model)
    monkeypatch.setattr(driver, "plan", lambda options, progress: PLAN)
    monkeypatch.setattr(driver, "convert_weight", convert_weight)
    monkeypatch.setattr(driver, "gen_config", lambda *args, progress, **options: seen.append((args, options)))
    return seen


def test_the_help_names_all_quantizations() -> None:
    assert set(QUANTIZATIONS) == set(SCHEMES)


def test_every_flag_reaches_the_compiler(mlc: Run, calls: list[Any]) -> None:
    code, _, _ = mlc(
        "compile", "model", "-q", "q0f32", "--device", "cpu:x86-64-v3", "--host", "h", "--model-type", "llama",
        "--overrides", "context_window_size=9", "--opt", "O1", "-o", "out", "--conv-template", "chatml",
        "--debug-dump", "dump", "--force", "--system-lib-prefix", "auto",
    )  # fmt: skip
    assert code == 0
    assert calls == [
        driver.CompileOptions(
            model="model", quantization="q0f32", device="cpu:x86-64-v3", host="h", model_type="llama",
            overrides="context_window_size=9", opt="O1", output=Path("out"), conv_template="chatml",
            debug_dump=Path("dump"), force=True,
        )
    ]  # fmt: skip


def test_the_result_goes_to_stdout_and_the_stages_to_stderr(mlc: Run, calls: list[Any]) -> None:
    code, out, err = mlc("compile", "model")
    assert code == 0
    assert out == (
        "model folder  dist/x-q4f16_1-MLC (config built, weights up to date)\n"
        "library       dist/libs/x-q4f16_1-cpu.so (built)\n"
        "chat          mlc chat dist/x-q4f16_1-MLC\n"
    )
    assert [line.split(":")[0] for line in err.splitlines()] == ["weights", "library"]


def test_a_library_in_a_place_of_its_own_is_named_to_the_chat(
    mlc: Run, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = dataclasses.replace(RESULT, library=Path("x.so"), found_by_itself=False)
    monkeypatch.setattr(driver, "compile_model", lambda options, progress: result)
    assert mlc("compile", "model", "-o", "x.so")[1].endswith("mlc chat dist/x-q4f16_1-MLC --model-lib x.so\n")


def test_json_is_the_result(mlc: Run, calls: list[Any]) -> None:
    assert json.loads(mlc("compile", "model", "--json")[1]) == RESULT.to_dict()
    assert json.loads(mlc("compile", "model", "--dry-run", "--json")[1]) == PLAN.to_dict()


def test_a_dry_run_shows_the_numbers(mlc: Run, calls: list[Any]) -> None:
    code, out, err = mlc("compile", "model", "--dry-run")
    assert (code, err, calls) == (0, "", [])
    assert out == (
        "model folder  dist/x-q4f16_1-MLC (not written)\n"
        "library       dist/libs/x-q4f16_1-cpu.so (not written)\n"
        "model type    llama\n"
        "quantization  q4f16_1, 4.68 bits per weight\n"
        "parameters    134.5 M (134515008)\n"
        "weights       75.0 MiB in memory, 75.0 MiB in files\n"
        "context       2048 tokens, prefill in chunks of 512\n"
        "KV cache      22.5 KiB per token, 45.0 MiB for a full context\n"
        "memory        about 130.0 MiB for one conversation of full context on cpu\n"
    )


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["compile", "x", "--enable-subgroups"],
         "--enable-subgroups: they are for WebGPU, whose kernels here do without"),
        (["compile", "x", "--system-lib-prefix", "a_"],
         "--system-lib-prefix a_: only static libraries need it, not .so"),
        (["convert_weight", "x", "-q", "q0f32", "-o", "o", "--device", "cuda"],
         "--device cuda: weights are quantized on the CPU; use auto or cpu"),
        (["convert_weight", "x", "-q", "q0f32", "-o", "o", "--lora-adapter", "l"],
         "--lora-adapter l: merge it into the weights first (PEFT's merge_and_unload)"),
        (["convert_weight", "x", "-q", "q0f32", "-o", "o", "--source-format", "huggingface-torch"],
         "--source-format huggingface-torch: pickle is not read; convert the weights to safetensors"),
        (["convert_weight", "x", "-q", "q0f32", "-o", "o", "--source-format", "awq"],
         "--source-format awq: this version has no AWQ; convert the weights to safetensors"),
        (["convert_weight", "x.gguf", "-q", "q0f32", "-o", "o", "--source-format", "huggingface-safetensor"],
         "--source-format huggingface-safetensor does not fit x.gguf: leave it out"),
        (["convert_weight", "x", "-q", "q0f32", "-o", "o", "--source", "y"],
         "--source y does not exist: name the folder of the weights"),
        (["convert_weight", "x", "-q", "q0f32", "-o", "o", "--source", "."],
         "--source .: weights are read from where x is: put both into one folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused(mlc: Run, calls: list[Any], argv: list[str], line: str) -> None:
    assert mlc(*argv) == (2, "", f"Error: {line}\n")
    assert calls == []


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["compile", "no-such-model"], "'no-such-model' does not exist"),
        (["compile", "x", "-q", "q9"], "q9"),
        (["compile", "x", "--opt", "O9"], "--opt 'O9' is unknown: expected O0, O1, O2, O3"),
        (["compile", "x", "--overrides", "contxt_window_size=1"], "did you mean 'context_window_size'"),
        (["gen_config", "x", "-q", "q0f32", "-o", "o", "--tensor-parallel-shards", "2"], "tensor_parallel_shards=2"),
        (["gen_config", "x", "-q", "q0f32", "-o", "o", "--disaggregation", "true"], "disaggregation=1"),
    ],
)  # fmt: skip
def test_wrong_values_get_the_compilers_line(mlc: Run, argv: list[str], line: str) -> None:
    code, out, err = mlc(*argv)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert line in err


def test_convert_weight_takes_upstreams_flags(mlc: Run, calls: list[Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    config, output = str(tmp_path / "config.json"), str(tmp_path / "out")
    result = mlc(
        "convert_weight", config, "--quantization", "q4f16_1", "--model-type", "llama", "--device", "cpu",
        "--source", str(tmp_path), "--source-format", "huggingface-safetensor", "--output", output,
    )  # fmt: skip
    assert result == (0, f"{output}: 1.0 K parameters in 600 bytes, 4.80 bits per weight\n", "")
    assert calls == [((config, "q4f16_1", Path(output)), {"model_type": "llama"})]


def test_gen_config_takes_upstreams_flags(mlc: Run, calls: list[Any]) -> None:
    result = mlc(
        "gen_config", "x", "--quantization", "q0f32", "--model-type", "llama", "--conv-template", "chatml",
        "--context-window-size", "2048", "--sliding-window-size", "-1", "--prefill-chunk-size", "512",
        "--attention-sink-size", "-1", "--tensor-parallel-shards", "1", "--pipeline-parallel-stages", "1",
        "--disaggregation", "false", "--max-batch-size", "8", "--output", "out",
    )  # fmt: skip
    assert result == (0, "out: configuration and tokenizer written\n", "")
    ((args, options),) = calls
    assert args == ("x", "q0f32", Path("out"))
    assert (options["conv_template"], options["model_type"]) == ("chatml", "llama")
    assert set(options["overrides"].split(";")) == {
        "context_window_size=2048", "sliding_window_size=-1", "prefill_chunk_size=512", "attention_sink_size=-1",
        "tensor_parallel_shards=1", "pipeline_parallel_stages=1", "disaggregation=0", "max_batch_size=8",
    }  # fmt: skip
