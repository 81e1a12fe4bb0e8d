"""Which tokens may come next: a bit for each, as grammars say it and samplers obey it."""

import ctypes
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

    allowed = np.unpackbits(np.frombuffer(memoryview(mask), np.uint8), count=logits.size, bitorder="little")
    return np.where(allowed.view(np.bool_), logits, np.float32(-np.inf))
