"""A model that is ready to run: its library, its parameters and its KV cache."""

from array import array
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from .artifact import LibraryMetadata, load_chat_config
from .derived import Reading
from .device_logits import DeviceLogits, DeviceSampler
from .devices.build_ahead import kernels_built
from .devices.device import parse_device
from .errors import EngineError, RequestError
from .ffi import Function
from .ffi_tensor import Tensor
from .kv_cache import KVCache
from .lazy_array import LazyArray
from .library import ADJUST_AND_SAMPLE, HIDDEN_STATES, Library
from .parameters import Progress, load_parameters
from .sampling_kernels import Cuts, Draws, LibraryDraws, LibrarySampling, SamplingKernels, StagedDraws
from .staged import Staged
from .tvm_runtime import ALIGNMENT, Arena, one_line

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Logits: TypeAlias = "npt.NDArray[np.float32] | LazyArray"
Result = TypeVar("Result")

MOST_EMBEDDED = 16  # texts of one pass: the cache has this many sequences beside those of answers


class Pages(Protocol):
    """What the prefix cache needs of a KV cache; `KVCache` is the one of compiled libraries."""

    @property
    def page_size(self) -> int: ...
    @property
    def num_pages(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    def free_pages(self) -> int: ...
    def full_pages(self, sequence: int) -> list[int]: ...
    def hold(self, pages: Sequence[int]) -> None: ...
    def release(self, page: int) -> bool: ...


class LanguageModel(Protocol):
    """What generation needs of a model; `Model` is the one that runs compiled libraries."""

    @property
    def context_window(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def max_num_sequence(self) -> int: ...
    @property
    def prefill_chunk_size(self) -> int: ...
    @property
    def sampling(self) -> SamplingKernels: ...
    @property
    def pages(self) -> Pages: ...
    def add_sequence(self, pages: Sequence[int] = ()) -> int: ...
    def fork_sequence(self, parent: int, position: int) -> int: ...
    def remove_sequence(self, sequence: int) -> None: ...
    def pop(self, sequence: int, count: int) -> None: ...
    def prefill(self, sequence: int, tokens: Sequence[int]) -> Logits: ...
    def logits_of(self, sequence: int, tokens: Sequence[int]) -> "npt.NDArray[np.float32]": ...
    def verify(self, sequences: Sequence[int], tokens: Sequence[Sequence[int]]) -> Logits: ...
    def decode(self, sequences: Sequence[int], tokens: Sequence[int]) -> Logits: ...
    def decode_and_sample(
        self, sequences: Sequence[int], tokens: Sequence[int], draws: Draws, uniforms: list[float]
    ) -> list[int]: ...
    @property
    def embedded_at_once(self) -> int: ...
    def hidden_states(self, sequences: Sequence[int], tokens: Sequence[Sequence[int]]) -> "npt.NDArray[np.float32]": ...


class Model:
    """Computes logits of token sequences whose keys and values it keeps. Not for several threads at once."""

    def __init__(
        self, library: Library, params: Any, cache: KVCache, context_window: int, prefill_chunk_size: int
    ) -> None:
        metadata = library.metadata
        self.metadata: LibraryMetadata = metadata
        self.context_window = context_window
        self.vocab_size = min(metadata.active_vocab_size, metadata.vocab_size)
        self.embedded_at_once = _embedded_at_once(library)
        self.max_num_sequence = cache.max_num_sequence - self.embedded_at_once
        self.prefill_chunk_size = prefill_chunk_size
        self.pages = cache
        self.sampling = LibrarySampling(library, metadata.vocab_size, cache.max_num_sequence)
        self._library = library
        self._params = params
        names = ("prefill", "decode", "batch_decode", "batch_verify", HIDDEN_STATES)
        self._functions = {name: library.get(name) for name in names}
        room = max(metadata.prefill_chunk_size, cache.max_num_sequence)
        self._device = library.device
        self._tokens = Staged(Arena(4 * room + ALIGNMENT).tensor((room,), "int32"), self._device)
        self._token_buffer = self._tokens.numbers
        self._decoders: dict[int, Callable[[], Tensor]] = {}  # by the number of sequences
        adjust_and_sample = library.get(ADJUST_AND_SAMPLE)
        self._sampler = DeviceSampler(adjust_and_sample, self._device) if adjust_and_sample is not None else None

    @classmethod
    def load(
        cls,
        folder: Path,
        library: Path | Library,
        *,
        device: str = "auto",
        max_num_sequence: int,
        max_total_sequence_length: int,
        prefill_chunk_size: int | None = None,
        progress: Progress | None = None,
        reading: Reading | None = None,
    ) -> "Model":
        """Load a model folder with its library, with room for that many sequences and for that many tokens in all.

        Prompts are computed in pieces of `prefill_chunk_size` tokens at most, or as many as the library takes.
        `progress(done, total)` is called after each parameter; `reading` is what `derived.start_reading` has begun, if
        anything. `device` is for a library that is not loaded yet; "auto": the one that it was compiled for.
        Raises UsageError for a device that is not known, ModelFileError for files that are damaged or do not fit each
        other, EngineError when the device is not there, or its memory does not suffice.
        """
        config = load_chat_config(folder)
        if isinstance(library, Path):
            library = Library.load(library, config=config, device=None if device == "auto" else parse_device(device))
        metadata = library.metadata
        chunk = prefill_chunk_size or metadata.prefill_chunk_size
        with kernels_built(library):
            params = load_parameters(library, folder, progress, reading)
            cache = KVCache(
                metadata.kv_cache,
                max_num_sequence=max_num_sequence + _embedded_at_once(library),
                max_total_sequence_length=max_total_sequence_length,
                max_new_tokens=metadata.prefill_chunk_size,
                device=library.device,
                copy_page=None if library.device.is_host else library["copy_page"],
            )
        return cls(library, params, cache, min(metadata.context_window_size, max_total_sequence_length), chunk)

    def add_sequence(self, pages: Sequence[int] = ()) -> int:
        """A new sequence, which begins with full pages of others. Raises EngineError when all are taken."""
        return self.pages.add(pages)

    def fork_sequence(self, parent: int, position: int) -> int:
        """A new sequence that shares the first `position` tokens of `parent`."""
        return self.pages.fork(parent, position)

    def remove_sequence(self, sequence: int) -> None:
        """Forget a sequence."""
        self.pages.remove(sequence)

    def pop(self, sequence: int, count: int) -> None:
        """Take the last `count` tokens of a sequence back."""
        self.pages.pop(sequence, count)

    def available_tokens(self) -> int:
        """Tokens for which the cache has room, if one sequence took them all."""
        return self.pages.available_tokens()

    def prefill(self, sequence: int, tokens: Sequence[int]) -> Logits:
        """Append tokens to a sequence. Returns the logits after the last one, [vocab]."""
        self._check_tokens(tokens)
        self.pages.require_room([sequence], [len(tokens)])  # for all of them, before the first is computed
        for start in range(0, len(tokens), self.prefill_chunk_size):
            logits = self._forward("prefill", [sequence], [tokens[start : start + self.prefill_chunk_size]])
        logits = logits.to_host()
        return LazyArray(logits.address, (self.vocab_size,), logits)

    def decode(self, sequences: Sequence[int], tokens: Sequence[int]) -> Logits:
        """Append one token to each of some sequences. Returns the logits after them, [batch, vocab], on a device as
        `DeviceLogits`.

        Raises CacheFullError, before anything changes, when the cache has no room for them.
        """
        count = self._check_batch(sequences, tokens)
        logits = self._decode(self._decoders.get(count) or self._decoder(count), sequences, tokens)
        if self._sampler is not None:
            failed = partial(self._give_up, "decode", sequences)
            return DeviceLogits(logits, self.vocab_size, self._sampler, failed)
        logits = logits.to_host()
        return LazyArray(logits.address, (count, self.vocab_size), logits, self.metadata.vocab_size)

    def decode_and_sample(
        self, sequences: Sequence[int], tokens: Sequence[int], draws: Draws, uniforms: list[float]
    ) -> list[int]:
        """`decode` for requests that need no logits: the next token of each, as `draws.choose` would choose it.

        Quicker than the two one after another by the work of Python between them. Raises CacheFullError as `decode`.
        """
        assert isinstance(draws, LibraryDraws)
        self._check_batch(sequences, tokens)
        draws.uniforms[:] = uniforms
        self._decode(draws.pass_ or self._sampling_decoder(draws), sequences, tokens)
        chosen: list[int] = draws.tokens[:]
        return chosen

    def _check_batch(self, sequences: Sequence[int], tokens: Sequence[int]) -> int:
        """How many sequences there are, which differ and of which each takes a token."""
        self._check_tokens(tokens)
        count = len(tokens)
        if len(sequences) != count or (count > 1 and len(set(sequences)) != count):
            raise EngineError(f"{count} tokens for {len(set(sequences))} sequences: each takes one")
        return count

    def _decode(self, decode: Callable[[], Result], sequences: Sequence[int], tokens: Sequence[int]) -> Result:
        self.pages.begin_decode(sequences)
        ids = self._token_buffer
        for row, token in enumerate(tokens):
            ids[row] = token
        try:
            return decode()
        except BaseException as error:
            self._give_up("decode", sequences, error)
            raise

    def logits_of(self, sequence: int, tokens: Sequence[int]) -> "npt.NDArray[np.float32]":
        """Append tokens to a sequence. Returns the logits after each of them, [len(tokens), vocab]."""
        import numpy as np

        self._check_tokens(tokens)
        self.pages.require_room([sequence], [len(tokens)])
        parts = []
        for start in range(0, len(tokens), self.prefill_chunk_size):
            parts.append(np.array(self.verify([sequence], [tokens[start : start + self.prefill_chunk_size]])))
        return np.concatenate(parts)

    def verify(self, sequences: Sequence[int], tokens: Sequence[Sequence[int]]) -> Logits:
        """Append a few tokens to each of some sequences, which differ, `prefill_chunk_size` in all.

        Returns the logits after each of them, one sequence after another, [tokens, vocab]. Raises CacheFullError,
        before anything changes, when the cache has no room for them.
        """
        logits = self._forward("batch_verify", sequences, tokens).to_host()
        count = sum(map(len, tokens))
        return LazyArray(logits.address, (count, self.vocab_size), logits, self.metadata.vocab_size)

    def hidden_states(self, sequences: Sequence[int], tokens: Sequence[Sequence[int]]) -> "npt.NDArray[np.float32]":
        """Append tokens to each of at most `embedded_at_once` sequences, `prefill_chunk_size` in all.

        Returns the last hidden states of all of them one after another, [tokens, hidden]. Raises CacheFullError,
        before anything changes, when the cache has no room for them.
        """
        for some in tokens:
            self._check_tokens(some)
        states = self._forward(HIDDEN_STATES, sequences, tokens).to_host()
        _, count, features = states.shape
        return LazyArray(states.address, (count, features), states).numpy()

    def _forward(self, name: str, sequences: Sequence[int], tokens: Sequence[Sequence[int]]) -> Tensor:
        """One pass of the library's function `name` over new tokens of sequences, which differ."""
        counts = [len(some) for some in tokens]
        count, start = sum(counts), 0
        for some, length in zip(tokens, counts, strict=True):
            self._token_buffer[start : start + length] = array("i", some)
            start += length
        state = self.pages.begin_forward(sequences, counts)
        try:
            result: Tensor = self._functions[name](self._tokens.send(count), state, self._params)
            return result
        except BaseException as error:
            self._give_up(name, sequences, error)
            raise

    def _decoder(self, count: int) -> Callable[[], Tensor]:
        """The pass over the first `count` numbers of the token buffer, for its logits."""
        draws = self.sampling.draws([Cuts()] * count, self.vocab_size)
        staged = StagedDraws(draws, self._device)
        decode = self._decode_function(count).prepared(*self._decode_arguments(count, staged))
        self._decoders[count] = self._sent(count, decode)
        return self._decoders[count]

    def _sampling_decoder(self, draws: LibraryDraws) -> Callable[[], None]:
        """The same pass for the tokens of `draws`."""
        count, staged = len(draws.tokens), StagedDraws(draws, self._device)
        arguments = self._decode_arguments(count, staged)
        decode = self._decode_function(count).prepared_without_result(*arguments)
        draws.pass_ = staged.around(self._sent(count, decode))
        return draws.pass_

    def _sent(self, count: int, decode: Callable[[], Result]) -> Callable[[], Result]:
        """The pass, after the token buffer has been brought to the device."""
        if self._device.is_host:
            return decode
        send = self._tokens.sender(count)

        def send_and_decode() -> Result:
            send()
            return decode()

        return send_and_decode

    def _decode_function(self, count: int) -> Function:
        function: Function = self._functions["decode" if count == 1 else "batch_decode"]
        return function

    def _decode_arguments(self, count: int, draws: "StagedDraws") -> list[Any]:
        return [self._tokens.view(count), *draws.tensors, self.pages.decode_tensors(count), self._params]

    def _give_up(self, name: str, sequences: Sequence[int], error: BaseException) -> None:
        """Remove the sequences of a pass that failed, half written as they are. Raises EngineError for an Exception."""
        for sequence in sequences:
            self.pages.remove(sequence)
        if isinstance(error, Exception):
            raise EngineError(f"the model's function {name!r} failed: {one_line(error)}") from None

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        """The embedding kernel reads whatever lies at a token's row, so the range is checked here."""
        if not tokens:
            raise RequestError("the prompt is empty: at least one token is needed", code="invalid_value")
        lowest, highest = min(tokens), max(tokens)
        if lowest < 0 or highest >= self.metadata.vocab_size:
            token = lowest if lowest < 0 else highest
            raise RequestError(
                f"token {token} is not in the vocabulary of {self.metadata.vocab_size}", code="invalid_value"
            )


def _embedded_at_once(library: Library) -> int:
    """Texts that one pass may embed; none with a library that was made without the function for it."""
    return 0 if library.get(HIDDEN_STATES) is None else min(MOST_EMBEDDED, library.metadata.max_batch_size)
