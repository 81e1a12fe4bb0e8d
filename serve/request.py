"""What requests for chat completions and for text completions have in common."""

import difflib
from collections.abc import Mapping
from reprlib import repr as short_repr
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from typing_extensions import Self

from ..runtime.artifact import ChatConfig
from ..runtime.errors import RequestError
from ..runtime.sampling_params import SamplingParams
from .answer import sampling_params

MAX_ANSWERS = 128  # OpenAI's limit of `n`

# Fields that SamplingParams has under the same name and type.
_SAME_NAME = (
    "temperature", "top_p", "frequency_penalty", "presence_penalty", "repetition_penalty",
    "top_k", "min_p", "min_tokens", "logit_bias", "seed",
)  # fmt: skip


def _token_id(key: object) -> object:
    """JSON objects have text keys, so that a token id may come as digits."""
    return int(key) if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 20 else key


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


TokenId = Annotated[int, BeforeValidator(_token_id)]


class Strict(BaseModel):
    """An object of a request: no other fields, no other types."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class StreamOptions(Strict):
    """What a stream carries besides the answer."""

    include_usage: bool = False
    include_obfuscation: bool = False


class DebugConfig(Strict):
    """MLC-LLM's `debug_config`, as far as it means anything here."""

    ignore_eos: bool = False


class Request(Strict):
    """What every request has."""

    kind: ClassVar[str]  # how errors call it

    model: str | None = None
    user: str | None = None  # means something to OpenAI's service only

    @classmethod
    def place(cls, loc: tuple[int | str, ...]) -> str:
        """How a message calls the place of a problem of validation."""
        return ".".join(map(str, loc))

    @classmethod
    def param(cls, loc: tuple[int | str, ...]) -> str:
        """The field that such a problem is told to be in."""
        return str(loc[0])

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Self:
        """Read a request. Raises RequestError that names the field, also for what is not supported."""
        try:
            request = cls.model_validate(dict(fields))
        except ValidationError as error:
            raise _first_problem(cls, error) from None
        request.check()
        return request

    def check(self) -> None:
        """Raise RequestError for fields that do not go together, or are not supported."""


class GenerationRequest(Request):
    """The fields of every request that text is generated for. `None` means the model's default; ranges are those of
    `SamplingParams`."""

    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[TokenId, float] | None = None
    seed: int | None = None
    stop: Annotated[list[str] | None, BeforeValidator(_as_list)] = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    # These mean something to OpenAI's service only; they are checked, and nothing comes of them.
    safety_identifier: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    request_id: str | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    debug_config: DebugConfig | None = None


class ChoicesRequest(GenerationRequest):
    """The further fields of requests that are answered with choices: `n` answers to each prompt."""

    max_tokens: int | None = None
    n: int | None = None
    stream_options: StreamOptions | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk that has no choices but the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def check(self) -> None:
        """Raise RequestError for fields that do not go together, or are not supported."""
        if self.n is not None and not 1 <= self.n <= MAX_ANSWERS:
            raise RequestError(f"n is {self.n}: expected 1 to {MAX_ANSWERS} answers", param="n", code="invalid_value")
        if self.service_tier not in (None, "auto", "default"):
            raise unsupported("service_tier", self.service_tier, "'auto'")
        if self.stream_options is not None:
            if not self.stream:
                raise RequestError(
                    "stream_options is given: it is only allowed when stream is true", param="stream_options"
                )
            if self.stream_options.include_obfuscation:
                raise unsupported("stream_options.include_obfuscation", True, "false")

    def sampling_params(self, config: ChatConfig) -> SamplingParams:
        """How to choose tokens: the request's values, else those of the model folder's config."""
        given = {name: getattr(self, name) for name in _SAME_NAME}
        given["stop"] = None if self.stop is None else tuple(self.stop)
        given["stop_token_ids"] = None if self.stop_token_ids is None else tuple(self.stop_token_ids)
        given["ignore_eos"] = self.ignore_eos or (self.debug_config is not None and self.debug_config.ignore_eos)
        return sampling_params(config, {**given, **self.further_params()})

    def further_params(self) -> dict[str, Any]:
        """Fields of SamplingParams that come from what only this kind of request has."""
        return {}


def unsupported(field: str, value: object, only: str) -> RequestError:
    """The error for a value that may be supported one day."""
    return RequestError(
        f"{field} is {short_repr(value)}, which is not supported yet: leave it out or give {only}",
        param=field,
        code="unsupported_value",
    )


def _first_problem(request: type[Request], error: ValidationError) -> RequestError:
    problem = error.errors(include_url=False, include_context=False)[0]
    place = request.place(problem["loc"])
    if problem["type"] == "extra_forbidden":
        hint = _near(request, problem["loc"])
        return RequestError(
            f"{place[:80]!r} is not a field of a {request.kind}{hint}", param=place, code="unknown_field"
        )
    if problem["type"] == "missing":
        return RequestError(f"{place} is missing", param=place, code="missing_field")
    message = f"{place} is {short_repr(problem['input'])}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"
    code = "unsupported_value" if problem["type"] == "unsupported_value" else "invalid_type"
    return RequestError(message, param=request.param(problem["loc"]), code=code)


def _near(request: type[Request], loc: tuple[int | str, ...]) -> str:
    """Which field may have been meant; of objects inside of a request, where they are few."""
    inner: dict[object, type[BaseModel]] = {"stream_options": StreamOptions, "debug_config": DebugConfig}
    if len(loc) > 1 and loc[0] not in inner:
        return ""
    fields = inner.get(loc[0], request).model_fields
    near = difflib.get_close_matches(str(loc[-1]), fields, n=1)
    return f": did you mean {near[0]!r}?" if near else f": the fields are {', '.join(sorted(fields))}"
