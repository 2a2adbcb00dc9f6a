"""The built-in features: what each says of a sample, what it refuses, and what of it is learnt from the pool."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, BertConfig, BertModel, PreTrainedTokenizerFast

import clusterucb as cu
from clusterucb import plugins
from clusterucb.engine import large
from clusterucb.errors import InputError, ModelError, OptionError, PluginError, RunError
from clusterucb.features import FeatureBatch
from clusterucb.features.hidden import _damped
from clusterucb.features.lexical import _WORD
from clusterucb.features.sentence import SentenceModel
from clusterucb.features.similarity import check_comparable, similarity
from clusterucb.jobs.stages import features as pool_features
from clusterucb.samples.encoded import Encoded
from clusterucb.samples.sample import Sample
from clusterucb.samples.shapes import Message
from clusterucb.testing import FeatureSuite, outcomes
from helpers.models import tiny_llama
from helpers.tiny import rows, write_model, write_rows


def sample(prompt: str, answer: str, line: int = 1, **columns: object) -> Sample:
    raw = json.dumps({"prompt": prompt, "completion": answer, **columns}).encode()
    messages = (Message("user", prompt), Message("assistant", answer))
    return Sample(messages, str(line), "s", "", f"{line:064x}", raw, "pool.jsonl", line)


def batch_of(samples, fitted=None, model=None) -> FeatureBatch:
    ones = np.ones(3, bool)
    encoded = [Encoded(np.array([3, 4, 5]), ones, ones) for _ in samples]

    def refuse():
        pytest.fail("no gradients")

    return FeatureBatch(samples, encoded, lambda: model, refuse, fitted or {})


def described(feature, samples, model=None):
    """Return the blocks of samples that the feature was fitted to."""
    batch = batch_of(samples, model=model)
    fitted = feature.fit(batch.spread(feature.fit_samples)) if feature.fit_samples else {}
    return feature.compute(replace(batch, fitted=fitted))


# Fit -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(0, 80))
def test_a_fit_gets_evenly_spaced_rows(n_samples, count):
    samples = [sample("a", "b", line) for line in range(n_samples)]
    spread = batch_of(samples).spread(count)
    lines = [one.line for one in spread.samples]
    assert len(lines) == len(spread.encoded) == min(count, n_samples)
    assert lines == sorted(set(lines))
    gaps = np.diff([*lines, n_samples])
    assert not lines or (lines[0] == 0 and gaps.max() - gaps.min() <= 1)
    assert [one.line for one in spread.samples[1:]] == lines[1:]


def test_a_fit_that_asks_for_gradients_is_refused():
    with pytest.raises(
        PluginError, match="asks for gradients in `fit`; expected it to take them only in `compute`"
    ):
        batch_of([sample("a", "b")]).spread(1).gradient_sketches  # noqa: B018


# Hidden states ---------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1, 1), min_size=5, max_size=30), st.floats(1e3, 1e6))
def test_an_extreme_dimension_does_not_decide_about_distances(values, extreme):
    rows = np.array([[*values, extreme], [*values, -extreme]])
    limit = 10 * np.median(np.abs(rows[0]))
    for row in rows:
        found = _damped(row)
        assert np.abs(found).max() <= limit
        inside = np.abs(row) <= limit
        np.testing.assert_array_equal(found[inside], row[inside])
        assert (np.sign(found) == np.sign(row)).all() or not limit


# Words -----------------------------------------------------------------------------------------------------

WORDS = ["red", "blue", "x", "+", "你", "12", "naïve", "one"]


def test_words_are_numbers_signs_and_characters_of_scripts_without_spaces():
    words = CountVectorizer(token_pattern=_WORD).build_tokenizer()
    assert words("a1+b = 你好, naïve_x") == ["a1", "+", "b", "=", "你", "好", ",", "naïve_x"]


@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), min_size=2, max_size=12))
def test_lexical_rows_have_the_cosines_of_tf_idf(texts):
    """With as many columns as texts nothing is lost, so products are those of scikit-learn's own TF-IDF."""
    found = described(cu.Lexical(dim=16), [sample(text, "x", line) for line, text in enumerate(texts)])
    counts = CountVectorizer(token_pattern=_WORD, ngram_range=(1, 2))
    expected = np.zeros((len(texts), 1))
    if any(texts):
        expected = TfidfTransformer(sublinear_tf=True).fit_transform(counts.fit_transform(texts)).toarray()
    np.testing.assert_allclose(found["prompt"] @ found["prompt"].T, expected @ expected.T, atol=1e-5)
    np.testing.assert_allclose(np.abs(found["answer"] @ found["answer"].T), 1, atol=1e-5)


