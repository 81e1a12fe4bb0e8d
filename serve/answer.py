"""From messages to the events of their answer: the one way on which an engine answers, whatever its callers speak.

Loads no pydantic, which takes as long as the rest of a start; the chat completions of OpenAI are a layer above.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..runtime.artifact import ChatConfig
from ..runtime.errors import RequestError
from ..runtime.events import Event
from ..runtime.job import Job
from ..runtime.sampling_params import SamplingParams
from ..templates import ConversationError, validate_messages
from .loading import LoadedModel

if TYPE_CHECKING:
    from ..runtime.grammar import GrammarFactory

_FROM_CONFIG = ("temperature", "top_p", "frequency_penalty", "presence_penalty", "repetition_penalty")


def sampling_params(config: ChatConfig, given: Mapping[str, Any]) -> SamplingParams:
    """How to choose tokens: the values that are given (not None), else those of the model folder's config."""
    values = {name: getattr(config, name) for name in _FROM_CONFIG}
    values.update((name, value) for name, value in given.items() if value is not None)
    return SamplingParams(**values)


def answer(model: LoadedModel, messages: Sequence[Mapping[str, Any]], params: SamplingParams) -> Iterator[Event]:
    """The events of the answer. What is wrong with the request raises RequestError here, before any event."""
    events = model.generator.follow([job(model, prompt_ids(model, messages), params)])
    return (event for _, event in events)


def job(
    model: LoadedModel,
    tokens: Sequence[int],
    params: SamplingParams,
    *,
    grammar: "GrammarFactory | None" = None,
    shown_ids: frozenset[int] = frozenset(),
) -> Job:
    """The answer to a prompt, for the scheduler: in the form that a grammar describes, with the texts of `shown_ids`
    among those of special tokens. Raises RequestError."""
    stop_strings = () if params.ignore_eos else model.stop_strings
    return model.generator.job(tokens, params, stop_strings=stop_strings, grammar=grammar, shown_ids=shown_ids)


def text_job(model: LoadedModel, tokens: Sequence[int], params: SamplingParams, *, score_prompt: bool) -> Job:
    """The continuation of a text, for the scheduler. Raises RequestError."""
    return model.generator.job(tokens, params, score_prompt=score_prompt, param="prompt")


def choice_params(params: SamplingParams, index: int) -> SamplingParams:
    """Those of answer `index` to one prompt: each has a seed of its own."""
    if params.seed is None or not index:
        return params
    return replace(params, seed=(params.seed + index + 2**63) % 2**64 - 2**63)


def prompt_ids(model: LoadedModel, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """The tokens of the conversation, up to where the answer begins. Raises RequestError."""
    try:
        prompt = model.template.render(validate_messages(messages))
    except ConversationError as error:
        raise RequestError(str(error), param=error.param or "messages", code="invalid_value") from None
    return [*prompt.prefix_token_ids, *model.tokenizer.encode(prompt.text)]
