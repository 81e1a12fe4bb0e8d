"""What an answer has to look like: compiled from a schema, an expression or a grammar, asked before each token.

The engine behind it is llguidance. It walks a trie of the tokens' bytes with an Earley parser over a lexer of lazily
derived automata, so that nothing is computed ahead for a grammar (https://github.com/guidance-ai/llguidance,
docs/optimizations.md).
"""

import copy
import ctypes
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from .bounded_threads import BoundedThreads, TooLateError
from .errors import EngineError, ModelFileError, RequestError
from .json_schema import CheckedSchema, SchemaLimits, checked_schema
from .token_mask import TokenMask, mask_words

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

_STACK_BYTES = 256 << 20  # llguidance recurses along chains of rules and ends the process where the stack does
_COMPILES_AT_ONCE = 2
# A line break and its indentation at most: in any whitespace, llguidance's default, small models lose themselves
_WHITESPACE = r" |\r?\n[ \t]{0,40}"
# Without it llguidance insists on the tokenizer's own division of text that is certain, which it has from Python
_OPTIONS = '\n%llguidance {"no_forcing": true}\n'
_JSON_TERM = re.compile(r"%json\s*")
_SCHEMA_PLACE = re.compile(r"^at \d+\(\d+\): failed to compile JSON schema: ")


class Grammar(Protocol):
    """The state of one answer. Not to be used from two threads at once."""

    @property
    def stopped(self) -> bool:
        """Whether nothing but an end token may follow."""
        ...

    def fill_mask(self, mask: TokenMask) -> None:
        """Say which tokens may come next. End tokens may when the answer is complete as it is.

        Runs without the interpreter's lock. Raises RequestError when that takes too much.
        """
        ...

    def accept(self, token: int) -> bool:
        """Go on with this token; False, and nothing has changed, where it is not allowed."""
        ...

    def rollback(self, count: int) -> None:
        """Take back the last `count` accepted tokens."""
        ...


@dataclass(frozen=True)
class GrammarLimits:
    """What a request's grammar may take."""

    max_bytes: int = 128 << 10  # of a schema, expression or grammar
    max_depth: int = 100  # of a schema's JSON
    max_nodes: int = 5_000  # values in a schema
    max_choices: int = 2_000
    compile_seconds: float = 5.0
    max_cached: int = 64
    parser_items: int = 50_000  # for one mask; 20 of them take a microsecond
    lexer_fuel: int = 200_000  # for one mask; 14 take a microsecond
    lexer_states: int = 50_000  # of one answer; 1 to 2 KB each


class GrammarFactory:
    """A compiled grammar, from which answers start. Safe to use from several threads."""

    def __init__(self, matcher: "LLMatcher", words: int, end_ids: frozenset[int]) -> None:
        self._matcher, self._words, self._end_ids = matcher, words, end_ids

    def new(self) -> Grammar:
        """For an answer without any token yet. Takes microseconds."""
        return _Answer(self._matcher.deep_copy(), self._words, self._end_ids)


class _Answer:
    def __init__(self, matcher: "LLMatcher", words: int, end_ids: frozenset[int]) -> None:
        self._matcher, self._words, self._end_ids = matcher, words, end_ids
        self._ends = 0  # end tokens after the grammar had stopped, of which the matcher is not told

    @property
    def stopped(self) -> bool:
        return self._matcher.is_stopped()

    def fill_mask(self, mask: TokenMask) -> None:
        if len(mask) != self._words:
            raise ValueError(f"the mask has {len(mask)} words; expected {self._words}")
        self._matcher.unsafe_compute_mask_ptr(ctypes.addressof(mask), 4 * self._words)
        if self._matcher.is_error():  # the mask allows the end only, as if the answer were complete
            raise RequestError(
                f"the answer's grammar needs too much work at this place ({_reason(self._matcher.get_error())}); "
                "use a simpler one",
                param="response_format",
                code="invalid_value",
            )

    def accept(self, token: int) -> bool:
        if self._matcher.is_stopped():
            fits = token in self._end_ids
            self._ends += fits
            return fits
        return self._matcher.try_consume_tokens([token]) == 1

    def rollback(self, count: int) -> None:
        ends = min(self._ends, count)
        self._ends -= ends
        if count > ends and not self._matcher.rollback(count - ends):
            raise EngineError(f"the answer's grammar cannot take back {count} tokens")


class Vocabulary(Protocol):
    """What a tokenizer tells about its tokens."""

    special_ids: frozenset[int]

    def vocabulary(self, size: int) -> list[bytes]: ...


