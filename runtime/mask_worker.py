"""Masks are computed beside the forward pass."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from .grammar import Grammar
from .token_mask import TokenMask


class MaskWorker:
    """Fills masks in threads of its own, while the caller runs the model."""

    def __init__(self, threads: int = 1) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="masks")

    def start(self, work: Sequence[tuple[Grammar, TokenMask]]) -> "list[Future[None]]":
        """Begin to fill each grammar's mask; neither may be touched until `finish` has returned."""
        return [self._pool.submit(grammar.fill_mask, mask) for grammar, mask in work]

    @staticmethod
    def finish(started: "Sequence[Future[None]]") -> list[BaseException | None]:
        """Wait for what was started. For each mask None, or the error of its `fill_mask`."""
        wait(started)
        return [one.exception() for one in started]

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()
