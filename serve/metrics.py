"""What an engine is doing, in numbers."""

from dataclasses import dataclass, field

from ..runtime.generation import Generator
from ..runtime.histogram import Histogram


@dataclass(frozen=True)
class EngineMetrics:
    """Figures of an engine at one moment; tokens and preemptions count from its start.

    - running, waiting: answers that the model works on, and those that wait for their turn.
    - kv_pages_used, kv_pages_cached, kv_pages_total: pages of the KV cache that running answers need, those kept for
      texts that begin alike, and all. A page that running answers share with kept texts counts as used.
    - prompt_tokens, cached_tokens: of all requests, and how many of them were not computed again.
    - generated_tokens: of all answers. preemptions: answers that had to make room and were resumed.
    - guessed_tokens, right_tokens: of `speculative_mode`, those that the model has checked and those that it kept.
    - queue_seconds: how long answers waited until they were first computed.
    """

    running: int
    waiting: int
    kv_pages_used: int
    kv_pages_cached: int
    kv_pages_total: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    preemptions: int
    guessed_tokens: int = 0
    right_tokens: int = 0
    queue_seconds: Histogram = field(default_factory=Histogram)


def metrics_of(generator: Generator) -> EngineMetrics:
    """The figures of a generator."""
    scheduler, pages = generator.scheduler, generator.model.pages
    used, counters = scheduler.pages_in_use(), scheduler.counters
    return EngineMetrics(
        running=scheduler.num_running,
        waiting=scheduler.num_waiting,
        kv_pages_used=used,
        kv_pages_cached=max(0, pages.num_pages - pages.free_pages() - used),
        kv_pages_total=pages.num_pages,
        prompt_tokens=counters.prompt_tokens,
        cached_tokens=counters.cached_tokens,
        generated_tokens=counters.generated_tokens,
        preemptions=counters.preemptions,
        guessed_tokens=scheduler.speculation.guessed_tokens,
        right_tokens=scheduler.speculation.right_tokens,
        queue_seconds=counters.queue_seconds.copy(),
    )
