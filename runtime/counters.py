"""How much a scheduler has computed."""

from dataclasses import dataclass


@dataclass
class Counters:
    """What a scheduler has done since it began."""

    prompt_tokens: int = 0  # cached ones included
    cached_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
