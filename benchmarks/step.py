"""Where the time of one decode step goes: in the library's kernels, and in which parts of the Python around them.

    python benchmarks/step.py MODEL [--model-lib FILE] [--tokens 128] [--temperature 0] [--top-p 1] [--batch-size 1 8]

MODEL is a compiled model folder. A step is everything from one token to the next: cache, kernels, choice of the token,
text, stop strings, event. Kernels are what runs inside of TVM's interface, those of the sampler included. A batch is
stepped as an engine would step it: one pass of the model for all, which chooses the tokens too, then the text of each
answer. Medians over the steps.

The kernels of a step push Python's own code and data out of the caches, so that it runs several times slower than by
itself. "Instant model" is the same without the model: its logits are there at once. A clock adds 0.3 us by itself, and
1 to 2 us in a real step, whenever a part is entered; so "Python in all" comes from steps in which only the kernels have
one, and the parts from others.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median, mode
from time import perf_counter
from typing import Any

import numpy as np

from mlc_llm.runtime import ffi
from mlc_llm.runtime.answer_text import AnswerText
from mlc_llm.runtime.events import Finish
from mlc_llm.runtime.generation import Generator
from mlc_llm.runtime.lazy_array import LazyArray
from mlc_llm.runtime.model import Logits, Model
from mlc_llm.runtime.sampler import BatchSampler, Sampler
from mlc_llm.runtime.sampling_kernels import Draws
from mlc_llm.runtime.sampling_params import SamplingParams
from mlc_llm.runtime.scheduler import Scheduler
from mlc_llm.serve.engine import MLCEngine

PROMPT = "Tell me a long story about a fox."
STOP = ("\n\n\n\n", "<|never|>")


class Clocks:
    """Seconds spent in parts of a step; time in an inner part does not count for the outer one."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._inner = [0.0]

    def watch(self, owner: Any, attribute: str, part: str) -> None:
        """Let calls of `owner.attribute` count for `part`."""
        function: Callable[..., Any] = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            self.calls[part] += 1
            begin = perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                elapsed = perf_counter() - begin
                self.spent[part] += elapsed - self._inner.pop()
                self._inner[-1] += elapsed

        setattr(owner, attribute, timed)

    @contextmanager
    def step(self) -> Iterator[dict[str, float]]:
        """One step: fills the dictionary with the seconds of each part, and "rest"."""
        self.spent.clear()
        self.calls.clear()
        self._inner = [0.0]
        parts: dict[str, float] = {}
        begin = perf_counter()
        yield parts
        elapsed = perf_counter() - begin
        parts.update(self.spent, rest=elapsed - sum(self.spent.values()))


class NoPages:
    """The pages of a model that keeps nothing."""

    page_size, num_pages = 16, 1

    def free_pages(self) -> int:
        return 1

    def full_pages(self, sequence: int) -> list[int]:
        return []

    def hold(self, pages: Sequence[int]) -> None: ...

    def release(self, page: int) -> bool:
        return True


class Instant:
    """A model whose logits are there at once."""

    def __init__(self, model: Model) -> None:
        self.context_window, self.vocab_size, self.sampling = model.context_window, model.vocab_size, model.sampling
        self.max_num_sequence, self.prefill_chunk_size = 1, model.prefill_chunk_size
        self.pages = NoPages()
        self._logits = np.random.default_rng(0).standard_normal((256, self.vocab_size)).astype(np.float32) * 5
        self._passes = 0

    def add_sequence(self, pages: Sequence[int] = ()) -> int:
        return 0

    def remove_sequence(self, sequence: int) -> None: ...

    def fork_sequence(self, parent: int, position: int) -> int:
        return 0

    def pop(self, sequence: int, count: int) -> None: ...

    def prefill(self, sequence: int, tokens: Sequence[int]) -> Logits:
        return self.decode([sequence], tokens)[0]

    def decode_and_sample(
        self, sequences: Sequence[int], tokens: Sequence[int], draws: Draws, uniforms: list[float]
    ) -> list[int]:
        return draws.choose(LazyArray.over(self.decode(sequences, tokens)), uniforms)

    def decode(self, sequences: Sequence[int], tokens: Sequence[int]) -> Logits:
        self._passes += 1
        place = self._passes % len(self._logits)
        return self._logits[place : place + 1]


