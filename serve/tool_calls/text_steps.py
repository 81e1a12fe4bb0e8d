"""Reading a text that arrives in parts, with steps that wait for more of it."""

from collections.abc import Generator
from typing import TypeVar

MAX_SPACE = 256  # characters of white space next to a mark that belong to it
_MAX_HEADER = 512  # characters before a text that is looked for

_T = TypeVar("_T")
Steps = Generator[None, None, _T]  # suspended wherever more text is needed


class EndOfTextError(Exception):
    """More text is needed, and there is none."""


class TextSteps:
    """The text, and the ways to read it; each raises EndOfTextError where the text ends too early."""

    def __init__(self) -> None:
        self._text = ""  # not read yet
        self._held = ""  # read, and not yet used
        self._final = False  # whether this is all of the text

    def _more(self) -> Steps[None]:
        if self._final:
            raise EndOfTextError
        yield

    def _take(self, count: int) -> None:
        """Read characters, which are held until it is known what they are."""
        self._held += self._text[:count]
        self._text = self._text[count:]

    def _put_back(self, count: int) -> None:
        """The last characters that are held have not been read."""
        if count:
            self._text = self._held[-count:] + self._text
            self._held = self._held[:-count]

    def _peek(self) -> Steps[str]:
        while not self._text:
            yield from self._more()
        return self._text[0]

    def _peek_inside(self) -> Steps[str]:
        """The first character behind a bracket that is no white space."""
        while not (inside := self._text[1:MAX_SPACE].lstrip()) and len(self._text) < MAX_SPACE:
            yield from self._more()
        return inside[:1]

    def _hold_space(self) -> Steps[None]:
        while len(self._held) < MAX_SPACE and (yield from self._peek()).isspace():
            self._take(1)

    def _drop_space(self) -> Steps[None]:
        while (yield from self._peek()).isspace():
            self._text = self._text.lstrip()

    def _accept(self, literal: str) -> Steps[bool]:
        """Read a text where it is what follows."""
        while len(self._text) < len(literal) and literal.startswith(self._text):
            yield from self._more()
        if not self._text.startswith(literal):
            return False
        self._take(len(literal))
        return True

    def _until(self, literal: str) -> Steps[str | None]:
        """What stands before a text; None where that is too long."""
        while (place := self._text.find(literal)) < 0 and len(self._text) <= _MAX_HEADER + len(literal):
            yield from self._more()
        return self._text[:place] if 0 <= place <= _MAX_HEADER else None


def overlap(text: str, literal: str) -> int:
    """The length of the longest end of `text` that is a beginning of `literal`, but not all of it."""
    longest = min(len(text), len(literal) - 1)
    return next((length for length in range(longest, 0, -1) if literal.startswith(text[-length:])), 0)
