"""The pages of a KV cache: which are free, and how many hold each of the others."""

from collections.abc import Iterable


class PagePool:
    """`num_pages` pages, of which `sheet_pages` lie together in a sheet; its length is how many are free.

    Pages that were never used follow those that were, so that memory is touched late.
    """

    def __init__(self, num_pages: int, sheet_pages: int) -> None:
        self._num_pages, self._together = num_pages, sheet_pages
        self._owners: list[int] = []  # how many hold a page, of those that were ever used
        self._free: dict[int, None] = {}  # pages that have been used, or whose sheet has
        self._empty_sheets: dict[int, None] = {}  # those of which all pages are in `_free`

    def __len__(self) -> int:
        return self._num_pages - len(self._owners) + len(self._free)

    def is_shared(self, page: int) -> bool:
        """Whether more than one hold a page."""
        return self._owners[page] > 1

    def hold(self, pages: Iterable[int]) -> None:
        """Hold pages that somebody holds already once more."""
        for page in pages:
            self._owners[page] += 1

    def release(self, page: int) -> bool:
        """Hold a page once less. Returns whether it is free now."""
        self._owners[page] -= 1
        if self._owners[page]:
            return False
        self._free[page] = None
        first = page // self._together * self._together
        if all(other in self._free for other in range(first, min(first + self._together, len(self._owners)))):
            self._empty_sheets[page // self._together] = None
        return True

    def take(self, before: int) -> int:
        """Hold a free page, of which there has to be one: the one that follows page `before` (-1: there is none) in its
        sheet, else the first of a sheet that nobody uses, so that texts that grow side by side lie apart. One whose
        memory is there already if possible.
        """
        page = before + 1
        if page % self._together == 0 or not (page in self._free or page == len(self._owners) < self._num_pages):
            page = self._elsewhere()
        if page == len(self._owners):
            self._owners.append(0)
        else:
            del self._free[page]
        self._empty_sheets.pop(page // self._together, None)
        self._owners[page] = 1
        return page

    def _elsewhere(self) -> int:
        """A free page, the first of an empty sheet if there is one."""
        fresh = -(-len(self._owners) // self._together) * self._together
        if self._empty_sheets:
            return self._empty_sheets.popitem()[0] * self._together
        if fresh < self._num_pages:
            self._free.update(dict.fromkeys(range(len(self._owners), fresh)))
            self._owners.extend([0] * (fresh - len(self._owners)))
            return fresh
        return next(reversed(self._free)) if self._free else len(self._owners)
