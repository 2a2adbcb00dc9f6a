"""Let a trainer of transformers or TRL train on what a selection selects, and select anew on the way.

Decisions:
    - A trainer asks `get_batch_samples` for the batches of each optimiser step. That is the one place where data may
      change during a training: a callback may not change it, and a sampler's rows are fetched ahead, and skipped when a
      training is resumed.
    - The trainer gets a data set of as many empty rows as an epoch has samples. So it knows the number of steps before
      it begins, and its schedule of learning rates is right.
    - Of several processes (DDP), the first one selects, and the others compute their share of its passes
      (`clusterucb.training.ranks`). Each trains on its part of a step's rows.
    - A round's rows are written to a checkpoint's folder before the trainer writes the checkpoint. So there is no
      checkpoint without them, whenever the training is killed. A checkpoint that was not written whole is not resumed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import OptionError, RunError
from clusterucb.training.ranks import Ranks
from clusterucb.training.reselect import Reselect
from clusterucb.training.rounds import Round

Kind = TypeVar("Kind", bound=type)
_FOLDER = "clusterucb"  # of the rounds, in the folder of the training and in those of checkpoints
_STATE = "trainer_state.json"  # the file that a trainer writes last


def reselecting(kind: Kind) -> Kind:
    """Return a trainer's class that trains on a selection, and selects anew on the way.

    Its ``__init__`` takes the arguments of ``kind``, with ``selection``, a `Reselect`, in place of ``train_dataset``.

    Args:
        kind: ``transformers.Trainer``, or a class derived from it, such as ``trl.SFTTrainer``.
    """
    name = f"Reselecting{kind.__name__}"
    found: Any = type(
        name, (_Reselecting, kind), {"__doc__": f"{kind.__name__} that selects while it trains."}
    )
    return cast(Kind, found)


_Base: Any = object  # a trainer's class, which `reselecting` puts behind this one


class _Reselecting(_Base):  # type: ignore[misc]
    """The part of a trainer that selects; `reselecting` puts it before the trainer's class."""

    def __init__(self, *arguments: Any, selection: Reselect, **options: Any) -> None:
        model = arguments[0] if arguments else options.get("model")
        args: Any = arguments[1] if len(arguments) > 1 else options.get("args")
        tokenizer = options.get("processing_class")
        _check(model, args, tokenizer, options)
        selection.check_model(model, adapted=options.get("peft_config") is not None)
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        ranks = Ranks(args.process_index, args.world_size) if args.world_size > 1 else None
        selection.open(
            tokenizer,
            model,
            batch_size=batch,
            out=Path(args.output_dir) / _FOLDER,
            ranks=ranks,
            autocast=_autocast(args),
        )
        self._selection, self._ranks = selection, ranks
        super().__init__(*arguments, train_dataset=_slots(selection.steps_per_epoch * batch), **options)
        _check_whole(self.accelerator.distributed_type.value)

    def train(self, resume_from_checkpoint: Any = None, **options: Any) -> Any:
        """Train; see the trainer's own documentation."""
        if not resume_from_checkpoint:
            self._decided(self._selection.begin)
            return super().train(**options)
        whole = resume_from_checkpoint is True
        folder = _last_whole(Path(self.args.output_dir)) if whole else Path(resume_from_checkpoint)
        self._decided(lambda: self._selection.resume(folder / _FOLDER, _step_of(folder)))
        return super().train(resume_from_checkpoint=str(folder), **options)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, *more: Any) -> Any:
        """Return the selected batches of the next optimiser step, and what the trainer counts in them."""
        del epoch_iterator  # of empty rows
        state, selection = self.state, self._selection
        _check_length(selection, state.max_steps)
        model = self.accelerator.unwrap_model(self.model)
        is_due = self._ranks and self._decided(lambda: selection.is_due(state.global_step))
        if is_due and self.args.process_index:
            selection.serve(model, self.optimizer)
        rows, logged = self._decided(lambda: self._rows(state.global_step, model))
        if logged:
            _log(self, logged)
        own = rows.reshape(num_batches, self.args.world_size, -1)[:, self.args.process_index]
        return super().get_batch_samples(map(selection.batch, own), num_batches, *more)

    def _rows(self, step: int, model: Any) -> tuple[NDArray[np.int64], dict[str, float]]:
        """Return the rows of an optimiser step, and what to log of a round that selected them."""
        rounds = self._selection.rounds
        n_rounds = len(rounds)
        rows = self._selection.rows(step, model, self.optimizer)
        return rows, _logged(list(rounds)[-1], self._selection) if len(rounds) > n_rounds else {}

    def _decided(self, decide: Callable[[], Any]) -> Any:
        """Return what the first process decides, on all processes. They wait for it, and its error is raised on all."""
        if self._ranks is None:
            return decide()
        value = error = None
        if self._ranks.rank == 0:
            try:
                value = decide()
            except Exception as caught:
                error = caught
        value, error = self._ranks.decided((value, error))
        if error is not None:
            raise error
        return value

    def _save_checkpoint(self, model: Any, trial: Any, *more: Any) -> Any:
        step = self.state.global_step
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{step}"
        self._decided(lambda: self._selection.save(folder / _FOLDER))
        return super()._save_checkpoint(model, trial, *more)


