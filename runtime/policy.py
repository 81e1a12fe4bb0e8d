"""What may happen unasked, by MLC-LLM's environment variables: downloads, compiling a library, keeping weights."""

import os
from typing import Literal, cast, get_args

from .errors import UsageError

Policy = Literal["ON", "OFF", "REDO", "READONLY"]


def download_policy() -> Policy:
    """MLC_DOWNLOAD_CACHE_POLICY, of `HF://` addresses and built-in names. Raises UsageError for an unknown value.

    ON: what is in the cache is used, what is not is downloaded. READONLY: only what is in the cache. REDO: downloaded
    again. OFF: addresses are refused.
    """
    return _policy("MLC_DOWNLOAD_CACHE_POLICY")


def jit_policy() -> Policy:
    """MLC_JIT_POLICY, of compiling on the spot. Raises UsageError for an unknown value.

    ON: what is missing or does not fit is compiled. REDO: libraries are compiled again. OFF, READONLY: never compiled.
    """
    return _policy("MLC_JIT_POLICY")


def derived_weights_policy() -> Policy:
    """MLC_DERIVED_WEIGHTS_POLICY, of keeping weights in a library's layout. Raises UsageError for an unknown value.

    ON: they are read where they were kept, and kept. READONLY: only read. REDO: made and kept again. OFF: neither.
    """
    return _policy("MLC_DERIVED_WEIGHTS_POLICY")


def _policy(variable: str) -> Policy:
    value = os.environ.get(variable) or "ON"
    if value not in get_args(Policy):
        raise UsageError(f"{variable} is {value!r:.100}: expected ON, OFF, REDO or READONLY")
    return cast(Policy, value)
