"""The items of a response's output, while they are made."""

import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator

from ..protocol import TokenLogprob
from .protocol import (
    ArgumentsDelta,
    ArgumentsDone,
    ItemEvent,
    ItemStatus,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    PartEvent,
    ReasoningDelta,
    ReasoningDone,
    ReasoningText,
    ResponseEvent,
    TextDelta,
    TextDone,
)


class ItemInProgress(ABC):
    """An item that begins, gets more, and ends."""

    prefix: str  # of ids

    def __init__(self, index: int) -> None:
        """`index` is its place in the output."""
        self.id, self.index = f"{self.prefix}_{uuid.uuid4().hex}", index
        self.status: ItemStatus = "in_progress"
        self._parts: list[str] = []

    @abstractmethod
    def output(self) -> OutputItem:
        """The item as it is now."""

    def begin(self) -> Iterator[ResponseEvent]:
        """The item is there."""
        yield ItemEvent(type="response.output_item.added", output_index=self.index, item=self.output())

    def end(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        """No more comes."""
        self.status = status
        yield ItemEvent(type="response.output_item.done", output_index=self.index, item=self.output())

    @property
    def text(self) -> str:
        """All that came so far."""
        return "".join(self._parts)


class MessageInProgress(ItemInProgress):
    """What the model says."""

    prefix = "msg"

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._logprobs: list[TokenLogprob] = []
        self._has_part = False

    def output(self) -> OutputMessage:
        content = [OutputText(text=self.text, logprobs=self._logprobs)] if self._has_part else []
        return OutputMessage(id=self.id, status=self.status, content=content)

    def begin(self) -> Iterator[ResponseEvent]:
        yield from super().begin()
        self._has_part = True
        yield PartEvent(type="response.content_part.added", item_id=self.id, output_index=self.index, part=OutputText())

    def more(self, text: str, logprobs: list[TokenLogprob]) -> Iterator[ResponseEvent]:
        """More of it, with the log-probabilities of its tokens where they were asked for."""
        self._parts.append(text)
        self._logprobs.extend(logprobs)
        yield TextDelta(item_id=self.id, output_index=self.index, delta=text, logprobs=logprobs)

    def end(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        part = OutputText(text=self.text, logprobs=self._logprobs)
        yield TextDone(item_id=self.id, output_index=self.index, text=part.text, logprobs=part.logprobs)
        yield PartEvent(type="response.content_part.done", item_id=self.id, output_index=self.index, part=part)
        yield from super().end(status)


class ReasoningInProgress(ItemInProgress):
    """What the model thinks."""

    prefix = "rs"

    def output(self) -> OutputReasoning:
        content = [ReasoningText(text=self.text)] if self._parts else []
        return OutputReasoning(id=self.id, status=self.status, content=content)

    def begin(self) -> Iterator[ResponseEvent]:
        yield from super().begin()
        yield PartEvent(
            type="response.content_part.added", item_id=self.id, output_index=self.index, part=ReasoningText()
        )

    def more(self, text: str) -> Iterator[ResponseEvent]:
        """More of it."""
        self._parts.append(text)
        yield ReasoningDelta(item_id=self.id, output_index=self.index, delta=text)

    def end(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        part = ReasoningText(text=self.text)
        yield ReasoningDone(item_id=self.id, output_index=self.index, text=part.text)
        yield PartEvent(type="response.content_part.done", item_id=self.id, output_index=self.index, part=part)
        yield from super().end(status)


class CallInProgress(ItemInProgress):
    """A call that the model makes."""

    prefix = "fc"

    def __init__(self, index: int, call_id: str, name: str) -> None:
        super().__init__(index)
        self._call_id, self._name = call_id, name

    def output(self) -> OutputCall:
        return OutputCall(id=self.id, status=self.status, call_id=self._call_id, name=self._name, arguments=self.text)

    def more(self, text: str) -> Iterator[ResponseEvent]:
        """More of its arguments."""
        self._parts.append(text)
        yield ArgumentsDelta(item_id=self.id, output_index=self.index, delta=text)

    def end(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        yield ArgumentsDone(item_id=self.id, output_index=self.index, name=self._name, arguments=self.text)
        yield from super().end(status)
