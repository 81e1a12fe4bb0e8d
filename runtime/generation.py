"""The one path on which text is generated: tokens in, events out."""

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from .answer_form import AnswerForm
from .answer_text import AnswerText, TextTokenizer
from .embedding import EmbeddingJob, Pooling
from .errors import RequestError
from .events import Event, Finish
from .job import Job, Work
from .model import LanguageModel
from .sampler import Sampler
from .sampling_params import SamplingParams
from .scheduler import Scheduler

if TYPE_CHECKING:
    from .grammar import GrammarFactory


class Generator:
    """Generates answers with one model, any number of them at a time. Safe to use from several threads."""

    def __init__(self, model: LanguageModel, tokenizer: TextTokenizer, eos_token_ids: Collection[int] = ()) -> None:
        """`eos_token_ids` end an answer unless a request ignores them."""
        self.model = model
        self.tokenizer = tokenizer
        self._eos = frozenset(eos_token_ids)
        self.vocab_size = tokenizer.vocab_size_within(model.vocab_size)
        self.scheduler = Scheduler(model, self.vocab_size)

    @property
    def context_window(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self.model.context_window

    def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, *, stop_strings: Sequence[str] = ()
    ) -> Iterator[Event]:
        """The answer to a prompt: deltas, then one `Finish`. `stop_strings` are the template's, beside those of params.

        The request is checked at once: raises RequestError as `job` does. The events raise EngineError when the model
        fails. Closing the iterator early is fine; what has been computed is kept for prompts that begin alike.
        """
        events = self.follow([self.job(prompt_ids, params, stop_strings=stop_strings)])
        return (event for _, event in events)

    def job(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        stop_strings: Sequence[str] = (),
        score_prompt: bool = False,
        grammar: "GrammarFactory | None" = None,
        shown_ids: frozenset[int] = frozenset(),
        param: str = "messages",
    ) -> Job:
        """The answer to a prompt, for the scheduler.

        With `score_prompt` its first event is a `PromptScored`; with a `grammar` the answer has its form. Special
        tokens are no part of the text, but for `shown_ids`. `param` is the request's field that the prompt is in.

        Raises RequestError for an empty prompt, one that fills the context (code "context_length_exceeded"), or invalid
        params.
        """
        self._check_tokens(prompt_ids, "the prompt", param)
        context = self.context_window
        if len(prompt_ids) >= context:
            raise RequestError(
                f"the prompt has {len(prompt_ids)} tokens; the context holds {context}, the answer included: "
                f"shorten the {param}",
                param=param,
                code="context_length_exceeded",
            )
        stops = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._eos)
        sampler = Sampler(params, self.vocab_size, self.model.sampling, prompt_ids, stops)
        all_stop_strings = (*params.stop, *stop_strings)
        text = AnswerText(self.tokenizer, params.logprobs, all_stop_strings, shown_ids, params.min_tokens)
        limit = context - len(prompt_ids)
        if params.max_tokens is not None:
            limit = min(limit, params.max_tokens)
        job = Job(list(prompt_ids), sampler, stops, text, limit)
        job.scores = [] if score_prompt else None
        if grammar is not None:
            job.form = AnswerForm(grammar.new(), self.vocab_size)
        return job

    def embedding_job(self, texts: Sequence[Sequence[int]], pooling: Pooling) -> EmbeddingJob:
        """The embeddings of texts, for the scheduler.

        Raises RequestError for a text without tokens and for one that does not fit into the context (code
        "context_length_exceeded").
        """
        for index, text in enumerate(texts):
            name = f"input[{index}]"
            self._check_tokens(text, name, "input")
            if len(text) > self.context_window:
                raise RequestError(
                    f"{name} has {len(text)} tokens; the context holds {self.context_window}: split the text",
                    param="input",
                    code="context_length_exceeded",
                )
        return EmbeddingJob(texts, pooling)

    def _check_tokens(self, tokens: Sequence[int], name: str, param: str) -> None:
        if not tokens:
            raise RequestError(f"{name} is empty: at least one token is needed", param=param)
        for token in (min(tokens), max(tokens)):
            if not 0 <= token < self.model.vocab_size:
                raise RequestError(
                    f"token {token} is not in the vocabulary of {self.model.vocab_size}",
                    param=param,
                    code="invalid_value",
                )

    def follow(self, jobs: Sequence[Work]) -> Iterator[tuple[int, Event]]:
        """The events of several answers as they come, each with the index of its job.

        Lets the scheduler compute until the next one is there, whoever else gets some meanwhile.
        """
        scheduler, unfinished = self.scheduler, dict(enumerate(jobs))
        try:
            for job in jobs:
                scheduler.submit(job)
            while unfinished:
                scheduler.run_until_event(tuple(unfinished.values()))
                for index, job in list(unfinished.items()):
                    while job.events:
                        event = job.events.popleft()
                        if type(event) is Finish:
                            del unfinished[index]
                        yield index, event
        finally:
            for job in jobs:
                scheduler.cancel(job)
