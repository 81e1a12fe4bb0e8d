# mypy: ignore-errors
"""Decode attention on the CPU: one query of each sequence over its pages; and the merging of two attentions.

One sequence must occupy every core, so its keys are split: each work item attends to a range of key blocks for the
query heads of one key head and leaves an unnormalized output with its maximum and weight sum; these are combined at
the end.
"""

from tvm.script import tirx as T

from .flash import (
    KEY_BLOCK,
    NO_SCORE,
    HeadShape,
    RowState,
    add_values,
    score_by_rows,
    softmax_row,
    stage_rotated_rows,
)
from .kv_pages import PAGE_SIZE, PagedKeys, declare_length_info
from .queries import Queries, either, load_queries
from .rope import Rotation
from .vector import add, constant, copy, exp2, load, log2, prefetch, reduce, settled, span, splat, store

WORK_ITEMS = 32  # as many as keep the cores of a large machine busy; more would only add to the combining


def _plan(shape: HeadShape, paged: PagedKeys, batch_size):
    """Key blocks of a work item and work items of a head: the longest sequence is cut into equal parts."""
    longest = T.alloc_buffer((1,), "int32")
    T.buffer_store(longest, T.int32(1), [0])
    with T.serial(batch_size) as b:
        T.buffer_store(longest, T.max(longest[0], paged.length(b)), [0])
    blocks = T.bind(T.ceildiv(longest[0], KEY_BLOCK))
    wanted = T.max(WORK_ITEMS // (batch_size * shape.num_kv_heads), 1)
    part = settled(T.ceildiv(blocks, wanted))
    return part, settled(T.ceildiv(blocks, part))


def _attend_part(shape, rotation, queries: Queries, paged: PagedKeys, offsets, sequence, head, begin, end, partial):
    """Attention of one token to the keys begin <= key < end, for the query heads of one key head.

    `partial` is the part's output `[group, head_dim]`, maximum and weight sum `[group]` as stores take them.
    """
    group, unit, dim = shape.group, shape.vectors, shape.head_dim
    query_rows, scores = T.alloc_buffer((group, dim), "float32"), T.alloc_buffer((group, KEY_BLOCK), "float32")
    state = RowState.allocate(shape, group)
    state.clear(shape, group)
    load_queries(shape, rotation, queries, sequence, 1, head, query_rows)
    with T.serial(T.ceildiv(T.max(end - begin, 0), KEY_BLOCK)) as block:
        start = T.bind(begin + block * KEY_BLOCK)
        present = settled(T.min(end - start, KEY_BLOCK))
        # Memory is slower than this code and has to be asked in advance, while keys are read: for the values, and for
        # the keys that come next. These are the next block's, or this part's for the next head.
        more = start + KEY_BLOCK < end
        next_start = settled(T.Select(more, start + KEY_BLOCK, begin))
        next_head = settled(T.Select(more, head, T.min(head + 1, shape.num_kv_heads - 1)))

        def index(j, which, start=start):
            return paged.index(sequence, start + j, which, head)

        def key(j, start=start, present=present):
            j = settled(T.min(j, present - 1))  # scores of keys past the end are masked later
            ahead = settled(T.min(next_start + j, end - 1))
            prefetch(paged.pages, index(j, 1), dim)
            prefetch(paged.pages, paged.index(sequence, ahead, 0, next_head), dim)
            return paged.pages, index(j, 0)

        def value(k, d):
            return load(unit, paged.pages, *index(k, 1)[:-1], d)

        def rotated(start=start, present=present):
            rows = T.alloc_buffer((KEY_BLOCK, dim), "float32")
            stage_rotated_rows(
                rotation,
                unit,
                present,
                lambda j: (paged.pages, index(j, 0)),
                lambda j: offsets[sequence] + start + j,
                rows,
            )
            score_by_rows(shape, present, query_rows, lambda j: (rows, (j, 0)), scores)

        either(
            rotation,
            queries.rotary_mode,
            rotated,
            lambda present=present: score_by_rows(shape, present, query_rows, key, scores),
        )
        with T.serial(group) as row:
            softmax_row(shape, scores, row, state, row, 0, present)
        size = -(-group // -(-group // shape.tile_rows))  # rows of a register tile, about the same in each
        with T.serial(group // size) as tile:
            add_values(shape, size, present, scores, tile * size, state, tile * size, value)
        if group % size:
            rest = group - group % size
            add_values(shape, group % size, present, scores, rest, state, rest, value)
    outputs, maxima, totals, item = partial
    with T.serial(group) as row:
        copy(unit, outputs, (item, row, 0), state.output, (row, 0), dim)
        T.buffer_store(maxima, state.maximum[row], [item, row])
        T.buffer_store(totals, reduce(T.bind(state.total[row, span(0, unit.lanes)]), unit.lanes, add), [item, row])


def _combine(shape, sequence, parts, outputs, maxima, totals, output, lse):
    """Output and log-sum-exp of one sequence from its parts. As in the stock kernels a sequence without keys counts one
    key of score NO_SCORE."""
    group, unit, dim = shape.group, shape.vectors, shape.head_dim
    with T.serial(shape.num_kv_heads) as head, T.serial(group) as g:
        state, row = T.alloc_buffer((2,), "float32"), T.alloc_buffer((dim,), "float32")  # state: maximum, weight sum

        def item(part, head=head):
            return (sequence * parts + part) * shape.num_kv_heads + head

        T.buffer_store(state, T.float32(NO_SCORE), [0])
        with T.serial(parts) as part:
            T.buffer_store(state, T.max(state[0], maxima[item(part), g]), [0])
        T.buffer_store(state, exp2(T.float32(NO_SCORE) - state[0], 1), [1])
        for d in range(0, dim, unit.lanes):
            T.buffer_store(row, constant(0.0, unit.lanes), [span(d, unit.lanes)])
        with T.serial(parts) as part:
            weight = exp2(maxima[item(part), g] - state[0], 1)
            T.buffer_store(state, state[1] + weight * totals[item(part), g], [1])
            for d in range(0, dim, unit.lanes):
                place = span(d, unit.lanes)
                share = splat(weight, unit.lanes) * outputs[item(part), g, place]
                T.buffer_store(row, row[place] + share, [place])
        inverse = T.bind(splat(T.float32(1) / state[1], unit.lanes))
        for d in range(0, dim, unit.lanes):
            store(unit, output, row[span(d, unit.lanes)] * inverse, sequence, head * group + g, d)
        T.buffer_store(lse, state[0] + log2(state[1]), [sequence, head * group + g])


def decode_paged(shape: HeadShape, rotation: Rotation | None = None, sliding: bool = False):
    """PrimFunc: attention of the query of each sequence, q `[b, q heads, d]`, to the sequence's pages.

    With `sliding` the `length_info` is `[3, b]`: the pages hold a sink and a window that starts inside a page.
    """
    heads, kv_heads, dim, group = shape.num_q_heads, shape.num_kv_heads, shape.head_dim, shape.group
    dtype = shape.dtype

    def work(item, part, parts, queries, paged, offsets, outputs, maxima, totals):
        # heads are innermost: a thread's contiguous range of items reads whole pages
        head, sequence = settled(T.floormod(item, kv_heads)), settled(item // kv_heads // parts)
        begin = settled(T.floormod(item // kv_heads, parts) * part * KEY_BLOCK)
        end = settled(T.min(paged.length(sequence), begin + part * KEY_BLOCK))
        partial = (outputs, maxima, totals, item)
        _attend_part(shape, rotation, queries, paged, offsets, sequence, head, begin, end, partial)

    def body(queries, paged, offsets, batch_size):
        part, parts = _plan(shape, paged, batch_size)
        items = T.bind(batch_size * kv_heads * parts)
        room = T.max(batch_size * kv_heads, WORK_ITEMS)  # at least `items`; allocations move above bound variables
        outputs = T.alloc_buffer((room, group, dim), "float32")
        maxima, totals = T.alloc_buffer((room, group), "float32"), T.alloc_buffer((room, group), "float32")
        with T.parallel(items) as item:
            work(item, part, parts, queries, paged, offsets, outputs, maxima, totals)
        with T.If(batch_size < 4):
            with T.Then(), T.serial(batch_size) as sequence:
                _combine(shape, sequence, parts, outputs, maxima, totals, queries.output, queries.lse)
            with T.Else(), T.parallel(batch_size) as sequence:
                _combine(shape, sequence, parts, outputs, maxima, totals, queries.output, queries.lse)

    @T.prim_func(s_tir=True)
    def batch_decode_paged_kv(
        q_handle: T.handle,
        pages_handle: T.handle,
        page_indptr_handle: T.handle,
        page_values_handle: T.handle,
        length_info_handle: T.handle,
        offsets_handle: T.handle,
        positions_handle: T.handle,
        output_handle: T.handle,
        lse_handle: T.handle,
        rotary_mode: T.int32,
        rope_scale: T.float32,
        rope_theta: T.float32,
        sm_scale: T.float32,
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        batch_size = T.int32()
        used_pages = T.int32()
        num_pages = T.int64()
        page_indptr_offset = T.int32()
        page_values_offset = T.int32()
        length_info_offset = T.int32()
        positions_offset = T.int32()
        offsets_offset = T.int32()
        q = T.match_buffer(q_handle, (batch_size, heads, dim), dtype)
        pages = T.match_buffer(pages_handle, (num_pages, 2, kv_heads, PAGE_SIZE, dim), dtype)
        page_indptr = T.match_buffer(page_indptr_handle, (batch_size + 1,), "int32", elem_offset=page_indptr_offset)
        page_values = T.match_buffer(page_values_handle, (used_pages,), "int32", elem_offset=page_values_offset)
        length_info = declare_length_info(length_info_handle, batch_size, sliding, length_info_offset)
        offsets = T.match_buffer(offsets_handle, (batch_size,), "int32", elem_offset=offsets_offset)
        positions = T.match_buffer(positions_handle, (batch_size,), "int32", elem_offset=positions_offset)
        output = T.match_buffer(output_handle, (batch_size, heads, dim), dtype)
        lse = T.match_buffer(lse_handle, (batch_size, heads), "float32")
        with T.sblock("root"):
            queries = T.meta_var(Queries(q, positions, output, lse, T.int32(0), rotary_mode, sm_scale))
            body(queries, PagedKeys(pages, page_indptr, page_values, length_info, sliding), offsets, batch_size)

    return batch_decode_paged_kv


def merge_state_inplace(shape: HeadShape):
    """PrimFunc(v [n, q heads, d], lse [n, q heads], other v, other lse): the first two become attention over the keys
    of both."""
    heads, dim, dtype, unit = shape.num_q_heads, shape.head_dim, shape.dtype, shape.vectors

    def token(t, v, lse, v_other, lse_other):
        with T.serial(heads) as h:
            peak = T.bind(T.max(lse[t, h], lse_other[t, h]))
            own, other = exp2(lse[t, h] - peak, 1), exp2(lse_other[t, h] - peak, 1)
            total = T.bind(own + other)
            own, other = T.bind(splat(own / total, unit.lanes)), T.bind(splat(other / total, unit.lanes))
            for d in range(0, dim, unit.lanes):
                store(unit, v, load(unit, v, t, h, d) * own + load(unit, v_other, t, h, d) * other, t, h, d)
            T.buffer_store(lse, peak + log2(total), [t, h])

    @T.prim_func(s_tir=True)
    def merge_state_inplace(
        v_handle: T.handle, lse_handle: T.handle, v_other_handle: T.handle, lse_other_handle: T.handle
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        n = T.int32()
        v = T.match_buffer(v_handle, (n, heads, dim), dtype)
        lse = T.match_buffer(lse_handle, (n, heads), "float32")
        v_other = T.match_buffer(v_other_handle, (n, heads, dim), dtype)
        lse_other = T.match_buffer(lse_other_handle, (n, heads), "float32")
        with T.sblock("root"):
            if n < 16:
                for t in T.serial(n):
                    token(t, v, lse, v_other, lse_other)
            else:
                for t in T.parallel(n):
                    token(t, v, lse, v_other, lse_other)

    return merge_state_inplace