def test_lexical_is_learnt_from_the_pool_alone():
    pool = [sample(f"{word} one", f"answer {word}", line) for line, word in enumerate(WORDS)]
    feature = cu.Lexical(dim=4)
    fitted = feature.fit(batch_of(pool).spread(feature.fit_samples))
    (row,) = feature.compute(batch_of([pool[2]], fitted))["prompt"]
    np.testing.assert_array_equal(row, feature.compute(batch_of(pool, fitted))["prompt"][2])
    new = feature.compute(batch_of([sample("never seen", "")], fitted))
    assert (new["prompt"].shape, new["answer"].tolist()) == ((1, 4), [[0.0] * 4])


@pytest.mark.parametrize("dim", [0, 1025, 2.5, True])
def test_unusable_dimensions_are_refused(dim):
    with pytest.raises(OptionError, match=r"lexical: dim is .*; expected a whole number from 1 to 1024"):
        cu.Lexical(dim=dim)


def test_lexical_without_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setattr("clusterucb.features.lexical.find_spec", lambda name: None)
    with pytest.raises(
        OptionError, match="needs scikit-learn, which is not installed: pip install scikit-learn"
    ):
        cu.Lexical()


# A column --------------------------------------------------------------------------------------------------


def test_a_column_is_taken_as_it_stands():
    rows = [[1, 2.5, -3], [0.5, 0, 1e-3]]
    found = described(cu.Column("v"), [sample("a", "b", line, v=row) for line, row in enumerate(rows)])
    np.testing.assert_array_equal(found["column"], np.array(rows, np.float32))


@pytest.mark.parametrize(
    ("columns", "got"),
    [
        ({}, "holds no value; expected a list of numbers"),
        ({"v": None}, "holds no value"),
        ({"v": []}, "holds empty"),
        ({"v": "1 2"}, "holds a string"),
        ({"v": [1, "2"]}, "holds a list with a string in it"),
        ({"v": [1, True]}, "holds a list with true or false in it"),
        ({"v": [1, [2]]}, "holds a list with a list in it"),
        ({"v": [1]}, "holds 1 numbers; expected 2, as in other rows"),
        ({"v": [1, 2, 3]}, "holds 3 numbers; expected 2, as in other rows"),
    ],
)
def test_a_row_without_a_vector_is_named(columns, got):
    samples = [sample("a", "b", 1, v=[1, 2]), sample("c", "d", 7, **columns)]
    with pytest.raises(InputError) as caught:
        described(cu.Column("v"), samples)
    assert str(caught.value).startswith(f"pool.jsonl:7: column 'v' {got}")
    assert "use other --features" in str(caught.value)


# A sentence-embedding model --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_sentence_model(tmp_path_factory.mktemp("sentences"))