@dataclass(frozen=True)
class _TrieTokens:
    """A vocabulary as llguidance asks for it. It never encodes text here, so there is no __call__ for that."""

    tokens: list[bytes]
    special_token_ids: list[int]
    eos_token_id: int
    bos_token_id: None = None
    is_tokenizer_wrapper: bool = True


class GrammarCompiler:
    """Compiles what requests ask for, for one model. Safe to use from several threads.

    All `compile_` methods raise RequestError, with the field `param`, for what is malformed, unsupported or too big.
    They take milliseconds, and seconds at worst: an event loop calls them in a thread.
    """

    def __init__(
        self, tokenizer: Vocabulary, vocab_size: int, end_ids: Iterable[int], limits: GrammarLimits | None = None
    ) -> None:
        """For logits of `vocab_size` tokens, and answers that end with one of `end_ids`.

        Raises ModelFileError when none of these is in the vocabulary.
        """
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._end_ids = sorted({token for token in end_ids if 0 <= token < vocab_size})
        if not self._end_ids:
            raise ModelFileError("the model has no end token, so that an answer in a given form could not end")
        self._limits = limits or GrammarLimits()
        self._tokens: LLTokenizer | None = None
        self._preparing, self._caching = threading.Lock(), threading.Lock()
        self._cache: OrderedDict[str, GrammarFactory] = OrderedDict()
        self._threads = BoundedThreads(_COMPILES_AT_ONCE, _STACK_BYTES)
        self._outer: str | None = None

    def inside(self, outer: str) -> "GrammarCompiler":
        """The same compiler for forms that are a part of answers: `outer` is a grammar in Lark, from the rule `start`,
        whose rule `answer` is what the `compile_` methods are given. Raises ModelFileError as `prepare` does."""
        self.prepare()  # what it finds is shared
        inner = copy.copy(self)
        inner._outer = outer
        return inner

    def prepare(self) -> None:
        """Read the vocabulary, so that the first request need not wait for it: a quarter of a second for 50,000 tokens.

        Raises ModelFileError when the text of a token cannot be had by itself.
        """
        self._trie()

    def compile_json_object(self, param: str = "response_format") -> GrammarFactory:
        """Any JSON object."""
        return self.compile_json_schema({"type": "object"}, param=param)

    def compile_json_schema(
        self, schema: Any, strict: bool = False, param: str = "response_format.json_schema.schema"
    ) -> GrammarFactory:
        """JSON that a schema describes, given as an object, a boolean or JSON text; properties in the schema's order.

        `strict` closes objects that list properties and do not say whether there may be others.
        """
        checked = self._checked(schema, strict, param)
        try:
            return self._factory(f"start: {_json_term(checked)}", param)
        except RequestError as error:
            if "oneOf" not in str(error):
                raise
            # the only keyword that is supported at times, and without its place in the message
            where, more = checked.one_of[0], "" if len(checked.one_of) == 1 else ", or another oneOf in the schema"
            reason = f"alternatives of oneOf must exclude one another by their types or constants{more}; else use anyOf"
            raise RequestError(f"{where}: {reason}", param=where, code="unsupported_value") from None

    def json_term(self, schema: Any, strict: bool, param: str) -> str:
        """The JSON that a schema describes, as a term of a grammar for `compile_lark`. Raises RequestError."""
        return _json_term(self._checked(schema, strict, param))

    def compile_regex(self, regex: str, param: str = "response_format.regex") -> GrammarFactory:
        """Text that a regular expression matches as a whole; \\d is 0 to 9, lookaround is not supported."""
        from llguidance import regex_to_lark

        return self._factory(f"start: /{regex_to_lark(self._text(regex, param), 'd')}/", param)

    def compile_lark(self, grammar: str, param: str = "response_format.grammar") -> GrammarFactory:
        """Text of a grammar in llguidance's Lark, from the rule `start`, with schemas as `%json {...}`."""
        text = self._text(grammar, param)
        for term in _JSON_TERM.finditer(text):
            try:
                schema, _ = json.JSONDecoder().raw_decode(text, term.end())
            except (ValueError, RecursionError):
                line = text.count("\n", 0, term.start()) + 1
                raise _refused(param, f"what follows %json in line {line} is not valid JSON") from None
            self._checked(schema, False, param)
        return self._factory(text, param)

    def compile_ebnf(self, grammar: str, param: str = "response_format.grammar") -> GrammarFactory:
        """Text of a grammar in llama.cpp's GBNF, from the rule `root`."""
        from llguidance.gbnf_to_lark import gbnf_to_lark

        text = self._text(grammar, param)
        try:
            lark = gbnf_to_lark(text)
        except Exception as error:  # it has no class of its own for most of them
            reason = "nested too deeply" if isinstance(error, RecursionError) else _reason(str(error))
            raise _refused(param, reason) from None
        return self._factory(lark, param)

    def compile_choice(self, choices: Sequence[str], param: str = "response_format.choice") -> GrammarFactory:
        """One of these texts."""
        if not 0 < len(choices) <= self._limits.max_choices:
            raise _refused(param, f"{len(choices)} choices; expected 1 to {self._limits.max_choices}")
        quoted = [json.dumps(self._text(choice, param), ensure_ascii=False) for choice in choices]
        return self._factory(self._text("start: " + " | ".join(quoted), param), param)

    def _checked(self, schema: Any, strict: bool, param: str) -> CheckedSchema:
        limits = SchemaLimits(self._limits.max_bytes, self._limits.max_depth, self._limits.max_nodes)
        return checked_schema(schema, strict, limits, param)

    def _text(self, text: str, param: str) -> str:
        """`text`, when it is valid and not too long."""
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise _refused(param, "it must be valid Unicode") from None
        if size > self._limits.max_bytes:
            raise _refused(param, f"{size} bytes are too long; the limit is {self._limits.max_bytes}")
        return text

    def _factory(self, lark: str, param: str) -> GrammarFactory:
        if self._outer is not None:
            lark = f"answer: %lark {{{lark}\n}}\n{self._outer}"
        if known := self._known(lark):
            return known
        try:
            return self._threads.run(partial(self._compile, lark, self._trie(), param), self._limits.compile_seconds)
        except TooLateError as error:
            raise _refused(param, f"its compilation {error}") from None

    def _known(self, lark: str) -> GrammarFactory | None:
        with self._caching:
            if lark in self._cache:
                self._cache.move_to_end(lark)
            return self._cache.get(lark)

    def _compile(self, lark: str, trie: "LLTokenizer", param: str) -> GrammarFactory:
        from llguidance import LLMatcher

        if known := self._known(lark):  # compiled for another request, while this one waited for a thread
            return known
        matcher = LLMatcher(trie, lark + _OPTIONS, log_level=0, limits=self._parser_limits())
        if not matcher.is_error():
            matcher.compute_bitmask()  # finds grammars without any text, and answers start with it at hand
        if matcher.is_error():
            raise _refused(param, _reason(matcher.get_error()))
        factory = GrammarFactory(matcher, mask_words(self._vocab_size), frozenset(self._end_ids))
        with self._caching:
            self._cache[lark] = factory
            while len(self._cache) > self._limits.max_cached:
                self._cache.popitem(last=False)
        return factory

    def _parser_limits(self) -> "LLParserLimits":
        from llguidance import LLParserLimits

        return LLParserLimits(
            step_max_items=self._limits.parser_items,
            step_lexer_fuel=self._limits.lexer_fuel,
            max_lexer_states=self._limits.lexer_states,
            verbose_errors=False,
        )

    def _trie(self) -> "LLTokenizer":
        with self._preparing:
            if self._tokens is None:
                from llguidance import LLTokenizer

                special = {token for token in self._tokenizer.special_ids if token < self._vocab_size}
                # an end token ends the answer even where its text would fit
                ids = sorted(special | {*self._end_ids})
                tokens = self._tokenizer.vocabulary(self._vocab_size)
                wrapper: Any = _TrieTokens(tokens, ids, self._end_ids[0])
                self._tokens = LLTokenizer(wrapper, eos_token=self._end_ids)
            return self._tokens


def _json_term(checked: CheckedSchema) -> str:
    schema = checked.schema
    if isinstance(schema, dict):
        schema = {**schema, "x-guidance": {"whitespace_pattern": _WHITESPACE}}
    return f"%json {json.dumps(schema, ensure_ascii=False)}"


def _refused(param: str, reason: str) -> RequestError:
    return RequestError(f"{param} cannot be used: {reason}", param=param, code="invalid_value")


def _reason(message: str) -> str:
    """What llguidance says, in a line, without the text of the grammar; nobody has written that of a schema."""
    if message.startswith("NoExtension"):
        return "there is no text that fits it"
    lines = [_SCHEMA_PLACE.sub("", line.strip()) for line in message.splitlines()]
    said = [line for line in lines if line and not line.startswith(("<", "|", "^")) and " | " not in line]
    return " ".join(said)[:300]
