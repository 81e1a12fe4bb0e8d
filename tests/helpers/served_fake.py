"""Run as a script: the `mlc` command with the scripted engine in place of the real one.

`MLC_TEST_LOAD` makes loading `wait` for a line on standard input, `fail`, or `crash`; it prints "loading" first.
"""

import os
import sys
from types import SimpleNamespace
from typing import Any

from fake_async_engine import FakeEngine

from mlc_llm.cli import models
from mlc_llm.runtime.errors import ModelFileError


def load(folder: str, device: str, **options: Any) -> FakeEngine:
    how = os.environ.get("MLC_TEST_LOAD", "")
    said = [options["engine_config"], options["max_waiting"]]
    said += [options[name] for name in ("embedding_model", "embedding_model_lib") if options[name] is not None]
    print("loading", folder, *said, file=sys.stderr, flush=True)
    if how == "wait":
        sys.stdin.readline()
    elif how == "fail":
        raise ModelFileError("the folder is damaged: compile it again")
    elif how == "crash":
        raise KeyError("a bug")
    return FakeEngine()


def install() -> None:
    """Put the scripted engine where the command line looks for AsyncMLCEngine, and a model where it looks for one."""
    sys.modules["mlc_llm.serve.async_engine"] = SimpleNamespace(AsyncMLCEngine=load)  # type: ignore[assignment]
    models.find_or_compile = lambda name, *arguments: models.CompiledModel(f"dist/{name}")  # type: ignore[assignment,arg-type]


if __name__ == "__main__":
    install()
    from mlc_llm.cli.main import main

    main()
