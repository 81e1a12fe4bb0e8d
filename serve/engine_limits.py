"""What an engine that is loaded has room for."""

from dataclasses import dataclass

from ..runtime.generation import Generator


@dataclass(frozen=True)
class EngineLimits:
    """As loaded, whatever was asked for.

    - context_window_size: tokens that a conversation and its answer may have together.
    - kv_cache_tokens: tokens whose keys and values are kept, of all conversations together.
    - kv_cache_dtype: how they are stored: float32, float16 or int8.
    - max_num_sequence: answers that are computed at once.
    """

    context_window_size: int
    kv_cache_tokens: int
    kv_cache_dtype: str
    max_num_sequence: int

    def __str__(self) -> str:
        answers = "1 answer" if self.max_num_sequence == 1 else f"{self.max_num_sequence} answers"
        return (
            f"context {self.context_window_size} tokens, "
            f"KV cache {self.kv_cache_tokens} tokens in {self.kv_cache_dtype}, {answers} at once"
        )


def limits_of(generator: Generator) -> EngineLimits:
    """The limits of a generator."""
    model = generator.model
    pages = model.pages
    return EngineLimits(
        context_window_size=generator.context_window,
        kv_cache_tokens=pages.num_pages * pages.page_size,
        kv_cache_dtype=pages.dtype,
        max_num_sequence=model.max_num_sequence,
    )
