"""What every test gets: no network, no cache of the user, no progress bars of libraries."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from mlc_llm.runtime.artifact import cache_home

# How long an example takes is the machine's affair.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# Of the user, before a test gets its own: a plug-in takes ten seconds to build, a kernel half a second on PoCL.
_PLUGINS = cache_home() / "plugins"
_POCL = os.environ.get("POCL_CACHE_DIR") or str(cache_home().parent / "pocl/kcache")

# A shell starts what it runs in the background with Ctrl-C ignored, and programs under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _isolated(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches and history go to a folder of the test, and Hugging Face's libraries never look online."""
    home = tmp_path_factory.mktemp("home")
    for name in ("MLC_LLM_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(home / name.lower()))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture
def plugins(_isolated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plug-ins of devices that the test, or a process that it starts, loads are built once for all tests."""
    monkeypatch.setenv("POCL_CACHE_DIR", _POCL)
    _PLUGINS.mkdir(parents=True, exist_ok=True)
    cache_home().mkdir(parents=True)
    (cache_home() / "plugins").symlink_to(_PLUGINS)


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Only loopback and Unix sockets can be connected to: a test that needs the internet fails at once."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and str(address[0]) not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"a test tried to connect to {address!r}: tests run without a network")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield


@pytest.fixture
def root() -> Path:
    """The repository root, which is the package `mlc_llm`."""
    return Path(__file__).parent.parent