def _check(model: Any, args: Any, tokenizer: Any, options: dict[str, Any]) -> None:
    """Refuse what a selection cannot work with.

    Raises:
        OptionError: something is missing, or would train on other samples than those selected.
    """
    if options.get("train_dataset") is not None:
        raise OptionError("train_dataset is given with a selection; expected one of the two: leave it out")
    if args is None or tokenizer is None:
        missing = "args" if args is None else "processing_class"
        raise OptionError(f"a trainer with a selection is made without {missing}; expected {missing}=...")
    if isinstance(model, str):
        raise OptionError(
            f"model is {model!r}; expected a loaded PEFT model, so that a round can compute its gradients"
        )
    for name in ("fsdp", "deepspeed", "parallelism_config"):
        if getattr(args, name, None):
            raise OptionError(
                f"{name} is set with a selection; expected it unset, because a round needs all weights in one process. "
                "Select between trainings instead: clusterucb select --checkpoint ... --prior ..."
            )
    sampling = getattr(args, "train_sampling_strategy", "random")
    for name, is_set in (
        *((name, getattr(args, name, False)) for name in ("packing", "padding_free", "auto_find_batch_size")),
        ("group_by_length", getattr(args, "group_by_length", False)),  # transformers 4
        (f"train_sampling_strategy={sampling!r}", sampling != "random"),
    ):
        if is_set:
            raise OptionError(
                f"{name} is set with a selection; expected it unset, because each step trains on whole samples in the "
                "order of the selection, in batches of one size"
            )
    if getattr(args, "assistant_only_loss", False):
        raise OptionError(
            "assistant_only_loss is set with a selection; expected it unset, because the selection says which tokens "
            "are learnt"
        )
    asks = hasattr(args, "completion_only_loss") and args.completion_only_loss is None
    if asks and options.get("eval_dataset") is not None:
        raise OptionError(
            "eval_dataset is given, and completion_only_loss is None, which TRL decides by its own data for training; "
            "expected True, to evaluate answers alone, or False"
        )
    for name in ("chat_template_path", "eos_token"):
        if getattr(args, name, None):
            raise OptionError(
                f"{name} is set with a selection, which reads the pool before the trainer changes the tokenizer; "
                "expected a processing_class that has it already"
            )


def _check_whole(distributed: str) -> None:
    """Refuse what divides the weights among processes; accelerate's own configuration may do so, too.

    Args:
        distributed: accelerate's name for how a training is distributed.

    Raises:
        OptionError: no process has all weights.
    """
    if distributed != "NO" and not distributed.startswith("MULTI_"):
        raise OptionError(
            f"the training is distributed by {distributed}; expected DDP or one process, because a round needs all "
            "weights in one process. Select between trainings instead: clusterucb select --checkpoint ... --prior ..."
        )


def _autocast(args: Any) -> str | None:
    """Return the data type in which layers compute on a GPU, or None for their own."""
    return "bfloat16" if args.bf16 and args.device.type == "cuda" else None


def _check_length(selection: Reselect, max_steps: int) -> None:
    """Refuse a training that ends before the first round.

    Raises:
        OptionError: it would train on random samples alone.
    """
    if selection.schedule.warmup >= max_steps:
        raise OptionError(
            f"warmup is {selection.schedule.warmup} steps, and the training has {max_steps}; expected fewer, or the "
            "training ends before the first round"
        )


def _last_whole(folder: Path) -> Path:
    """Return the last checkpoint of a training that was written whole.

    Raises:
        RunError: there is none.
    """
    states = [path for path in folder.glob(f"checkpoint-*/{_STATE}") if path.parent.name[11:].isdigit()]
    if not states:
        raise RunError(
            f"{folder} has no whole checkpoint to resume from; expected one. Begin the training anew"
        )
    return max(states, key=lambda path: int(path.parent.name[11:])).parent


def _step_of(checkpoint: Path) -> int:
    """Return the number of steps that a checkpoint of a trainer was written after.

    Raises:
        RunError: the checkpoint was not written whole.
    """
    from transformers.trainer_callback import TrainerState

    try:
        return int(TrainerState.load_from_json(str(checkpoint / _STATE)).global_step)
    except (OSError, ValueError, TypeError) as error:
        raise RunError(
            f"{checkpoint} is no whole checkpoint ({error}); expected one that a trainer has written. Resume from an "
            "earlier one"
        ) from error


def _logged(one: Round, selection: Reselect) -> dict[str, float]:
    """Return what the trainer's log says of a round."""
    measured = {
        "selection_round": float(one.number),
        "selection_gradients": float(one.gradients),
        "selection_seconds": round(one.seconds, 3),
        "selection_share_of_time": round(selection.share_of_time, 4),
        "selection_recall": one.recall,
        "selection_overlap": one.overlap,
        "selection_audit": one.audit,
    }
    return {name: value for name, value in measured.items() if value is not None}


def _log(trainer: Any, values: dict[str, float]) -> None:
    """Write values to a trainer's log. TRL's own method would add its running averages, and begin them anew."""
    from transformers import Trainer

    Trainer.log(trainer, values)


def _slots(n_rows: int) -> Any:
    """Return a data set of empty rows: a Dataset if its library is loaded, as by TRL, which takes nothing else."""
    rows = [{"input_ids": [0], "labels": [0]}] * n_rows
    library = sys.modules.get("datasets")
    return rows if library is None else library.Dataset.from_list(rows)
