"""Each slash command, and the lines that wrong ones get."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlc_llm.cli.commands import COMMANDS, run_command
from mlc_llm.cli.files import MAX_ATTACHMENT_BYTES
from mlc_llm.runtime.errors import UsageError


def say(session: Any, text: str) -> str:
    return "".join(session.ask(text))


def refused(session: Any, line: str) -> str:
    with pytest.raises(UsageError) as error:
        run_command(session, line)
    return str(error.value)


def test_help_names_every_command(session: Any) -> None:
    text = run_command(session, "/help").text
    assert all(f"  {name} " in text for name in COMMANDS)


def test_exit_leaves(session: Any) -> None:
    assert run_command(session, "/exit").leave


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/exitfoo", "/exitfoo is not a command: did you mean /exit?"),
        ("/sats", "/sats is not a command: did you mean /stats?"),
        ("/usr/bin", "/usr/bin is not a command: /help lists the commands, a space before / sends the line"),
        ("/", "/ is not a command: /help lists the commands, a space before / sends the line"),
        ("/reset now", "/reset takes no argument, not 'now'"),
        ("/save", "/save needs an argument: /save FILE"),
        ("/regen", "there is no answer to regenerate yet"),
        ("/undo", "there is nothing to undo"),
    ],
)  # fmt: skip
def test_a_wrong_command_gets_a_line(session: Any, line: str, message: str) -> None:
    assert refused(session, line) == message


def test_stats_show_context_and_speed(session: Any) -> None:
    assert run_command(session, "/stats").text == "model: fake on cpu\ncontext: 64 tokens\nno answer yet"
    say(session, "good morning")
    lines = run_command(session, "/stats").text.splitlines()
    assert lines[1] == "context: 64 tokens, 6 used"
    assert lines[2].startswith("prefill: 2 tokens (0 known), ")
    assert lines[3].startswith("decode: 4 tokens, ")
    assert lines[4].startswith("first token: after ")
    assert lines[5] == "ended by: stop"


def test_stats_of_a_stopped_answer_claim_nothing_about_the_prompt(session: Any) -> None:
    answer = session.ask("flood")
    next(answer)
    answer.close()
    lines = run_command(session, "/stats").text.splitlines()
    assert lines[1] == "context: 64 tokens"
    assert lines[2].startswith("decode: 1 tokens, ")
    assert lines[4] == "ended by: interrupt"


def test_metrics_are_the_totals_of_the_session(session: Any) -> None:
    say(session, "one")
    say(session, "two")
    assert run_command(session, "/metrics").text.splitlines()[:3] == [
        "requests: 2", "prompt tokens: 6", "completion tokens: 6",
    ]  # fmt: skip


def test_set_changes_shows_and_unsets(session: Any) -> None:
    assert run_command(session, "/set temperature=0.5;seed=1").text == "temperature=0.5;seed=1"
    assert run_command(session, "/set temperature=").text == "seed=1"
    assert run_command(session, "/set").text == "seed=1"
    assert session.settings == {"seed": 1}


def test_set_is_all_or_nothing(session: Any) -> None:
    refused(session, "/set seed=1;temperature=9")
    assert session.settings == {}


def test_system_sets_shows_and_clears(session: Any) -> None:
    assert run_command(session, "/system be brief").text == "system message: be brief"
    assert run_command(session, "/system").text == "system message: be brief"
    run_command(session, '/system ""')
    assert session.system is None


def test_reset_forgets_the_messages_and_keeps_the_settings(session: Any) -> None:
    say(session, "one")
    run_command(session, "/set seed=1")
    run_command(session, "/reset")
    assert (session.messages, session.settings) == ([], {"seed": 1})


def test_regen_streams_another_answer(session: Any) -> None:
    say(session, "one")
    answer = run_command(session, "/regen").answer
    assert answer is not None
    assert "".join(answer) == "You said: one."
    assert len(session.messages) == 2


def test_undo_says_what_is_left(session: Any) -> None:
    say(session, "one")
    say(session, "two")
    assert run_command(session, "/undo").text == "the last message and its answer are forgotten; 1 turn is left"


def test_a_saved_conversation_can_be_loaded(session: Any, tmp_path: Path) -> None:
    say(session, "größer 😀")
    run_command(session, "/set temperature=0.5;stop=a,b")
    run_command(session, "/system be brief")
    before = (list(session.messages), dict(session.settings), session.system)
    path = tmp_path / "chat.json"
    assert run_command(session, f"/save {path}").text == f"2 messages saved to {path}"
    assert [file.name for file in tmp_path.iterdir()] == ["chat.json"]
    session.reset()
    session.settings, session.system = {}, None
    assert run_command(session, f"/load {path}").text == f"2 messages loaded from {path}"
    assert (session.messages, session.settings, session.system) == before


def test_saving_where_nothing_can_be_written_is_a_line(session: Any, tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "chat.json"
    assert refused(session, f"/save {path}") == f"{path} cannot be written: No such file or directory"


USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"version": 2, "messages": []}, "expected an object with version 1"),
        ([], "expected an object with version 1"),
        ({"version": 1}, "messages is not a list of pairs of user and assistant messages"),
        ({"version": 1, "messages": [USER]}, "messages is not a list of pairs of user and assistant messages"),
        ({"version": 1, "messages": [ASSISTANT, USER]}, "messages[0] is not a message of the user"),
        ({"version": 1, "messages": [USER, {"role": "assistant"}]}, "messages[1] is not a message of the assistant"),
        ({"version": 1, "messages": [{**USER, "x": 1}, ASSISTANT]}, "messages[0] is not a message of the user"),
        ({"version": 1, "messages": [], "system": 1}, "system is not a text"),
        ({"version": 1, "messages": [], "settings": []}, "settings is not an object"),
        ({"version": 1, "messages": [], "settings": {"top_p": 9}}, "top_p is 9; it must be a number from 0 to 1"),
        ({"version": 1, "messages": [], "settings": {"x": 9}}, "there is no setting 'x'"),
    ],
)  # fmt: skip
def test_a_wrong_saved_conversation_changes_nothing(session: Any, tmp_path: Path, content: Any, reason: str) -> None:
    say(session, "one")
    path = tmp_path / "chat.json"
    path.write_text(json.dumps(content))
    assert refused(session, f"/load {path}").startswith(f"{path} is not a saved conversation: {reason}")
    assert len(session.messages) == 2


def test_file_puts_a_text_file_into_the_next_message(session: Any, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("alpha\nbeta\n")
    assert run_command(session, f"/file {path}").text == f"{path} (29 bytes) goes with your next message"
    say(session, "sum up")
    assert session.messages[0]["content"] == "notes.txt:\n```\nalpha\nbeta\n```\n\nsum up"


def test_a_file_with_fences_is_fenced_by_more(session: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("```\ncode\n```")
    run_command(session, f"/file {path}")
    assert session.attachments == ["a.md:\n````\n```\ncode\n```\n````"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "is missing: expected a text file"),
        (b"", "is empty"),
        (b"\xff\xfe", "is not UTF-8 text (byte 0): expected a text file"),
        (b"a\0b", "holds null bytes: expected a text file"),
        (b"a" * (MAX_ATTACHMENT_BYTES + 1), "has 262145 bytes: at most 262144 are read"),
    ],
)
def test_only_small_text_files_are_taken(session: Any, tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "x"
    if content is not None:
        path.write_bytes(content)
    assert refused(session, f"/file {path}") == f"{path} {reason}"
    assert session.attachments == []


def test_a_folder_is_not_a_text_file(session: Any, tmp_path: Path) -> None:
    assert refused(session, f"/load {tmp_path}") == f"{tmp_path} is not a file: expected a text file"


def test_a_file_that_is_not_json_is_no_conversation(session: Any, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("[" * 100_000)
    assert refused(session, f"/load {path}") == f"{path} is not JSON: expected a conversation that /save wrote"
