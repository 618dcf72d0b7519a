"""A few thousand of the inputs of `make fuzz`, and the corpus as it is."""

from __future__ import annotations

import random
import re

import pytest

import columns
from tests.fuzz import CORPUS, blocks, check, corpus, fuzz, made_up, whole_corpus


def test_every_payload_of_the_corpus_ends_as_readings_or_a_reason() -> None:
    assert sum(map(check, whole_corpus())) > 5_000


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_is_made_of_payloads_by_chance_ends_as_readings_or_a_reason(seed: int) -> None:
    assert fuzz(seed, 2_000) >= 2_000


def test_whatever_hypothesis_makes_up_ends_as_readings_or_a_reason() -> None:
    assert made_up(1, 60) >= 60


def test_the_corpus_says_what_each_payload_is() -> None:
    told = re.findall(r"^\| `([\w-]+)` \| .+ \|$", (CORPUS / "README.md").read_text(), re.MULTILINE)
    assert sorted(told) == sorted(path.name for path in CORPUS.iterdir() if path.name != "README.md")
    assert len(corpus()) == len(told)


def test_a_batch_that_says_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check has teeth: numbers in columns that are off by one are found at once."""
    honest = columns.numbers
    monkeypatch.setattr(
        columns, "numbers", lambda column: [None if one is None else one + 1 for one in honest(column)]
    )
    with pytest.raises(AssertionError):
        fuzz(1, 2_000)


def test_fuzzing_is_a_pure_function_of_its_seed() -> None:
    assert blocks(random.Random("1:1")) == blocks(random.Random("1:1"))
    assert blocks(random.Random("1:1")) != blocks(random.Random("1:2"))
