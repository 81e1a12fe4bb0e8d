"""`--overrides k=v;k=v`: parsed, bounded, applied; what cannot be honoured is refused."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..runtime.errors import UsageError
from .target.target import KV_CACHE_DTYPES

Overrides = dict[str, int | str]


@dataclass(frozen=True)
class _Range:
    """The integers that a key accepts: low..high, and -1 for "off" where the key can be turned off."""

    low: int
    high: int
    off: bool = False

    def __contains__(self, value: int) -> bool:
        return self.low <= value <= self.high or (self.off and value == -1)

    def __str__(self) -> str:
        wanted = str(self.low) if self.low == self.high else f"{self.low}..{self.high}"
        return f"{wanted} or -1" if self.off else wanted


class _Choice(tuple[str, ...]):
    """The words that a key accepts."""

    def __str__(self) -> str:
        return " or ".join(self)


_KEYS: dict[str, _Range | _Choice] = {
    "context_window_size": _Range(1, 1 << 24),
    "sliding_window_size": _Range(1, 1 << 24, off=True),
    "prefill_chunk_size": _Range(1, 1 << 24),
    "attention_sink_size": _Range(0, 1 << 24, off=True),
    "max_batch_size": _Range(1, 1 << 16),
    "kv_cache_dtype": _Choice(KV_CACHE_DTYPES),
    "tensor_parallel_shards": _Range(1, 1),
    "pipeline_parallel_stages": _Range(1, 1),
    "disaggregation": _Range(0, 0),
}
# Keys of upstream that this version accepts only in their plain meaning, and the reason it gives.
_SINGLE = {
    "tensor_parallel_shards": "the model runs on one device",
    "pipeline_parallel_stages": "the model runs on one device",
    "disaggregation": "prefill and decode run in one process",
}


def pairs(text: str, flag: str, known: Mapping[str, object]) -> list[tuple[str, str]]:
    """Split `k=v;k=v`. Raises UsageError for a missing `=`, an unknown key or a key given twice."""
    found: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in text.split(";"))):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise UsageError(f"{flag} {item!r} has no value: expected key=value;key=value")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UsageError(f"{flag} {key!r:.80} is unknown: {hint}known are {', '.join(known)}")
        if key in found:
            raise UsageError(f"{flag} gives {key} twice: {found[key]} and {value}")
        found[key] = value
    return list(found.items())


def parse_overrides(text: str) -> Overrides:
    """Parse `--overrides`. Raises UsageError naming the key, the value seen and the values wanted."""
    overrides: Overrides = {}
    for key, value in pairs(text, "--overrides", _KEYS):
        wanted = _KEYS[key]
        overrides[key] = _integer(key, value, wanted) if isinstance(wanted, _Range) else _word(key, value, wanted)
    return overrides


def _integer(key: str, value: str, wanted: _Range) -> int:
    try:
        number = int(value) if value.lower() not in ("true", "false") else int(value.lower() == "true")
    except ValueError:
        raise UsageError(f"--overrides {key}={value!r:.60} is not an integer: expected {wanted}") from None
    if number not in wanted:
        why = f" ({_SINGLE[key]} in this version)" if key in _SINGLE else ""
        raise UsageError(f"--overrides {key}={value} is out of range: expected {wanted}{why}")
    return number


def _word(key: str, value: str, wanted: _Choice) -> str:
    if value not in wanted:
        raise UsageError(f"--overrides {key}={value!r:.60} is unknown: expected {wanted}")
    return value


def trained_context(config: Mapping[str, Any]) -> int | None:
    """The longest context a model's rotary embedding is made for: its positions, stretched by rope scaling."""
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int):
        return None
    scaling = config.get("rope_scaling") or {}
    factor, original = scaling.get("factor", 1.0), scaling.get("original_max_position_embeddings", positions)
    return max(positions, int(factor * original))


def check_applied(overrides: Mapping[str, int | str], config: Mapping[str, Any]) -> None:
    """Compare what was asked with `config`, the architecture's config read with the overrides in it.

    Raises UsageError where the model cannot take a value, so that no override is ever dropped in silence.
    """
    limit = trained_context(config)
    for key, value in overrides.items():
        if key == "context_window_size" and limit is not None and int(value) > limit:
            raise UsageError(f"--overrides {key}={value} is out of range: this model has positions for 1..{limit}")
        if key == "prefill_chunk_size" and int(value) > config["context_window_size"]:
            raise UsageError(f"--overrides {key}={value} is out of range: expected 1..{config['context_window_size']}, "
                             "the context window")  # fmt: skip
        if config.get(key, value) != value:
            raise UsageError(f"--overrides {key}={value}: this model has {key} = {config[key]} and cannot change it")
