"""Whether a device computes what it should: memory there and back, and kernels with known answers.

A library for a device brings such kernels, and is loaded only where they are right: a model whose kernels a driver
miscompiles would answer in gibberish.

    python -m mlc_llm.runtime.devices.self_test vulkan:0 [LIBRARY]

runs it in a process of its own, which a driver may end without harm to anyone else.
"""

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

from .. import ffi
from ..artifact import SAMPLING_BLOCK
from ..errors import EngineError, MLCError
from ..ffi import Device
from ..ffi_tensor import Tensor, copy, empty, tensor
from ..sampling_kernels import Cuts
from ..tvm_runtime import one_line
from . import known_answers as known
from .device import parse_device
from .drivers import open_device

_BYTES = 1 << 20  # that go there and back
_TIMEOUT = 300  # seconds: a driver compiles kernels when they first run
_CUTS = (Cuts(), Cuts(temperature=1.0), Cuts(temperature=0.8, top_k=40, top_p=0.9))
_UNIFORMS = (0.5, 0.25, 0.75)
_TILE, _PAGE = 16, 16


def problem(device: str, library: Path | None) -> str:
    """What the self-test finds wrong with a device, in one line; "" for nothing. It runs in another process.

    `library` has the kernels; without it only memory is tested.
    """
    arguments = [device, *([str(library)] if library else [])]
    command = [sys.executable, "-m", __spec__.name, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return f"its driver has not answered for {_TIMEOUT} s: install another version of it"
    if done.returncode < 0:
        return f"its driver ended the process with signal {-done.returncode}: install another version of it"
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
        return f"the self-test fails: {lines[-1]}"
    found: str = json.loads(lines[-1])
    return found


def run(device: Device, library: Path | None) -> None:
    """Test a device in this process. Raises EngineError for the first thing that is wrong."""
    open_device(device)
    pattern = bytes(range(251)) * (_BYTES // 251)
    if bytes(_sent(bytearray(pattern), "uint8", (len(pattern),), device).to_host().bytes()) != pattern:
        raise EngineError("what is written to its memory comes back changed")
    if library is None:
        return
    module = ffi.load_module(str(library))
    check_kernels(lambda name: module.get_function(name, query_imports=True), device)
    if not device.is_host:
        for name, test in {"matmul_rows": _matmul_rows, "attention": _attention, "sample_token": _sample_token}.items():
            test(module.get_function(f"self_test_{name}", query_imports=True), device)


def check_kernels(function: Callable[[str], Any], device: Device) -> None:
    """Run the kernels that every library for a device has, found by their names. Raises EngineError for a wrong one."""
    for name, test in {"rms_norm": _rms_norm, "silu_mul": _silu_mul, "matmul": _matmul}.items():
        test(function(f"self_test_{name}"), device)


def _rms_norm(kernel: Any, device: Device) -> None:
    x, weight = known.inputs(known.FEATURES, 1), known.inputs(known.FEATURES, 2)
    shape = (1, 1, known.FEATURES)
    result = empty(shape, "float32", device)
    kernel(_floats(x, shape, device), _floats(weight, shape[2:], device), result)
    _compare("rms_norm", result, known.rms_norm(x, weight))


def _silu_mul(kernel: Any, device: Device) -> None:
    x = known.inputs(2 * known.FEATURES, 3)
    result = empty((1, 1, known.FEATURES), "float32", device)
    kernel(_floats(x, (1, 1, len(x)), device), result)
    _compare("silu_mul", result, known.silu_mul(x))


def _matmul(kernel: Any, device: Device) -> None:
    _multiply("matmul", kernel, device, 1)


def _matmul_rows(kernel: Any, device: Device) -> None:
    _multiply("matmul_rows", kernel, device, known.ROWS)


def _multiply(name: str, kernel: Any, device: Device, rows: int) -> None:
    x, codes = known.inputs(rows * known.INPUTS, 5), known.words(6)
    groups = known.INPUTS // known.GROUP
    scales = known.inputs(known.OUTPUTS * groups, 7)
    tiles = known.OUTPUTS // _TILE
    words = _sent((ctypes.c_int32 * len(codes))(*codes), "int32", (tiles, len(codes) // known.OUTPUTS, _TILE), device)
    result = empty((1, rows, known.OUTPUTS), "float32", device)
    packed = _floats(scales, (tiles, groups, _TILE), device)
    kernel(_floats(x, (1, rows, known.INPUTS), device), words, packed, result)
    of_rows = (x[at : at + known.INPUTS] for at in range(0, len(x), known.INPUTS))
    _compare(name, result, [value for row in of_rows for value in known.matmul(row, codes, scales)])


def _attention(kernel: Any, device: Device) -> None:
    """One new token, whose key and value come with it: the others are in the cache."""
    tokens, dim, width = known.TOKENS, known.HEAD_DIM, known.KV_HEADS * known.HEAD_DIM
    queries = [value / 16 for value in known.inputs(known.HEADS * dim, 8)]  # small scores: all tokens count
    stored = [[known.inputs(width, 10 + 2 * token + kind) for token in range(tokens)] for kind in (0, 1)]
    sheets = -(-tokens // known.SHEET_ROWS)
    shape = (sheets, 1, 2, known.KV_HEADS, known.SHEET_ROWS, dim)
    cache = [0.0] * prod(shape)
    for kind, rows in enumerate(stored):
        for token, row in enumerate(rows[:-1]):
            sheet, place = divmod(token, known.SHEET_ROWS)
            for head in range(known.KV_HEADS):
                at = (((sheet * 2 + kind) * known.KV_HEADS + head) * known.SHEET_ROWS + place) * dim
                cache[at : at + dim] = row[head * dim : (head + 1) * dim]
    fused = [*queries, *stored[0][-1], *stored[1][-1]]
    pages = -(-tokens // _PAGE)
    # position 0: nothing is rotated
    tables = ([0], [tokens - 1], [0, 1], [0, pages], list(range(pages)), [tokens])
    result = empty((1, 1, known.HEADS * dim), "float32", device)
    integers = [_sent((ctypes.c_int32 * len(table))(*table), "int32", (len(table),), device) for table in tables]
    kernel(_floats(fused, (1, 1, len(fused)), device), 0, *integers, _floats(cache, shape, device), result)
    _compare("attention", result, known.attention(queries, *stored))


def _sample_token(kernel: Any, device: Device) -> None:
    rows, blocks, logits = len(_CUTS), -(-known.VOCAB // SAMPLING_BLOCK), known.inputs(known.VOCAB, 4)
    settings = [value for cuts in _CUTS for value in (*cuts.settings, float(known.VOCAB))]
    tokens = empty((rows,), "int32", device)
    scratch = (((rows, blocks), "int32"), ((rows, blocks), "float32"), ((rows, known.VOCAB), "int32"),
               ((rows, 3), "int32"))  # fmt: skip
    kernel(
        _floats(logits * rows, (rows, known.VOCAB), device),
        _floats(settings, (rows, len(settings) // rows), device),
        _floats(_UNIFORMS, (rows,), device),
        tokens,
        *(empty(shape, dtype, device) for shape, dtype in scratch),
    )
    greedy = max(range(known.VOCAB), key=lambda token: (logits[token], -token))
    drawn = (known.drawn(logits, *cuts[:3], at) for cuts, at in zip(_CUTS[1:], _UNIFORMS[1:], strict=True))
    expected = [greedy, *drawn]
    found = list(tokens.to_host().bytes().cast("B").cast("i"))
    if found != expected:
        raise EngineError(f"kernel sample_token chooses {found} in place of {expected}: its driver miscompiles it")


def _compare(name: str, result: Tensor, expected: Sequence[float]) -> None:
    found = result.to_host().bytes().cast("B").cast("f")
    for i, (ours, right) in enumerate(zip(found, expected, strict=True)):
        if not abs(ours - right) <= 1e-4 * max(1.0, abs(right)):
            raise EngineError(
                f"kernel {name} gives {ours:.6g} at {i} in place of {right:.6g}: its driver miscompiles it"
            )


def _floats(values: Sequence[float], shape: Sequence[int], device: Device) -> Tensor:
    return _sent((ctypes.c_float * len(values))(*values), "float32", shape, device)


def _sent(values: Any, dtype: str, shape: Sequence[int], device: Device) -> Tensor:
    """A tensor of the device with these values."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(values))
    target = empty(shape, dtype, device)
    source = tensor(address, dtype, shape, values)
    if device.is_host:
        ctypes.memmove(target.address, address, target.nbytes)
    else:
        copy(source, target)
    return target


def main(device: str, library: str = "") -> None:
    """Print what is wrong, as one JSON string."""
    try:
        run(parse_device(device), Path(library) if library else None)
    except (MLCError, ffi.FFIError) as error:
        print(json.dumps(one_line(error)))
    else:
        print(json.dumps(""))


if __name__ == "__main__":
    main(*sys.argv[1:])
