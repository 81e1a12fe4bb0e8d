"""`mlc show`: folders, libraries, sources."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlc_llm.runtime.artifact import ChatConfig, KVCacheMetadata, LibraryMetadata

Run = Callable[..., tuple[int, str, str]]
HIDDEN = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 100, "context_window_size": 256,
          "prefill_chunk_size": 64, "rms_norm_eps": 1e-5, "max_batch_size": 4}  # fmt: skip


def write_folder(folder: Path, **changes: Any) -> Path:
    """A model folder of MLC's format with one shard."""
    folder.mkdir()
    fields = {"model_type": "llama", "quantization": "q4f16_1", "model_config": HIDDEN, "vocab_size": 100,
              "context_window_size": 256, "prefill_chunk_size": 64, "tokenizer_files": ["tokenizer.json"],
              "conv_template": {"name": "chatml"}, **changes}  # fmt: skip
    (folder / "mlc-chat-config.json").write_text(ChatConfig(**fields).to_json())
    (folder / "params_shard_0.bin").write_bytes(bytes(450))
    record = {"name": "w", "shape": [225], "dtype": "float16", "nbytes": 450, "byteOffset": 0}
    index = {
        "metadata": {"ParamSize": 1, "ParamBytes": 450.0, "BitsPerParam": 4.5},
        "records": [{"dataPath": "params_shard_0.bin", "nbytes": 450, "records": [record]}],
    }
    (folder / "tensor-cache.json").write_text(json.dumps(index))
    return folder


def table(out: str) -> dict[str, str]:
    """The two columns that were printed."""
    pairs = (line.split("  ", 1) for line in out.splitlines())
    return {name: value.strip() for name, value in pairs}


def test_a_folder(mlc: Run, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "Tiny-q4f16_1-MLC")
    code, out, err = mlc("show", str(folder))
    assert (code, err) == (0, "")
    shown = table(out)
    assert shown["model type"] == "llama"
    assert shown["quantization"] == "q4f16_1, 4.50 bits per weight"
    assert shown["parameters"] == "800 (800)"
    assert shown["weights"] == "450 bytes in 1 files"
    assert shown["context"] == "256 tokens, prefill in chunks of 64"
    assert shown["template"] == "chatml"
    assert shown["tokenizer"] == "tokenizer.json"
    assert shown["libraries"] == "none yet: run `mlc compile` on the folder"
    assert mlc("show", str(folder / "mlc-chat-config.json"))[1] == out


def test_a_folder_as_json(mlc: Run, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "Tiny-q4f16_1-MLC")
    shown = json.loads(mlc("show", str(folder), "--json")[1])
    assert (shown["kind"], shown["bytes"], shown["parameters"]) == ("folder", 450, 800)
    assert shown["config"]["model_config"] == HIDDEN
    assert shown["missing_shards"] == []


def test_a_missing_shard_is_named(mlc: Run, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "x")
    (folder / "params_shard_0.bin").write_bytes(b"")
    assert table(mlc("show", str(folder))[1])["weights"].endswith("; missing or cut short: params_shard_0.bin")


def test_a_folder_of_an_architecture_that_this_version_lacks_is_still_shown(mlc: Run, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "x", model_type="rwkv5", conv_template=None)
    code, out, _ = mlc("show", str(folder))
    assert code == 0
    assert table(out)["model type"] == "rwkv5"
    assert table(out)["memory"].startswith("unknown: ")
    assert table(out)["template"] == "the tokenizer's chat template"


def test_a_library(mlc: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.so"
    path.write_bytes(bytes(2048))
    metadata = LibraryMetadata(
        model_type="llama", quantization="q4f16_1", context_window_size=2048, prefill_chunk_size=512, max_batch_size=4,
        vocab_size=100, active_vocab_size=100, params=[], package_version="0.1.0", tvm_version="0.27.0.post1",
        interface="5", device="cpu", target={"kind": "llvm", "mcpu": "znver4"}, cpu_features=["avx2", "fma"],
        host_triple="x86_64-linux-gnu", model_hash="00ff",
        kv_cache=KVCacheMetadata(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16),
    )  # fmt: skip
    monkeypatch.setattr("mlc_llm.runtime.library.read_metadata", lambda path: metadata)
    code, out, err = mlc("show", str(path))
    assert (code, err) == (0, "")
    assert table(out) == {
        "library": f"{path} (2.0 KiB)",
        "model type": "llama",
        "quantization": "q4f16_1",
        "context": "2048 tokens, prefill in chunks of 512",
        "sequences": "up to 4 at once",
        "KV cache": "256 bytes per token, float16",
        "device": "cpu (znver4, x86_64-linux-gnu)",
        "needs": "avx2 fma",
        "made by": "mlc-aot 0.1.0, TVM 0.27.0.post1",
        "model hash": "00ff",
    }
    shown = json.loads(mlc("show", str(path), "--json")[1])
    assert (shown["kind"], shown["target"], shown["bytes"]) == ("library", {"kind": "llvm", "mcpu": "znver4"}, 2048)


@pytest.mark.parametrize(
    ("name", "content", "code", "line"),
    [
        ("missing.so", None, 2, "missing.so is missing: expected a model library"),
        ("text.so", b"hello", 1, "text.so"),
        ("nothing", None, 2, "'nothing' does not exist"),
        ("x.safetensors", b"", 2, "x.safetensors is not a model: name its folder"),
    ],
)
def test_what_is_nothing_of_this_gets_one_line(
    mlc: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes | None, code: int, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name).write_bytes(content)
    result = mlc("show", name)
    assert result[:2] == (code, "")
    assert result[2].startswith("Error: ")
    assert line in result[2]
    assert result[2].count("\n") == 1


def test_a_damaged_config_gets_one_line(mlc: Run, tmp_path: Path) -> None:
    (tmp_path / "mlc-chat-config.json").write_text("{")
    code, out, err = mlc("show", str(tmp_path))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert f"{tmp_path / 'mlc-chat-config.json'} is not valid JSON" in err


def test_a_folder_that_only_names_its_template(mlc: Run, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "Tiny-q4f16_1-MLC")
    path = folder / "mlc-chat-config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"conv_template": "llama-2", "prompt_format": None}))
    assert table(mlc("show", str(folder))[1])["template"] == "llama-2"
