"""A tokenizer with one token for each byte, a mark (256) and an end (257)."""

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from mlc_llm.runtime.tokenizer import Tokenizer

MARK, END = 256, 257


def byte_tokenizer() -> Tokenizer:
    """Make one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<mark>", special=True), AddedToken("<end>", special=True)])
    return Tokenizer(backend)
