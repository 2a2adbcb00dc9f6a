"""Select the samples of a training anew, every so many steps.

Decisions:
    - A round is a selection like that of `clusterucb.select`, of the model as it is: its live weights, and the moments
      of the live optimiser. The model, the optimiser and all states of random numbers are given back unchanged.
    - The pool is read and encoded once.
    - The scores of earlier rounds are the prior of a round (`clusterucb.jobs.stages.prior`). Influence changes slowly,
      so they predict well, and a round needs fewer gradients.
    - A gradient that is computed for its score leaves its sketch behind in the same pass. The paper's
      schedule makes its clusters of them, so the first round takes each gradient once.
    - Fresh LoRA matrices and an optimiser without moments say little. So a training begins with random samples.
    - Which rows a step trains on is a pure function of the step and of its period's round. A round that is finished is
      kept, so a resumed training goes on with the rows of an uninterrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from clusterucb.engine.clusterer import Clusterer
from clusterucb.engine.policy import Policy
from clusterucb.errors import OptionError
from clusterucb.features.base import Feature
from clusterucb.jobs.stages.prepare import Rows, prepare
from clusterucb.jobs.stages.strategies import chosen
from clusterucb.model.loaded import LoadedModel
from clusterucb.options.keywords import settings_from
from clusterucb.options.live import CHECKPOINT, COMMAND, LOADING, WARMUP
from clusterucb.options.search import SelectSettings
from clusterucb.plugins import describe
from clusterucb.progress import AnyObserver, observer_of
from clusterucb.training.plans import plan_of
from clusterucb.training.ranks import Ranks, serve
from clusterucb.training.rounds import Rounds
from clusterucb.training.schedule import Schedule, order
from clusterucb.training.selecting import Selecting, plain, random_state

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_IGNORED = -100  # the label of a token that is not learnt


class Reselect:
    """Selects the samples of a training anew, every so many steps.

    With a trainer of transformers or TRL, give it to the trainer that `clusterucb.training.reselecting` makes. In your
    own loop, call `open`, and in each step train on ``batch(rows(step, model, optimizer))``.

    Args:
        pool, target: as for `clusterucb.select`.
        every: the optimiser steps between two rounds; ``"epoch"`` is as many as visit each selected sample once.
            ``"auto"`` is ``"epoch"`` with audits: a round first spends a tenth of its budget on samples of an earlier
            round, and if its ranking still holds, the rows stay (`clusterucb.training.audit`).
        warmup: the optimiser steps on random samples before the first round.
        schedule: how rounds select (`clusterucb.training.plans`): ``ours`` spends the budget in each round and learns
            from earlier ones; ``paper`` computes every gradient in the first round, clusters them, and later spends the
            budget on these clusters (Dynamic-ClusterUCB); ``dynamic`` computes every gradient in each round.
        features, clusterer, policy, observer: as for `clusterucb.select`.
        **options: the options of `clusterucb.select`, such as ``budget`` and ``select``, which are those of a round.

    Raises:
        OptionError: an option cannot be used.
    """

    def __init__(
        self,
        pool: Rows,
        target: Rows,
        *,
        every: int | Literal["epoch", "auto"] = "epoch",
        warmup: int = WARMUP,
        schedule: str = "ours",
        features: Feature | str | None = None,
        clusterer: Clusterer | str | None = None,
        policy: Policy | str | None = None,
        observer: AnyObserver | None = None,
        **options: Any,
    ) -> None:
        named = every in ("epoch", "auto")
        if not named and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise OptionError(f"every is {every!r}; expected a number of steps, 'epoch' or 'auto'")
        if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 1:
            raise OptionError(
                f"warmup is {warmup!r}; expected at least 1 step, because an optimizer has no moments before"
            )
        _check_live(options)
        self._plan = plan = plan_of(schedule)
        if plan.exhaustive == "always":
            if policy is not None or options.get("budget") is not None or options.get("until") is not None:
                raise OptionError(
                    f"schedule is {schedule!r}, which computes every gradient; expected neither policy, budget nor "
                    "until. Leave them out, or use schedule='ours'"
                )
            options["budget"] = "100%"
        self._settings = settings_from(options, SelectSettings)
        if every == "auto" and (plan.exhaustive != "never" or self._settings.limit is not None):
            raise OptionError(
                "every is 'auto' with a schedule that computes every gradient, or with a budget of tokens or time; "
                "expected schedule='ours', and a share of the pool or a number of samples"
            )
        self._strategies = chosen(features, clusterer or plan.clusterer, policy or plan.policy, store=False)
        self._options, self._every, self._warmup = options, every, warmup
        self._pool, self._target = pool, target
        self._observer = observer_of(observer)
        self._began = time.monotonic()
        self._selecting: Selecting | None = None

    def open(
        self,
        tokenizer: PreTrainedTokenizerBase,
        model: Any,
        *,
        batch_size: int,
        out: Path | str,
        ranks: Ranks | None = None,
        autocast: str | None = None,
    ) -> None:
        """Read and encode the pool and the target.

        Args:
            tokenizer: the model's tokenizer.
            model: the model that will be trained.
            batch_size: the samples of an optimiser step.
            out: the folder of the rounds.
            ranks: the processes of the training, which share the passes of a round; None for this process alone.
            autocast: the data type that the training computes layers in, which rounds then do, too, unless the options
                name another; None for the layers' own.

        Raises:
            ClusterUCBError: a file cannot be used, or fewer samples are selected than a step needs.
        """
        if autocast is not None and self._settings.autocast is None:
            self._options["autocast"] = autocast
            self._settings = settings_from(self._options, SelectSettings)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise OptionError(f"batch_size is {batch_size!r}; expected at least 1 sample a step")
        loaded = LoadedModel(model, tokenizer)
        self._tokenizer, self._batch_size, self._ranks = tokenizer, batch_size, ranks
        prepared = prepare(self._pool, self._target, loaded, self._settings, self._observer)
        self._encoded = prepared.material.encoded
        _, self.n_select = self._settings.counts(self._encoded.lengths)
        if self.n_select < batch_size:
            raise OptionError(
                f"select is {self._settings.select}, which is {self.n_select} of {len(self._encoded):,} samples, fewer "
                f"than the {batch_size} of a step; expected at least as many. Select more, or use smaller batches"
            )
        self.steps_per_epoch = -(-self.n_select // batch_size)
        every = self._every if isinstance(self._every, int) else self.steps_per_epoch
        self.schedule = Schedule(self._warmup, every)
        self.rounds = Rounds(Path(out), self._about(prepared.contents, batch_size), len(self._encoded))
        self._selecting = Selecting(
            prepared,
            tokenizer,
            self._settings,
            self._options,
            self._plan,
            self._strategies,
            self.rounds,
            ranks,
            self._observer,
            audits=self._every == "auto",
        )

    def check_model(self, model: Any, *, adapted: bool = False) -> None:
        """Refuse a model whose gradients no round could compute.

        Args:
            model: the model that will be trained.
            adapted: whether the trainer will put an adapter on it.

        Raises:
            OptionError: the model has no adapter, and the options name no parameters.
        """
        from peft import PeftModel

        if not adapted and not isinstance(model, PeftModel) and self._settings.parameters is None:
            raise OptionError(
                f"model is a {type(model).__name__} without an adapter; expected a PEFT model, or peft_config, or "
                "parameters=..., the layers whose gradients select, with preconditioner='sgd'"
            )

    def begin(self) -> None:
        """Begin a training: forget the rounds in the folder."""
        self.rounds.begin()
        self._began = time.monotonic()

    def resume(self, folder: Path | str, step: int) -> None:
        """Go on with a training before a step, with the rounds that `save` has copied to a folder.

        Raises:
            RunError: the folder holds no rounds of this selection.
        """
        self.rounds.load(Path(folder), step, self.schedule.period(step - 1).number if step else 0)
        self._began = time.monotonic()

    def save(self, folder: Path | str) -> None:
        """Copy the rounds to a folder, such as that of a checkpoint, for `resume`."""
        self.rounds.save(Path(folder))

    def rows(self, step: int, model: Any, optimizer: Any) -> NDArray[np.int64]:
        """Return the rows of the pool that a step trains on, i64[B]; in the first step of a period, select anew.

        Args:
            step: the number of optimiser steps that were taken before.
            model: the model as it is, a PEFT model.
            optimizer: the optimiser as it is, which trains the model.

        Raises:
            ClusterUCBError: the first round fails.
            OptionError: a round is missing that should have selected before this step.
        """
        if self._selecting is None:
            raise OptionError("rows is called before open; expected open(...), and then begin or resume")
        period = self.schedule.period(step)
        if not period.number:
            return self._visited(np.arange(len(self._encoded)), step, 0)
        found = self.rounds.find(period.number)
        with self._ranks.round() if self._ranks and found is None else nullcontext():
            if found is None and step != period.start:
                raise OptionError(
                    f"step {step} belongs to round {period.number}, which selects before step {period.start} and is "
                    "not there; expected steps one after the other, or `resume` before the first"
                )
            found = found or self._selecting.round(period.number, step, model, plain(optimizer))
        return self._visited(np.array(found.rows), step - period.start, period.number)

    def is_due(self, step: int) -> bool:
        """Return whether a round selects before a step."""
        number = self.schedule.period(step).number
        return bool(number) and self.rounds.find(number) is None

    def serve(self, model: Any, optimizer: Any) -> None:
        """Compute passes of the round that the first process selects. For the other processes of a training.

        Args:
            model, optimizer: as for `rows`.
        """
        if self._ranks is None:
            raise OptionError(
                "serve is called in the only process of a training; expected open(..., ranks=...)"
            )
        options = dict(self._options)
        with random_state():
            serve(self._ranks, model=model, tokenizer=self._tokenizer, optimizer=plain(optimizer), **options)

    def batch(self, rows: Sequence[int] | NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """Return the tokens of B rows, padded on the right to T: input_ids, attention_mask and labels, i64[B, T]."""
        samples = [self._encoded[int(row)] for row in rows]
        shape = len(samples), max(map(len, samples))
        padding = self._tokenizer.pad_token_id
        ids = torch.full(shape, 0 if padding is None else int(padding), dtype=torch.int64)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, _IGNORED)
        for at, sample in enumerate(samples):
            tokens, n = torch.from_numpy(np.array(sample.tokens, np.int64)), len(sample)
            ids[at, :n], mask[at, :n] = tokens, 1
            labels[at, :n] = tokens.masked_fill(torch.from_numpy(~sample.labels), _IGNORED)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def _visited(self, rows: NDArray[np.int64], step: int, number: int) -> NDArray[np.int64]:
        seed = self._settings.seed, number
        return order(rows, step * self._batch_size, self._batch_size, seed)

    def _about(self, contents: Mapping[str, str | None], batch_size: int) -> dict[str, str]:
        return {
            **{name: str(contents[name]) for name in ("pool", "target", "encoding")},
            "schedule": f"{self.schedule}, {batch_size} samples a step{', auto' if self._every == 'auto' else ''}",
            "options": f"{self._settings}, {self._plan}",
            **{kind: repr(describe(strategy)) for kind, strategy in self._strategies._asdict().items()},
        }

    @property
    def share_of_time(self) -> float:
        """The share of the time since the training began, or went on, that rounds took."""
        spent = self._selecting.seconds if self._selecting else 0.0
        return spent / max(time.monotonic() - self._began, 1e-9)


def _check_live(options: Mapping[str, Any]) -> None:
    """Refuse options that have no meaning in a training.

    Raises:
        OptionError: one is given.
    """
    for name in (*CHECKPOINT, *LOADING, *COMMAND, "chat_template"):
        if options.get(name) is not None:
            hint = ". Did you mean warmup?" if name == "warmup_steps" else ""
            raise OptionError(
                f"{name} is given to Reselect; expected none, because a round selects with the live model and its "
                f"tokenizer{hint}"
            )
