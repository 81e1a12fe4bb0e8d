"""A model folder and library small enough to build in a second, and the same model in numpy as its oracle.

The library is written with TVM alone, but for the sampler's kernels and the threads: the contract, spelled out.
"""

import hashlib
import json
import math
import platform
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import tvm
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tvm import relax, te, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op
from tvm.script import tirx as T

from mlc_llm import __version__
from mlc_llm.compiler.kernels.cpu.sample_in_pass import sample
from mlc_llm.compiler.kernels.cpu.sample_token import sampling_kernels
from mlc_llm.compiler.kernels.operations import SETTINGS
from mlc_llm.compiler.target import resolve_target
from mlc_llm.runtime.artifact import ChatConfig, model_hash

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, LAYERS, VOCAB, ACTIVE = 32, 4, 2, 8, 2, 264, 259
CONTEXT, CHUNK, PAGE = 128, 32, 16
IM_START, IM_END, PAD = 256, 257, 258
THETA = 10000.0
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STORED = {
    "embed_tokens.weight": (VOCAB, HIDDEN),
    **{f"qkv.{i}.weight": ((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN) for i in range(LAYERS)},
    **{f"o.{i}.weight": (HIDDEN, HEADS * HEAD_DIM) for i in range(LAYERS)},
    "head": (VOCAB, HIDDEN),  # the library reads it transposed
}


@T.prim_func(s_tir=True)
def attend(
    qkv_handle: T.handle, layer: T.int64, positions_handle: T.handle, slots_handle: T.handle, starts_handle: T.handle,
    page_starts_handle: T.handle, pages_handle: T.handle, lengths_handle: T.handle, kv_handle: T.handle,
    out_handle: T.handle,
):  # fmt: skip
    """Rotate and store the new tokens, then attention of each to its sequence, one number after the other."""
    n, b, e, used, num_pages = T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
    qkv = T.match_buffer(qkv_handle, (n, HEADS + 2 * KV_HEADS, HEAD_DIM))
    positions = T.match_buffer(positions_handle, (n,), "int32")
    slots = T.match_buffer(slots_handle, (n,), "int32")
    starts = T.match_buffer(starts_handle, (e,), "int32")
    page_starts = T.match_buffer(page_starts_handle, (e,), "int32")
    pages = T.match_buffer(pages_handle, (used,), "int32")
    T.match_buffer(lengths_handle, (b,), "int32")
    kv = T.match_buffer(kv_handle, (num_pages, LAYERS, 2, KV_HEADS, PAGE, HEAD_DIM))
    out = T.match_buffer(out_handle, (n, HEADS, HEAD_DIM))
    with T.sblock("root"):
        turned = T.sblock_alloc_buffer((n, HEADS + KV_HEADS, HEAD_DIM))
        sums = T.sblock_alloc_buffer((2,))
        for t, h, d in T.grid(n, HEADS + KV_HEADS, HEAD_DIM):
            angle = T.Cast("float32", positions[t]) * T.exp(
                T.Cast("float32", d % (HEAD_DIM // 2)) * T.float32(-math.log(THETA) * 2 / HEAD_DIM)
            )
            other = qkv[t, h, (d + HEAD_DIM // 2) % HEAD_DIM] * T.Select(d < HEAD_DIM // 2, T.float32(-1), T.float32(1))
            turned[t, h, d] = qkv[t, h, d] * T.cos(angle) + other * T.sin(angle)
        for t, h, d in T.grid(n, KV_HEADS, HEAD_DIM):
            kv[slots[t] // PAGE, layer, 0, h, slots[t] % PAGE, d] = turned[t, HEADS + h, d]
            kv[slots[t] // PAGE, layer, 1, h, slots[t] % PAGE, d] = qkv[t, HEADS + KV_HEADS + h, d]
        for s in range(b):
            for i, h in T.grid(starts[s + 1] - starts[s], HEADS):
                sums[0] = T.float32(0)
                for d in range(HEAD_DIM):
                    out[starts[s] + i, h, d] = T.float32(0)
                for j in range(positions[starts[s] + i] + 1):
                    page = pages[page_starts[s] + j // PAGE]
                    sums[1] = T.float32(0)
                    for d in range(HEAD_DIM):
                        key = kv[page, layer, 0, h // (HEADS // KV_HEADS), j % PAGE, d]
                        sums[1] = sums[1] + turned[starts[s] + i, h, d] * key
                    sums[1] = T.exp(sums[1] * T.float32(HEAD_DIM**-0.5))
                    sums[0] = sums[0] + sums[1]
                    for d in range(HEAD_DIM):
                        value = kv[page, layer, 1, h // (HEADS // KV_HEADS), j % PAGE, d]
                        out[starts[s] + i, h, d] = out[starts[s] + i, h, d] + sums[1] * value
                for d in range(HEAD_DIM):
                    out[starts[s] + i, h, d] = out[starts[s] + i, h, d] / sums[0]


class TinyModel(nn.Module):
    """Attention layers without norms and MLPs between an embedding and a head."""

    def __init__(self) -> None:
        self.embed_tokens = nn.Embedding(VOCAB, HIDDEN)
        self.qkv = nn.ModuleList([nn.Linear(HIDDEN, STORED["qkv.0.weight"][0], bias=False) for _ in range(LAYERS)])
        self.o = nn.ModuleList([nn.Linear(HEADS * HEAD_DIM, HIDDEN, bias=False) for _ in range(LAYERS)])
        self.head = nn.Parameter((HIDDEN, VOCAB))

    def _hidden(self, ids: Any, kv: Any, decodes: bool = False) -> Any:
        x, count = self.embed_tokens(ids), ids.shape[0]
        batch, length = (count, 1) if decodes else (1, count)
        x = op.reshape(x, (batch, length, HIDDEN))
        for i in range(LAYERS):
            qkv = op.reshape(self.qkv[i](x), (count, HEADS + 2 * KV_HEADS, HEAD_DIM))
            out = nn.Tensor.placeholder((count, HEADS, HEAD_DIM), "float32")
            out = op.tensor_ir_op(attend, "attend", [qkv, tirx.const(i, "int64"), *kv], out)
            x = x + self.o[i](op.reshape(out, (batch, length, HEADS * HEAD_DIM)))
        return x

    def prefill(self, ids: Any, kv: Any) -> Any:
        def last(x: Any) -> Any:
            batch, length, size = x.shape
            return te.compute((batch, 1, size), lambda i, _, k: x[i, length - 1, k], name="last")

        return op.matmul(op.tensor_expr_op(last, "last", [self._hidden(ids, kv)]), self.head)

    def decode(self, ids: Any, settings: Any, uniforms: Any, chosen: Any, kv: Any) -> Any:
        return sample(
            resolve_target(), op.matmul(self._hidden(ids, kv, decodes=True), self.head), settings, uniforms, chosen
        )

    batch_decode = decode

    def batch_verify(self, ids: Any, kv: Any) -> Any:
        return op.matmul(self._hidden(ids, kv), self.head)


def target() -> tvm.target.Target:
    return tvm.target.Target({"kind": "llvm", "num-cores": 2})


def build_module() -> tvm.IRModule:
    packed = {"param_mode": "packed", "effect_mode": "none"}

    def forward(tokens: int | str, sequences: int | str, **others: Any) -> dict[str, Any]:
        shapes = [[tokens], [tokens], ["ends"], ["ends"], ["used_pages"], [sequences]]
        kv = [nn.spec.Tensor(shape, "int32") for shape in shapes]
        kv.append(nn.spec.Tensor(["num_pages", LAYERS, 2, KV_HEADS, PAGE, HEAD_DIM], "float32"))
        return {"ids": nn.spec.Tensor([tokens], "int32"), **others, "kv": kv, "$": packed}

    def decode(rows: int | str) -> dict[str, Any]:
        settings = nn.spec.Tensor([rows, len(SETTINGS)], "float64")
        uniforms, chosen = nn.spec.Tensor([rows], "float64"), nn.spec.Tensor([rows], "int32")
        return forward(rows, rows, settings=settings, uniforms=uniforms, chosen=chosen)

    spec = {
        "prefill": forward("seq_len", 1),
        "decode": decode(1),
        "batch_decode": decode("batch"),
        "batch_verify": forward("seq_len", "sequences"),
    }
    module, params = TinyModel().export_tvm(spec=spec)
    assert [name for name, _ in params] == list(STORED)
    stored = te.placeholder(STORED["head"], "float32", name="stored")
    packed_head = te.compute((HIDDEN, VOCAB), lambda i, j: stored[j, i], name="packed")
    transpose = te.create_prim_func([stored, packed_head])
    for name, function in sampling_kernels().items():
        module[name] = function.with_attr("global_symbol", name)
    module["transpose_head"] = transpose.with_attr("global_symbol", "transpose_head")
    return module


def metadata(config: ChatConfig) -> dict[str, Any]:
    step = {
        "func_name": "transpose_head",
        "in_shape": STORED["head"],
        "out_shape": (HIDDEN, VOCAB),
        "out_dtype": "float32",
    }
    return {
        "model_type": config.model_type,
        "quantization": config.quantization,
        "context_window_size": config.context_window_size,
        "sliding_window_size": config.sliding_window_size,
        "attention_sink_size": config.attention_sink_size,
        "prefill_chunk_size": config.prefill_chunk_size,
        "max_batch_size": 8,
        "vocab_size": VOCAB,
        "active_vocab_size": ACTIVE,
        "kv_cache": {
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "dtype": "float32",
        },
        "params": [
            {"name": name, "shape": shape, "dtype": "float32", "preprocs": [step] if name == "head" else []}
            for name, shape in STORED.items()
        ],
        "memory_usage": {"prefill": 1 << 20},
        "interface": "5",
        "package_version": __version__,
        "tvm_version": tvm.__version__,
        "device": "cpu",
        "target": {"kind": "llvm"},
        "cpu_features": [],
        "host_triple": f"{platform.machine()}-linux-gnu",
        "model_hash": model_hash(config),
    }


class LibraryBuilder:
    """Builds libraries of the tiny model that differ in their metadata only; the kernels are compiled once."""

    def __init__(self) -> None:
        self._module = build_module()

    def build(self, output: Path, says: dict[str, Any], without: tuple[str, ...] = ()) -> Path:
        """Write a library whose `_metadata()` is `says`, and that lacks the functions `without`."""
        builder = relax.BlockBuilder()
        with builder.function("_metadata", []):
            builder.emit_func_output(tvm.ir.expr.StringImm(json.dumps(says)))
        functions = {var: function for var, function in self._module.functions_items() if var.name_hint not in without}
        module = tvm.IRModule(functions, attrs=self._module.attrs)
        module["_metadata"] = builder.get()["_metadata"]
        threads = Path(__file__).parents[2] / "compiler/kernels/cpu/threads.c"
        relax.build(module, target()).export_library(str(output), addons=[str(threads)], options=["-pthread"])
        return output


def tokenizer() -> tokenizers.Tokenizer:
    """One token for each byte, and the marks of ChatML."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    result = tokenizers.Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    result.decoder = decoders.ByteLevel()
    result.add_special_tokens([AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>", "<pad>")])
    return result


def weights(seed: int) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape).astype(np.float32) * 0.3 for name, shape in STORED.items()}


def write_folder(folder: Path, seed: int = 0, **config: Any) -> ChatConfig:
    """Write a complete MLC model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {
        "model_type": "tiny",
        "quantization": "q0f32",
        "model_config": {"hidden_size": HIDDEN},
        "vocab_size": VOCAB,
        "context_window_size": CONTEXT,
        "prefill_chunk_size": CHUNK,
        "temperature": 0.0,
        "eos_token_id": IM_END,
        "bos_token_id": None,
        "prompt_format": "jinja",
        "tokenizer_files": ["tokenizer.json", "tokenizer_config.json"],
        **config,
    }
    result = ChatConfig.model_validate(fields)
    (folder / "mlc-chat-config.json").write_text(result.to_json())
    records, data = [], b""
    for name, array in weights(seed).items():
        records.append(
            {
                "name": name,
                "shape": list(array.shape),
                "dtype": "float32",
                "format": "raw",
                "nbytes": array.nbytes,
                "byteOffset": len(data),
            }
        )
        data += array.tobytes()
    (folder / "params_shard_0.bin").write_bytes(data)
    shard = {
        "dataPath": "params_shard_0.bin",
        "format": "raw-shard",
        "nbytes": len(data),
        "md5sum": hashlib.md5(data).hexdigest(),
        "records": records,
    }
    (folder / "tensor-cache.json").write_text(json.dumps({"metadata": {}, "records": [shard]}))
    tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML, "eos_token": "<|im_end|>"}))
    return result


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


@cache
def built() -> Path:
    """A model folder `.../tiny-q0f32-MLC` with its library where an engine looks for it; made once per test run."""
    _KEPT.append(tempfile.TemporaryDirectory(prefix="tiny-model-"))
    dist = Path(_KEPT[-1].name)
    folder = dist / "tiny-q0f32-MLC"
    config = write_folder(folder)
    (dist / "libs").mkdir()
    LibraryBuilder().build(dist / "libs" / "tiny-q0f32-cpu.so", metadata(config))
    return folder


def library_path(folder: Path) -> Path:
    """The library of `built()`."""
    return folder.parent / "libs" / "tiny-q0f32-cpu.so"


def reference_logits(tokens: list[int], seed: int = 0, window: int | None = None) -> np.ndarray[Any, Any]:
    """Logits after each of `tokens`, [len(tokens), ACTIVE], by the textbook: full attention matrices in float64."""
    w = {name: array.astype(np.float64) for name, array in weights(seed).items()}
    x = w["embed_tokens.weight"][tokens]
    count, half = len(tokens), HEAD_DIM // 2
    distance = np.arange(count)[:, None] - np.arange(count)
    seen = (distance >= 0) & (distance < (window or count))
    angle = np.arange(count)[:, None] / THETA ** (np.arange(half) / half)
    cos, sin = (np.concatenate([f(angle)] * 2, -1)[:, None] for f in (np.cos, np.sin))

    def rotate(z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return z * cos + np.concatenate([-z[..., half:], z[..., :half]], -1) * sin

    for i in range(LAYERS):
        qkv = (x @ w[f"qkv.{i}.weight"].T).reshape(count, HEADS + 2 * KV_HEADS, HEAD_DIM)
        q, k, v = np.split(qkv, [HEADS, HEADS + KV_HEADS], axis=1)
        k, v = (np.repeat(z, HEADS // KV_HEADS, axis=1) for z in (rotate(k), v))
        scores = np.einsum("qhd,khd->hqk", rotate(q), k) / np.sqrt(HEAD_DIM)
        scores = np.where(seen, scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        out = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v)
        x = x + out.reshape(count, -1) @ w[f"o.{i}.weight"].T
    return (x @ w["head"].T)[:, :ACTIVE]
