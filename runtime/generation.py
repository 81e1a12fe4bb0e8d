"""The one path on which text is generated: tokens in, events out."""

from collections.abc import Collection, Iterator, Sequence

from .answer_text import AnswerText, TextTokenizer
from .errors import RequestError
from .events import Event, Finish
from .model import LanguageModel
from .sampler import Sampler
from .sampling_params import SamplingParams
from .scheduler import Job, Scheduler


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

        The request is checked at once: raises RequestError for an empty prompt, one that fills the context (code
        "context_length_exceeded"), or invalid params. The events raise EngineError when the model fails. Closing the
        iterator early is fine; what has been computed is kept for prompts that begin alike.
        """
        return self._follow(self.job(prompt_ids, params, stop_strings=stop_strings))

    def job(self, prompt_ids: Sequence[int], params: SamplingParams, *, stop_strings: Sequence[str] = ()) -> Job:
        """The answer to a prompt, for the scheduler. Raises RequestError as `generate` does."""
        if not prompt_ids:
            raise RequestError("the prompt is empty: at least one token is needed", param="messages")
        context = self.context_window
        if len(prompt_ids) >= context:
            raise RequestError(
                f"the prompt has {len(prompt_ids)} tokens; the context holds {context}, the answer included: "
                "shorten the messages",
                param="messages",
                code="context_length_exceeded",
            )
        sampler = Sampler(params, self.vocab_size, self.model.sampling, prompt_ids)
        stops = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._eos)
        text = AnswerText(self.tokenizer, params.logprobs, (*params.stop, *stop_strings))
        limit = context - len(prompt_ids)
        if params.max_tokens is not None:
            limit = min(limit, params.max_tokens)
        return Job(list(prompt_ids), sampler, stops, text, limit)

    def _follow(self, job: Job) -> Iterator[Event]:
        """Let the scheduler compute until the next event is there, whoever else gets some meanwhile."""
        scheduler, events = self.scheduler, job.events
        scheduler.submit(job)
        try:
            while True:
                scheduler.run_until_event(job)
                event = events.popleft()
                yield event
                if type(event) is Finish:
                    return
        finally:
            scheduler.cancel(job)
