"""Trainers that select while they train: in two lines, with the same weights after a kill at any step."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

import clusterucb as cu
from clusterucb.errors import OptionError, RunError
from clusterucb.training import Reselect, Round, reselecting, selecting
from clusterucb.training import trainer as own
from helpers import trains
from helpers.selections import write_job

if transformers.__version__.startswith("4."):  # `make test-floor`: TRL needs a newer one
    KINDS: list[type] = [Trainer]
else:
    from trl import SFTConfig, SFTTrainer

    KINDS = [Trainer, SFTTrainer]

STEPS = 9


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    write_job(folder)
    return folder


def selection(job: Path, **changes: Any) -> Reselect:
    options = {"every": 3, "warmup": 2, "budget": "40%", "select": 12, **changes}
    return Reselect(job / "pool.jsonl", job / "dev.jsonl", **options)


def trainer_of(
    kind: type, job: Path, out: Path, *, chosen: Reselect | None = None, callbacks: Any = None, **changes: Any
) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(job / "model")
    lora = LoraConfig(r=4, lora_dropout=0.2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    configuration = TrainingArguments if kind is Trainer else SFTConfig
    args = configuration(
        output_dir=str(out),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        save_steps=1,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        learning_rate=1e-3,
        **{"max_steps": STEPS, **changes},
    )
    return reselecting(kind)(
        model=get_peft_model(model, lora),
        args=args,
        processing_class=AutoTokenizer.from_pretrained(job / "model"),
        selection=chosen or selection(job),
        callbacks=callbacks,
    )


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {
        name: weight.detach().clone()
        for name, weight in trainer.model.named_parameters()
        if weight.requires_grad
    }


class Dies(TrainerCallback):
    """Ends a training without a word before a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del args, control
        if state.global_step == self._step:
            raise KeyboardInterrupt


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> type:
    """A trainer's class. The tests of one run together, because a trainer of TRL changes settings of all of torch."""
    found: type = request.param
    return found


