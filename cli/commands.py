"""The slash commands of `mlc chat`: a table of names, and a function for each."""

import difflib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

from ..runtime.errors import UsageError
from .files import attachment, load_conversation, save_conversation
from .session import ChatSession
from .settings import KINDS, format_settings, parse_settings


@dataclass(frozen=True)
class Reply:
    """What a command gives back: text to print, an answer to stream, or the wish to leave."""

    text: str = ""
    answer: Generator[str] | None = None
    leave: bool = False


@dataclass(frozen=True)
class Command:
    """One slash command. `argument` names what follows it: in brackets where optional, empty where there is none."""

    name: str
    argument: str
    help: str
    run: Callable[[ChatSession, str], Reply]


def run_command(session: ChatSession, line: str) -> Reply:
    """Carry out a line that begins with `/`. Raises UsageError (or the engine's errors, from the answer)."""
    name, _, argument = line.strip().partition(" ")
    argument = argument.strip()
    command = COMMANDS.get(name)
    if command is None:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "/help lists the commands, a space before / sends the line"
        raise UsageError(f"{name} is not a command: {hint}")
    if argument and not command.argument:
        raise UsageError(f"{name} takes no argument, not {argument!r}")
    if not argument and command.argument and not command.argument.startswith("["):
        raise UsageError(f"{name} needs an argument: {name} {command.argument}")
    return command.run(session, argument)


def _help(session: ChatSession, argument: str) -> Reply:
    rows = [(f"{command.name} {command.argument}".rstrip(), command.help) for command in COMMANDS.values()]
    rows += [('"""', 'begins a message of several lines, which ends with """'),
             ("Alt-Enter", "starts a new line"),
             ("Ctrl-C", "stops the answer"),
             ("Ctrl-D", "leaves")]  # fmt: skip
    width = max(len(left) for left, _ in rows)
    return Reply("\n".join(f"  {left:<{width}}  {right}" for left, right in rows))


def _stats(session: ChatSession, argument: str) -> Reply:
    last = session.last
    lines = [f"model: {session.model} on {session.device}"]
    known = last is not None and last.prompt_tokens > 0 and bool(session.messages)
    used = f", {last.prompt_tokens + last.completion_tokens} used" if last and known else ""
    lines.append(f"context: {session.context_size} tokens{used}")
    if last is None:
        return Reply("\n".join([*lines, "no answer yet"]))
    if last.prompt_tokens:  # a stopped answer ends before the engine tells
        speed = f"{last.prefill_speed:.1f} tok/s" if last.prefill_speed else "n/a"
        lines.append(f"prefill: {last.prompt_tokens} tokens ({last.cached_tokens} known), {speed}")
    speed = f"{last.decode_speed:.1f} tok/s" if last.decode_speed else "n/a"
    lines.append(f"decode: {last.completion_tokens} tokens, {speed}")
    lines.append(f"first token: after {last.first_token_time:.2f} s")
    lines.append(f"ended by: {last.finish_reason or 'interrupt'}")
    return Reply("\n".join(lines))


def _metrics(session: ChatSession, argument: str) -> Reply:
    totals = session.totals
    return Reply("\n".join([
        f"requests: {totals.requests}",
        f"prompt tokens: {totals.prompt_tokens}",
        f"completion tokens: {totals.completion_tokens}",
        f"generation time: {totals.seconds:.2f} s",
    ]))  # fmt: skip


def _set(session: ChatSession, argument: str) -> Reply:
    changes = parse_settings(argument)
    merged = {**session.settings, **changes}
    session.settings = {name: value for name, value in merged.items() if value is not None}
    return Reply(format_settings(session.settings) or f"all as the model has it; there are {', '.join(KINDS)}")


def _system(session: ChatSession, argument: str) -> Reply:
    if argument:
        session.system = None if argument == '""' else argument
    return Reply(f"system message: {session.system or '(the model has its own or none)'}")


def _reset(session: ChatSession, argument: str) -> Reply:
    session.reset()
    return Reply("the conversation starts anew")


def _undo(session: ChatSession, argument: str) -> Reply:
    session.undo()
    turns = len(session.messages) // 2
    return Reply(
        f"the last message and its answer are forgotten; {turns} {'turn is' if turns == 1 else 'turns are'} left"
    )


def _save(session: ChatSession, argument: str) -> Reply:
    save_conversation(session, Path(argument).expanduser())
    return Reply(f"{len(session.messages)} messages saved to {argument}")


def _load(session: ChatSession, argument: str) -> Reply:
    load_conversation(session, Path(argument).expanduser())
    return Reply(f"{len(session.messages)} messages loaded from {argument}")


def _file(session: ChatSession, argument: str) -> Reply:
    text = attachment(Path(argument).expanduser())
    session.attachments.append(text)
    return Reply(f"{argument} ({len(text.encode())} bytes) goes with your next message")


COMMANDS = {
    command.name: command
    for command in (
        Command("/help", "", "lists the commands", _help),
        Command("/exit", "", "leaves", lambda session, argument: Reply(leave=True)),
        Command("/stats", "", "shows context and speed of the last answer", _stats),
        Command("/metrics", "", "shows the totals of this session", _metrics),
        Command("/reset", "", "starts a new conversation", _reset),
        Command("/set", "[k=v;k=v]", "shows or changes settings, as temperature=0.7;stop=END (k= unsets)", _set),
        Command("/system", "[TEXT]", 'shows or changes the system message ("" for none)', _system),
        Command("/regen", "", "answers the last message again",
                lambda session, argument: Reply(answer=session.regenerate())),
        Command("/undo", "", "forgets the last message and its answer", _undo),
        Command("/save", "FILE", "saves the conversation as JSON", _save),
        Command("/load", "FILE", "loads a conversation that /save wrote", _load),
        Command("/file", "PATH", "puts a text file into the next message", _file),
    )
}  # fmt: skip
