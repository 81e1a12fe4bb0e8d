"""Stop strings in a stream of text: what may be shown, and when to end."""

from collections.abc import Sequence


class StopChecker:
    """Finds the first stop string of a text that arrives in parts, wherever the borders of the parts are.

    The match that is complete first wins, as if the text came character by character; of two that are complete at
    the same character, the longer one. Text that may still turn out to be the start of a stop string is held back.
    The method is that of Knuth, Morris and Pratt (1977), so the work is constant per character.
    """

    def __init__(self, stop_strings: Sequence[str]) -> None:
        """Raises ValueError for an empty stop string."""
        if not all(stop_strings):
            raise ValueError("a stop string is empty")
        self._patterns = [(stop, _border_lengths(stop)) for stop in stop_strings]
        self._beginnings = frozenset(stop[0] for stop in stop_strings)
        self._matched = [0] * len(self._patterns)  # how many characters of each stop string the text ends with
        self._held = ""
        self.stopped = False

    def put(self, text: str, may_stop: bool = True) -> tuple[str, bool]:
        """Take more text. Returns the text that may be released now and whether a stop string has been found.

        Neither the stop string nor what follows it is ever released. After a stop, further text is ignored. Stop
        strings that end in a text that may not stop are passed over.
        """
        if self.stopped:
            return "", True
        if not self._held and self._beginnings.isdisjoint(text):
            return text, False  # most texts: no stop string begins in them
        pending = self._held + text
        for position, character in enumerate(text, start=len(self._held) + 1):
            found = self._advance(character)
            if not found:
                continue
            if may_stop:
                self.stopped = True
                self._held = ""
                return pending[: position - found], True
            self._pass_over()
        keep = max(self._matched)
        self._held = pending[len(pending) - keep :]
        return pending[: len(pending) - keep], False

    def finish(self) -> str:
        """The text has ended: returns what was held back."""
        held, self._held = self._held, ""
        self._matched = [0] * len(self._patterns)
        return held

    def _pass_over(self) -> None:
        """Go on after a match, whose end may be the beginning of another one."""
        for index, (stop, borders) in enumerate(self._patterns):
            if self._matched[index] == len(stop):
                self._matched[index] = borders[-1]

    def _advance(self, character: str) -> int:
        """Take one character; returns the length of the stop string that it completes, or 0."""
        found = 0
        for index, (stop, borders) in enumerate(self._patterns):
            matched = self._matched[index]
            while matched and stop[matched] != character:
                matched = borders[matched - 1]
            if stop[matched] == character:
                matched += 1
            if matched == len(stop):
                found = max(found, matched)
            self._matched[index] = matched
        return found


def _border_lengths(pattern: str) -> list[int]:
    """For each prefix of `pattern`, the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(pattern)
    length = 0
    for index in range(1, len(pattern)):
        while length and pattern[index] != pattern[length]:
            length = borders[length - 1]
        if pattern[index] == pattern[length]:
            length += 1
        borders[index] = length
    return borders
