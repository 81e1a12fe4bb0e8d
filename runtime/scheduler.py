"""Continuous batching: which of many answers the model works on in each step.

A step is at most a piece of one prompt, and one token for every answer whose prompt is done:

    waiting ──► prefilling ──► decoding ──► finished
       ▲             │             │
       └─────────────┴─────────────┘   preempted: the cache is full, and an older answer needs the pages

Prompts are cut into pieces that take about MOST_GAP while other answers are decoding, so that a long prompt delays
their next token by no more, and LONGEST_STEP otherwise, after which an interrupt or a new request is seen. The oldest
prompt and the one with the least left take turns: a short prompt does not wait for a long one, nor a long one for ever.
What has been computed is kept for texts that begin alike (prefix_cache.py); a prompt waits for another that is
computing what both begin with.
"""

import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Literal

from .answer_text import AnswerText
from .errors import EngineError, MLCError, OverloadedError
from .events import Event, Finish, PromptScored, TokenLogprob
from .kv_cache import CacheFullError
from .lazy_array import first_columns
from .model import LanguageModel, Logits
from .prefix_cache import PrefixCache
from .sampler import BatchSampler, Sampled, Sampler
from .speculation import Costs, Lookup
from .token_mask import TokenMask, new_mask

if TYPE_CHECKING:
    from concurrent.futures import Future

    import numpy as np
    import numpy.typing as npt

    from .grammar import Grammar
    from .mask_worker import MaskWorker

MOST_GAP = 0.1  # seconds between two tokens of an answer that a prompt of another may add
LONGEST_STEP = 0.5  # seconds
MOST_UNREAD = 256  # events; an answer that nobody reads is not generated further
_FEWEST_TOKENS = 16  # of a piece of a prompt
_EXACT = 64  # tokens: prompts that are cut at multiples of it give the same numbers as whole ones
_SCORED_AT_ONCE = 64  # tokens of a prompt: their logits take 4 bytes for each token of the vocabulary


class AnswerForm:
    """What an answer has to look like: its grammar, and the tokens that this allows next."""

    def __init__(self, grammar: "Grammar", vocab_size: int) -> None:
        self.grammar, self.mask = grammar, new_mask(vocab_size)


class Job:
    """One answer: its tokens so far, and the events that nobody has read yet."""

    def __init__(
        self, tokens: list[int], sampler: Sampler, stops: frozenset[int], text: AnswerText, limit: int
    ) -> None:
        """`tokens` are the prompt's; one of `stops` ends the answer, or `limit` tokens do."""
        self.tokens, self.sampler, self.stops, self.text, self.limit = tokens, sampler, stops, text, limit
        self.prompt_tokens = len(tokens)
        self.events: deque[Event] = deque()
        self.error: MLCError | None = None  # instead of further events
        self.over = False  # nothing more is computed
        self.number = 0  # of submission: lower is older
        self.sequence: int | None = None  # of the KV cache, which holds the first `computed` tokens
        self.computed = 0
        self.cached_tokens: int | None = None
        self.count = 0  # tokens of the answer
        self.began = self.first_token = 0.0  # seconds of computing
        # A pass that checks a guess rounds in other places: with a seed, answers must not depend on what is guessed.
        self.lookup = Lookup() if sampler.seed is None else None
        self.form: AnswerForm | None = None  # None for an answer that may be any text
        self.scores: list[TokenLogprob] | None = None  # of the prompt's tokens but the first, where they are asked for

    @property
    def is_exact(self) -> bool:
        """Whether the answer must be the same to the last bit, whatever is known already or runs beside it."""
        return self.lookup is None

    @property
    def is_scored(self) -> bool:
        """Whether the logits of the prompt are needed still."""
        return self.scores is not None and not self.count

    @property
    def uncomputed(self) -> int:
        """Tokens that the KV cache does not hold."""
        return len(self.tokens) - self.computed


@dataclass
class Counters:
    """What a scheduler has done since it began."""

    prompt_tokens: int = 0  # cached ones included
    cached_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    guessed_tokens: int = 0
    right_tokens: int = 0  # of the guessed ones


