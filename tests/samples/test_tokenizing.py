"""A tokenizer that fails at work, or that would take all memory, is refused in one line."""

from __future__ import annotations

import json

import pytest

from clusterucb.errors import ModelError
from clusterucb.samples.encode import Encoder
from clusterucb.samples.tokenizing import check_ids, tokenizing
from helpers.templates import SHAPES, byte_level

REPLACED = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 30}


class PanicException(BaseException):
    """What a failure in Rust looks like."""


def changed(**parts):
    tokenizer = byte_level(SHAPES["chatml"])
    content = {**json.loads(tokenizer.backend_tokenizer.to_str()), **parts}
    return type(tokenizer)(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(json.dumps(content)), eos_token="x"
    )


@pytest.mark.parametrize("error", [TypeError("a\nb"), PanicException("a\nb")])
def test_what_fails_in_a_tokenizer_is_one_line(error: BaseException) -> None:
    with (
        pytest.raises(ModelError, match=rf"cannot encode a text \({type(error).__name__}: a b\)"),
        tokenizing(),
    ):
        raise error


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_is_not_of_the_tokenizer_is_not_caught(error: type[BaseException]) -> None:
    with pytest.raises(error), tokenizing():
        raise error


def test_a_normalizer_that_multiplies_texts_is_refused() -> None:
    Encoder(changed(normalizer=REPLACED), max_length=64)
    twice = {"type": "Sequence", "normalizers": [REPLACED, {"type": "NFC"}, REPLACED]}
    with pytest.raises(ModelError, match="may turn a letter into 900 letters; expected at most 100"):
        Encoder(changed(normalizer=twice), max_length=64)
    with pytest.raises(ModelError, match=r"into 1e\+300 letters"):
        Encoder(changed(normalizer={"type": "Sequence", "normalizers": [REPLACED] * 300}), max_length=64)


def test_an_id_beyond_every_vocabulary_is_refused() -> None:
    check_ids([0, 1_000_000])
    for number in (-1, 2**26):
        with pytest.raises(ModelError, match=f"an added token with the id {number}; expected ids from 0"):
            check_ids([number])


def test_a_tokenizer_whose_limit_is_no_number_is_refused() -> None:
    tokenizer = changed()
    tokenizer.model_max_length = "x"
    with pytest.raises(ModelError, match="cannot encode a text"):
        Encoder(tokenizer, max_length=64)
