"""`mlc chat`: talk to a model on the terminal, or answer one prompt in a pipe."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..runtime.errors import UsageError
from .options import FILE_OR_FOLDER, device_option, quantization_option, threads_option

if TYPE_CHECKING:
    from .session import ChatSession

MAX_INPUT_BYTES = 16 << 20


@click.command("chat", short_help="Chat with a model, or answer one prompt.")
@click.argument("model", default="", metavar="[MODEL]")
@click.option("-p", "--prompt", metavar="TEXT", help="Answer TEXT and end, instead of opening a conversation.")
@click.option("--system", metavar="TEXT", help="System message.")
@click.option("--temperature", type=float, metavar="NUMBER", help="Randomness, 0 to 2; 0 takes the likeliest token.")
@click.option(
    "--top-p", type=float, metavar="NUMBER", help="Sample among the likeliest tokens that reach this probability."
)
@click.option("--max-tokens", type=int, metavar="N", help="Longest answer, in tokens.")
@click.option("--seed", type=int, metavar="N", help="Makes sampling reproducible.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole response as JSON (with -p or a pipe).")
@click.option("--model-lib", type=FILE_OR_FOLDER, metavar="FILE", help="Model library, instead of the one of MODEL.")
@device_option()
@threads_option()
@quantization_option(default=" For a MODEL that is compiled first, or chosen by name; default: as mlc compile.")
@click.option("--overrides", default="", metavar="K=V;K=V", help="Change the model's configuration, as in mlc compile.")
def command(
    model: str, prompt: str | None, system: str | None, as_json: bool, model_lib: Path | None, device: str,
    threads: int | None, quantization: str | None, overrides: str, **sampling: float | int | None,
) -> None:  # fmt: skip
    """Chat with MODEL, or answer one prompt.

    MODEL is a compiled folder, its name under dist/ or in the cache, HF://org/name of a compiled model, which is
    downloaded first, or a source as `mlc compile` takes it, which is compiled first. Without MODEL it is a small demo
    model, SmolLM2-135M-Instruct, fetched and compiled the first time.

    With -p, or with text on standard input (after the prompt, when there are both), only the answer is printed.

    \b
      mlc chat
      mlc chat -p "What is the capital of France?" --temperature 0
      mlc chat HF://mlc-ai/Llama-3.2-1B-Instruct-q4f16_1-MLC
      git diff | mlc chat Llama-3.2-1B-Instruct -p "Review this change."
    """
    from .settings import check_setting

    settings = {name: check_setting(name, value) for name, value in sampling.items() if value is not None}
    text = one_shot_text(prompt)
    if text is None and as_json:
        raise UsageError("--json prints one response: give a prompt with -p or on standard input")
    if text is None and not sys.stdout.isatty():
        raise UsageError("a conversation needs a terminal: give a prompt with -p or on standard input")
    session = open_session(model, quantization, device, model_lib, overrides, threads)
    with session.engine:
        session.system, session.settings = system, settings
        if text is None:
            converse(session)
        elif as_json:
            print_response(session, text)
        else:
            print_answer(session, text)


def one_shot_text(prompt: str | None) -> str | None:
    """The prompt of a one-shot call, from -p and standard input; None for a conversation. Raises UsageError."""
    piped = ""
    if sys.stdin is not None and not sys.stdin.isatty():
        data = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
        if len(data) > MAX_INPUT_BYTES:
            raise UsageError(f"standard input has more than {MAX_INPUT_BYTES} bytes: shorten it")
        try:
            piped = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UsageError(f"standard input is not UTF-8 text (byte {error.start})") from None
    elif sys.stdin is not None and prompt is None:
        return None
    text = "\n\n".join(part for part in (prompt or "", piped.strip("\n")) if part.strip())
    if not text:
        raise UsageError("the prompt is empty: give a text with -p or on standard input")
    return text


def open_session(
    model: str,
    quantization: str | None,
    device: str,
    model_lib: Path | None,
    overrides: str,
    threads: int | None = None,
) -> "ChatSession":
    """Load MODEL, compiling it first where it has to be. Raises UsageError, ModelFileError, EngineError."""
    from .models import DEMO_MODEL, find_or_compile
    from .session import ChatSession

    compiled = find_or_compile(model or DEMO_MODEL, quantization, device, overrides)
    from ..serve.config import EngineConfig
    from ..serve.engine import MLCEngine

    engine = MLCEngine(
        str(compiled.folder),
        device,
        model_lib=None if model_lib is None else str(model_lib),
        mode="interactive",
        engine_config=EngineConfig(max_total_sequence_length=compiled.context_limit, num_threads=threads),
    )
    return ChatSession(engine, model=compiled.name, device=engine.device, context_size=engine.context_window_size)


def print_answer(session: "ChatSession", text: str) -> None:
    """Stream the answer to stdout, and say on stderr when it was cut short unasked."""
    from .text import printable

    safe = printable if sys.stdout.isatty() else str
    last = ""
    for piece in session.ask(text):
        if piece:
            sys.stdout.write(safe(piece))
            sys.stdout.flush()
            last = piece
    if not last.endswith("\n"):
        sys.stdout.write("\n")
    if session.last is not None and session.last.finish_reason == "length" and "max_tokens" not in session.settings:
        click.echo(f"the answer was cut: the context of {session.context_size} tokens is full", err=True)


def print_response(session: "ChatSession", text: str) -> None:
    """Print the response object."""
    from .settings import request_arguments

    response: Any = session.engine.chat.completions.create(
        messages=session.conversation([{"role": "user", "content": text}]), **request_arguments(session.settings)
    )
    click.echo(response.model_dump_json(indent=2))


def converse(session: "ChatSession") -> None:
    """The conversation on the terminal."""
    from .line_editor import line_editor
    from .repl import Repl

    Repl(session, line_editor(), sys.stdout).run()
