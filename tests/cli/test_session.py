"""A conversation changes by whole turns only."""

from typing import Any

import pytest

from mlc_llm.runtime.errors import RequestError, UsageError


def say(session: Any, text: str) -> str:
    return "".join(session.ask(text))


def test_an_answer_arrives_in_pieces_and_becomes_a_turn(session: Any) -> None:
    assert say(session, "good morning") == "You said: good morning."
    assert session.messages == [
        {"role": "user", "content": "good morning"},
        {"role": "assistant", "content": "You said: good morning."},
    ]


def test_earlier_turns_and_the_system_message_are_sent_along(session: Any) -> None:
    session.system = "be brief"
    say(session, "one")
    say(session, "two")
    sent = session.engine.requests[-1]["messages"]
    assert [(message["role"], message["content"]) for message in sent] == [
        ("system", "be brief"),
        ("user", "one"),
        ("assistant", "You said: one."),
        ("user", "two"),
    ]


def test_settings_reach_the_engine(session: Any) -> None:
    session.settings = {"temperature": 0.5, "top_k": 3, "stop": ["END"]}
    say(session, "hi")
    request = session.engine.requests[-1]
    assert (request["temperature"], request["stop"], request["top_k"]) == (0.5, ("END",), 3)


def test_figures_come_from_the_usage_of_the_stream(session: Any) -> None:
    say(session, "a b c")
    assert (session.last.prompt_tokens, session.last.completion_tokens) == (3, 5)
    assert session.last.finish_reason == "stop"
    say(session, "d")
    assert (session.totals.requests, session.totals.completion_tokens) == (2, 8)


def test_an_answer_that_is_stopped_stays_as_far_as_it_came(session: Any) -> None:
    answer = session.ask("flood")
    got = next(answer) + next(answer)
    answer.close()
    assert session.messages[-1] == {"role": "assistant", "content": got}
    assert session.last.finish_reason is None


def test_a_message_that_does_not_fit_is_taken_back(session: Any) -> None:
    say(session, "hello")
    with pytest.raises(RequestError, match="the prompt has 104 tokens; the context holds 64"):
        say(session, "word " * 100)
    assert [message["content"] for message in session.messages] == ["hello", "You said: hello."]


def test_an_error_in_the_middle_takes_the_turn_back(session: Any) -> None:
    with pytest.raises(RequestError):
        say(session, "please refuse")
    assert session.messages == []


def test_regenerate_replaces_the_last_answer_with_the_settings_of_now(session: Any) -> None:
    say(session, "one two three")
    session.settings = {"max_tokens": 2}
    assert "".join(session.regenerate()) == "You said:"
    assert [message["content"] for message in session.messages] == ["one two three", "You said:"]


def test_regenerate_that_fails_keeps_the_old_answer(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    say(session, "one")

    def refuse(*request: Any) -> None:
        raise RequestError("no")

    monkeypatch.setattr(session.engine, "generate", refuse)
    with pytest.raises(RequestError):
        list(session.regenerate())
    assert session.messages[-1]["content"] == "You said: one."


def test_undo_forgets_a_whole_turn(session: Any) -> None:
    say(session, "one")
    say(session, "two")
    session.undo()
    assert [message["content"] for message in session.messages] == ["one", "You said: one."]


def test_there_must_be_a_turn_to_change(session: Any) -> None:
    with pytest.raises(UsageError, match="there is nothing to undo"):
        session.undo()
    with pytest.raises(UsageError, match="there is no answer to regenerate yet"):
        session.regenerate()


def test_attachments_go_before_the_next_message_only(session: Any) -> None:
    session.attachments = ["notes"]
    say(session, "sum up")
    say(session, "thanks")
    assert session.messages[0]["content"] == "notes\n\nsum up"
    assert session.messages[2]["content"] == "thanks"


def test_attachments_wait_for_a_message_that_is_accepted(session: Any) -> None:
    session.attachments = ["notes"]
    with pytest.raises(RequestError):
        say(session, "please refuse")
    assert session.attachments == ["notes"]