@pytest.fixture(scope="module")
def whole(kind: type, job: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A training that nothing interrupts, and its folder."""
    out = tmp_path_factory.mktemp("whole")
    trainer = trainer_of(kind, job, out)
    trainer.train()
    return trainer, out


def test_two_lines_select_while_a_trainer_trains(whole: tuple[Any, Path]) -> None:
    trainer, _ = whole
    assert trainer.state.global_step == STEPS
    rounds = list(trainer._selection.rounds)
    assert [(one.number, one.start) for one in rounds] == [(1, 2), (2, 5), (3, 8)]
    assert all(len(one.rows) == 12 and one.gradients > 0 and not one.failed for one in rounds)
    logged = [line for line in trainer.state.log_history if "selection_round" in line]
    assert [line["step"] for line in logged] == [2, 5, 8]
    assert logged[0].keys() >= {"selection_gradients", "selection_seconds", "selection_share_of_time"}
    assert not any(
        {"entropy", "mean_token_accuracy", "loss"} & line.keys() for line in logged
    )  # TRL's averages
    assert all(line["selection_share_of_time"] < 1 for line in logged)
    assert 0 <= logged[1]["selection_overlap"] <= 1
    rates = [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]
    assert rates == pytest.approx(1e-3 * (1 - np.arange(STEPS) / STEPS))


@pytest.mark.parametrize("step", [1, 4, 5])
def test_a_training_killed_at_any_step_ends_with_the_same_weights(
    step: int, kind: type, job: Path, tmp_path: Path, whole: tuple[Any, Path]
) -> None:
    """The rounds stand in the checkpoint: the folder of the training's own is lost."""
    with pytest.raises(KeyboardInterrupt):
        trainer_of(kind, job, tmp_path, callbacks=[Dies(step)]).train()
    shutil.rmtree(tmp_path / "clusterucb")
    (tmp_path / f"checkpoint-{step + 1}" / "clusterucb").mkdir(parents=True)  # a kill while it was written
    again = trainer_of(kind, job, tmp_path)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == STEPS
    expected, found = weights(whole[0]), weights(again)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert [one.rows for one in again._selection.rounds] == [one.rows for one in whole[0]._selection.rounds]


def test_a_round_leaves_no_trace_but_its_rows(
    kind: type, job: Path, tmp_path: Path, whole: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that is told the rows, and computes no round, ends with the same weights."""

    def told(self: Any, number: int, step: int) -> Round:
        del step
        self.out.mkdir()
        (self.out / "scores.jsonl").write_text("")
        return rounds[number - 1]

    monkeypatch.setattr(selecting._One, "whole", told)
    rounds = list(whole[0]._selection.rounds)
    trainer = trainer_of(kind, job, tmp_path)
    trainer.train()
    expected = weights(whole[0])
    assert all(torch.equal(value, expected[name]) for name, value in weights(trainer).items())


def test_a_trainer_needs_no_library_of_data_sets(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    trainer = trainer_of(Trainer, job, tmp_path)
    assert isinstance(trainer.train_dataset, list)
    trainer.train()
    assert trainer.state.global_step == STEPS
    assert [one.start for one in trainer._selection.rounds] == [2, 5, 8]


def test_a_round_that_fails_keeps_the_rows(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = selecting._One.whole

    def fails(self: Any, number: int, step: int) -> Round:
        if number == 2:
            raise OptionError("no gradient is finite")
        return whole(self, number, step)

    monkeypatch.setattr(selecting._One, "whole", fails)
    trainer = trainer_of(Trainer, job, tmp_path)
    with pytest.warns(cu.ClusterUCBWarning, match="round 2 of the selection failed, so the training goes on"):
        trainer.train()
    first, second, third = trainer._selection.rounds
    assert second.rows == first.rows
    assert second.failed == "no gradient is finite"
    assert second.overlap == 1
    assert third.gradients > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"every": 0}, "every is 0; expected a number of steps, 'epoch' or 'auto'"),
        ({"every": "week"}, "every is 'week'"),
        ({"warmup": 0}, "warmup is 0; expected at least 1 step"),
        ({"adapter": "a"}, "adapter is given to Reselect; expected none"),
        ({"tokenizer": "a"}, "tokenizer is given to Reselect; expected none"),
        ({"warmup_steps": 9}, r"warmup_steps is given to Reselect; .* Did you mean warmup\?"),
        ({"lora_rank": 9}, "lora_rank is given to Reselect"),
        ({"export": "trl"}, "export is given to Reselect"),
        ({"budgett": "1"}, "there is no option 'budgett'"),
    ],
)
def test_unusable_options_are_refused(job: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        selection(job, **changes)


def test_trainings_that_a_selection_cannot_serve_are_refused(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        OptionError, match=r"select is 3, which is 3 of 90 samples, fewer than the 4 of a step"
    ):
        trainer_of(Trainer, job, tmp_path, chosen=selection(job, select=3))
    with pytest.raises(OptionError, match=r"warmup is 2 steps, and the training has 2; expected fewer"):
        trainer_of(Trainer, job, tmp_path, max_steps=2).train()
    with pytest.raises(OptionError, match="train_dataset is given with a selection"):
        reselecting(Trainer)(selection=selection(job), train_dataset=[])
    with pytest.raises(OptionError, match="made without processing_class"):
        reselecting(Trainer)(args=TrainingArguments(output_dir=str(tmp_path)), selection=selection(job))
    monkeypatch.setattr(TrainingArguments, "packing", True, raising=False)
    with pytest.raises(OptionError, match=r"packing is set with a selection; expected it unset"):
        trainer_of(Trainer, job, tmp_path)
    monkeypatch.setattr(TrainingArguments, "packing", False, raising=False)
    for name, value in (("chat_template_path", "other"), ("eos_token", "<eos>")):
        with monkeypatch.context() as patch:
            patch.setattr(TrainingArguments, name, value, raising=False)
            with pytest.raises(
                OptionError, match=f"{name} is set with a selection, which reads the pool before"
            ):
                trainer_of(Trainer, job, tmp_path)
    with pytest.raises(
        OptionError, match=r"model is a .*ForCausalLM without an adapter; expected a PEFT model"
    ):
        reselecting(Trainer)(
            model=AutoModelForCausalLM.from_pretrained(job / "model"),
            args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True),
            processing_class=AutoTokenizer.from_pretrained(job / "model"),
            selection=selection(job),
        )
    by_length = (
        {"group_by_length": True}
        if transformers.__version__.startswith("4.")
        else {"train_sampling_strategy": "group_by_length"}
    )
    with pytest.raises(OptionError, match=r"group_by_length.* is set with a selection; expected it unset"):
        trainer_of(Trainer, job, tmp_path, **by_length)
    with pytest.raises(OptionError, match=r"fsdp is set with a selection; expected it unset"):
        own._check(None, SimpleNamespace(fsdp="full_shard"), "tokenizer", {})


def test_weights_that_no_process_has_whole_are_refused() -> None:
    for whole in ("NO", "MULTI_GPU", "MULTI_CPU"):
        own._check_whole(whole)
    for parts in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "TP"):
        with pytest.raises(OptionError, match=f"the training is distributed by {parts}; expected DDP or one"):
            own._check_whole(parts)


@pytest.mark.parametrize(
    ("bf16", "device", "given", "expected"),
    [
        (True, "cuda", None, "bfloat16"),
        (True, "cpu", None, None),
        (False, "cuda", None, None),
        (True, "cuda", "float16", "float16"),
    ],
)
def test_rounds_compute_in_the_type_of_the_training(
    bf16: bool, device: str, given: str | None, expected: str | None, job: Path, tmp_path: Path
) -> None:
    autocast = own._autocast(SimpleNamespace(bf16=bf16, device=torch.device(device)))
    chosen = selection(job, autocast=given)
    model = AutoModelForCausalLM.from_pretrained(job / "model")
    tokenizer = AutoTokenizer.from_pretrained(job / "model")
    chosen.open(tokenizer, model, batch_size=4, out=tmp_path, autocast=autocast)
    assert chosen._selecting.settings.autocast == expected
    assert chosen._selecting.options.get("autocast") == expected


def test_a_checkpoint_of_another_selection_is_refused(
    kind: type, job: Path, whole: tuple[Any, Path], tmp_path: Path
) -> None:
    trained = tmp_path / "trained"
    shutil.copytree(whole[1], trained)
    trainer = trainer_of(kind, job, trained, chosen=selection(job, budget="50%"))
    with pytest.raises(
        RunError, match=r"holds rounds with another options; expected those of this selection"
    ):
        trainer.train(resume_from_checkpoint=True)
    about = trained / f"checkpoint-{STEPS}" / "clusterucb" / "selection.json"
    about.write_text("{")
    with pytest.raises(RunError, match=r"clusterucb is damaged \(.*\); expected the rounds of a training"):
        trainer_of(kind, job, trained).train(resume_from_checkpoint=True)
    shutil.rmtree(about.parent)
    with pytest.raises(RunError, match="holds no rounds of selection; expected a checkpoint"):
        trainer_of(kind, job, trained).train(resume_from_checkpoint=True)
    (about.parents[1] / "trainer_state.json").write_text("{")
    with pytest.raises(
        RunError, match=rf"checkpoint-{STEPS} is no whole checkpoint \(.*\); expected one that"
    ):
        trainer_of(kind, job, trained).train(resume_from_checkpoint=str(about.parents[1]))
    with pytest.raises(RunError, match="has no whole checkpoint to resume from"):
        trainer_of(kind, job, tmp_path / "nothing").train(resume_from_checkpoint=True)


def test_several_processes_train_on_the_rows_of_one(job: Path, tmp_path: Path) -> None:
    """Two processes with batches of one do the steps of one process with batches of two."""
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    start += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", trains.__file__]
    trains.main(job, tmp_path / "1", 2)
    ended = subprocess.run(
        [*start, job, tmp_path / "2", "1"], capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    alone, together = (json.loads((tmp_path / name / "trained.json").read_text()) for name in ("1", "2"))
    assert together["rounds"] == alone["rounds"]
    assert together["visited"] == alone["visited"]
    assert together["weight"] == pytest.approx(alone["weight"], rel=1e-4)


@pytest.mark.skipif(len(KINDS) == 1, reason="TRL needs a newer transformers")
def test_trl_puts_the_adapter_on_and_evaluates_answers(job: Path, tmp_path: Path) -> None:
    from datasets import Dataset

    chosen = selection(job)
    rows = [{"prompt": "What is a?", "completion": " It is b."}] * 4

    def made(**changes: Any) -> Any:
        options = {"max_steps": 6, "per_device_train_batch_size": 4, "report_to": [], "use_cpu": True}
        return reselecting(SFTTrainer)(
            model=AutoModelForCausalLM.from_pretrained(job / "model"),
            args=SFTConfig(str(tmp_path), **options, **changes),
            processing_class=AutoTokenizer.from_pretrained(job / "model"),
            peft_config=LoraConfig(r=4, task_type="CAUSAL_LM"),
            eval_dataset=Dataset.from_list(rows),
            selection=chosen,
        )

    with pytest.raises(
        OptionError, match="eval_dataset is given, and completion_only_loss is None, which TRL"
    ):
        made()
    with pytest.raises(OptionError, match="assistant_only_loss is set with a selection; expected it unset"):
        made(assistant_only_loss=True)
    trainer = made(completion_only_loss=True)
    trainer.train()
    assert np.isfinite(trainer.evaluate()["eval_loss"])
    assert [(one.start, one.failed) for one in chosen.rounds] == [(2, ""), (5, "")]
