"""What a draft model gains: tokens per second of answers with it and without.

    python benchmarks/draft.py MODEL DRAFT [--tokens 96] [--rounds 3] [--answers 1 4] [--temperature 0 1]

MODEL and DRAFT are compiled model folders with their libraries beside them. Each round answers the same questions with
nothing guessed, with guesses of fixed lengths, and with the length that the engine chooses by what it measures; of the
rounds the medians are printed, with the share of guessed tokens that were right. Prompts are not counted.
"""

import argparse
import time
from pathlib import Path
from statistics import median

from mlc_llm import MLCEngine
from mlc_llm.runtime.draft_model import DraftModel
from mlc_llm.runtime.events import Finish
from mlc_llm.runtime.generation import Generator
from mlc_llm.runtime.sampling_params import SamplingParams
from mlc_llm.serve import EngineConfig
from mlc_llm.serve.answer import prompt_ids
from mlc_llm.serve.loading import LoadedModel

QUESTIONS = (
    "Write a Python function that computes Fibonacci numbers, and explain it.",
    "What is the capital of France, and what is it known for?",
    "Explain how plants turn light into sugar.",
    "Tell me a short story about a fox and a river.",
)
LENGTHS = {"nothing guessed": None, "2 tokens": 2, "4 tokens": 4, "7 tokens": 7, "as it pays": 0}


def answer(model: LoadedModel, answers: int, params: SamplingParams) -> tuple[float, float]:
    """Tokens per second of that many answers at once, and the share of guessed tokens that were right."""
    generator: Generator = model.generator
    speculation = generator.scheduler.speculation
    guessed, right = speculation.guessed_tokens, speculation.right_tokens
    generator.scheduler.forget()
    prompts = [prompt_ids(model, [{"role": "user", "content": text}]) for text in QUESTIONS[:answers]]
    first, tokens = 0.0, 0
    begun: set[int] = set()
    for index, event in generator.follow([generator.job(prompt, params) for prompt in prompts]):
        begun.add(index)
        if not first and len(begun) == answers:
            first = time.perf_counter()
        if isinstance(event, Finish):
            tokens += event.completion_tokens
    seconds = time.perf_counter() - first
    guessed, right = speculation.guessed_tokens - guessed, speculation.right_tokens - right
    return (tokens - answers) / seconds, right / guessed if guessed else 0.0


def main() -> None:
    """Load both models and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("draft", type=Path)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--answers", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--temperature", type=float, nargs="*", default=[0.0, 1.0])
    arguments = parser.parse_args()
    config = EngineConfig(speculative_mode="small_draft", additional_models=[str(arguments.draft)])
    with MLCEngine(arguments.model, engine_config=config) as engine:
        model = engine._loaded()
        speculation = model.generator.scheduler.speculation
        draft = speculation.guesser
        assert isinstance(draft, DraftModel)
        for answers in arguments.answers:
            for temperature in arguments.temperature:
                params = SamplingParams(temperature=temperature, max_tokens=arguments.tokens, ignore_eos=True)
                figures: dict[str, list[tuple[float, float]]] = {name: [] for name in LENGTHS}
                for _ in range(arguments.rounds + 1):
                    for name, length in LENGTHS.items():
                        speculation.guesser = None if length is None else draft
                        speculation.length = length or 0
                        figures[name].append(answer(model, answers, params))
                print(f"answers at once: {answers}, temperature {temperature:g}")
                for name, rounds in figures.items():
                    speed = median(speed for speed, _ in rounds[1:])
                    right = median(right for _, right in rounds[1:])
                    print(f"  {name:16}{speed:8.1f} tokens/s   {right:5.0%} right")


if __name__ == "__main__":
    main()
