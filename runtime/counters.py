"""How much a scheduler has computed."""

from dataclasses import dataclass, field

from .histogram import Histogram


@dataclass
class Counters:
    """What a scheduler has done since it began."""

    prompt_tokens: int = 0  # cached ones included
    cached_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    queue_seconds: Histogram = field(default_factory=Histogram)  # until answers are first computed
