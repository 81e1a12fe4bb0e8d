"""TVM's hooks for code generation: functions that it looks up by name."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_ONLY_COMPILE = "TVM_COMPILE_FORCE_FALLBACK"  # modules are made to be saved, also where a device could run them


@contextmanager
def override(functions: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Have TVM call these by their names, and keep what it makes for a device to be saved alone; undone after.

    An error of ours that one of them raises comes out as it was raised, not as TVM's.
    """
    import tvm_ffi

    raised: list[BaseException] = []

    def caught(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            try:
                return function(*arguments)
            except BaseException as error:
                raised.append(error)
                raise

        return call

    before = {name: tvm_ffi.get_global_func(name, allow_missing=True) for name in functions}
    environment = os.environ.get(_ONLY_COMPILE)
    os.environ[_ONLY_COMPILE] = "1"
    for name, function in functions.items():
        tvm_ffi.register_global_func(name, caught(function), override=True)
    try:
        yield
    except Exception as error:
        if raised:
            raise raised[0] from error
        raise
    finally:
        for name, function in before.items():
            if function is None:
                tvm_ffi.registry.remove_global_func(name)
            else:
                tvm_ffi.register_global_func(name, function, override=True)
        if environment is None:
            del os.environ[_ONLY_COMPILE]
        else:
            os.environ[_ONLY_COMPILE] = environment
