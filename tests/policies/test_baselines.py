"""What a bandit is compared with does what its description says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import clusterucb as cu
from clusterucb.errors import ModelError, OptionError
from clusterucb.features import FeatureBatch, Hidden
from clusterucb.features.similarity import similarity
from clusterucb.samples.encoded import Encoded
from helpers.searching import search as flat_search
from helpers.tiny import write_model


def search(scores, policy, **options):
    defaults = {"clusterer": None, "budget": len(scores), "n_select": 1}
    return flat_search(
        np.zeros((len(scores), 1)), scores.__getitem__, policy=policy, **{**defaults, **options}
    )


# Policies -------------------------------------------------------------------------------------------------


def test_exhaustive_scores_everything_in_order_and_nothing_less():
    assert search(np.arange(9.0), cu.Exhaustive()).drawn_rows.tolist() == list(range(9))
    with pytest.raises(OptionError, match="the budget is 8 of 9; use a budget of 100%"):
        search(np.arange(9.0), cu.Exhaustive(), budget=8)


@given(st.lists(st.sampled_from([0.0, 0.5, 0.75, 1.0]), min_size=1, max_size=30), st.integers(1, 7))
def test_rds_scores_the_most_similar_first(values, batch_size):
    similar = np.array(values)
    found = search(np.zeros(len(values)), cu.RDS(), columns={"similarity": similar}, batch_size=batch_size)
    assert found.drawn_rows.tolist() == sorted(range(len(values)), key=lambda row: (-similar[row], row))


def test_rds_needs_the_similarity():
    with pytest.raises(OptionError, match="needs the column 'similarity'"):
        search(np.zeros(3), cu.RDS())


@given(st.integers(0, 999), st.integers(1, 4), st.integers(1, 5))
def test_whole_clusters_follow_the_means_of_their_representatives(seed, representatives, batch_size):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(5), rng.integers(5, size=rng.integers(30))])
    scores = rng.normal(size=len(labels))
    policy = cu.ClusterMean(representatives=representatives)
    found = search(scores, policy, clusterer=labels, batch_size=batch_size, seed=seed)
    sizes = np.bincount(labels)
    n_first = int(np.minimum(sizes, representatives).sum())
    first, rest = found.drawn_rows[:n_first], found.drawn_rows[n_first:]
    assert np.bincount(labels[first]).tolist() == np.minimum(sizes, representatives).tolist()
    means = [scores[first][labels[first] == arm].mean() for arm in range(5)]
    # a batch that holds the last representatives is filled up before all of them have been seen
    settled = rest[-(-n_first // batch_size) * batch_size - n_first :]
    order = [means[arm] for arm in labels[settled]]
    assert order == sorted(order, reverse=True)


def test_representatives_are_checked():
    with pytest.raises(OptionError, match="representatives is 0; expected a whole number of at least 1"):
        cu.ClusterMean(representatives=0)


# Similarity -----------------------------------------------------------------------------------------------


def test_similarity_is_the_cosine_with_the_nearest_subtask():
    rng = np.random.default_rng(0)
    pool = {"a": rng.normal(size=(20, 3)).astype(np.float32) + 5, "b": rng.normal(size=(20, 2)) * 100}
    targets = [{"a": pool["a"][:4], "b": pool["b"][:4]}, {"a": pool["a"][7:9], "b": pool["b"][7:9]}]

    def joined(blocks):
        scaled = []
        for name in ("a", "b"):
            centred = pool[name] - pool[name].mean(axis=0)
            scaled.append((blocks[name] - pool[name].mean(axis=0)) / np.linalg.norm(centred, axis=1).mean())
        rows = np.concatenate(scaled, axis=1)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    means = [joined(target).mean(axis=0) for target in targets]
    expected = [max(row @ mean / np.linalg.norm(mean) for mean in means) for row in joined(pool)]
    np.testing.assert_allclose(similarity(pool, targets), expected, rtol=1e-5)


def test_features_without_a_difference_are_not_similar():
    blocks = {"a": np.ones((4, 2), np.float32)}
    assert similarity(blocks, [blocks]).tolist() == [0.0] * 4


# Hidden states --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def batch_of(model, samples):
    return FeatureBatch([None] * len(samples), samples, lambda: model, lambda: pytest.fail("no gradients"))


def sample_of(rng, length, content):
    tokens = rng.integers(5, 60, size=length)
    inside = np.zeros(length, bool)
    inside[list(content)] = True
    return Encoded(tokens, inside, inside)


def test_hidden_states_are_weighted_means_over_content(model):
    rng = np.random.default_rng(0)
    samples = [sample_of(rng, 9, [3, 4, 8]), sample_of(rng, 5, [])]
    n_layers = model.config.num_hidden_layers
    found = Hidden(depth=0.5).compute(batch_of(model, samples))["hidden"]
    for sample, row in zip(samples, found, strict=True):
        with torch.inference_mode():
            states = model(torch.from_numpy(sample.tokens)[None], output_hidden_states=True).hidden_states
        state = states[max(round(n_layers / 2), 1)][0].numpy()
        weight = np.where(sample.content, np.arange(1, len(sample) + 1), 0.0)
        expected = np.average(state, axis=0, weights=weight) if weight.any() else state[-1]
        limit = 10 * np.median(np.abs(expected))
        expected = np.clip(expected, -limit, limit)
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-6)


def test_the_pass_ends_at_the_layer_and_leaves_no_hook(model):
    def hooks():  # transformers keeps some of its own
        return [list(module._forward_hooks.values()) for module in model.modules()]

    before, seen = hooks(), []
    last = model.model.layers[-1].register_forward_hook(lambda *_: seen.append(1))
    sample = sample_of(np.random.default_rng(1), 6, [2, 3])
    Hidden(depth=0.01).compute(batch_of(model, [sample]))
    assert not seen
    Hidden(depth=1).compute(batch_of(model, [sample]))
    assert seen
    last.remove()
    assert hooks() == before


def test_a_depth_or_a_model_that_has_none_is_refused():
    with pytest.raises(OptionError, match="depth is 0; expected a share of the layers above 0 and at most 1"):
        Hidden(depth=0)
    with pytest.raises(ModelError, match="has no list of None layers; use --features embedding"):
        Hidden().compute(batch_of(torch.nn.Linear(2, 2), [sample_of(np.random.default_rng(0), 4, [1])]))
