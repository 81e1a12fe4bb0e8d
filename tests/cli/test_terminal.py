"""`mlc chat` on a real terminal: the line editor, streamed answers, Ctrl-C, the history file."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

PROMPT = r">>>.*?\x1b\[\?25h"  # drawn, and the cursor shown again


@pytest.fixture
def terminal(fake_mlc: list[str], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start `mlc chat` with the fake engine on a pseudo-terminal."""
    folder = tmp_path / "Tiny-q4f16_1-MLC"
    folder.mkdir()
    (folder / "mlc-chat-config.json").write_text("{}")
    children = []

    def start(*argv: str, **environment: str) -> Any:
        child = pexpect.spawn(
            fake_mlc[0], [*fake_mlc[1:], "chat", str(folder), *argv],
            timeout=120, encoding="utf-8", dimensions=(30, 100),
            env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", **environment},
        )  # fmt: skip
        children.append(child)
        return child

    yield start
    for child in children:
        child.close(force=True)


def say(child: Any, text: str) -> None:
    child.expect(PROMPT)
    child.send(text + "\r")


def leave(child: Any) -> int:
    child.expect(PROMPT)
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    return int(child.exitstatus)


def history(child: Any) -> Path:
    return Path(os.environ["XDG_STATE_HOME"]) / "mlc_llm" / "chat_history"


def test_a_conversation(terminal: Callable[..., Any]) -> None:
    child = terminal()
    child.expect_exact(
        "\x1b[2mTiny-q4f16_1-MLC on cpu, context 64 tokens; /help lists the commands, Ctrl-D leaves\x1b[0m"
    )
    say(child, "good morning")
    child.expect_exact("You said: good morning.\r\n")
    child.expect(r"\x1b\[2m\[4 tokens(, [\d.]+ tok/s)?, first after [\d.]+ s, context 6/64\]\x1b\[0m")
    say(child, "/stat")
    child.expect_exact("Error: /stat is not a command: did you mean /stats?")
    assert leave(child) == 0


def test_ctrl_c_stops_the_answer_and_keeps_the_session(terminal: Callable[..., Any], tmp_path: Path) -> None:
    child = terminal()
    say(child, "flood")
    child.expect_exact("tick tick")
    child.sendintr()
    child.expect_exact("stopped]")
    say(child, f"/save {tmp_path / 'chat.json'}")
    child.expect_exact("2 messages saved")
    assert leave(child) == 0
    assert re.search(r'"content": "(tick )+"', (tmp_path / "chat.json").read_text())


def test_ctrl_c_at_the_prompt_throws_the_line_away(terminal: Callable[..., Any]) -> None:
    child = terminal()
    child.expect(PROMPT)
    child.send("half a li")
    child.sendintr()
    child.expect_exact("(Ctrl-D or /exit leaves)")
    say(child, "whole")
    child.expect_exact("You said: whole.")
    assert leave(child) == 0


def test_exit_leaves(terminal: Callable[..., Any]) -> None:
    child = terminal()
    say(child, "/exit")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


@pytest.mark.parametrize(
    "keys",
    [
        '"""one\rtwo"""\r',
        "one\x1b\rtwo\r",  # Alt-Enter
        "\x1b[200~one\rtwo\x1b[201~\r",  # bracketed paste
    ],
)
def test_a_message_of_several_lines(terminal: Callable[..., Any], keys: str) -> None:
    child = terminal()
    child.expect(PROMPT)
    child.send(keys)
    child.expect_exact("You said: one\r\ntwo.\r\n")
    assert leave(child) == 0


def test_lines_are_kept_in_a_private_history(terminal: Callable[..., Any]) -> None:
    child = terminal()
    say(child, "remember me")
    child.expect_exact("You said: remember me.")
    assert leave(child) == 0
    path = history(child)
    assert "+remember me" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    child = terminal()
    child.expect(PROMPT)
    child.send("\x1b[A\r")  # arrow up
    child.expect_exact("You said: remember me.")


def test_no_history_is_kept_when_opted_out(terminal: Callable[..., Any]) -> None:
    child = terminal(MLC_NO_HISTORY="1")
    say(child, "forget me")
    child.expect_exact("You said: forget me.")
    assert leave(child) == 0
    assert not history(child).exists()


def test_a_history_that_cannot_be_written_is_a_note(terminal: Callable[..., Any], tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    child = terminal(XDG_STATE_HOME=str(blocker))
    child.expect_exact("the history is not kept")
    say(child, "hi")
    child.expect_exact("You said: hi.")


def test_no_color_means_no_styles(terminal: Callable[..., Any]) -> None:
    child = terminal(NO_COLOR="1")
    child.expect_exact("Ctrl-D leaves\r\n")
    assert "\x1b[2m" not in child.before


def test_one_prompt_on_a_terminal_is_answered_without_a_banner(terminal: Callable[..., Any]) -> None:
    child = terminal("-p", "good morning")
    child.expect(pexpect.EOF)
    assert child.before == "You said: good morning.\r\n"


def test_json_needs_a_prompt(terminal: Callable[..., Any]) -> None:
    child = terminal("--json")
    child.expect(pexpect.EOF)
    assert child.before == "Error: --json prints one response: give a prompt with -p or on standard input\r\n"
    child.close()
    assert child.exitstatus == 2


def test_ctrl_c_in_a_one_shot_answer_is_130(terminal: Callable[..., Any]) -> None:
    child = terminal("-p", "flood")
    child.expect_exact("tick tick")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
