"""What Ray Serve costs, and what a second replica brings: the streams of benchmarks/server.py through each.

    python benchmarks/ray_serve.py MODEL [--model-lib FILE] [--streams 1 16] [--tokens 64] [--rounds 3] [--cores 2]

MODEL is a compiled model folder. In turn: `mlc serve`, `serve run` with one replica, and with two that have half of the
cores each. All on this machine, where the clients run too, so two replicas can bring no more than one. Needs the extra
`ray`; its usage statistics are off.
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import yaml
from http_streams import STARTS_WITHIN
from http_streams import server as mlc_serve
from server import CACHE_TOKENS, over_http, show, work

PORT = 18000


@contextmanager
def ray_serve(arguments: argparse.Namespace, replicas: int) -> Iterator[str]:
    """The address of an application with that many replicas."""
    cores = arguments.cores // replicas
    given = {
        "model": str(arguments.model.resolve()), "mode": "server", "max_batch_size": max(arguments.streams),
        "max_total_seq_length": CACHE_TOKENS, "num_replicas": replicas, "num_threads": cores,
        "ray_actor_options": {"num_cpus": cores},
    }  # fmt: skip
    if arguments.model_lib is not None:
        given["model_lib"] = str(arguments.model_lib.resolve())
    application = {"name": "mlc", "route_prefix": "/", "import_path": "mlc_llm.serve.ray_app:app", "args": given}
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as home:
        file = Path(home) / "ray.yaml"
        file.write_text(yaml.safe_dump({"http_options": {"port": PORT}, "applications": [application]}))
        command = [sys.executable, "-m", "ray.serve.scripts", "run", str(file)]
        environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": home, "HOME": home}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            url = f"http://127.0.0.1:{PORT}"
            wait_for(f"{url}/metrics", replicas)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def wait_for(url: str, replicas: int) -> None:
    """Until so many replicas have figures."""
    deadline = time.monotonic() + STARTS_WITHIN
    while True:
        try:
            with urlopen(url, timeout=STARTS_WITHIN) as response:
                if response.read().count(b"mlc_kv_cache_pages{") == replicas:
                    return
        except (URLError, ConnectionError):
            pass
        assert time.monotonic() < deadline, "the application does not start"
        time.sleep(0.2)


def measure(arguments: argparse.Namespace, name: str, url: str) -> None:
    for streams in arguments.streams:
        # The first round warms up.
        rounds = [
            asyncio.run(over_http(url, work(streams, arguments.tokens, number)))
            for number in range(arguments.rounds + 1)
        ]
        show(f"{name}, {streams} streams", rounds[1:])


def main() -> None:
    """Start each server and measure it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--model-lib", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    arguments = parser.parse_args()
    options = ("--mode", "server", "--max-batch-size", str(max(arguments.streams)))
    options += ("--max-total-seq-length", str(CACHE_TOKENS))
    with mlc_serve(arguments.model, arguments.model_lib, *options) as (url, _):
        measure(arguments, "mlc serve", url)
    for replicas in (1, 2):
        with ray_serve(arguments, replicas) as url:
            measure(arguments, f"Ray Serve, replicas: {replicas}", url)


if __name__ == "__main__":
    main()
