"""Models, and adapters of real trainers, are read exactly; what does not fit is refused by name."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments

from clusterucb.errors import ModelError, OptionError
from clusterucb.jobs.stages.prepare import check_paths
from clusterucb.model import adapters
from clusterucb.model import source as checkpoint
from clusterucb.model.checkpoint_files import checkpoint_fingerprints
from clusterucb.model.moments import load_moments
from clusterucb.model.parameters import ParameterManifest
from helpers.models import VOCABULARY, tiny_gpt2, tiny_llama, with_lora

LORA = {"target_modules": ["q_proj", "v_proj", "down_proj"], "lora_dropout": 0.1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a checkpoint folder of the real Trainer, and the optimiser that wrote it."""
    folder = tmp_path_factory.mktemp("trainer")
    generator = torch.Generator().manual_seed(0)
    rows = [
        {"input_ids": ids, "labels": ids} for ids in torch.randint(VOCABULARY, (16, 12), generator=generator)
    ]
    arguments = TrainingArguments(
        folder,
        max_steps=5,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        weight_decay=0.1,
        adam_beta1=0.85,
        adam_beta2=0.98,
        adam_epsilon=1e-6,
        save_steps=5,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
    )
    trainer = Trainer(with_lora(tiny_llama(), **LORA), arguments, train_dataset=rows)
    trainer.train()
    named = {weight: name for name, weight in trainer.model.named_parameters()}
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    moments = {named[weight]: state for weight, state in optimizer.state.items()}
    return folder / "checkpoint-5", moments


def loaded(folder):
    model = adapters.load_adapter(tiny_llama(), folder)
    return model, ParameterManifest.of(model)


def test_moments_of_the_trainer_are_those_of_its_optimiser(trained):
    folder, moments = trained
    model, manifest = loaded(folder)
    got = load_moments(folder / "optimizer.pt", model, manifest)
    assert (got.step, got.beta1, got.beta2, got.eps) == (5, 0.85, 0.98, 1e-6)
    assert got.m.any()
    for one in manifest:
        segment = slice(one.offset, one.offset + one.size)
        assert np.array_equal(got.m[segment], moments[one.torch_name]["exp_avg"].flatten().numpy())
        assert np.array_equal(got.v[segment], moments[one.torch_name]["exp_avg_sq"].flatten().numpy())
        got.m[segment] = 0
    assert not got.m.any()  # holes of the flat space hold zeros


def test_an_adapter_is_loaded_exactly_and_trainable(trained):
    folder, _ = trained
    model, manifest = loaded(folder)
    assert len(manifest.parameters) == 2 * 3 * 3
    saved = load_file(folder / "adapter_model.safetensors")
    for one in manifest:
        weight = model.get_parameter(one.torch_name)
        assert weight.dtype == torch.float32
        assert torch.equal(weight, saved[one.torch_name.replace(".default", "")])


def test_missing_files_are_named(tmp_path, trained):
    folder, _ = trained
    with pytest.raises(ModelError, match="expected the folder of a PEFT adapter"):
        adapters.load_adapter(tiny_llama(), tmp_path)
    with pytest.raises(ModelError, match=r"there is no .*adapter_config.json"):
        checkpoint_fingerprints([(tmp_path, None)])
    with pytest.raises(ModelError, match="there is no optimiser state"):
        checkpoint_fingerprints([(folder, tmp_path / "none.pt")])


def test_an_adapter_of_another_model_is_refused(trained):
    folder, _ = trained
    with pytest.raises(ModelError, match="is an adapter of another model"):
        adapters.load_adapter(tiny_llama(hidden_size=32), folder)
    with pytest.raises(
        ModelError,
        match=r"lacks 6 weights that its configuration names, such as model\.layers\.3\.\S+; expected",
    ):
        adapters.load_adapter(tiny_llama(num_hidden_layers=4), folder)


def test_a_fresh_lora_depends_on_the_seed_alone():
    torch.manual_seed(1)
    options = {"rank": 4, "alpha": 8.0, "targets": None}
    one, same, other = (adapters.attach_lora(tiny_llama(), **options, seed=seed) for seed in (3, 3, 4))
    name = ParameterManifest.of(one).parameters[0].torch_name
    assert torch.equal(one.get_parameter(name), same.get_parameter(name))
    assert not torch.equal(one.get_parameter(name), other.get_parameter(name))
    model, state = tiny_llama(), torch.get_rng_state()
    adapters.attach_lora(model, **options, seed=5)
    assert torch.equal(state, torch.get_rng_state())  # the caller's random numbers go on as before


def test_layers_that_are_not_there_are_refused_with_those_that_are():
    with pytest.raises(
        ModelError, match=r"got nope; this model's linear layers are down_proj, .*--lora-targets"
    ):
        adapters.attach_lora(tiny_llama(), rank=4, alpha=8, targets=["nope"], seed=0)


def test_all_linear_takes_every_layer_but_the_head():
    model = adapters.attach_lora(tiny_llama(), rank=4, alpha=8, targets=["all-linear"], seed=0)
    assert len(ParameterManifest.of(model).parameters) == 2 * 7 * 3


