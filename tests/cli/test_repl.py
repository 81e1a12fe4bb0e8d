"""The conversation loop, fed with lines and read from a buffer."""

import io
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlc_llm.cli.line_editor import MAX_HISTORY_BYTES, history_path, is_complete, trim_history, unquoted
from mlc_llm.cli.repl import Repl
from mlc_llm.cli.text import printable


def converse(session: Any, *lines: str | BaseException) -> str:
    """What is printed when these lines are entered (an exception: a key that the editor turns into it)."""
    inputs: Iterator[str | BaseException] = iter([*lines, EOFError()])

    def read_line() -> str:
        line = next(inputs)
        if isinstance(line, BaseException):
            raise line
        return line

    out = io.StringIO()
    Repl(session, read_line, out).run()
    return out.getvalue()


def lines_of(text: str) -> list[str]:
    """Without the banner; of the figures of an answer only the first, which no clock decides."""
    return [re.sub(r"^(\[\d+ tokens),.*", r"\1", line) for line in text.splitlines()[1:]]


def test_the_banner_shows_model_device_and_context(session: Any) -> None:
    assert converse(session) == "fake on cpu, context 64 tokens; /help lists the commands, Ctrl-D leaves\n"


def test_a_conversation(session: Any) -> None:
    text = converse(session, "good morning", "", "  ", "thanks")
    assert lines_of(text) == ["You said: good morning.", "[4 tokens", "You said: thanks.", "[3 tokens"]
    assert "context 6/64]" in text


def test_commands_and_their_errors(session: Any) -> None:
    text = converse(session, "/sats", "/set seed=1", "/exit", "never read")
    assert lines_of(text) == ["Error: /sats is not a command: did you mean /stats?", "seed=1"]


def test_regen_streams_into_the_conversation(session: Any) -> None:
    assert lines_of(converse(session, "one", "/regen"))[2:] == ["You said: one.", "[3 tokens"]


def test_an_overlong_prompt_is_an_error_line_and_the_session_goes_on(session: Any) -> None:
    text = converse(session, "word " * 99, "hi")
    assert lines_of(text) == [
        "Error: the prompt has 99 tokens; the context holds 64: shorten the messages", "You said: hi.", "[3 tokens",
    ]  # fmt: skip
    assert len(session.messages) == 2


def test_an_answer_that_the_limit_cut_says_so(session: Any) -> None:
    assert "cut at max_tokens]" in converse(session, "/set max_tokens=2", "one two three")


def test_ctrl_c_at_the_prompt_throws_the_line_away(session: Any) -> None:
    assert lines_of(converse(session, KeyboardInterrupt(), "hi")) == [
        "(Ctrl-D or /exit leaves)", "You said: hi.", "[3 tokens",
    ]  # fmt: skip


def test_ctrl_c_stops_the_answer_and_keeps_it(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = session.engine.generate

    def interrupted(messages: list[dict[str, str]], **sampling: Any) -> Iterator[Any]:
        for index, event in enumerate(generate(messages, **sampling)):
            yield event
            if index == 2 and "flood" in messages[-1]["content"]:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(session.engine, "generate", interrupted)
    text = converse(session, "flood", "hi")
    assert lines_of(text) == ["tick tick tick tick ", "[4 tokens", "You said: hi.", "[3 tokens"]
    assert "stopped]" in text
    assert session.messages[1]["content"] == "tick tick tick tick "


def test_a_second_ctrl_c_leaves(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(*request: Any) -> Iterator[Any]:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        yield

    monkeypatch.setattr(session.engine, "generate", stuck)
    with pytest.raises(KeyboardInterrupt):
        converse(session, "hi")


def test_the_interrupt_handler_is_given_back(session: Any) -> None:
    before = signal.getsignal(signal.SIGINT)
    converse(session, "hi")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_models_text_cannot_drive_the_terminal(session: Any) -> None:
    assert "You said: �[2J �0;t.\n" in converse(session, "\x1b[2J \x9d0;t")
    assert printable("a\tb\nc\rd\x00é😀") == "a\tb\nc�d�é😀"


@pytest.mark.parametrize(
    ("entered", "complete", "message"),
    [
        ("hi", True, "hi"),
        ('"""', False, '"""'),
        ('"""a\nb', False, '"""a\nb'),
        ('"""a\nb"""', True, "a\nb"),
        ('"""\na\nb\n"""', True, "a\nb"),
        ('""""""', True, ""),
        ('"""""', False, '"""""'),
        ('say """ now', True, 'say """ now'),
    ],
)
def test_quotes_make_a_message_of_several_lines(entered: str, complete: bool, message: str) -> None:
    assert is_complete(entered) is complete
    assert unquoted(entered) == message


def test_the_history_is_kept_in_the_state_folder_unless_opted_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert history_path() == Path("/state/mlc_llm/chat_history")
    monkeypatch.setenv("MLC_NO_HISTORY", "1")
    assert history_path() is None


def test_a_long_history_keeps_its_newer_half(tmp_path: Path) -> None:
    from prompt_toolkit.history import FileHistory

    path = tmp_path / "history"
    history = FileHistory(str(path))
    for index in range(MAX_HISTORY_BYTES // 1000):
        history.store_string(f"{index:05} " + "x" * 1000)
    trim_history(path)
    assert path.stat().st_size <= MAX_HISTORY_BYTES // 2
    kept = list(FileHistory(str(path)).load_history_strings())
    assert [line[:5] for line in kept[:2]] == ["01047", "01046"]
    assert all(len(line) == 1006 for line in kept)
    before = path.read_bytes()
    trim_history(path)
    assert path.read_bytes() == before
