"""A Llama of torch's own operations in float16, with a CUDA graph for each decoding step: what measurements stand
beside."""
# mypy: ignore-errors

from statistics import median
from time import perf_counter
from typing import Any

_STEPS = 20


def _times(run, steps: int = _STEPS) -> float:
    """The median of seconds of `run`."""
    import torch

    found = []
    for _ in range(steps + 3):
        torch.cuda.synchronize()
        begin = perf_counter()
        run()
        torch.cuda.synchronize()
        found.append(perf_counter() - begin)
    return median(found[3:])


def matrix_rate() -> float:
    """Floating-point operations in a second of a large product of float16 matrices."""
    import torch

    size = 8192
    a, b = (torch.randn(size, size, dtype=torch.float16, device="cuda") for _ in range(2))
    return 2 * size**3 / _times(lambda: a @ b)


class TorchLlama:
    """Random weights; a cache of a fixed length for each sequence."""

    def __init__(self, architecture: dict[str, Any], batch: int, length: int) -> None:
        import torch

        a = architecture
        options = {"dtype": torch.float16, "device": "cuda"}
        self.heads, self.kv_heads, self.dim = a["num_attention_heads"], a["num_key_value_heads"], a["head_dim"]
        hidden, wide = a["hidden_size"], a["intermediate_size"]

        def matrix(rows: int, columns: int):
            return torch.randn(rows, columns, **options) * columns**-0.5

        fused = (self.heads + 2 * self.kv_heads) * self.dim
        self.layers = [
            (
                matrix(fused, hidden),
                matrix(hidden, self.heads * self.dim),
                matrix(2 * wide, hidden),
                matrix(hidden, wide),
            )
            for _ in range(a["num_hidden_layers"])
        ]
        self.head = matrix(a["vocab_size"], hidden)
        shape = (len(self.layers), 2, batch, self.kv_heads, length, self.dim)
        self.cache = torch.zeros(shape, **options)
        self.x = torch.randn(batch, 1, hidden, **options)

    def forward(self, x, place: slice, causal: bool):
        """x [batch, seq, hidden] -> logits of the last position; keys and values go to `place` of the cache."""
        import torch
        import torch.nn.functional as F

        batch, count, hidden = x.shape
        for index, (qkv_weight, out_weight, up_weight, down_weight) in enumerate(self.layers):
            qkv = (F.rms_norm(x, (hidden,)) @ qkv_weight.T).view(batch, count, -1, self.dim).transpose(1, 2)
            q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
            keys, values = self.cache[index]
            keys[:batch, :, place], values[:batch, :, place] = k, v
            k, v = (k, v) if causal else (keys[:batch], values[:batch])
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
            x = x + attended.transpose(1, 2).reshape(batch, count, -1) @ out_weight.T
            gate, up = (F.rms_norm(x, (hidden,)) @ up_weight.T).chunk(2, dim=-1)
            x = x + (F.silu(gate) * up) @ down_weight.T
        return torch.argmax(x[:, -1] @ self.head.T, dim=-1)

    def decode_seconds(self) -> float:
        """Of a step in which each sequence sees the whole length of the cache."""
        import torch

        place = slice(self.cache.shape[4] - 1, self.cache.shape[4])
        with torch.inference_mode():
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self.forward(self.x, place, False)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.forward(self.x, place, False)
            return _times(graph.replay)

    def prefill_seconds(self, count: int) -> float:
        """Of a prompt of so many tokens."""
        import torch

        x = torch.randn(1, count, self.x.shape[2], dtype=torch.float16, device="cuda")
        with torch.inference_mode():
            return _times(lambda: self.forward(x, slice(0, count), True), 5)
