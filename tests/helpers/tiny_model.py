"""A model folder and library small enough to build in a second, and the same model in numpy as its oracle.

The library is written with TVM alone, but for the sampler's kernels and the threads: the contract, spelled out.
"""

import hashlib
import json
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
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache, RopeMode, TIRPagedKVCache

from mlc_llm import __version__
from mlc_llm.compiler.kernels.cpu.sample_token import sampling_kernels
from mlc_llm.runtime.artifact import ChatConfig, model_hash

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, LAYERS, VOCAB, ACTIVE = 32, 4, 2, 8, 2, 264, 259
CONTEXT, CHUNK = 128, 32
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


class TinyModel(nn.Module):
    """Attention layers without norms and MLPs between an embedding and a head."""

    def __init__(self) -> None:
        self.embed_tokens = nn.Embedding(VOCAB, HIDDEN)
        self.qkv = nn.ModuleList([nn.Linear(HIDDEN, STORED["qkv.0.weight"][0], bias=False) for _ in range(LAYERS)])
        self.o = nn.ModuleList([nn.Linear(HEADS * HEAD_DIM, HIDDEN, bias=False) for _ in range(LAYERS)])
        self.head = nn.Parameter((HIDDEN, VOCAB))

    def _hidden(self, x: Any, kv: Any) -> Any:
        batch, length, _ = x.shape
        for i in range(LAYERS):
            qkv = op.reshape(self.qkv[i](x), (batch, length, HEADS + 2 * KV_HEADS, HEAD_DIM))
            out = kv.attention_with_fused_qkv(i, qkv, HEADS, sm_scale=HEAD_DIM**-0.5)
            x = x + self.o[i](op.reshape(out, (batch, length, HEADS * HEAD_DIM)))
        return x

    def embed(self, input_ids: Any) -> Any:
        return self.embed_tokens(input_ids)

    def prefill(self, embeds: Any, kv: Any) -> Any:
        def last(x: Any) -> Any:
            batch, length, size = x.shape
            return te.compute((batch, 1, size), lambda i, _, k: x[i, length - 1, k], name="last")

        return op.matmul(op.tensor_expr_op(last, "last", [self._hidden(embeds, kv)]), self.head), kv

    def batch_prefill(self, embeds: Any, logit_positions: Any, kv: Any) -> Any:
        return op.matmul(op.take(self._hidden(embeds, kv), logit_positions, axis=1), self.head), kv

    def decode(self, embeds: Any, kv: Any) -> Any:
        return op.matmul(self._hidden(embeds, kv), self.head), kv

    batch_decode = batch_verify = decode

    def create_tir_paged_kv_cache(
        self,
        max_batch_size: tirx.Var,
        max_total_seq_len: tirx.Var,
        prefill_chunk_size: tirx.Var,
        page_size: tirx.Var,
        support_sliding_window: tirx.Var,
    ) -> Any:
        return TIRPagedKVCache(
            attn_kind="mha",
            max_batch_size=max_batch_size,
            max_total_seq_len=max_total_seq_len,
            prefill_chunk_size=prefill_chunk_size,
            page_size=page_size,
            support_sliding_window=support_sliding_window,
            layer_partition=relax.ShapeExpr([0, LAYERS]),
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            qk_head_dim=HEAD_DIM,
            v_head_dim=HEAD_DIM,
            mla_original_qk_head_dim=0,
            mla_original_v_head_dim=0,
            rope_mode=RopeMode.NORMAL,
            rope_scale=1,
            rope_theta=int(THETA),
            rope_scaling={},
            rope_ext_factors=relax.prim_value(0),
            rotary_dim=HEAD_DIM,
            enable_disaggregation=False,
            dtype="float32",
            target=target(),
        )


def target() -> tvm.target.Target:
    return tvm.target.Target({"kind": "llvm", "num-cores": 2})


def build_module() -> tvm.IRModule:
    kv = nn.spec.Object(object_type=PagedKVCache)
    packed = {"param_mode": "packed", "effect_mode": "none"}
    many = nn.spec.Tensor([1, "seq_len", HIDDEN], "float32")
    ids = nn.spec.Tensor(["seq_len"], "int32")
    cache = ("max_batch_size", "max_total_seq_len", "prefill_chunk_size", "page_size", "support_sliding_window")
    spec = {
        "embed": {"input_ids": ids, "$": packed},
        "prefill": {"embeds": many, "kv": kv, "$": packed},
        "decode": {"embeds": nn.spec.Tensor([1, 1, HIDDEN], "float32"), "kv": kv, "$": packed},
        "batch_prefill": {
            "embeds": many,
            "logit_positions": nn.spec.Tensor(["batch"], "int32"),
            "kv": kv,
            "$": packed,
        },
        "batch_decode": {"embeds": nn.spec.Tensor(["batch", 1, HIDDEN], "float32"), "kv": kv, "$": packed},
        "batch_verify": {"embeds": many, "kv": kv, "$": packed},
        "create_tir_paged_kv_cache": {
            **dict.fromkeys(cache, int),
            "$": {"param_mode": "none", "effect_mode": "none"},
        },
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
