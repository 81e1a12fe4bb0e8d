"""Choosing tokens on a device: the most likely one, or a draw from the softmax at a temperature, cut down by top-k,
top-p and min-p. The same as cpu/sample_token.py says, in float32, by three launches:

    reduce      a workgroup for each 1024 logits: of each block of 64 the largest, and its sum of weights
    collect     a workgroup for each row: the most likely token; or, without cuts, the block and in it the token that
                the draw covers; or the tokens that the cuts can keep, in the order of their ids
    choose      a workgroup for each row with cuts: of these tokens the ones that stay, and the draw

A weight is 2^((logit - largest) * scale), at most 1. Each thread of a row's workgroup has blocks, later tokens, that
follow one another, so that running sums over threads are running sums over tokens.

Logits are compared as integers, which no compiler rearranges: `key` is ordered as the numbers are, NaN above all.
"""
# mypy: ignore-errors

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ....runtime.artifact import SAMPLING_BLOCK
from ..builder import kernel
from ..operations import SETTINGS
from .launch import launch
from .sample_collect import BLOCKS_AT_ONCE, collect, reduce_blocks
from .sample_cut import choose
from .sample_row import Row
from .sample_workgroup import THREADS, Expr, Workgroup, settled

FOUND = 3  # what `collect` leaves for `choose`: number of tokens, key of the largest logit, bits of the sum of weights


def sample_token(vocab: int) -> tirx.PrimFunc:
    """One token for each of some rows: the most likely one, or one drawn.

    logits float32 [rows, vocab]; settings float32 [rows, 6]: see `SETTINGS`; uniforms float32 [rows], in [0, 1]; the
    result is tokens int32 [rows]; scratch: keys int32, sums float32 [rows, blocks], ids int32 [rows, vocab], found
    int32 [rows, 3]. What settings mean, and what tokens below 0, is said in cpu/sample_token.py.
    """
    blocks = -(-vocab // SAMPLING_BLOCK)
    with kernel("sample_token") as k:
        rows = T.int64()
        names = {"logits": ((rows, vocab), "float32"), "settings": ((rows, len(SETTINGS)), "float32"),
                 "uniforms": ((rows,), "float32"), "tokens": ((rows,), "int32"), "keys": ((rows, blocks), "int32"),
                 "sums": ((rows, blocks), "float32"), "ids": ((rows, vocab), "int32"),
                 "found": ((rows, FOUND), "int32")}  # fmt: skip
        arrays = {name: k.input(name, shape, dtype) for name, (shape, dtype) in names.items()}

        def row(index: Expr) -> Row:
            of_row = {name: _row(array, index) for name, array in arrays.items()}
            settings = of_row.pop("settings")
            given = {name: settled(settings[i]) for i, name in enumerate(SETTINGS)}
            for name in ("top_k", "count"):
                given[name] = settled(T.cast(given[name], "int32"))
            return Row(given, **of_row)

        with k.body():
            with launch([-(-blocks // BLOCKS_AT_ONCE), rows], THREADS) as ((chunk, index), (thread,)):
                reduce_blocks(row(index), chunk, thread)
            with launch([rows], THREADS) as ((index,), (thread,)):
                collect(row(index), Workgroup(thread))
            with launch([rows], THREADS) as ((index,), (thread,)):
                choose(row(index), Workgroup(thread))
    return k.function


def _row(array, index: Expr):
    """The elements of a row, found with 32 bits."""
    length = array.shape[1] if len(array.shape) == 2 else 1
    return T.decl_buffer((length,), array.dtype, data=array.data, elem_offset=index * length)
