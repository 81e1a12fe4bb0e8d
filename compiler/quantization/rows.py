"""Numpy work on large tensors in blocks: temporaries stay in the cache, and a few threads share the blocks."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

BLOCK_ELEMENTS = 1 << 18  # 1 MiB of float32 temporaries each
_THREADS = min(4, os.cpu_count() or 1)

_NUMPY_DTYPES: dict[str, npt.DTypeLike] = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "uint32": np.uint32,
    "int8": np.int8,
}


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of a dtype name as it stands in weight files; bfloat16 is ml_dtypes' one."""
    return np.dtype(_NUMPY_DTYPES[name])


def for_blocks(count: int, step: int, work: Callable[[int, int], None]) -> None:
    """Call `work(start, stop)` over 0..count in steps, on several threads (numpy releases the interpreter lock)."""
    starts = range(0, count, step)
    if len(starts) <= 1 or _THREADS == 1:
        for start in starts:
            work(start, min(start + step, count))
        return
    with ThreadPoolExecutor(min(_THREADS, len(starts))) as pool:
        for _ in pool.map(lambda start: work(start, min(start + step, count)), starts):
            pass
