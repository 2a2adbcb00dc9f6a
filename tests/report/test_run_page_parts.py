"""The parts of a run's page: the places of its map, and near-duplicates."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.report.run_page.duplicates import SHARE, near_duplicates
from clusterucb.report.run_page.layout import places
from clusterucb.report.run_page.overview import cut

WORDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=7).map(" ".join)


def triples(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[at : at + 3]) for at in range(len(words) - 2)} or {tuple(words)}


@given(texts=st.lists(WORDS, max_size=12))
def test_near_duplicates_are_those_of_brute_force(texts):
    expected, kept = [], []
    for at, text in enumerate(texts):
        own = triples(text)
        shares = {one: len(triples(texts[one]) & own) / len(triples(texts[one]) | own) for one in range(at)}
        same = [one for one in range(at) if shares[one] == 1]
        near = [one for one in kept if shares[one] >= SHARE]
        if same:
            expected.append((same[0], at, 1.0))
        elif near:
            nearest = max(near, key=lambda one: (shares[one], -one))
            expected.append((nearest, at, shares[nearest]))
        else:
            kept.append(at)
    assert near_duplicates(texts) == expected


@pytest.mark.parametrize("count", [40, 60, 500])
def test_any_number_of_alike_texts_are_near_duplicates_of_the_first(count):
    form = "please answer the following question about the weather in one word only, as briefly as you can: "
    assert len(near_duplicates([form] * count)) == count - 1
    texts = [f"{form} {at}" for at in range(count)]
    assert [pair[:2] for pair in near_duplicates(texts)] == [(0, at) for at in range(1, count)]


def test_what_a_template_repeats_makes_no_near_duplicates():
    form = "please answer the following question with one word only"
    texts = [f"{form} {' '.join(f'{word}{at}' for word in 'abcdefghij')}" for at in range(300)]
    assert near_duplicates(texts) == []
    assert near_duplicates([*texts, texts[7]]) == [(7, 300, 1.0)]


def test_texts_without_words_or_without_spaces_are_compared_too():
    assert near_duplicates(["😀 🎉", "+ - =", "another text of five words", "😀 🎉"]) == [(0, 3, 1.0)]
    text = "今天天气很好我们一起去公园散步然后回家吃饭看电影睡觉明天早上还要上班工作学习"
    text += "所以今晚必须早点休息不能太晚睡觉了"
    other = text.replace("公园", "河边")
    assert [pair[:2] for pair in near_duplicates([text, "短い文", other])] == [(0, 2)]


@given(n=st.integers(1, 200), width=st.integers(1, 80), n_centres=st.integers(1, 9), seed=st.integers(0, 99))
def test_every_sample_has_a_finite_place_and_equal_samples_have_the_same(n, width, n_centres, seed):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n_centres, width))[rng.integers(0, n_centres, n)]
    rows += rng.choice([0.0, 0.1]) * rng.normal(size=rows.shape)
    half = n // 2
    rows[n - half :] = rows[:half]
    found = places({"one": rows.astype(np.float32), "constant": np.ones((n, 3), np.float32)})
    assert found.shape == (n, 2)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    scale = max(float(np.ptp(found)), 1e-6)
    assert np.abs(found[n - half :] - found[:half]).max(initial=0) <= 1e-2 * scale


def test_features_that_are_all_alike_have_no_map():
    assert not places({"one": np.ones((30, 4), np.float32)}).any()


def test_groups_that_differ_lie_apart():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(6), 50)
    rows = 10 * rng.normal(size=(6, 40))[group] + rng.normal(size=(300, 40))
    found = places({"one": rows.astype(np.float32)}).astype(np.float64)
    distance = np.linalg.norm(found[:, None] - found, axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (group[distance.argmin(axis=1)] == group).mean() > 0.95


def test_a_text_is_cut_shorter_if_its_letters_take_several_bytes():
    assert cut("short") == "short"
    assert cut("a" * 200) == "a" * 160 + "…"
    assert len(cut("汉" * 200)) == 61
    assert cut("汉" * 60) == "汉" * 60
