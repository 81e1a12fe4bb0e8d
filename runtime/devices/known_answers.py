"""Inputs of the self-test's kernels, and what comes out."""

import math
from operator import mul

FEATURES = 640  # more than a workgroup has threads, and no power of two
VOCAB = 4133
OUTPUTS, INPUTS, GROUP, ZERO_POINT = 32, 128, 32, 7  # of a multiplication by 4-bit codes; outputs fill two tiles of 16
ROWS = 18  # of x in a multiplication by blocks
HEADS, KV_HEADS, HEAD_DIM, TOKENS = 4, 2, 32, 70  # of attention: the last token's, over two sheets of the cache
SHEET_ROWS = 64  # tokens of a sheet: compiler/kernels/kv_cache.py
_TILE, _CODES = 16, 8  # outputs of a tile, codes of a word: compiler/kernels/storage.py

_EPS = 1e-5


def inputs(count: int, seed: int) -> list[float]:
    """Numbers from -4 to 4 that look random, each exact in float32."""
    return [((i * 7919 + seed * 104729) % 65521 % 4096 - 2048) / 512 for i in range(1, count + 1)]


def rms_norm(x: list[float], weight: list[float]) -> list[float]:
    """x / sqrt(mean(x^2) + eps) * weight."""
    inverse = 1 / math.sqrt(sum(value * value for value in x) / len(x) + _EPS)
    return [value * inverse * scale for value, scale in zip(x, weight, strict=True)]


def silu_mul(x: list[float]) -> list[float]:
    """silu(gate) * up, of [gate | up]."""
    half = len(x) // 2
    return [gate / (1 + math.exp(-gate)) * up for gate, up in zip(x[:half], x[half:], strict=True)]


def drawn(logits: list[float], temperature: float, top_k: int, top_p: float, uniform: float) -> int:
    """The token of a draw, by a full sort."""
    largest = max(logits)
    weights = [math.exp((logit - largest) / temperature) for logit in logits]
    ranked = sorted(range(len(logits)), key=lambda token: (-weights[token], token))[: top_k or None]
    wanted, kept, sum_ = top_p * sum(weights[token] for token in ranked), [], 0.0
    for token in ranked:
        if sum_ < wanted:
            kept.append(token)
            sum_ += weights[token]
    target, running = uniform * sum_, 0.0
    for token in sorted(kept):
        running += weights[token]
        if running > target:
            break
    return token


def words(seed: int) -> list[int]:
    """Codes of a packed matrix, [tiles, words of a row, 16] as int32."""
    count = OUTPUTS * INPUTS // _CODES
    return [(i * 2654435761 + seed) % 2**32 - 2**31 for i in range(1, count + 1)]


def matmul(x: list[float], codes: list[int], scales: list[float]) -> list[float]:
    """y[o] = sum over k of x[k] * (code[o, k] - ZERO_POINT) * scale[o, k / GROUP]; scales [tiles, groups, 16]."""
    result = []
    for output in range(OUTPUTS):
        tile, lane = divmod(output, _TILE)
        total = 0.0
        for k in range(INPUTS):
            word = codes[(tile * (INPUTS // _CODES) + k // _CODES) * _TILE + lane]
            code = (word >> 4 * (k % _CODES)) & 15
            total += x[k] * (code - ZERO_POINT) * scales[(tile * (INPUTS // GROUP) + k // GROUP) * _TILE + lane]
        result.append(total)
    return result


def attention(queries: list[float], keys: list[list[float]], values: list[list[float]]) -> list[float]:
    """Of one token: softmax(q k / sqrt(HEAD_DIM)) v for each head of `queries`; rows of `keys` and `values` are a
    token's [KV_HEADS x HEAD_DIM]."""
    result: list[float] = []
    for head in range(HEADS):
        first = head // (HEADS // KV_HEADS) * HEAD_DIM
        part, query = slice(first, first + HEAD_DIM), queries[head * HEAD_DIM : (head + 1) * HEAD_DIM]
        scores = [sum(map(mul, query, key[part])) / math.sqrt(HEAD_DIM) for key in keys]
        weights = [math.exp(score - max(scores)) for score in scores]
        columns = zip(*(value[part] for value in values), strict=True)
        result += [sum(map(mul, weights, column)) / sum(weights) for column in columns]
    return result
