"""The interactive chat: a line editor, streamed answers, and lines that say what happened."""

import os
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from types import FrameType
from typing import TextIO

from ..runtime.errors import MLCError
from .commands import run_command
from .line_editor import unquoted
from .session import ChatSession
from .text import printable


class Interrupts:
    """Ctrl-C while a chat runs: the first one asks the answer to stop, a second one raises KeyboardInterrupt.

    The first must not raise, for it could strike in the middle of the engine's bookkeeping. Outside an answer
    Ctrl-C does nothing here; at the prompt the terminal is raw, and the line editor sees it as a key.
    """

    def __init__(self) -> None:
        self.answering = False
        self.requested = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Take SIGINT over, and give it back at the end."""
        previous = signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    @contextmanager
    def answer(self) -> Iterator[None]:
        """While an answer streams."""
        self.answering, self.requested = True, False
        try:
            yield
        finally:
            self.answering = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.answering and self.requested:
            raise KeyboardInterrupt
        self.requested = True


class Repl:
    """Reads lines, runs commands, streams answers to `out`, until the user leaves."""

    def __init__(self, session: ChatSession, read_line: Callable[[], str], out: TextIO) -> None:
        self.session = session
        self.read_line = read_line
        self.out = out
        self.interrupts = Interrupts()
        self.styled = out.isatty() and not os.environ.get("NO_COLOR")

    def run(self) -> None:
        """Converse until /exit or Ctrl-D (EOFError of `read_line`)."""
        session = self.session
        self._dim(f"{session.model} on {session.device}, context {session.context_size} tokens; "
                  "/help lists the commands, Ctrl-D leaves")  # fmt: skip
        with self.interrupts.installed():
            while self._turn():
                pass

    def _turn(self) -> bool:
        """Read one input and act on it. False: leave."""
        try:
            line = self.read_line()
        except KeyboardInterrupt:  # at the prompt it only throws the line away
            self._dim("(Ctrl-D or /exit leaves)")
            return True
        except EOFError:
            return False
        try:
            return self._handle(line)
        except MLCError as error:
            self._line(printable(f"Error: {error}"))
            return True

    def _handle(self, line: str) -> bool:
        """Act on one input. False: leave."""
        if not line.startswith("/"):
            text = unquoted(line)
            if text.strip():
                self._stream(self.session.ask(text))
            return True
        reply = run_command(self.session, line)
        if reply.text:
            self._line(printable(reply.text))
        if reply.answer is not None:
            self._stream(reply.answer)
        return not reply.leave

    def _stream(self, answer: Generator[str]) -> None:
        last = "\n"
        with self.interrupts.answer(), closing(answer):
            try:
                for piece in answer:
                    if piece:
                        self.out.write(printable(piece))
                        self.out.flush()
                        last = piece
                    if self.interrupts.requested:
                        break
            finally:
                if not last.endswith("\n"):
                    self._line("")
        self._dim(self._figures())

    def _figures(self) -> str:
        """The line under an answer."""
        stats = self.session.last
        assert stats is not None  # an answer has just ended
        parts = [f"{stats.completion_tokens} tokens"]
        if stats.decode_speed:
            parts.append(f"{stats.decode_speed:.1f} tok/s")
        parts.append(f"first after {stats.first_token_time:.2f} s")
        used = stats.prompt_tokens + stats.completion_tokens
        if stats.prompt_tokens:
            parts.append(f"context {used}/{self.session.context_size}")
        if stats.finish_reason is None:
            parts.append("stopped")
        elif stats.finish_reason == "length":
            full = used >= self.session.context_size
            parts.append("the context is full: /reset starts anew" if full else "cut at max_tokens")
        return f"[{', '.join(parts)}]"

    def _line(self, text: str) -> None:
        self.out.write(text + "\n")
        self.out.flush()

    def _dim(self, text: str) -> None:
        self._line(f"\x1b[2m{text}\x1b[0m" if self.styled else text)
