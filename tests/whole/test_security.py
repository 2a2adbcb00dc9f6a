"""Nothing that comes with a pool, a checkpoint or a configuration runs, and nothing of it reaches the terminal raw."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import clusterucb as cu
from clusterucb.cli import main as cli
from clusterucb.errors import InputError, ModelError
from clusterucb.samples.pool import read_pool
from helpers.tiny import rows, write_model, write_rows

SMALL = {"warmup_steps": 2, "batch_size": 4}


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Return a file that is there afterwards if code ran; first check that it would be."""
    path = tmp_path / "code-has-run"
    pickle.loads(pickle.dumps(Evil(path)))
    assert path.exists()
    path.unlink()
    return path


@pytest.fixture
def job(tmp_path: Path) -> dict:
    write_model(tmp_path / "model")
    write_rows(tmp_path / "pool.jsonl", rows(12))
    write_rows(tmp_path / "dev.jsonl", rows(3, seed=3))
    paths = {
        name: tmp_path / file
        for name, file in (("pool", "pool.jsonl"), ("target", "dev.jsonl"), ("model", "model"))
    }
    return {**paths, "out": tmp_path / "run", "budget": "50%", **SMALL}


# Checkpoints ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [pickle.dump, torch.save], ids=["pickle", "torch"])
def test_a_pickle_in_place_of_weights_does_not_run(job, trace: Path, save) -> None:
    (job["model"] / "model.safetensors").unlink()
    with (job["model"] / "pytorch_model.bin").open("wb") as file:
        save({"model.embed_tokens.weight": Evil(trace)}, file)
    with pytest.raises(ModelError, match="cannot load the model"):
        cu.select(**job)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["adapter_model.bin", "optimizer.pt"])
@pytest.mark.parametrize("save", [pickle.dump, torch.save], ids=["pickle", "torch"])
def test_a_pickle_in_an_adapter_does_not_run(job, trace: Path, tmp_path: Path, name: str, save) -> None:
    model = AutoModelForCausalLM.from_pretrained(job["model"])
    adapter = tmp_path / "adapter"
    get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(
        adapter
    )
    if name.endswith(".bin"):
        (adapter / "adapter_model.safetensors").unlink()
        (adapter / "optimizer.pt").write_bytes(b"never reached")
    with (adapter / name).open("wb") as file:
        save({"state": Evil(trace), "param_groups": []}, file)
    with pytest.raises(
        ModelError,
        match=r"cannot load the adapter|adapter_model\.bin is damaged|cannot be read as an optimiser state",
    ):
        cu.select(**job, adapter=adapter)
    assert not trace.exists()


def test_code_that_comes_with_a_model_does_not_run(job, trace: Path) -> None:
    code = f"from pathlib import Path\nPath({str(trace)!r}).touch()\nclass Model: pass\nclass Config: pass\n"
    (job["model"] / "modeling_evil.py").write_text(code)
    for name in ("config.json", "tokenizer_config.json"):
        path = job["model"] / name
        config = json.loads(path.read_text())
        config["auto_map"] = {
            "AutoConfig": "modeling_evil.Config",
            "AutoModelForCausalLM": "modeling_evil.Model",
            "AutoTokenizer": ["modeling_evil.Model", "modeling_evil.Model"],
        }
        config["model_type"] = "evil"
        path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"cannot load the (tokenizer|model)"):
        cu.select(**job)
    assert not trace.exists()


def test_a_chat_template_has_no_way_out(job, trace: Path) -> None:
    template = (
        "{{ cycler.__init__.__globals__.os.system('touch " + str(trace) + "') }}"
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    for path in (job["model"] / "tokenizer_config.json", job["model"] / "chat_template.jinja"):
        if path.suffix == ".jinja":
            path.write_text(template)
        else:
            path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    with pytest.raises(
        InputError, match=r"chat template: it refuses the conversation: access to attribute '__init__'"
    ):
        cu.select(**job)
    assert not trace.exists()


# Pools and configurations ---------------------------------------------------------------------------------


def test_a_pickle_in_the_metadata_of_a_table_does_not_run(tmp_path: Path, trace: Path) -> None:
    hidden = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Evil(trace)),
    }
    schema = pa.schema([pa.field("text", pa.string(), metadata=hidden)])
    table = pa.table([pa.array(["a", "b"])], schema=schema)
    with pa.ipc.new_file(tmp_path / "pool.arrow", schema) as writer:
        writer.write_table(table)
    pq.write_table(table, tmp_path / "pool.parquet")
    for name in ("pool.arrow", "pool.parquet"):
        assert len(read_pool(tmp_path / name).samples) == 2
    assert not trace.exists()


def test_a_script_in_a_dataset_folder_does_not_run(tmp_path: Path, trace: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "data.py").write_text(f"from pathlib import Path\nPath({str(trace)!r}).touch()\n")
    write_rows(folder / "train.jsonl", rows(3))
    assert len(read_pool(folder).samples) == 3
    assert not trace.exists()


def test_an_object_in_a_configuration_does_not_run(tmp_path: Path, trace: Path, capsys) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.dump({"pool": Evil(trace)}))
    assert "!!python/object/apply" in config.read_text()
    assert cli.run(["select", "--config", str(config)]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not trace.exists()


# The screen -----------------------------------------------------------------------------------------------

ESCAPE = "\x1b[2J\x1b]0;title\x07\x9b31m\u202e"


def test_nothing_of_a_pool_is_obeyed_by_the_terminal(job, tmp_path: Path, capsys) -> None:
    evil = [
        {**row, "id": f"{ESCAPE}{at}", "source": ESCAPE, "prompt": f"{ESCAPE} {at}"}
        for at, row in enumerate(rows(12))
    ]
    pool = tmp_path / f"pool{ESCAPE}.jsonl"
    write_rows(
        pool,
        [*evil, {ESCAPE: 1}, {"messages": [{"role": ESCAPE, "content": ""}]}, {**evil[0], "prompt": "x"}],
    )
    write_rows(job["target"], [{**row, "subtask": ESCAPE} for row in rows(3, seed=3)])
    command = ["select", str(pool), "--target", str(job["target"]), "--model", str(job["model"]), "--out"]
    small = ["--warmup-steps", "2", "--budget", "50%"]
    assert cli.run([*command, str(tmp_path / "run"), *small]) == 0
    assert cli.run([*command, str(tmp_path / "strict"), "--strict"]) == 2
    assert cli.run([*command, str(tmp_path / "only"), "--format", "text"]) == 2
    assert cli.run([*command, str(tmp_path / "columns"), "--columns", f"source={ESCAPE}x"]) == 2
    out, err = capsys.readouterr()
    assert "title" in out
    assert "title" in err
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(out + err)
