"""Which answers have a sequence in the KV cache, which pages they begin with, and what is kept when they are over."""

from collections.abc import Iterable
from contextlib import suppress

from .errors import EngineError
from .job import EXACT, Work
from .model import LanguageModel
from .prefix_cache import PrefixCache


class KVCacheManager:
    """Gives answers sequences of a model and takes them back."""

    def __init__(self, model: LanguageModel) -> None:
        self._model, self._pages = model, model.pages
        self._prefix_cache = PrefixCache(model.pages)
        self.keeps = True  # what was computed, for texts that begin alike

    def pages_in_use(self, jobs: Iterable[Work]) -> int:
        """Pages that running answers need; what is kept for later ones does not count."""
        running = list(jobs)
        with suppress(EngineError):  # a step may just be removing one
            return len({page for job in running for page in self._pages_of(job)}) + len(running)  # the last ones
        return self.pages_in_use(running)

    def known_pages(self, job: Work) -> list[int]:
        """The pages that an answer can begin with."""
        if job.is_scored:
            return []
        tokens = job.tokens[:-1]
        if not job.is_exact:
            return self._prefix_cache.find(tokens)
        return self._prefix_cache.find(tokens, multiple=EXACT // self._pages.page_size or 1, from_prompts=True)

    def is_about_to_know(self, job: Work, known_pages: int, others: Iterable[Work]) -> bool:
        """Whether one of `others` is about to compute pages of `job` that are not there yet."""
        start = known_pages * self._pages.page_size
        end = start + self._pages.page_size
        return self.keeps and any(
            other.computed < end <= min(len(other.tokens), len(job.tokens) - 1)
            and other.tokens[start:end] == job.tokens[start:end]
            and other.tokens[:start] == job.tokens[:start]
            for other in others
        )

    def has_room(self, job: Work, known_pages: int, others: Iterable[Work]) -> bool:
        """Whether an answer fits beside the others; if not they would take turns to drop each other."""
        needed = -(-job.needed_tokens // self._pages.page_size) - known_pages
        return needed <= self._pages.num_pages - self.pages_in_use(others)

    def allocate(self, job: Work, known_pages: list[int]) -> None:
        """Give an answer a sequence."""
        job.sequence = self._model.add_sequence(known_pages)
        job.computed = len(known_pages) * self._pages.page_size

    def free(self, job: Work) -> None:
        """Take the sequence of an answer; what it holds is kept."""
        with suppress(EngineError):  # the model has removed it already after a pass that failed
            self.keep(job)
            self._model.remove_sequence(job.sequence)  # type: ignore[arg-type]
        job.sequence, job.computed = None, 0

    def keep(self, job: Work) -> None:
        """Let texts that begin as an answer does begin with its pages."""
        if not self.keeps:
            return
        pages = self._pages_of(job)  # after a stop string more may be computed than there are tokens
        pages = pages[: len(job.tokens) // self._pages.page_size]
        self._prefix_cache.keep(job.tokens, pages, job.prompt_tokens)

    def make_room(self, missing: int) -> bool:
        """Give up what is only kept. Returns whether that many more pages are free now."""
        return self._prefix_cache.make_room(missing) >= missing

    def forget(self) -> None:
        """Keep nothing."""
        self._prefix_cache.clear()

    def _pages_of(self, job: Work) -> list[int]:
        """Those that are full of computed tokens."""
        if job.sequence is None:
            return []
        return self._pages.full_pages(job.sequence)[: job.computed // self._pages.page_size]