class Scheduler:
    """Runs the answers of one model. Safe to use from several threads: whoever waits for an event runs the next step.

    `step` may also be called by a thread of its own; then others submit, cancel and read events, which never waits.
    """

    def __init__(
        self, model: LanguageModel, vocab_size: int, *, max_waiting: int | None = None, speculates: bool = True
    ) -> None:
        """Tokens below `vocab_size` are chosen; `max_waiting` answers may wait, None for any number.

        With `speculates` an answer that runs alone may get several tokens in a step, see speculation.py.
        """
        self.counters = Counters()
        self.max_waiting = max_waiting
        self.speculates = speculates
        self._costs = Costs()
        self._mask_worker: MaskWorker | None = None
        self._model, self._vocab_size = model, vocab_size
        self._prefix_cache = PrefixCache(model.pages)
        self._arrived: deque[Job] = deque()  # these two take what other threads want during a step
        self._given_up: deque[Job] = deque()
        self._waiting: deque[Job] = deque()
        self._prefilling: list[Job] = []
        self._decoding: list[Job] = []
        self._batch: list[Job] = []  # of `_batch_sampler`
        self._batch_sampler: BatchSampler | None = None
        self._without_room: Job | None = None  # the first of those that wait, while there is no room for it
        self._submitted = 0
        self._oldest_first = True  # among the prompts
        self._prefill_rate = 1000.0  # tokens per second, as measured
        self._clock = self._step_began = 0.0  # seconds of all steps but this one, and when this one began
        self._lock = threading.RLock()

    @property
    def num_running(self) -> int:
        """Answers that the model is working on."""
        return len(self._prefilling) + len(self._decoding)

    @property
    def num_waiting(self) -> int:
        """Answers that are yet to begin, or to go on."""
        return len(self._waiting) + len(self._arrived)

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        new = self._arrived or self._given_up
        return bool(new or self._waiting or self._prefilling or any(map(_is_read, list(self._decoding))))

    def pages_in_use(self) -> int:
        """Pages of the KV cache that running answers need; what is kept for later ones does not count."""
        running = [*self._prefilling, *self._decoding]
        with suppress(EngineError):  # a step may just be removing one
            return len({page for job in running for page in self._pages_of(job)}) + len(running)  # the last ones
        return self.pages_in_use()

    def forget(self) -> None:
        """Keep nothing of what has been computed for answers that are over."""
        with self._lock:
            self._prefix_cache.clear()

    def submit(self, job: Job) -> None:
        """Let an answer wait for its turn. Raises OverloadedError when too many do."""
        if self.max_waiting is not None and self.num_waiting >= self.max_waiting:
            raise OverloadedError(f"{self.num_waiting} requests are waiting already: try again later")
        self._arrived.append(job)

    def cancel(self, job: Job) -> None:
        """Drop an answer, if it is not over yet; its pages are free for others at once, or after the step that runs."""
        self._given_up.append(job)
        if self._lock.acquire(blocking=False):
            try:
                self._attend()
            finally:
                self._lock.release()

    def fail_all(self, error: MLCError) -> None:
        """End every answer with an error."""
        with self._lock:
            self._attend()
            for job in [*self._waiting, *self._prefilling, *self._decoding]:
                self._fail(job, error)

    def run_until_event(self, jobs: Sequence[Job]) -> None:
        """Run steps until one of `jobs` has an event. Raises the error that ended one of them instead."""
        while not any(job.events for job in jobs):
            with self._lock:
                if any(job.events for job in jobs):
                    return
                for job in jobs:
                    if job.error is not None:
                        raise job.error
                self._step()

    def step(self) -> None:
        """One piece of a prompt, and one token for each answer whose prompt is done.

        What fails in it is the error of the answers that it was for. An exception that is no Exception (an interrupt)
        is raised, and leaves all answers as they were before the step.
        """
        with self._lock:
            self._step()

    def _step(self) -> None:
        self._step_began = perf_counter()
        try:
            if self._arrived or self._given_up:
                self._attend()
            if self._waiting:
                self._admit()
            if self._prefilling:
                self._prefill(self._next_prompt())
            if self._decoding:
                self._decode()
        except BaseException:
            for job in [job for job in self._decoding if not job.uncomputed]:  # their tokens were not chosen yet
                self._suspend(job)
            raise
        finally:
            self._clock = self._now()

    def _now(self) -> float:
        return self._clock + perf_counter() - self._step_began

    def _attend(self) -> None:
        """See to what came meanwhile."""
        while self._arrived:
            job = self._arrived.popleft()
            self._submitted += 1
            job.number = self._submitted
            self._waiting.append(job)
        while self._given_up:
            job = self._given_up.popleft()
            if not job.over:
                self._drop(job)

    # Prompts

    def _admit(self) -> None:
        """Begin the waiting answers for which there are sequences, the oldest first."""
        while self._waiting and self.num_running < self._model.max_num_sequence:
            job = self._waiting[0]
            if job is self._without_room:
                return
            pages = self._known_pages(job)
            if any(self._computes_beginning_of(other, job, len(pages)) for other in self._prefilling):
                return
            if self.num_running and not self._has_room(job, len(pages)):
                self._without_room = job
                return
            self._waiting.popleft()
            job.sequence = self._model.add_sequence(pages)
            job.computed = len(pages) * self._model.pages.page_size
            if job.is_scored:
                job.scores = []
            if job.cached_tokens is None:
                job.cached_tokens, job.began = job.computed, self._now()
                self.counters.prompt_tokens += job.prompt_tokens
                self.counters.cached_tokens += job.cached_tokens
            decodes = job.computed and job.uncomputed == 1 and not job.is_exact
            (self._decoding if decodes else self._prefilling).append(job)

    def _known_pages(self, job: Job) -> list[int]:
        """The pages that an answer can begin with."""
        if job.is_scored:
            return []
        tokens = job.tokens[:-1]
        if not job.is_exact:
            return self._prefix_cache.find(tokens)
        return self._prefix_cache.find(tokens, multiple=_EXACT // self._model.pages.page_size or 1, from_prompts=True)

    def _has_room(self, job: Job, known_pages: int) -> bool:
        """Whether an answer fits beside the running ones; if not they would take turns to drop each other."""
        pages = self._model.pages
        return -(-(len(job.tokens) + 1) // pages.page_size) - known_pages <= pages.num_pages - self.pages_in_use()

    def _computes_beginning_of(self, other: Job, job: Job, known_pages: int) -> bool:
        """Whether `other` is about to compute pages of `job` that are not there yet."""
        size = self._model.pages.page_size
        start = known_pages * size
        shared = slice(start, start + size)
        return (
            other.computed < start + size <= min(len(other.tokens), len(job.tokens) - 1)
            and other.tokens[shared] == job.tokens[shared]
            and other.tokens[:start] == job.tokens[:start]
        )

    def _next_prompt(self) -> Job:
        jobs = self._prefilling
        self._oldest_first = not self._oldest_first
        if self._oldest_first or len(jobs) == 1:
            return min(jobs, key=lambda job: job.number)
        return min(jobs, key=lambda job: job.uncomputed)

    def _prefill(self, job: Job) -> None:
        """Compute a piece of a prompt, and the first token of the answer behind the last piece."""
        count = self._piece(job) if job.scores is None else _SCORED_AT_ONCE
        if job.uncomputed <= count * 5 // 4:  # no small rest
            count = min(job.uncomputed, self._model.prefill_chunk_size)
        begin = perf_counter()
        masks = self._masks([job] if count == job.uncomputed else [])
        while True:
            assert job.sequence is not None
            try:
                logits = self._prefill_pass(job, count)
                break
            except CacheFullError as full:
                if not self._find_room(full, job):
                    return
            except BaseException as error:
                self._after_failure([job], error)
                return
        self._prefill_rate += ((count / (perf_counter() - begin)) - self._prefill_rate) / 4
        job.computed += count
        self._keep(job)
        if job.uncomputed == 0:
            self._prefilling.remove(job)
            self._decoding.append(job)
            if job.scores is not None:
                job.events.append(PromptScored(job.text.ranked(Sampled(job.tokens[0], 0.0)), tuple(job.scores)))
            if self._finish_masks(masks):
                mask = None if job.form is None else job.form.mask
                self._take(job, _sampled(job.sampler, first_columns(logits, self._vocab_size), mask))

    def _prefill_pass(self, job: Job, count: int) -> Logits:
        """The logits after the next `count` tokens of a prompt."""
        assert job.sequence is not None
        tokens = job.tokens[job.computed : job.computed + count]
        if job.scores is None:
            return self._model.prefill(job.sequence, tokens)
        rows: list[npt.NDArray[np.float32]] = list(self._model.logits_of(job.sequence, tokens)[:, : self._vocab_size])
        following = job.tokens[job.computed + 1 : job.computed + count + 1]  # none after the last one
        job.scores += [job.text.ranked(job.sampler.score(rows[i], token)) for i, token in enumerate(following)]
        return rows[-1]

    def _piece(self, job: Job) -> int:
        """How many tokens of a prompt to compute at once."""
        seconds = MOST_GAP if any(map(_is_read, self._decoding)) else LONGEST_STEP
        count = min(self._model.prefill_chunk_size, int(self._prefill_rate * seconds))
        if count < _EXACT and not job.is_exact:
            return max(count, _FEWEST_TOKENS)
        return max(count // _EXACT, 1) * _EXACT

    # Answers

    def _decode(self) -> None:
        """One more token for each answer that somebody reads."""
        while True:
            jobs = [job for job in self._decoding if len(job.events) < MOST_UNREAD]
            if not jobs or (len(jobs) == 1 and self.speculates and self._speculate(jobs[0])):
                return
            begin = perf_counter()
            try:
                sampled = self._decoded(jobs)
                break
            except CacheFullError as full:
                if not self._find_room(full, min(jobs, key=lambda job: job.number)):
                    return
            except BaseException as error:
                self._after_failure(jobs, error)
                return
        for job in jobs:
            job.computed += 1
        if len(jobs) == 1 and self.speculates:
            self._costs.time(0, perf_counter() - begin)
            if jobs[0].lookup is not None:
                jobs[0].lookup.watch(jobs[0].tokens)
        for job, one in zip(jobs, sampled, strict=True):
            self._take(job, one)

    def _speculate(self, job: Job) -> bool:
        """Several tokens of an answer in one pass. False where it does not pay, or there is no room for them."""
        if job.lookup is None or job.form is not None:
            return False
        length = min(self._costs.best_length(job.lookup.chance), job.limit - job.count - 1)
        guess = list(job.lookup.guess(job.tokens, length)) if length > 0 else []
        if not guess:
            return False
        assert job.sequence is not None
        begin = perf_counter()
        try:
            logits = self._model.verify(job.sequence, [job.tokens[-1], *guess])
        except CacheFullError:
            return False
        except BaseException as error:
            self._after_failure([job], error)
            return True
        self._costs.time(len(guess), perf_counter() - begin)
        job.computed += 1 + len(guess)
        chosen = self._choose(job, first_columns(logits, self._vocab_size), guess)
        self._model.pop(job.sequence, 1 + len(guess) - len(chosen))
        job.computed -= 1 + len(guess) - len(chosen)
        right = len(chosen) - 1
        job.lookup.learn(right, right < len(guess))
        self.counters.guessed_tokens += len(guess)
        self.counters.right_tokens += right
        for sampled in chosen:
            if not job.over:
                self._take(job, sampled)
        return True

    def _choose(self, job: Job, logits: Logits, guess: Sequence[int]) -> list[Sampled | EngineError]:
        """The tokens after a guess was checked: up to the first that is another one, or ends the answer."""
        chosen: list[Sampled | EngineError] = []
        for place in range(len(guess) + 1):
            sampled = _sampled(job.sampler, logits[place])
            chosen.append(sampled)
            if isinstance(sampled, EngineError) or sampled.token in job.stops or sampled.token != (*guess, -1)[place]:
                break
        return chosen

    def _decoded(self, jobs: list[Job]) -> list[Sampled | EngineError]:
        """Compute and choose the next token of each answer."""
        if self._batch != jobs or self._batch_sampler is None:
            self._batch, self._batch_sampler = jobs, BatchSampler([job.sampler for job in jobs])
        batch, sequences, tokens = self._batch_sampler, [job.sequence for job in jobs], [job.tokens[-1] for job in jobs]
        masks = self._masks(jobs)
        if batch.plain and not masks:
            return batch.accept(
                self._model.decode_and_sample(sequences, tokens, batch.draws, batch.uniforms())  # type: ignore[arg-type]
            )
        try:
            logits = self._model.decode(sequences, tokens)  # type: ignore[arg-type]
        finally:
            self._finish_masks(masks)
        wanted = [None if job.form is None else job.form.mask for job in jobs] if masks else []
        return batch.sample(first_columns(logits, self._vocab_size), wanted)

    def _masks(self, jobs: list[Job]) -> "list[tuple[Job, Future[None]]]":
        """Begin to find out which tokens may come next, in a thread beside the pass."""
        formed = [(job, job.form) for job in jobs if job.form is not None]
        if not formed:
            return []
        if self._mask_worker is None:
            from .mask_worker import MaskWorker

            self._mask_worker = MaskWorker()
        started = self._mask_worker.start([(form.grammar, form.mask) for _, form in formed])
        return [(job, one) for (job, _), one in zip(formed, started, strict=True)]

    def _finish_masks(self, started: "list[tuple[Job, Future[None]]]") -> bool:
        """Wait for the masks. An answer whose mask took too much fails; False when all of them have."""
        alive = not started
        for job, one in started:
            error = one.exception()
            if isinstance(error, MLCError):
                self._fail(job, error)
            elif error is not None:
                raise error
            else:
                alive = True
        return alive

    def _take(self, job: Job, sampled: Sampled | EngineError) -> None:
        """One more token of an answer."""
        if job.over:  # its mask has failed
            return
        if isinstance(sampled, EngineError):
            self._fail(job, sampled)
            return
        if job.form is not None and not job.form.grammar.accept(sampled.token):
            self._fail(job, EngineError(f"token {sampled.token} does not fit the form of the answer"))
            return
        job.count += 1
        self.counters.generated_tokens += 1
        if job.count == 1:
            job.first_token = self._now()
        ended = sampled.token in job.stops
        if not ended:
            job.tokens.append(sampled.token)
            delta = job.text.take(sampled)
            ended = job.text.stopped
            if delta.text or delta.logprobs:
                job.events.append(delta)
        if ended or job.count == job.limit:
            self._finish(job, ended)

    def _finish(self, job: Job, ended: bool) -> None:
        delta = job.text.finish()
        if delta.text or delta.logprobs:
            job.events.append(delta)
        reason: Literal["stop", "length"] = "stop" if ended or job.text.stopped else "length"
        seconds = job.first_token - job.began, self._now() - job.first_token
        cached = job.cached_tokens or 0
        self._drop(job)
        job.events.append(Finish(reason, job.prompt_tokens, job.count, cached, *seconds))

    # Room

    def _find_room(self, full: CacheFullError, job: Job) -> bool:
        """Get pages for `job`: those that no running answer needs, else those of the youngest. False: it is stopped
        itself, to go on later, or for good when it was alone."""
        if self._prefix_cache.make_room(full.missing) >= full.missing:
            return True
        running = [*self._prefilling, *self._decoding]
        youngest = max(running, key=lambda other: other.number)
        if len(running) == 1:
            self._fail(job, full)
            return False
        self.counters.preemptions += 1
        self._suspend(youngest)
        return youngest is not job

    def _suspend(self, job: Job) -> None:
        """Take the sequence of an answer, which waits for another one."""
        self._release(job)
        place = next((i for i, other in enumerate(self._waiting) if other.number > job.number), len(self._waiting))
        self._waiting.insert(place, job)

    def _after_failure(self, jobs: list[Job], error: BaseException) -> None:
        """A pass for `jobs` has failed, and the model has removed their sequences."""
        for job in jobs:
            if isinstance(error, EngineError):
                self._fail(job, error)
            else:
                self._suspend(job)
        if not isinstance(error, EngineError):
            raise error

    def _fail(self, job: Job, error: MLCError) -> None:
        self._drop(job)
        job.error = error

    def _drop(self, job: Job) -> None:
        """Nothing more is computed for an answer."""
        job.over = True
        self._without_room = None
        with suppress(ValueError):
            self._waiting.remove(job)
        self._release(job)

    def _release(self, job: Job) -> None:
        """Give the sequence of an answer back; what it holds is kept for texts that begin alike."""
        for jobs in (self._prefilling, self._decoding):
            with suppress(ValueError):
                jobs.remove(job)
        if job.sequence is None:
            return
        with suppress(EngineError):  # the model has removed it already after a pass that failed
            self._keep(job)
            self._model.remove_sequence(job.sequence)
        job.sequence, job.computed = None, 0
        self._without_room = None
        self._batch, self._batch_sampler = [], None

    def _keep(self, job: Job) -> None:
        pages = self._pages_of(job)  # after a stop string more may be computed than there are tokens
        pages = pages[: len(job.tokens) // self._model.pages.page_size]
        self._prefix_cache.keep(job.tokens, pages, job.prompt_tokens)

    def _pages_of(self, job: Job) -> list[int]:
        """Those that are full of computed tokens."""
        if job.sequence is None:
            return []
        pages = self._model.pages
        return pages.full_pages(job.sequence)[: job.computed // pages.page_size]


def _is_read(job: Job) -> bool:
    return len(job.events) < MOST_UNREAD


def _sampled(sampler: Sampler, logits: Logits, mask: TokenMask | None = None) -> Sampled | EngineError:
    try:
        return sampler.sample(logits, mask)
    except EngineError as error:
        return error
