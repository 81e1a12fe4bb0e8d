"""The form that an answer has to have, and which tokens fit it: found out while the model computes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import MLCError
from .token_mask import new_mask

if TYPE_CHECKING:
    from concurrent.futures import Future

    from .grammar import Grammar
    from .mask_worker import MaskWorker


class AnswerForm:
    """What an answer has to look like: its grammar, and the tokens that this allows next."""

    def __init__(self, grammar: "Grammar", vocab_size: int) -> None:
        self.grammar, self.mask = grammar, new_mask(vocab_size)


class FormMasks:
    """Fills the masks of answers beside a pass for them."""

    def __init__(self) -> None:
        self._worker: MaskWorker | None = None

    def start(self, forms: Sequence[AnswerForm | None]) -> "dict[int, Future[None]]":
        """Begin to find out which tokens may come next, by the index of each that has a form."""
        formed = {index: form for index, form in enumerate(forms) if form is not None}
        if not formed:
            return {}
        if self._worker is None:
            from .mask_worker import MaskWorker

            self._worker = MaskWorker()
        started = self._worker.start([(form.grammar, form.mask) for form in formed.values()])
        return dict(zip(formed, started, strict=True))

    def finish(self, started: "dict[int, Future[None]]") -> dict[int, MLCError]:
        """Wait for the masks. Returns what is wrong with those that took too much."""
        errors = {}
        for index, one in started.items():
            error = one.exception()
            if isinstance(error, MLCError):
                errors[index] = error
            elif error is not None:
                raise error
        return errors
