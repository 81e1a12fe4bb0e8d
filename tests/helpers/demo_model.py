"""The demo model, and what it is asked."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DEMO = "smollm2-135m-instruct"
TEXT = Path(__file__).parents[2] / "benchmarks" / "data" / "declaration-and-gettysburg.txt"
PROMPTS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain why the sky is blue.",
    "List three uses of a paper clip.",
    "What is 17 + 25?",
    "Who wrote Romeo and Juliet?",
    "Give me a short recipe for pancakes.",
    "Translate 'good morning' into Spanish.",
    "What does a compiler do?",
    "Tell me a fact about the moon.",
]


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """[n, vocab] -> log probabilities."""
    wide = logits.astype(np.float64)
    return wide - np.logaddexp.reduce(wide, axis=1, keepdims=True)
