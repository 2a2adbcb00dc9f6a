"""A whole job in miniature: a model folder, a pool and a target, made in a temporary folder."""

from __future__ import annotations

import json
import random
from itertools import count
from pathlib import Path

from clusterucb.gradients.accumulate import Accumulator
from helpers.models import tiny_llama
from helpers.templates import SHAPES, byte_level

TOPICS = {
    "colours": (
        "What colour is {}?",
        "It is {} and bright.",
        ["red", "green", "blue", "pink", "grey", "brown"],
    ),
    "sums": ("Add {0} and {0}.", "The sum of {0} and {0} is easy.", [str(n) for n in range(10, 40)]),
    "animals": (
        "Name the young of a {}.",
        "A small {} of course!",
        ["cow", "dog", "cat", "hen", "fox", "owl", "bee"],
    ),
    "places": (
        "Where is {}?",
        "{} lies far away, over the hills.",
        ["Rome", "Oslo", "Lima", "Bonn", "Kyiv", "Cork"],
    ),
}


def write_model(folder: Path, *, topics=TOPICS, **changes) -> Path:
    """Write a random Llama with a byte-level tokenizer and a ChatML template."""
    corpus = tuple(text for question, answer, _ in topics.values() for text in (question, answer) * 20)
    tokenizer = byte_level(SHAPES["chatml"], corpus=corpus)
    tiny_llama(vocab_size=len(tokenizer), **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows(count: int, seed: int = 0) -> list[dict]:
    """Return distinct rows in the shape of a pool, of all topics."""
    choose = random.Random(seed)
    made: dict[str, dict] = {}
    while len(made) < count:
        topic = choose.choice(sorted(TOPICS))
        question, answer, words = TOPICS[topic]
        word = f"{choose.choice(words)} {choose.randrange(1000)}"
        row = {"prompt": question.format(word), "completion": answer.format(word), "source": topic}
        made[row["prompt"]] = {"id": f"{topic}-{len(made)}-{seed}", **row}
    return list(made.values())


def write_rows(path: Path, lines) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    return path


def write_job(folder: Path) -> Path:
    """Write a model, a pool of 40 samples and a target of 6 into a folder, and return it."""
    write_model(folder / "model")
    write_rows(folder / "pool.jsonl", rows(40))
    write_rows(folder / "dev.jsonl", rows(6, seed=3))
    return folder


def interrupt(monkeypatch, numbers, error=KeyboardInterrupt):
    """Let the passes of these numbers, counted from now on from 0, fail."""
    compute, calls = Accumulator.__call__, count()

    def failing(self, batch):
        if next(calls) in numbers:
            raise error
        return compute(self, batch)

    monkeypatch.setattr(Accumulator, "__call__", failing)


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
