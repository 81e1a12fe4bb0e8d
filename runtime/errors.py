"""The errors that a user can meet; each is one line and maps to an exit code and to an OpenAI error object."""


class MLCError(Exception):
    """Base of every error whose message is meant for the user: what, where, what was expected, what to do."""

    exit_code = 1


class UsageError(MLCError):
    """The command or call itself is wrong: an unknown flag value, a missing argument."""

    exit_code = 2


class ModelFileError(MLCError):
    """A file of a model (source weights, model folder, model library) is missing, damaged or does not fit."""


class RequestError(MLCError):
    """A generation request is invalid. `param` names the field, `code` is OpenAI's error code."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class EngineError(MLCError):
    """The engine or the machine cannot do what was asked: out of memory, no C compiler, a closed engine."""


class OverloadedError(EngineError):
    """More is asked for at a time than the engine takes; `retry_after` seconds later it may fit."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after
