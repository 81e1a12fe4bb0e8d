"""What requests change about their logits before a token is chosen, done where the logits lie: bias, penalties, tokens
that are forbidden, and the masks of grammars. What is changed, and in which order, is said in runtime/sampler.py.

One array of int32 words tells it for all rows; numbers of float32 are there as their bits:

    words       | row 0 | row 1 | ... | changes of row 0 | its mask | changes of row 1 | ...
    row         | place of its changes | how many | place of its mask | words of its mask |
    change      | token | added | subtracted | divisor |        a divisor of 0 forbids the token
    mask        | tokens 0 .. 31 | 32 .. 63 | ... |             a bit for each, 1 where it is allowed

A row without changes or without a mask has 0 of them. Each token has one change at most, so that threads do not meet.
"""
# mypy: ignore-errors

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ....runtime.artifact import CHANGE_WORDS, CHANGED_ROW_WORDS
from ..builder import kernel
from .launch import launch
from .sample_row import INFINITY, MAGNITUDE
from .sample_workgroup import THREADS, Expr, settled

_TOKENS_EACH = 16  # of a mask, for a thread
_BITS = 32  # of a word
_FORBIDDEN, _NAN = INFINITY - 2**31, 0x7FC00000  # bits of -inf; of a NaN


def adjust_logits(vocab: int) -> tirx.PrimFunc:
    """logits float32 [rows, vocab], changed in place; words int32 [length], as described above."""
    with kernel("adjust_logits") as k:
        rows, length = T.int64(), T.int64()
        logits = k.input("logits", (rows, vocab), "float32")
        words = k.input("words", (length,), "int32")
        tokens = THREADS * _TOKENS_EACH

        def store(row: Expr, token: Expr, bits: Expr) -> None:
            T.buffer_store(logits, T.reinterpret(bits, dtype="float32"), [row, token])

        def bits(row: Expr, token: Expr) -> Expr:
            return settled(T.reinterpret(logits[row, token], dtype="int32"))

        with k.body():
            with launch([rows], THREADS) as ((row,), (thread,)):
                first, count = (settled(words[row * CHANGED_ROW_WORDS + i]) for i in (0, 1))
                with T.serial(0, (count + (THREADS - 1)) // THREADS) as turn:
                    change = settled(turn * THREADS + thread)
                    with T.If(change < count), T.Then():
                        place = settled(first + change * CHANGE_WORDS)
                        token, *others = (settled(words[place + i]) for i in range(CHANGE_WORDS))
                        store(row, token, _changed(bits(row, token), *others))
            with launch([-(-vocab // tokens), rows], THREADS) as ((part, row), (thread,)):
                first, count = (settled(words[row * CHANGED_ROW_WORDS + i]) for i in (2, 3))
                for i in range(_TOKENS_EACH):
                    token = settled(part * tokens + i * THREADS + thread)
                    is_here = tirx.all(token < vocab, token // _BITS < count)
                    is_allowed = (words[first + token // _BITS] >> (token % _BITS)) & 1
                    with T.If(is_here), T.Then(), T.If(is_allowed == 0), T.Then():
                        store(row, token, _forbidden(bits(row, token)))
    return k.function


def _changed(bits: Expr, added: Expr, subtracted: Expr, divisor: Expr) -> Expr:
    """The bits of a logit after its change, which are all given as bits: infinities and NaN never meet arithmetic,
    which devices may do as if there were none."""
    added_number, subtracted_number, by = (T.reinterpret(one, dtype="float32") for one in (added, subtracted, divisor))
    is_finite = (bits & MAGNITUDE) < INFINITY
    is_forbidden = added == T.int32(_FORBIDDEN)
    number = T.reinterpret(tirx.Select(is_finite, bits, T.int32(0)), dtype="float32")
    moved = settled(number + tirx.Select(is_forbidden, T.float32(0), added_number))
    moved = settled(moved - subtracted_number)
    by = settled(tirx.Select(divisor == 0, T.float32(1), by))
    scaled = settled(tirx.Select(moved < T.float32(0), moved * by, moved / by))
    scaled = settled(T.reinterpret(tirx.Select(by == T.float32(1), moved, scaled), dtype="int32"))
    usual = settled(tirx.Select(is_finite, scaled, bits))
    usual = settled(tirx.Select(is_forbidden, _forbidden(bits), usual))
    return settled(tirx.Select(divisor == 0, T.int32(_FORBIDDEN), usual))


def _forbidden(bits: Expr) -> Expr:
    """The bits of logit + -inf: -inf, and NaN where the logit was NaN or +inf, which is found later."""
    is_unusable = tirx.all((bits & MAGNITUDE) >= INFINITY, bits != T.int32(_FORBIDDEN))
    return settled(tirx.Select(is_unusable, T.int32(_NAN), T.int32(_FORBIDDEN)))
