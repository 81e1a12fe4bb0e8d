"""A small model that guesses what a large one will say: https://arxiv.org/abs/2211.17192.

It reads the same texts, in a KV cache of its own, and draws what comes next as the request wants it drawn. Where its
cache has no room, or its context is too short, nothing is guessed.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, TypeVar

from .distribution import distribution, drawn
from .errors import EngineError
from .guess import Guess
from .job import Job
from .kv_cache import CacheFullError
from .model import LanguageModel
from .prefix_cache import PrefixCache

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_FIRST_CHANCE = 0.5  # that a guessed token is right, before anything is known
_FORGETTING = 128  # steps without guesses after which what was learned is doubted
_READ_AT_ONCE = 256  # tokens of texts that are read in a step, beside what others wait for
_FEW = 8  # tokens of a text that can be read in the pass for the first guess
_LONGEST = 16  # guess for which a context must have room

Result = TypeVar("Result")


@dataclass
class _Text:
    """What the draft model has read of an answer's text."""

    sequence: int
    chance: float
    read: int  # tokens of the text
    guessed: list[int] = field(default_factory=list)  # the ones read after them


class DraftModel:
    """A `Guesser` for any number of answers."""

    def __init__(self, model: LanguageModel, vocab_size: int, *, keeps: bool = True) -> None:
        """Tokens below `vocab_size` are guessed; `keeps` what was computed for texts that begin alike."""
        self._model, self._vocab_size, self._keeps = model, vocab_size, keeps
        self._prefix_cache = PrefixCache(model.pages)
        self._texts: dict[Job, _Text] = {}
        self._chance = _FIRST_CHANCE  # for a new text

    def is_ready(self, jobs: Sequence[Job]) -> bool:
        """Read what is missing of the texts, as much of it as a step may take. Whether next to nothing is left."""
        left, ready = _READ_AT_ONCE, True
        for job in jobs:
            text = self._texts.get(job) or self._begin(job)
            if text is None or len(job.tokens) + _LONGEST > self._model.context_window:
                return False
            self._rewind(job, text)
            missing = len(job.tokens) - text.read
            if missing > _FEW:
                some = job.tokens[text.read : text.read + min(missing - 1, left)]
                if not some or not self._read(job, text, some):
                    return False
                left -= len(some)
                ready = ready and missing - len(some) <= _FEW
        return ready

    def guess(self, jobs: Sequence[Job], length: int) -> list[Guess] | None:
        texts, guesses = [self._texts[job] for job in jobs], [Guess() for _ in jobs]
        unread = [job.tokens[text.read :] for job, text in zip(jobs, texts, strict=True)]
        try:
            for place in range(length):
                rows = self._with_room(lambda unread=unread: self._pass(texts, unread))  # type: ignore[misc]
                if rows is None:
                    return None
                for job, text, guess, some, row in zip(jobs, texts, guesses, unread, rows, strict=True):
                    if place:
                        text.guessed += some
                    else:
                        text.read += len(some)
                    _draw(job, guess, row)
                unread = [guess.tokens[-1:] for guess in guesses]
        except BaseException:
            for job in jobs:
                self._lose(job)
            raise
        return guesses

    def chance(self, jobs: Sequence[Job]) -> float:
        return sum(self._chance_of(job) for job in jobs) / len(jobs)

    def learn(self, job: Job, right: int, wrong: int) -> None:
        text = self._texts[job]
        for outcome in (*[1.0] * right, *[0.0] * wrong):
            text.chance += (outcome - text.chance) / 8
            self._chance += (outcome - self._chance) / 64

    def watch(self, jobs: Sequence[Job]) -> None:
        """What did not pay is tried again one day."""
        self._chance += (_FIRST_CHANCE - self._chance) / _FORGETTING
        for text in filter(None, map(self._texts.get, jobs)):
            text.chance += (max(_FIRST_CHANCE, text.chance) - text.chance) / _FORGETTING

    def release(self, job: Job) -> None:
        text = self._texts.get(job)
        if text is None:
            return
        with suppress(EngineError):  # the model has removed the sequence after a pass that failed
            self._rewind(job, text)
            if self._keeps:
                pages = self._model.pages.full_pages(text.sequence)
                self._prefix_cache.keep(job.tokens, pages, job.prompt_tokens)
        self._lose(job)

    def forget(self) -> None:
        self._prefix_cache.clear()

    def _chance_of(self, job: Job) -> float:
        text = self._texts.get(job)
        return self._chance if text is None else text.chance

    def _begin(self, job: Job) -> _Text | None:
        """Begin to read a text, if there is a sequence for it and its tokens are all known."""
        if len(self._texts) >= self._model.max_num_sequence or max(job.tokens) >= self._model.vocab_size:
            return None
        pages = self._prefix_cache.find(job.tokens[:-1])
        sequence = self._model.add_sequence(pages)
        self._texts[job] = text = _Text(sequence, self._chance, len(pages) * self._model.pages.page_size)
        return text

    def _rewind(self, job: Job, text: _Text) -> None:
        """Take back what was guessed and is not the text, and its last token, which the next guess begins with."""
        pairs = zip(text.guessed, job.tokens[text.read :], strict=False)
        right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        held = text.read + len(text.guessed)
        text.read, text.guessed = min(text.read + right, len(job.tokens) - 1), []
        if text.read < held:
            self._model.pop(text.sequence, held - text.read)

    def _read(self, job: Job, text: _Text, tokens: Sequence[int]) -> bool:
        """Read more of a text. False where there is no room."""
        try:
            logits = self._with_room(lambda: self._model.prefill(text.sequence, tokens))
        except BaseException:
            self._lose(job)
            raise
        if logits is None:
            return False
        text.read += len(tokens)
        return True

    def _pass(self, texts: Sequence[_Text], unread: Sequence[Sequence[int]]) -> "list[npt.NDArray[np.float32]]":
        """The logits after more tokens of each text [vocab]."""
        import numpy as np

        sequences = [text.sequence for text in texts]
        if all(len(some) == 1 for some in unread):
            logits, ends = self._model.decode(sequences, [some[0] for some in unread]), list(range(len(unread)))
        else:
            logits, ends = self._model.verify(sequences, unread), list(_ends(unread))
        return [np.asarray(logits[end])[: self._vocab_size] for end in ends]

    def _with_room(self, work: Callable[[], Result]) -> Result | None:
        """What a pass gives; None where the cache has no room for it."""
        while True:
            try:
                return work()
            except CacheFullError as full:
                if self._prefix_cache.make_room(full.missing) < full.missing:
                    return None

    def _lose(self, job: Job) -> None:
        text = self._texts.pop(job, None)
        if text is not None:
            with suppress(EngineError):
                self._model.remove_sequence(text.sequence)


def _ends(parts: Sequence[Sequence[int]]) -> "list[int]":
    """The places of the last tokens, when the parts lie one after another."""
    ends, end = [], -1
    for part in parts:
        end += len(part)
        ends.append(end)
    return ends


def _draw(job: Job, guess: Guess, logits: "npt.NDArray[np.float32]") -> None:
    """Add one more token to a guess."""
    import numpy as np

    best = int(logits.argmax())
    if not np.isfinite(logits[best]):
        raise EngineError(
            f"the draft model gave the logit {logits[best]} for token {best}: its weights or its library are damaged"
        )
    if job.sampler.cuts.temperature == 0:
        guess.tokens.append(best)
        return
    probabilities = distribution(logits, job.sampler.cuts)
    guess.tokens.append(drawn(probabilities, job.sampler.spend()))
    guess.probabilities.append(probabilities)