def report(title: str, steps: list[dict[str, float]]) -> None:
    """Medians in microseconds: in all, or of the parts where these have clocks."""
    names = {name for step in steps for name in step}
    if names == {"kernels", "rest"}:
        kernels, python = (median(step[name] for step in steps) * 1e6 for name in ("kernels", "rest"))
        print(f"{title}: kernels {kernels:.0f} us, Python in all {python:.0f} us")
        return
    print(f"{title}, by parts")
    for name in sorted(names - {"kernels"}, key=lambda name: name == "rest"):
        print(f"  {name:24}{median(step.get(name, 0) for step in steps) * 1e6:8.1f} us")


def one_at_a_time(title: str, clocks: Clocks, generator: Generator, prompt: list[int], params: SamplingParams) -> None:
    """The steps of one answer, as `MLCEngine` and `mlc chat` take them."""
    events = generator.generate(prompt, params, stop_strings=STOP)
    steps = []
    while True:
        with clocks.step() as parts:
            event = next(events)
        if isinstance(event, Finish):
            break
        steps.append((clocks.calls["kernels"], parts))
    single = mode(calls for calls, _ in steps)  # an event may take several tokens: parts of a character have no text
    report(title, [parts for calls, parts in steps[8:] if calls == single])


def together(clocks: Clocks, generator: Generator, size: int, prompt: list[int], params: SamplingParams) -> None:
    """The steps of several answers at once."""
    model, tokenizer = generator.model, generator.tokenizer
    sampler = BatchSampler([Sampler(params, model.vocab_size, model.sampling, prompt) for _ in range(size)])
    answers = [AnswerText(tokenizer, False, STOP) for _ in range(size)]
    sequences = [model.add_sequence() for _ in range(size)]
    tokens = [int(model.prefill(sequence, prompt).argmax()) for sequence in sequences]
    steps = []
    for _ in range(params.max_tokens or 0):
        with clocks.step() as parts:
            tokens = model.decode_and_sample(sequences, tokens, sampler.draws, sampler.uniforms())
            for answer, one in zip(answers, sampler.accept(tokens), strict=True):
                answer.take(one)
        steps.append(parts)
    report(f"batch {size}", steps[8:])
    for sequence in sequences:
        model.remove_sequence(sequence)


def main() -> None:
    """Load the model, put clocks into it, and step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--model-lib", type=Path)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, nargs="*", default=[1, 8])
    arguments = parser.parse_args()
    sys.setswitchinterval(1)
    params = SamplingParams(
        temperature=arguments.temperature, top_p=arguments.top_p, max_tokens=arguments.tokens, ignore_eos=True, seed=1
    )
    engine = MLCEngine(arguments.model, model_lib=arguments.model_lib, mode="server")
    loaded = engine._loaded()
    prompt = loaded.tokenizer.encode(PROMPT)
    clocks = Clocks()

    def measure() -> None:
        for size in arguments.batch_size:
            if size == 1:
                instant = Generator(Instant(loaded.generator.model), loaded.tokenizer)  # type: ignore[arg-type]
                one_at_a_time("instant model, batch 1", clocks, instant, prompt, params)
                one_at_a_time("batch 1", clocks, loaded.generator, prompt, params)
            else:
                together(clocks, loaded.generator, size, prompt, params)

    clocks.watch(ffi.lib, "call", "kernels")
    measure()
    clocks.watch(Scheduler, "step", "scheduler")
    clocks.watch(Model, "decode_and_sample", "model and choice")
    clocks.watch(BatchSampler, "accept", "sampler")
    clocks.watch(AnswerText, "take", "text and stop strings")
    measure()


if __name__ == "__main__":
    main()
