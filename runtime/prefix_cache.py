"""Which pages of the KV cache hold the beginnings of which texts, so that these are not computed again.

A tree: each node is a full page, found under its parent by the tokens in it. Texts that begin alike share nodes, and
sequences that begin with a text share its pages. The tree holds on to its pages; those that have not been used for the
longest time are given up when room is needed, the ends of texts before their beginnings.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import takewhile

from .model import Pages


class _Node:
    __slots__ = ("children", "from_prompt", "key", "page", "parent")

    def __init__(self, parent: "_Node | None", key: tuple[int, ...], page: int, from_prompt: bool) -> None:
        self.parent, self.key, self.page, self.from_prompt = parent, key, page, from_prompt
        self.children: dict[tuple[int, ...], _Node] = {}


class PrefixCache:
    """The beginnings of texts whose keys and values are there. Not for several threads at once."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._root = _Node(None, (), -1, True)
        # Least recently used first. A node is never used without its parents, which come after it: the first is a leaf.
        self._by_use: OrderedDict[_Node, None] = OrderedDict()

    def __len__(self) -> int:
        """How many pages are kept."""
        return len(self._by_use)

    def find(self, tokens: Sequence[int], *, multiple: int = 1, from_prompts: bool = False) -> list[int]:
        """The pages that hold the longest known beginning of `tokens`: a multiple of so many.

        With `from_prompts` only those that were computed as parts of prompts, which rounds in other places than
        decoding does.
        """
        path = list(self._walk(tokens))
        if from_prompts:
            path = list(takewhile(lambda node: node.from_prompt, path))
        del path[len(path) // multiple * multiple :]
        self._use(path)
        return [node.page for node in path]

    def keep(self, tokens: Sequence[int], pages: Sequence[int], prompt_tokens: int) -> None:
        """Keep `pages`, which hold the beginning of `tokens`, each full; not those whose tokens are known already.

        The first `prompt_tokens` were computed as a prompt, the others by decoding.
        """
        size = self._pages.page_size
        path = list(self._walk(tokens[: len(pages) * size]))
        parent = path[-1] if path else self._root
        for index in range(len(path), len(pages)):
            key = tuple(tokens[index * size : (index + 1) * size])
            node = _Node(parent, key, pages[index], (index + 1) * size <= prompt_tokens)
            self._pages.hold((node.page,))
            parent.children[node.key] = node
            path.append(node)
            parent = node
        self._use(path)

    def make_room(self, count: int) -> int:
        """Give up pages until `count` more are free, or all that nobody else holds. Returns how many are free now."""
        freed = 0
        for node in list(self._by_use):
            if freed >= count:
                break
            if node.children:  # one of them is in use
                continue
            if self._pages.release(node.page):
                freed += 1
                self._forget(node)
            else:
                self._pages.hold((node.page,))
        return freed

    def clear(self) -> None:
        """Give up everything."""
        for node in self._by_use:
            self._pages.release(node.page)
        self._by_use.clear()
        self._root.children.clear()

    def _walk(self, tokens: Sequence[int]) -> Iterator[_Node]:
        size, node = self._pages.page_size, self._root
        for start in range(0, len(tokens) - size + 1, size):
            child = node.children.get(tuple(tokens[start : start + size]))
            if child is None:
                return
            yield child
            node = child

    def _use(self, path: list[_Node]) -> None:
        for node in reversed(path):
            self._by_use[node] = None
            self._by_use.move_to_end(node)

    def _forget(self, node: _Node) -> None:
        assert node.parent is not None
        del node.parent.children[node.key]
        del self._by_use[node]
