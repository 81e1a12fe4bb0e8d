"""Progress is bars on a terminal and lines elsewhere."""

import io
import re

import pytest

from mlc_llm.cli.progress import show_progress
from mlc_llm.compiler.progress import Progress


class Terminal(io.StringIO):
    """A buffer that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def work(out: io.StringIO) -> str:
    with show_progress(out=out) as progress:
        watcher: Progress = progress
        watcher.stage("weights", 100)
        watcher.advance(60, "model.embed_tokens.weight [7]")
        watcher.note("another [bold]compilation[/bold] is waiting")
        watcher.stage("library")
        watcher.advance(1)
        watcher.skip("config", "up to date")
    return out.getvalue()


def test_lines_name_each_stage_with_its_time() -> None:
    lines = [re.sub(r"[\d.]+ s$", "N s", line) for line in work(io.StringIO()).splitlines()]
    assert lines == [
        "another [bold]compilation[/bold] is waiting", "weights: N s", "library: N s", "config: up to date",
    ]  # fmt: skip


def test_a_stage_that_fails_is_not_reported_as_done() -> None:
    out = io.StringIO()
    try:
        with show_progress(out=out) as progress:
            progress.stage("weights", 100)
            raise ValueError
    except ValueError:
        pass
    assert out.getvalue() == ""


def test_bars_show_the_share_and_the_notes_as_they_are() -> None:
    text = work(Terminal())
    assert "another [bold]compilation[/bold] is waiting" in text
    assert "config: up to date" in text
    assert re.search(r"weights.*100%", text)
    assert re.search(r"library.*100%", text)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_title_comes_before_the_first_stage_that_is_built(terminal: bool) -> None:
    out = Terminal() if terminal else io.StringIO()
    with show_progress("x is compiled first", out) as progress:
        progress.skip("config", "up to date")
        assert "x is" not in out.getvalue()
        progress.stage("weights", 1)
        progress.stage("library")
    text = out.getvalue()
    assert text.count("x is compiled first") == 1
    assert "up to date" not in text
