"""Files of a model or an adapter that would take all time or memory are refused before a library acts on them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from clusterucb.errors import ModelError
from clusterucb.model import patterns
from clusterucb.model.adapters import _freeze
from clusterucb.model.plausible import check_plausible

SLOW = r"((\w+\.?)+)+!"


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Module()
        self.block.layer_of_the_model_with_a_long_name = nn.ModuleList([nn.Linear(1, 1)])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_modules", SLOW),
        ("exclude_modules", SLOW),
        ("rank_pattern", {SLOW: 8}),
        ("alpha_pattern", {SLOW: 8}),
        ("layers_pattern", [r"(\w+\.?)+!"]),
    ],
)
def test_a_pattern_that_is_never_matched_is_refused(monkeypatch, field: str, value: object) -> None:
    monkeypatch.setattr(patterns, "_SECONDS", 0.5)
    with pytest.raises(
        ModelError, match=rf"x names layers by a pattern in {field} that takes more than 0.5 s"
    ):
        patterns.check_patterns(Model(), Path("x"), SimpleNamespace(**{field: value}))


def test_patterns_that_are_matched_pass_and_names_need_no_process(monkeypatch) -> None:
    quick = SimpleNamespace(target_modules=r".*\.(q|k)_proj", rank_pattern={"layers.[0-9]+": 8, "(((": 3})
    patterns.check_patterns(Model(), Path("x"), quick)
    monkeypatch.setattr(subprocess, "run", None)
    named = SimpleNamespace(target_modules=["q_proj"], exclude_modules="k_proj", layers_pattern=None)
    patterns.check_patterns(Model(), Path("x"), named)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"num_hidden_layers": 1000000}', r"num_hidden_layers is 1e\+06; expected at most 5,000 layers"),
        ('{"text_config": {"n_layer": 1e999}}', r"n_layer is 1e\+300; expected at most 5,000 layers"),
        ('{"num_labels": 1' + "0" * 400 + "}", r"num_labels is 1e\+300; expected at most 10,000 labels"),
    ],
)
def test_numbers_that_no_model_has_are_refused(tmp_path: Path, config: str, message: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match=message):
        check_plausible(str(tmp_path), {})


@pytest.mark.parametrize("config", ["{", "[]", '{"num_hidden_layers": "two"}', '{"n_layer": 80, "x": NaN}'])
def test_what_is_no_number_is_left_to_the_loader(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    check_plausible(str(tmp_path), {})


@pytest.mark.parametrize(
    "content", [b"5", b"[[1], {}]", b"\xff", b"[" * 99_999, json.dumps({"a": 1}).encode()]
)
def test_names_of_frozen_weights_that_are_none_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "clusterucb_frozen.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"clusterucb_frozen\.json is damaged .*expected a list of names"):
        _freeze(Model(), tmp_path, "default")
