"""Small device kernels that use what large ones are made of: shared memory, float16, numbers, shuffles."""

from typing import Any

import tvm
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from mlc_llm.compiler.kernels.builder import kernel
from mlc_llm.compiler.kernels.gpu.launch import barrier, launch, shared

THREADS = 128


def turned_rows() -> Any:
    """x [n, 128] float16 times a number, each row backwards: y [n, 128] float32."""
    with kernel("turned_rows") as k:
        rows = tirx.Var("n", "int64")
        x = k.input("x", (rows, THREADS), "float16")
        y = k.input("y", (rows, THREADS), "float32")
        factor = k.scalar("factor", "float32")
        with k.body(), launch([rows], THREADS) as ((row,), (thread,)):
            staged = shared([THREADS])
            T.buffer_store(staged, T.cast(x[row, thread], "float32") * factor, [thread])
            barrier()
            T.buffer_store(y, staged[THREADS - 1 - thread], [row, thread])
    return k.function


def shuffled_sums(warp: int) -> Any:
    """x [128] float32: y [128], each the sum of exp2 over the `warp` lanes that exchange values."""
    with kernel("shuffled_sums") as k:
        x = k.input("x", (THREADS,), "float32")
        y = k.input("y", (THREADS,), "float32")
        with k.body(), launch([1], THREADS) as (_, (thread,)):
            total = T.alloc_buffer((1,), "float32", scope="local")
            T.buffer_store(total, T.exp2(x[thread]), [0])
            mask = T.tvm_warp_activemask()
            step = warp // 2
            while step:
                other = T.tvm_warp_shuffle_down(mask, total[0], step, warp, warp)
                T.buffer_store(total, total[0] + other, [0])
                step //= 2
            T.buffer_store(y, T.tvm_warp_shuffle(mask, total[0], 0, warp, warp), [thread])
    return k.function


def small_module(warp: int = 32) -> tvm.IRModule:
    """Both kernels, by their names."""
    functions = {"turned_rows": turned_rows(), "shuffled_sums": shuffled_sums(warp)}
    return tvm.IRModule({name: function.with_attr("global_symbol", name) for name, function in functions.items()})