def write_sentence_model(folder, pooling="mean_tokens", **changes):
    """Write a random BERT in sentence-transformers' form."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
    }
    BertModel(BertConfig(vocab_size=len(words), initializer_range=0.5, **shape)).save_pretrained(folder)
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds.items()]
    files = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": 8, "do_lower_case": True},
        "1_Pooling/config.json": {"pooling_mode_max_tokens": False, f"pooling_mode_{pooling}": True},
        **changes,
    }
    (folder / "1_Pooling").mkdir()
    for name, content in files.items():
        if content is not None:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


class TestSentences(FeatureSuite):
    @pytest.fixture
    def feature(self, folder):
        return cu.Embedding(model=str(folder))


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token", "lasttoken"])
def test_sentences_are_pooled_as_the_folder_says(tmp_path, pooling):
    folder = write_sentence_model(tmp_path / "m", pooling)
    texts = ["red", "blue red ONE", "one " * 30, ""]
    samples = [sample(text, text, line) for line, text in enumerate(texts)]
    feature = cu.Embedding(model=str(folder), parts=False)
    found = described(feature, samples, tiny_llama())["embedding"]
    bert = BertModel.from_pretrained(folder).eval()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    for row, text in zip(found, texts, strict=True):
        ids = [2, *[words.index(word.lower()) for word in text.split()][:6], 3]
        with torch.inference_mode():
            states = bert(torch.tensor([ids])).last_hidden_state[0].numpy()
        vector = {"mean_tokens": states.mean(axis=0), "cls_token": states[0], "lasttoken": states[-1]}[
            pooling
        ]
        expected = vector / np.linalg.norm(vector) if text else np.zeros(16)
        np.testing.assert_allclose(row, [*expected, *expected], atol=1e-6)


@pytest.mark.parametrize("own_model", [False, True])
def test_parts_are_blocks_of_their_own(folder, own_model):
    model = str(folder) if own_model else None
    samples = [sample("red blue", "one", 1), sample("red", "two one", 2)]
    whole = described(cu.Embedding(model=model, parts=False), samples, tiny_llama())
    apart = described(cu.Embedding(model=model), samples, tiny_llama())
    assert list(apart) == ["prompt", "answer", "length"]
    np.testing.assert_array_equal(apart["length"], whole["length"])
    if own_model:
        np.testing.assert_array_equal(np.hstack([apart["prompt"], apart["answer"]]), whole["embedding"])


def test_parts_are_means_of_labels_and_of_the_other_content():
    model = tiny_llama()
    table = model.get_input_embeddings().weight.detach().numpy()
    encoded = [
        Encoded(np.array([3, 4, 5, 6]), np.array([0, 0, 1, 1], bool), np.array([0, 1, 1, 0], bool)),
        Encoded(np.array([7, 8]), np.array([0, 1], bool), np.array([0, 1], bool)),
    ]
    batch = replace(batch_of([sample("a", "b")] * 2, model=model), encoded=encoded)
    found = cu.Embedding().compute(batch)
    np.testing.assert_allclose(found["prompt"], [table[4], 0 * table[4]], rtol=1e-6)
    np.testing.assert_allclose(found["answer"], [table[5], table[8]], rtol=1e-6)


def test_parts_are_compared_without_lengths():
    assert cu.Embedding().compared(["prompt", "answer", "length"]) == ("prompt", "answer")


@pytest.mark.parametrize("parts", [1, "yes", None])
def test_parts_is_true_or_false(parts):
    with pytest.raises(OptionError, match=f"embedding: parts is {parts!r}; expected true or false"):
        cu.Embedding(parts=parts)


def test_a_pass_counts_by_the_parameters_that_are_multiplied(folder):
    feature = cu.Embedding(model=str(folder))
    base, bert = tiny_llama(), BertModel.from_pretrained(folder)
    tables = sum(table.weight.numel() for table in bert.modules() if isinstance(table, torch.nn.Embedding))
    own = sum(weight.numel() for weight in bert.parameters()) - tables
    per_token = (
        sum(weight.numel() for weight in base.parameters()) - base.get_input_embeddings().weight.numel()
    )
    passes = feature.fit(batch_of([sample("a", "b")], model=base))["forward_passes"]
    assert passes.tolist() == [own / per_token]
    tied = tiny_llama(tie_word_embeddings=True)
    assert feature.fit(batch_of([sample("a", "b")], model=tied))["forward_passes"] == passes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modules.json": None}, "it has no modules.json; expected this file, which names the pooling"),
        ({"modules.json": "["}, "modules.json is not JSON"),
        ({"modules.json": {"a": 1}}, "its modules.json cannot be read"),
        (
            {"modules.json": [{"type": "x.Transformer", "path": ""}, {"type": "x.WordWeights", "path": ""}]},
            "WordW",
        ),
        ({"1_Pooling/config.json": None}, "its pooling is unknown"),
        ({"1_Pooling/config.json": {"pooling_mode_max_tokens": True}}, "its pooling is max_tokens"),
        (
            {"1_Pooling/config.json": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}},
            "its pooling is mean_tokens and cls_token",
        ),
        (
            {"config_sentence_transformers.json": {"default_prompt_name": "query"}},
            "it adds the prompt 'query'",
        ),
    ],
)
def test_a_folder_that_does_not_say_all_is_refused_at_once(tmp_path, changes, message):
    folder = write_sentence_model(tmp_path / "m", **changes)
    with pytest.raises(ModelError, match=r"cannot be used: .*; expected .*Use another folder") as caught:
        cu.Embedding(model=str(folder))
    assert message in str(caught.value)


def test_a_newer_folder_names_its_pooling(tmp_path):
    folder = write_sentence_model(tmp_path / "m", **{"1_Pooling/config.json": {"pooling_mode": "cls"}})
    cu.Embedding(model=str(folder))


def test_a_model_that_is_no_folder_or_cannot_be_loaded_is_refused(tmp_path):
    with pytest.raises(
        ModelError, match="there is no folder 'gone'; expected the folder of a sentence-embedding"
    ):
        cu.Embedding(model="gone")
    with pytest.raises(OptionError, match="embedding: model is 3; expected the path of a folder, or None"):
        cu.Embedding(model=3)
    folder = write_sentence_model(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="it cannot be loaded: "):
        described(cu.Embedding(model=str(folder)), [sample("a", "b")], tiny_llama())


def test_code_that_comes_with_a_model_does_not_run(tmp_path):
    folder = write_sentence_model(tmp_path / "m")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="cannot be loaded"):
        described(cu.Embedding(model=str(folder)), [sample("a", "b")], tiny_llama())
    assert not (tmp_path / "ran").exists()


def test_the_content_of_the_model_is_part_of_the_description(folder, tmp_path):
    feature = cu.Embedding(model=str(folder))
    described = plugins.describe(feature)
    assert described["contents"] == {"model": feature.contents()["model"]}
    other = write_sentence_model(tmp_path / "m", "cls_token")
    assert plugins.describe(cu.Embedding(model=str(other)))["contents"] != described["contents"]
    assert "contents" not in plugins.describe(cu.Embedding())


# Several ---------------------------------------------------------------------------------------------------


def test_joined_features_have_the_blocks_and_costs_of_all():
    samples = [sample(word, word, line, v=[line, 1]) for line, word in enumerate(WORDS)]
    parts = cu.Hidden(depth=0.5), cu.Lexical(dim=3), cu.Column("v"), cu.Hidden(depth=1)
    joined = cu.Concatenation(parts)
    model = tiny_llama()
    found = described(joined, samples, model)
    names = ["hidden.hidden", "lexical.prompt", "lexical.answer", "column.column", "hidden2.hidden"]
    assert list(found) == names
    for part, name in zip(parts, ("hidden", "lexical", "column", "hidden2"), strict=True):
        for block, values in described(part, samples, model).items():
            np.testing.assert_array_equal(found[f"{name}.{block}"], values)
    assert (joined.forward_passes, joined.gradients, joined.fit_samples) == (1.5, 0, cu.Lexical().fit_samples)
    assert cu.Concatenation((cu.Gradient(), cu.Embedding())).gradients == 1


def test_joined_features_are_compared_by_what_each_is_compared_by():
    joined = cu.Concatenation((cu.Embedding(), cu.Lexical()))
    blocks = "embedding.embedding", "embedding.length", "lexical.prompt", "lexical.answer"
    assert joined.compared(blocks) == ("embedding.embedding", "lexical.prompt", "lexical.answer")
    assert cu.Concatenation((joined, cu.Column())).compared([f"concatenation.{name}" for name in blocks]) == (
        "concatenation.embedding.embedding",
        "concatenation.lexical.prompt",
        "concatenation.lexical.answer",
    )


def test_joined_features_know_the_passes_that_a_part_has_learnt(folder):
    joined = cu.Concatenation((cu.Embedding(model=str(folder)), cu.Hidden(depth=0.5)))
    fitted = joined.fit(batch_of([sample("a", "b")], model=tiny_llama()))
    assert fitted["forward_passes"] == fitted["embedding.forward_passes"] + 0.5


class Broken(cu.Feature):
    """Returns nothing."""

    def compute(self, batch):
        return None


def test_the_part_that_is_broken_is_blamed():
    with pytest.raises(PluginError, match=r"Broken\.compute returned None"):
        described(cu.Concatenation((cu.Lexical(), Broken())), [sample("a", "b")])


@pytest.mark.parametrize("parts", [(), (cu.Embedding(),), (cu.Embedding(), "lexical")])
def test_what_cannot_be_joined_is_refused(parts):
    with pytest.raises(
        OptionError, match=r"expected two or more objects of classes derived from clusterucb\.Feature"
    ):
        cu.Concatenation(parts)


def test_the_suite_passes_for_features_that_learn():
    assert all(one.passed for one in outcomes(FeatureSuite, cu.Lexical))


# Similarity ------------------------------------------------------------------------------------------------


def test_gradients_are_not_compared_with_the_target():
    check_comparable(cu.UCB(), cu.Gradient())
    check_comparable(cu.RDS(), cu.Hidden())
    with pytest.raises(
        OptionError, match=r"^policy rds compares gradients with the target, .* expected other"
    ):
        check_comparable(cu.RDS(), cu.Concatenation((cu.Gradient(), cu.Embedding())))
    with pytest.raises(OptionError, match=r"^strategy mine compares gradients with the target"):
        check_comparable(cu.RDS(), cu.Gradient(), "mine")


# In runs ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    write_model(folder / "model")
    write_rows(folder / "pool.jsonl", [{**row, "v": [number, 1]} for number, row in enumerate(rows(30))])
    write_rows(folder / "dev.jsonl", rows(6, seed=9))
    return {
        "pool": folder / "pool.jsonl",
        "target": folder / "dev.jsonl",
        "model": folder / "model",
        "warmup_steps": 2,
        "preconditioner": "sgd",
        "select": 2,
    }


def test_passes_of_another_model_are_counted_in_its_proportion_in_every_session(job, folder, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(job["model"])
    passes = SentenceModel(str(folder)).passes(base)

    def select():
        return cu.select(**job, budget=8, out=tmp_path / "run", features=cu.Embedding(model=str(folder)))

    first, again = select(), select()
    for result in (first, again):
        assert result.cost.phases["features"].forward_passes == pytest.approx(30 * passes)
    contenders = [
        cu.Contender(name, cu.Random(), features=cu.Embedding(model=str(folder))) for name in ("a", "b")
    ]
    compared = cu.compare(**job, budgets=[8], seeds=1, strategies=contenders, out=tmp_path / "compared")
    overheads = [one["overhead"] for one in compared.content["strategies"]]
    assert overheads[0] == overheads[1]
    assert overheads[0] == pytest.approx((0.43 * 30 * passes + 8 + 6) / 30)  # with the warm-up and the target


def test_another_sentence_model_in_the_same_folder_is_another_run(job, tmp_path):
    model = write_sentence_model(tmp_path / "m")
    features = cu.Embedding(model=str(model))
    cu.select(**job, budget=8, out=tmp_path / "run", features=features)
    (model / "config_sentence_transformers.json").write_text("{}")
    with pytest.raises(RunError, match="--features was"):
        cu.select(**job, budget=8, out=tmp_path / "run", features=cu.Embedding(model=str(model)))


def test_what_was_learnt_is_read_back_and_used_for_the_target(job, tmp_path, monkeypatch):
    features = cu.Concatenation((cu.Lexical(dim=4), cu.Hidden(depth=0.5)))
    whole = cu.select(**job, budget=8, out=tmp_path / "whole", features=features, policy=cu.RDS())
    monkeypatch.setattr(pool_features, "_SHARD", 12)
    compute, calls = cu.Concatenation.compute, iter(range(2))
    with monkeypatch.context() as broken:
        broken.setattr(cu.Concatenation, "compute", lambda *given: [next(calls), compute(*given)][1])
        with pytest.raises(StopIteration):
            cu.select(**job, budget=8, out=tmp_path / "run", features=features, policy=cu.RDS())
    monkeypatch.setattr(cu.Concatenation, "fit", lambda *_: pytest.fail("fitted again"))
    resumed = cu.select(**job, budget=8, out=tmp_path / "run", features=features, policy=cu.RDS())
    for name in ("selected.jsonl", "scores.jsonl", "similarity.safetensors", "features-fit.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert resumed.cost.total == whole.cost.total


def test_a_target_needs_the_column_only_where_it_is_compared(job, tmp_path):
    found = cu.select(**job, budget=8, out=tmp_path / "a", features=cu.Column("v"))
    assert len(found) == 2
    with pytest.raises(InputError, match=r"dev\.jsonl:\d+: column 'v' holds no value"):
        cu.select(**job, budget=8, out=tmp_path / "b", features=cu.Column("v"), policy=cu.RDS())


def test_similarity_by_gradients_is_refused_before_anything_is_paid(job, tmp_path):
    with pytest.raises(OptionError, match="policy rds compares gradients with the target"):
        cu.select(**job, budget=8, out=tmp_path / "a", features=cu.Gradient(), policy=cu.RDS())
    assert not (tmp_path / "a").exists()


def test_similarity_in_a_large_pool_is_computed_in_parts_as_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    pool = {
        "a": rng.normal(size=(40_000, 3)).astype(np.float16),
        "b": 9 * rng.normal(size=(40_000, 2)).astype(np.float32),
    }
    targets = [
        {name: block[rows].astype(np.float32) for name, block in pool.items()}
        for rows in ([1, 2], [7, 30_000])
    ]
    expected = similarity({name: block.astype(np.float32) for name, block in pool.items()}, targets)
    monkeypatch.setattr(large, "LARGE", 50)
    np.testing.assert_allclose(similarity(pool, targets), expected, rtol=1e-5, atol=1e-6)
