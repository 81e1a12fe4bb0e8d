"""Continuous batching: which of many answers the model works on in each step.

A step is at most a piece of one prompt (prefill.py), and one token for every answer whose prompt is done (decode.py):

    waiting ──► prefilling ──► decoding ──► finished
       ▲             │             │
       └─────────────┴─────────────┘   preempted: the cache is full, and an older answer needs the pages

What has been computed is kept for texts that begin alike (kv_cache_manager.py); a prompt waits for another that is
computing what both begin with.
"""

import threading
from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from .answer_form import FormMasks
from .counters import Counters
from .decode import Decode
from .errors import EngineError, MLCError, OverloadedError
from .events import Finish
from .job import Job, Work
from .job_queues import JobQueues
from .kv_cache import CacheFullError
from .kv_cache_manager import KVCacheManager
from .model import LanguageModel
from .prefill import Prefill
from .prompt_lookup import PromptLookup
from .sampler import Sampled
from .speculation import Speculation

if TYPE_CHECKING:
    from .trace import Observer


class Scheduler:
    """Runs the answers of one model. Safe to use from several threads: whoever waits for an event runs the next step.

    `step` may also be called by a thread of its own; then others submit, cancel and read events, which never waits.
    """

    def __init__(self, model: LanguageModel, vocab_size: int, *, max_waiting: int | None = None) -> None:
        """Tokens below `vocab_size` are chosen; `max_waiting` answers may wait, None for any number.

        An answer that runs alone may get several in a step, unless `speculation` has another guesser or none.
        """
        masks = FormMasks()
        self.counters, self.max_waiting = Counters(), max_waiting
        self.observer: Observer | None = None  # is told of every step, by the thread that runs it
        self.speculation = Speculation(model, vocab_size, PromptLookup())
        self.prefill = Prefill(model, vocab_size, masks)
        self._decode = Decode(model, vocab_size, masks, self.speculation)
        self.kv_cache = KVCacheManager(model)
        self._max_num_sequence = model.max_num_sequence
        self._jobs = JobQueues()
        self._without_room: Work | None = None  # the first of those that wait, while there is none for it
        self._clock = self._step_began = 0.0  # seconds of all steps but this one, and when this one began
        self._lock = threading.RLock()

    @property
    def num_running(self) -> int:
        """Answers that the model is working on."""
        return len(self._jobs.prefilling) + len(self._jobs.decoding)

    @property
    def num_waiting(self) -> int:
        """Answers that are yet to begin, or to go on."""
        return len(self._jobs.waiting) + len(self._jobs.arrived)

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do: not while answers wait for those that nobody reads."""
        return self._jobs.any_is_due() or any(map(self._may_begin, self._jobs.first_waiting()))

    def pages_in_use(self) -> int:
        """Pages of the KV cache that running answers need; what is kept for later ones does not count."""
        return self.kv_cache.pages_in_use(self._jobs.running)

    def forget(self) -> None:
        """Keep nothing of what has been computed for answers that are over."""
        with self._lock:
            self.kv_cache.forget()
            self.speculation.forget()

    def submit(self, job: Work) -> None:
        """Let an answer wait for its turn. Raises OverloadedError when too many do."""
        if self.max_waiting is not None and self.num_waiting >= self.max_waiting:
            raise OverloadedError(f"{self.num_waiting} requests are waiting already: try again later")
        job.waits_since = perf_counter()
        self._jobs.arrived.append(job)

    def cancel(self, job: Work) -> None:
        """Drop an answer, if it is not over yet; its pages are free for others at once, or after the step that runs."""
        self._jobs.given_up.append(job)
        if self._lock.acquire(blocking=False):
            try:
                self._attend()
            finally:
                self._lock.release()

    def fail_all(self, error: MLCError) -> None:
        """End every answer with an error."""
        with self._lock:
            self._attend()
            for job in [*self._jobs.waiting, *self._jobs.running]:
                self._fail(job, error)

    def reset(self, error: MLCError) -> None:
        """End every answer with an error, keep nothing of what has been computed, and count anew."""
        with self._lock:
            self.fail_all(error)
            self.forget()
            self.counters = Counters()

    def run_until_event(self, jobs: Sequence[Work]) -> None:
        """Run steps until one of `jobs` has an event. Raises the error that ended one of them instead.

        Where they wait for answers that nobody reads, these are computed to their ends, as the caller may be the one
        who would read them.
        """
        while not any(job.events for job in jobs):
            with self._lock:
                if any(job.events for job in jobs):
                    return
                for job in jobs:
                    if job.error is not None:
                        raise job.error
                self._step(unread_too=not self.busy)

    def step(self) -> None:
        """One piece of a prompt, and one token for each answer whose prompt is done.

        What fails in it is the error of the answers that it was for. An exception that is no Exception (an interrupt)
        is raised, and leaves all answers as they were before the step.
        """
        with self._lock:
            self._step()

    def _step(self, unread_too: bool = False) -> None:
        self._step_began = perf_counter()
        jobs = self._jobs
        try:
            if jobs.arrived or jobs.given_up:
                self._attend()
            if jobs.waiting:
                self._admit()
            if jobs.prefilling:
                self._run_prefill()
            if jobs.decoding:
                self._run_decode(unread_too)
        except BaseException:
            for job in [job for job in jobs.decoding if job.uncomputed != 1]:  # their tokens were not chosen yet
                self._suspend(job)
            raise
        finally:
            self._clock = self._now()

    def _now(self) -> float:
        return self._clock + perf_counter() - self._step_began

    def _attend(self) -> None:
        """See to what came meanwhile."""
        self._jobs.accept_arrived()
        while self._jobs.given_up:
            job = self._jobs.given_up.popleft()
            if not job.over:
                self._drop(job, "cancelled")

    # Who runs

    def _may_begin(self, job: Work) -> bool:
        """Whether there is a sequence for an answer, and room, as far as is known."""
        return self.num_running < self._max_num_sequence and job is not self._without_room

    def _admit(self) -> None:
        """Begin the waiting answers for which there are sequences, the oldest first."""
        jobs = self._jobs
        while jobs.waiting and self._may_begin(jobs.waiting[0]):
            job, running = jobs.waiting[0], jobs.running
            pages = self.kv_cache.known_pages(job)
            if self.kv_cache.is_about_to_know(job, len(pages), jobs.prefilling):
                return
            if running and not self.kv_cache.has_room(job, len(pages), running):
                self._without_room = job
                return
            jobs.waiting.popleft()
            self.kv_cache.allocate(job, pages)
            if isinstance(job, Job) and job.is_scored:
                job.scores = []
            if job.cached_tokens is None:
                job.cached_tokens, job.began = job.computed, self._now()
                self.counters.prompt_tokens += job.prompt_tokens
                self.counters.cached_tokens += job.cached_tokens
                self.counters.queue_seconds.add(perf_counter() - job.waits_since)
            self._tell("queued", [job], job.waits_since, job.computed)
            if isinstance(job, Job) and job.computed and job.uncomputed == 1 and not job.is_exact:
                jobs.decoding.append(job)
            else:
                jobs.prefilling.append(job)

    def _find_room(self, full: CacheFullError, job: Work) -> bool:
        """Get pages for `job`: those that no running answer needs, else those of the youngest. False: it is stopped
        itself, to go on later, or for good when it was alone."""
        if self.kv_cache.make_room(full.missing):
            return True
        running = self._jobs.running
        youngest = max(running, key=lambda other: other.number)
        if len(running) == 1:
            self._fail(job, full)
            return False
        self.counters.preemptions += 1
        self._suspend(youngest)
        return youngest is not job

    def _suspend(self, job: Work) -> None:
        """Take the sequence of an answer, which waits for another one."""
        job.waits_since = perf_counter()
        self._tell("preempted", [job], job.waits_since, 0)
        self._release(job)
        self._jobs.put_back(job)

    def _release(self, job: Work) -> None:
        """Take the sequence of an answer."""
        self._jobs.remove(job)
        if job.sequence is not None:
            self.kv_cache.free(job)
            self._without_room = None
            if isinstance(job, Job):
                self.speculation.release(job)
            self._decode.forget()

    # What is computed

    def _run_prefill(self) -> None:
        """A piece of a prompt, and the first token of the answer behind the last piece."""
        prefilling, decoding = self._jobs.prefilling, self._jobs.decoding
        job, others_decode = self.prefill.next(prefilling), any(other.is_read for other in decoding)
        while True:
            begin, left = perf_counter(), job.uncomputed
            try:
                sampled = self.prefill.run(job, others_decode, self.kv_cache.make_room)
                break
            except CacheFullError as full:
                if not self._find_room(full, job):
                    return
            except BaseException as error:
                self._after_failure([job], error)
                return
        self._tell("prefill", [job], begin, left - job.uncomputed)
        self.kv_cache.keep(job)
        if isinstance(job, Job):
            if not job.uncomputed:
                prefilling.remove(job)
                decoding.append(job)
            if sampled is not None:
                self._take(job, sampled)
        elif not job.uncomputed:
            self._drop(job, "stop")
            job.events.append(Finish("stop", job.prompt_tokens, 0, 0, self._now() - job.began, 0.0))

    def _run_decode(self, unread_too: bool) -> None:
        """More of each answer that somebody reads."""
        while jobs := [job for job in self._jobs.decoding if unread_too or job.is_read]:
            begin = perf_counter()
            try:
                chosen = self._decode.run(jobs)
                break
            except CacheFullError as full:
                if not self._find_room(full, min(jobs, key=lambda job: job.number)):
                    return
            except BaseException as error:
                self._after_failure(jobs, error)
                return
        else:
            return
        self._tell("decode", jobs, begin, sum(map(len, chosen)))
        for job, tokens in zip(jobs, chosen, strict=True):
            for token in tokens:
                self._take(job, token)

    def _take(self, job: Job, sampled: Sampled | MLCError) -> None:
        """One more token of an answer, or the error that ends it."""
        if job.over:  # with a token before this one
            return
        try:
            if isinstance(sampled, MLCError):
                raise sampled
            finish = job.take(sampled, self._now())
        except MLCError as error:
            self._fail(job, error)
            return
        self.counters.generated_tokens += 1
        if finish is not None:
            self._drop(job, finish.reason)
            job.events.append(finish)

    def _after_failure(self, jobs: Sequence[Work], error: BaseException) -> None:
        """A pass for `jobs` has failed, and the model has removed their sequences."""
        for job in jobs:
            if isinstance(error, EngineError):
                self._fail(job, error)
            else:
                self._suspend(job)
        if not isinstance(error, EngineError):
            raise error

    def _fail(self, job: Work, error: MLCError) -> None:
        self._drop(job, "failed")
        job.error = error

    def _drop(self, job: Work, why: str) -> None:
        """Nothing more is computed for an answer."""
        self._tell(why, [job], 0.0, 0)
        job.over = True
        self._without_room = None
        self._release(job)

    def _tell(self, what: str, jobs: Sequence[Work], since: float, tokens: int) -> None:
        if self.observer is not None:
            self.observer(what, jobs, since, tokens)
