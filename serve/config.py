"""How many sequences an engine serves at a time, and how many tokens its KV cache holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from ..runtime.artifact import LibraryMetadata
from ..runtime.errors import EngineError, UsageError
from ..runtime.model import MOST_EMBEDDED
from ..runtime.tvm_runtime import nbytes_of

Mode = Literal["local", "interactive", "server"]
SpeculativeMode = Literal["prompt_lookup", "small_draft", "disable"]
PrefixCacheMode = Literal["radix", "disable"]

MAX_DRAFT_LENGTH = 16

_LOCAL_SEQUENCES = 4
_LOCAL_TOKENS = 8192
_FEWEST_TOKENS = 256  # a context that is shorter is no use to anyone
_RESERVE = 48 << 20  # for the interpreter, the tokenizer and the like


@dataclass(frozen=True)
class EngineConfig:
    """What an engine may use; None leaves it to the mode. The names are MLC-LLM's, `num_threads` is ours.

    - max_num_sequence: texts whose keys and values are kept at a time, running or for reuse.
    - max_total_sequence_length: tokens of all of them together.
    - prefill_chunk_size: tokens of a prompt in one pass, at most as many as the library was compiled for; None: these.
    - gpu_memory_utilization: the part of the device's free memory that may be used, 0 to 1.
    - num_threads: threads that run the kernels, set when the engine loads; None: as `MLC_NUM_THREADS` says, else one
      for each physical core. Engines of one library share its threads: the number of the last one that loads counts.
    - speculative_mode: "prompt_lookup" guesses the next tokens of an answer that runs alone from what its text says
      already, where checking the guess pays; the answer stays as it is. "small_draft" has the one model of
      `additional_models` guess for all answers that run, where that pays: a model, or a model and its library. It has
      to have the same vocabulary. "disable" does not guess.
    - spec_draft_length: tokens of each guess, 1 to 16; 0 takes the length that pays most, as measured, or none.
    - prefix_cache_mode: "radix" keeps what was computed for texts that begin alike, "disable" nothing.
    """

    max_num_sequence: int | None = None
    max_total_sequence_length: int | None = None
    prefill_chunk_size: int | None = None
    gpu_memory_utilization: float = 0.85
    num_threads: int | None = None
    speculative_mode: SpeculativeMode = "prompt_lookup"
    spec_draft_length: int = 0
    additional_models: Sequence[str | tuple[str, str]] = ()
    prefix_cache_mode: PrefixCacheMode = "radix"


class Limits(NamedTuple):
    """What an engine uses. `note` tells the user when memory set the limit."""

    max_num_sequence: int
    max_total_sequence_length: int
    prefill_chunk_size: int
    note: str | None = None


def choose_limits(
    mode: Mode, config: EngineConfig, metadata: LibraryMetadata, free_memory: int, draft: LibraryMetadata | None = None,
    largest_buffer: int = 1 << 62,
) -> Limits:  # fmt: skip
    """The limits of a mode, within what the library and `free_memory` bytes allow, with a draft model or without.

    `largest_buffer`: bytes of one tensor of the device; a KV cache is one.

    local: 4 sequences that share one context of at most 8192 tokens; interactive: 1 sequence with the whole context;
    server: as many sequences as the library takes, each with a context of its own as far as memory goes.
    Raises UsageError for values out of range, EngineError when memory does not suffice.
    """
    sequences, tokens, single = _wanted(mode, config, metadata)
    models = [metadata] if draft is None else [metadata, draft]
    fit = _tokens_that_fit(models, sequences, free_memory, config.gpu_memory_utilization)
    fit = min(fit, *(_tokens_of_buffer(model, sequences, largest_buffer) for model in models))
    explicit = config.max_total_sequence_length is not None
    least = tokens if explicit else min(single, _FEWEST_TOKENS)
    if fit < least:
        fixed = _fixed_bytes(models, sequences) >> 20
        raise EngineError(
            f"not enough memory: the model takes {fixed} MiB and a KV cache of {least} tokens "
            f"{least * _bytes_per_token(models) >> 20} MiB, but only {free_memory >> 20} MiB are free: "
            "choose a smaller model or a smaller context"
        )
    note = None
    if fit < min(single, tokens):
        note = f"memory for {fit} tokens is free: the context is {fit} instead of {min(single, tokens)} tokens"
    return Limits(sequences, min(tokens, fit), _chunk(config, metadata), note)


def check_modes(config: EngineConfig) -> None:
    """Raise UsageError for modes that do not exist, or do not go together."""
    for name, modes in (("speculative_mode", SpeculativeMode), ("prefix_cache_mode", PrefixCacheMode)):
        if (value := getattr(config, name)) not in get_args(modes):
            raise UsageError(f"{name} is {value!r:.80}: expected one of {', '.join(get_args(modes))}")
    length, drafts = config.spec_draft_length, config.additional_models
    if isinstance(length, bool) or not isinstance(length, int) or not 0 <= length <= MAX_DRAFT_LENGTH:
        raise UsageError(f"spec_draft_length is {length!r:.80}: expected 0 to {MAX_DRAFT_LENGTH}")
    if len(drafts) != (config.speculative_mode == "small_draft"):
        raise UsageError(
            f"speculative_mode is {config.speculative_mode!r} and additional_models has {len(drafts)}: expected one "
            'model, which guesses, with "small_draft", and none else'
        )


def _wanted(mode: str, config: EngineConfig, metadata: LibraryMetadata) -> tuple[int, int, int]:
    """Sequences, tokens in all, and tokens of one sequence, as far as memory allows."""
    most = metadata.max_batch_size
    for name in ("max_num_sequence", "max_total_sequence_length", "prefill_chunk_size"):
        value = getattr(config, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise UsageError(f"{name} is {value!r:.80}: expected a whole number")
    presets = {"local": min(_LOCAL_SEQUENCES, most), "interactive": 1, "server": most}
    if mode not in presets:
        raise UsageError(f"mode is {mode!r}: expected one of {', '.join(presets)}")
    sequences = presets[mode] if config.max_num_sequence is None else config.max_num_sequence
    if not 1 <= sequences <= most:
        raise UsageError(f"max_num_sequence is {sequences}: the library takes 1 to {most}")
    if not 0 < config.gpu_memory_utilization <= 1:
        raise UsageError(f"gpu_memory_utilization is {config.gpu_memory_utilization}: expected more than 0, at most 1")
    single = metadata.context_window_size
    tokens = {"local": min(single, _LOCAL_TOKENS), "interactive": single, "server": sequences * single}[mode]
    if config.max_total_sequence_length is not None:
        tokens = config.max_total_sequence_length
        if tokens < 1:
            raise UsageError(f"max_total_sequence_length is {tokens}: expected at least 1")
    return sequences, tokens, single


def _chunk(config: EngineConfig, metadata: LibraryMetadata) -> int:
    """Tokens of a prompt in one pass."""
    most = metadata.prefill_chunk_size
    if config.prefill_chunk_size is None:
        return most
    if not 1 <= config.prefill_chunk_size <= most:
        raise UsageError(
            f"prefill_chunk_size is {config.prefill_chunk_size}: the library takes 1 to {most}; for more, run "
            "`mlc compile` with --overrides prefill_chunk_size=N"
        )
    return config.prefill_chunk_size


def _bytes_per_token(models: Sequence[LibraryMetadata]) -> int:
    return sum(metadata.kv_cache.bytes_per_token for metadata in models)


def _fixed_bytes(models: Sequence[LibraryMetadata], sequences: int) -> int:
    """Memory that does not depend on the length of texts."""
    return sum(_bytes_of_model(metadata, sequences) for metadata in models) + _RESERVE


def _bytes_of_model(metadata: LibraryMetadata, sequences: int) -> int:
    """Parameters, activations of one pass, logits."""
    forms = [
        (param.preprocs[-1].out_shape, param.preprocs[-1].out_dtype) if param.preprocs else (param.shape, param.dtype)
        for param in metadata.params
    ]
    params = sum(nbytes_of(shape, dtype) for shape, dtype in forms)
    activations = max(metadata.memory_usage.values(), default=0)
    cache = metadata.kv_cache
    heads = 2 * cache.num_attention_heads + 2 * cache.num_key_value_heads
    attention = metadata.prefill_chunk_size * heads * (cache.head_dim + 1) * 4
    return params + activations + attention + 4 * sequences * metadata.vocab_size


def _tokens_of_buffer(metadata: LibraryMetadata, sequences: int, largest_buffer: int) -> int:
    """Tokens of a KV cache in one tensor, where each sequence may leave a part of its last page empty."""
    cache = metadata.kv_cache
    spare = (sequences + MOST_EMBEDDED + cache.sheet_pages) * cache.page_size
    return max(0, largest_buffer // cache.bytes_per_token - spare)


def _tokens_that_fit(models: Sequence[LibraryMetadata], sequences: int, free_memory: int, utilization: float) -> int:
    left = int(free_memory * utilization) - _fixed_bytes(models, sequences)
    page = models[0].kv_cache.page_size
    return max(0, left // _bytes_per_token(models)) // page * page
