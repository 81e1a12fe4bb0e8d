"""The order of keys and values in the sheets of kernels, as compiler/kernels/*/kv_pages.py draw it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
PAGE, SHEET_PAGES = 16, 4
_WORD = 4


class Layout(NamedTuple):
    """How kernels keep pages `[pages, layers, 2, heads, PAGE, head_dim]` in sheets."""

    stored: Callable[[Array], Array]
    pages: Callable[[Array, int], Array]  # the inverse


def stored(pages: Array) -> Array:
    """`[pages, layers, 2, heads, PAGE, head_dim]`, one row for each key and value, as CPU kernels keep it."""
    keys, values = pages[:, :, 0], pages[:, :, 1]
    *outer, dim = keys.shape
    if pages.dtype == np.int8:
        keys = (keys ^ -128).reshape(*outer, dim // _WORD, _WORD).swapaxes(-3, -2)
        values = values.reshape(*outer[:-1], PAGE // _WORD, _WORD, dim).swapaxes(-2, -1)
    else:
        keys = keys.swapaxes(-2, -1)
    shape = pages[:, :, 0].shape
    return in_sheets(np.stack([keys.reshape(shape), values.reshape(shape)], 2))


def pages(sheets: Array, count: int) -> Array:
    """The inverse of `stored`."""
    found = out_of_sheets(sheets, count)
    keys, values = found[:, :, 0], found[:, :, 1]
    *outer, dim = keys.shape
    if sheets.dtype == np.int8:
        keys = keys.reshape(*outer[:-1], dim // _WORD, PAGE, _WORD).swapaxes(-3, -2) ^ -128
        values = values.reshape(*outer[:-1], PAGE // _WORD, dim, _WORD).swapaxes(-2, -1)
    else:
        keys = keys.reshape(*outer[:-1], dim, PAGE).swapaxes(-2, -1)
    shape = found[:, :, 0].shape
    return np.stack([keys.reshape(shape), values.reshape(shape)], 2)


def in_sheets(pages: Array) -> Array:
    """`[pages, layers, 2, heads, PAGE, ..]` -> `[sheets, layers, 2, heads, SHEET_PAGES * PAGE, ..]`."""
    missing = -len(pages) % SHEET_PAGES
    padded = np.concatenate([pages, np.zeros((missing, *pages.shape[1:]), pages.dtype)])
    apart = padded.reshape(-1, SHEET_PAGES, *pages.shape[1:])
    together = np.moveaxis(apart, 1, 4)
    return np.ascontiguousarray(together.reshape(*together.shape[:4], SHEET_PAGES * PAGE, *pages.shape[5:]))


def out_of_sheets(sheets: Array, count: int) -> Array:
    """The inverse of `in_sheets`, for `count` pages."""
    apart = sheets.reshape(*sheets.shape[:4], SHEET_PAGES, PAGE, *sheets.shape[5:])
    return np.moveaxis(apart, 4, 1).reshape(-1, *sheets.shape[1:4], PAGE, *sheets.shape[5:])[:count]


CPU = Layout(stored, pages)
DEVICE = Layout(in_sheets, out_of_sheets)