def test_a_model_is_known_by_its_content(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "a")
    tiny_llama().save_pretrained(tmp_path / "b")
    tiny_llama(seed=1).save_pretrained(tmp_path / "c")
    a, b, c = (checkpoint.ModelSource(str(tmp_path / name)).fingerprint() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("name", ["./models/mine", "/nowhere/at/all", "a/b/c"])
def test_a_folder_that_is_not_there_is_not_taken_for_a_hub_id(name):
    with pytest.raises(ModelError, match="there is no folder"):
        check_paths(name, None)


def test_a_folder_without_a_model_is_refused(tmp_path):
    source = checkpoint.ModelSource(str(tmp_path))
    for load in (source.tokenizer, lambda: source.model("auto", "cpu")):
        with pytest.raises(
            ModelError, match=r"cannot load the (model|tokenizer) .*the folder has no config.json"
        ):
            load()
    tiny_llama().save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match=r"the folder has no tokenizer, such as tokenizer.json. Expected one"
    ):
        source.tokenizer()
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    for content in (whole[:2000], whole[:-100], b"", b"version https://git-lfs.github.com/spec/v1\n"):
        weights.write_bytes(content)
        with pytest.raises(
            ModelError, match=r"model.safetensors is damaged \(.*\). Expected a complete file: download"
        ):
            source.model("auto", "cpu")
    weights.unlink()
    with pytest.raises(ModelError, match=r"the folder has no weights, such as model.safetensors. Expected"):
        source.model("auto", "cpu")


def test_a_model_that_lacks_weights_is_refused(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in weights if "q_proj" in name)
    save_file(
        {name: value for name, value in weights.items() if name != gone}, tmp_path / "model.safetensors"
    )
    with pytest.raises(ModelError, match=f"lacks 1 of its weights, such as {gone}; expected all,"):
        checkpoint.ModelSource(str(tmp_path)).model("auto", "cpu")


def test_a_hub_that_cannot_be_reached_is_not_asked_again_and_again(monkeypatch):
    asked = []

    def model_info(self, name, **_):
        asked.append(name)
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    expected = (
        r"^there is no folder 'modle'; as a hub id it is not in the cache, and the hub cannot be reached \(OSError: "
        r"Name or service not known\). Expected a model's folder, or a hub id: correct the name, or connect$"
    )
    source = checkpoint.ModelSource("modle")
    for load in (source.tokenizer, source.fingerprint, lambda: source.model("auto", "cpu")):
        with pytest.raises(ModelError, match=expected):
            load()
    assert asked == ["modle"] * 3
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: "kept")
    asked.clear()
    for _ in range(2):
        assert source._options()["local_files_only"]
    assert asked == ["modle"]


def test_warnings_of_the_hub_are_silent_while_something_is_loaded_alone(monkeypatch, caplog):
    logger = logging.getLogger("huggingface_hub.utils")
    before = logger.getEffectiveLevel()
    assert before <= logging.WARNING

    def load(*_, **__):
        logger.warning("retrying")
        raise OSError("gone")

    monkeypatch.setattr(checkpoint.AutoTokenizer, "from_pretrained", load)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: None)
    with pytest.raises(
        ModelError, match=r"cannot load the tokenizer 'm': there is no such folder, .* OSError: gone"
    ):
        checkpoint.ModelSource("m").tokenizer()
    assert not caplog.records
    assert logger.getEffectiveLevel() == before


def test_devices():
    assert checkpoint.resolve_device("cpu") == "cpu"
    with pytest.raises(OptionError, match=r"--device is 'tpu0'.*Try cpu or auto"):
        checkpoint.resolve_device("tpu0")


def test_a_model_has_every_token_and_every_learned_position():
    from transformers import OPTConfig, OPTForCausalLM

    opt = OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=24,
            word_embed_proj_dim=24,
            ffn_dim=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=48,
        )
    )
    for model, positions in ((tiny_gpt2(), 128), (opt, 48)):
        checkpoint.check_limits(model, longest=positions, largest_token=VOCABULARY - 1)
        model(input_ids=torch.zeros(1, positions, dtype=torch.long))
        with pytest.raises(ModelError, match=rf"{positions + 1} tokens, .* --max-length {positions}$"):
            checkpoint.check_limits(model, longest=positions + 1, largest_token=0)
    checkpoint.check_limits(tiny_llama(), longest=10_000, largest_token=0)  # rotary: no table
    with pytest.raises(
        ModelError, match=rf"gives token {VOCABULARY}, but the model embeds {VOCABULARY} tokens"
    ):
        checkpoint.check_limits(tiny_llama(), longest=1, largest_token=VOCABULARY)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 4.0},
        {
            "rope_type": "longrope",
            "original_max_position_embeddings": 48,
            "short_factor": [1.0] * 3,
            "long_factor": [2.0] * 3,
        },
    ],
)
def test_rotary_positions_that_depend_on_the_batch_are_refused(rope):
    model = tiny_llama(
        max_position_embeddings=48 if rope["rope_type"] == "dynamic" else 256,
        rope_parameters={"rope_theta": 10_000.0, **rope},
    )
    checkpoint.check_limits(model, longest=48, largest_token=0)
    with pytest.raises(ModelError, match=r"49 tokens; beyond 48 .* --max-length 48"):
        checkpoint.check_limits(model, longest=49, largest_token=0)


def test_a_target_that_matches_no_layer_is_refused_beside_one_that_does():
    model = tiny_llama()
    with pytest.raises(ModelError, match="got foo; this model's linear layers are"):
        adapters.attach_lora(model, rank=2, alpha=4, targets=["q_proj", "foo"], seed=0)
    assert not any("lora" in name for name, _ in model.named_parameters())
