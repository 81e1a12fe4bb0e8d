"""Which tokens may come next: a bit for each, as grammars say it and samplers obey it."""

import ctypes
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# bit i % 32 of word i // 32 is set where token i is allowed; bits after the last token mean nothing
TokenMask: TypeAlias = ctypes.Array[ctypes.c_int32]


def new_mask(vocab_size: int) -> TokenMask:
    """A mask of the tokens of a vocabulary, all of them forbidden."""
    return (ctypes.c_int32 * mask_words(vocab_size))()


def mask_words(vocab_size: int) -> int:
    """How many words a mask has."""
    return -(-vocab_size // 32)


def masked(logits: "npt.NDArray[np.float32]", mask: TokenMask) -> "npt.NDArray[np.float32]":
    """A copy of `logits` [vocab_size] in which forbidden tokens have -inf."""
    import numpy as np

    # Rows of a table are copied and added to: a third of the time that unpacked bits and np.where take
    rows = _penalties().take(np.frombuffer(memoryview(mask), np.uint8), axis=0)
    result: npt.NDArray[np.float32] = rows.reshape(-1)[: logits.size]
    with np.errstate(invalid="ignore"):  # a forbidden token's infinity becomes NaN, which is found later
        result += logits
    return result


@cache
def _penalties() -> "npt.NDArray[np.float32]":
    """For each byte of a mask [256] what its tokens [8] get: 0, or -inf where they are forbidden."""
    import numpy as np

    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    penalties: npt.NDArray[np.float32] = np.where(bits, np.float32(0), np.float32(-np.inf))
    return penalties
