"""What the generators of pages share: write the page, or say whether it is up to date."""

import sys
from collections.abc import Sequence
from pathlib import Path


def write_or_check(page: Path, text: str, argv: Sequence[str]) -> int:
    """Write `text` to `page`; with --check only compare them. Returns the exit code."""
    if list(argv[1:]) != ["--check"]:
        page.write_text(text, encoding="utf-8")
        return 0
    if page.is_file() and page.read_text(encoding="utf-8") == text:
        return 0
    print(f"{page.name} is not up to date: run scripts/{Path(argv[0]).name}", file=sys.stderr)
    return 1
