"""The selection in the form that a training tool reads, with a configuration to start from.

``--export TOOL`` writes the folder ``export-TOOL`` into the run: ``conversations.jsonl``, ``text.jsonl`` (plain texts,
for which every tool wants a file of their own), and what the tool is started with.

What the tools read, as their documentation says:
    - LLaMA-Factory 0.9.5, ``data/README.md``: a ``dataset_info.json`` beside the files; its "OpenAI format" is
      ``formatting: sharegpt`` with tags; texts are the column ``prompt`` of ``stage: pt``. Options as in
      ``examples/train_lora``.
    - TRL 1.16, "Dataset formats" and "SFT Trainer" (huggingface.co/docs/trl): ``prompt`` and ``completion`` as lists of
      turns, of which the completion is trained on; ``messages`` with ``assistant_only_loss``; ``text``.
    - axolotl 0.19, "Conversation" (``type: chat_template``), "Dataset formats" (``type: completion``), "Dataset
      loading" and "Config reference" (docs.axolotl.ai).

Decisions:
    - What is exported are the turns as clusterucb read them, so every shape of row becomes the one form that the
      tool reads best, and what is trained on is what was scored: the assistant's turns.
    - LLaMA-Factory skips conversations in which user and assistant do not take turns. They are left out here, and
      counted, so that nobody takes them for trained on; turns after the last answer, of which nothing is learnt, are
      cut. Its ``formatting: openai`` is not used: it adds "detailed thinking off" to every system message. Packing
      is off, since by default it cuts texts into blocks and drops the rest.
    - TRL trains on all answers of a conversation only if it knows the model's chat template or the template marks
      them. So conversations of one answer, the usual case, are written as prompt and completion, which need
      neither; only where one has several are all of them ``messages``.
    - Names of files are fixed, and paths stand in quotes that neither YAML nor Python can be led out of. Paths
      are absolute: each tool takes relative ones from another folder. What is trained lands in ``trained`` beside
      its configuration (texts in ``trained-text``, where they have a training of their own).
    - LLaMA-Factory and axolotl look for the file under its own name, and then take that name for a pattern, so
      that none with ``[``, ``*`` or ``?`` can be spelt for both. Nothing is written for them there.
    - All train in bf16 where there is a GPU for it. TRL and axolotl find out when they begin; LLaMA-Factory would
      stop without one, so the line is there only if this machine has one.
    - An export that is in the run is written again with every selection, asked for or not: one that belongs to
      an earlier selection would be worse than none, so one that cannot be written again is removed. Only our own
      files are touched: people train in there.
"""

from __future__ import annotations

import glob
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from clusterucb.atomic import write_lines, write_whole
from clusterucb.errors import ClusterUCBWarning, RunError
from clusterucb.filenames import CONVERSATIONS, EXPORTS, TEXTS, export_files
from clusterucb.report.lora import ALL_LINEAR, Lora, lora_of
from clusterucb.samples.shapes import TEXT, Message

if TYPE_CHECKING:
    from clusterucb.options.search import Settings
    from clusterucb.samples.pool import Sample

_BY = "Written by clusterucb, which writes it again with every selection: copy it before you change it."

Conversation = Sequence[Message]
Row = dict[str, Any]


class Exported(NamedTuple):
    """What was written for one tool: the folder, and the program and the file of each training."""

    folder: Path
    trainings: tuple[tuple[str, Path], ...]


@dataclass(frozen=True)
class _Training:
    """What the configurations say.

    Attributes:
        folder: of the export, absolute.
        model, revision: a hub id, or an absolute path.
        max_length: tokens of a sample.
        lora: what is trained.
        conversations, texts: whether there are any.
        single: whether each conversation ends with its only answer.
    """

    folder: Path
    model: str
    revision: str | None
    max_length: int
    lora: Lora
    conversations: bool
    texts: bool
    single: bool


@dataclass(frozen=True)
class _Tool:
    """How a tool is written for.

    Attributes:
        reads: (conversation, whether all are `_single`) -> its line; None: the tool cannot read it.
        files: everything but the samples, by name.
        program: what those that are configurations are given to.
        globs: whether a path that it is given is a pattern, too.
    """

    reads: Callable[[Conversation, bool], Row | None]
    files: Callable[[_Training], dict[str, str]]
    program: str
    globs: bool


# LLaMA-Factory -----------------------------------------------------------------------------------------


def _taking_turns(conversation: Conversation, _: bool) -> Row | None:
    n_kept = max(at for at, message in enumerate(conversation, start=1) if message.role == "assistant")
    roles = [message.role for message in conversation[:n_kept]]
    if roles[0] == "system":
        del roles[0]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        return None
    return {"messages": _turns(conversation[:n_kept])}


def _llamafactory(training: _Training) -> dict[str, str]:
    tags = {"role_tag": "role", "content_tag": "content"}
    tags |= {f"{role}_tag": role for role in ("user", "assistant", "system")}
    known: dict[str, Row] = {}
    files = {}
    if training.conversations:
        form = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
        known["clusterucb"] = {"file_name": CONVERSATIONS, **form}
        files["sft.yaml"] = _llamafactory_training(training, "sft", "clusterucb")
    if training.texts:
        known["clusterucb_text"] = {"file_name": TEXTS, "columns": {"prompt": "text"}}
        files["pt.yaml"] = _llamafactory_training(training, "pt", "clusterucb_text")
    entries = msgspec.json.format(msgspec.json.encode(known), indent=2).decode()
    return {"dataset_info.json": entries + "\n", **files}


def _llamafactory_training(training: _Training, stage: str, dataset: str) -> str:
    from transformers.utils import is_torch_bf16_gpu_available

    notes = [
        "Without `template: NAME`, the name of the model's family, LLaMA-Factory goes by the tokenizer's template."
    ]
    bf16, lora = bool(is_torch_bf16_gpu_available()), training.lora
    layers = ",".join(lora.targets) if isinstance(lora.targets, list) else "all"
    if not bf16:
        notes.append("Written where no GPU has bf16; where one does, add `bf16: true`.")
    notes += lora.notes("lora_target" if layers == "all" and lora.targets != ALL_LINEAR else "")
    return _yaml(
        {
            "model_name_or_path": training.model,
            "model_revision": training.revision,
            "stage": stage,
            "do_train": True,
            "finetuning_type": "lora",
            "lora_rank": lora.rank,
            "lora_alpha": lora.alpha,
            "use_rslora": lora.rslora or None,
            "lora_target": layers,
            "dataset_dir": str(training.folder),
            "dataset": dataset,
            "cutoff_len": training.max_length,
            "packing": False,
            "output_dir": _output(training, text=stage == "pt"),
            "logging_steps": 10,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 8,
            "learning_rate": 1e-4,
            "num_train_epochs": 3,
            "lr_scheduler_type": "cosine",
            "bf16": bf16 or None,
        },
        notes,
    )


# TRL ---------------------------------------------------------------------------------------------------


_ANSWERS_ONLY = """assistant_only_loss needs a chat template with {% generation %}; TRL has one for the common families
of models. For others add it to the template, or set False, which trains on the questions too."""


def _prompt_completion(conversation: Conversation, single: bool) -> Row:
    if not single:
        return {"messages": _turns(conversation)}
    return {"prompt": _turns(conversation[:-1]), "completion": _turns(conversation[-1:])}


def _trl(training: _Training) -> dict[str, str]:
    files = {}
    if training.conversations:
        loss = {} if training.single else {"assistant_only_loss": True}
        files["sft.py"] = _trl_training(training, CONVERSATIONS, loss)
    if training.texts:
        files["text.py"] = _trl_training(training, TEXTS, {})
    return files


def _trl_training(training: _Training, name: str, loss: Row) -> str:
    revision = {"model_init_kwargs": {"revision": training.revision}} if training.revision else {}
    options = {
        "output_dir": _output(training, text=name == TEXTS),
        **revision,
        **loss,
        "max_length": training.max_length,
        "learning_rate": 1e-4,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8,
    }
    lora = {
        "r": training.lora.rank,
        "lora_alpha": training.lora.alpha,
        "target_modules": training.lora.targets,
        **({"use_rslora": True} if training.lora.rslora else {}),
    }
    pattern = glob.escape(str(training.folder / name))
    notes = [_BY, *([_ANSWERS_ONLY] if loss else []), *training.lora.notes()]
    said = "\n\n".join(notes) + ("\n" if len(notes) > 1 else "")
    return f'''"""{said}"""

from datasets import load_dataset
from peft import LoraConfig
from transformers.utils import is_torch_bf16_gpu_available
from trl import SFTConfig, SFTTrainer

trainer = SFTTrainer(
    model={training.model!r},
    args=SFTConfig(
        bf16=is_torch_bf16_gpu_available(),{_keywords(options)}),
    train_dataset=load_dataset(
        'json',
        data_files={pattern!r},
        split='train',
    ),
    peft_config=LoraConfig({_keywords(lora)}),
)
trainer.train()
trainer.save_model()
'''


def _keywords(values: Row) -> str:
    return "".join(f"\n        {key}={value!r}," for key, value in values.items()) + "\n    "


# axolotl -----------------------------------------------------------------------------------------------


def _messages(conversation: Conversation, _: bool) -> Row:
    return {"messages": _turns(conversation)}


def _axolotl(training: _Training) -> dict[str, str]:
    chat = {
        "type": "chat_template",
        "field_messages": "messages",
        "roles_to_train": ["assistant"],
        "train_on_eos": "turn",
    }
    datasets = []
    if training.conversations:
        datasets.append({"path": str(training.folder / CONVERSATIONS), "ds_type": "json", **chat})
    if training.texts:
        text = {"type": "completion", "field": "text"}
        datasets.append({"path": str(training.folder / TEXTS), "ds_type": "json", **text})
    lora = training.lora
    linear = lora.targets in (ALL_LINEAR, None)
    values = {
        "base_model": training.model,
        "revision_of_model": training.revision,
        "datasets": datasets,
        "val_set_size": 0,
        "output_dir": _output(training, text=False),
        "sequence_len": training.max_length,
        "adapter": "lora",
        "lora_r": lora.rank,
        "lora_alpha": lora.alpha,
        "peft_use_rslora": lora.rslora or None,
        "lora_target_linear": linear or None,
        "lora_target_modules": None if linear else lora.targets,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 8,
        "num_epochs": 3,
        "optimizer": "adamw_torch_fused",
        "lr_scheduler": "cosine",
        "learning_rate": 1e-4,
        "bf16": "auto",
        "logging_steps": 10,
    }
    notes = lora.notes("" if lora.targets else "lora_target_modules")
    return {"axolotl.yaml": _yaml(values, notes)} if datasets else {}


TOOLS = {
    "llamafactory": _Tool(
        reads=_taking_turns,
        files=_llamafactory,
        program="llamafactory-cli train",
        globs=True,
    ),
    "trl": _Tool(_prompt_completion, _trl, "python", globs=False),
    "axolotl": _Tool(_messages, _axolotl, "axolotl train", globs=True),
}


def export(
    run: Path, tools: Sequence[str], samples: Sequence[Sample], *, model: str, settings: Settings
) -> list[Exported]:
    """Write a selection for some tools, and again for those that it has been written for before.

    Args:
        run: the run's folder.
        tools: names in `TOOLS`.
        samples: the selection, best first.
        model: folder of the model, or its hub id.
        settings: those of the run.

    Raises:
        RunError: it cannot be written.
    """
    present = [tool for tool in TOOLS if any((run / name).exists() for name in export_files(tool))]
    wanted = [tool for tool in TOOLS if tool in {*tools, *present}]
    barred = [tool for tool in wanted if TOOLS[tool].globs and glob.has_magic(str(run.absolute()))]
    for what, those in (
        ("--export {} is not written", [tool for tool in barred if tool in tools]),
        ("the earlier export for {} is removed", [tool for tool in barred if tool not in tools]),
    ):
        if those:
            warnings.warn(
                f"{what.format(','.join(those))}: of a folder such as {run.absolute()}, these tools take [, * and ? "
                "for a pattern. Expected a path without them: choose another --out",
                ClusterUCBWarning,
                stacklevel=4,
            )
        for name in (name for tool in those for name in export_files(tool)):
            (run / name).unlink(missing_ok=True)
    return [_export(run, tool, samples, model, settings) for tool in wanted if tool not in barred]


def _export(run: Path, name: str, samples: Sequence[Sample], model: str, settings: Settings) -> Exported:
    tool, own, folder = TOOLS[name], EXPORTS[name], run / f"export-{name}"
    conversations = [sample.messages for sample in samples if sample.messages[0].role != TEXT]
    texts = [{"text": sample.messages[0].content} for sample in samples if sample.messages[0].role == TEXT]
    single = all(map(_single, conversations))
    rows = [row for one in conversations if (row := tool.reads(one, single)) is not None]
    if left_out := len(conversations) - len(rows):
        warnings.warn(
            f"--export {name} leaves out {left_out} of {len(samples)} selected samples: it reads only conversations in "
            "which user and assistant take turns",
            ClusterUCBWarning,
            stacklevel=5,
        )
    training = _Training(
        folder=folder.absolute(),
        model=str(Path(model).absolute()) if Path(model).is_dir() else model,
        revision=settings.revision,
        max_length=settings.max_length,
        lora=lora_of(settings),
        conversations=bool(rows),
        texts=bool(texts),
        single=single,
    )
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {folder}: {error.strerror}; move away what stands there") from error
    files = tool.files(training)
    for name, lines in ((CONVERSATIONS, rows), (TEXTS, texts)):
        write_lines(folder / name, lines) if lines else (folder / name).unlink(missing_ok=True)
    for name in own:
        if name in files:
            write_whole(folder / name, files[name].encode())
        else:
            (folder / name).unlink(missing_ok=True)
    started = tuple(name for name in files if name != "dataset_info.json")
    return Exported(folder, tuple((tool.program, folder / name) for name in started))


def _output(training: _Training, *, text: bool) -> str:
    """Return where what is trained goes."""
    return str(training.folder / ("trained-text" if text else "trained"))


def _single(conversation: Conversation) -> bool:
    """Return whether a conversation is a prompt and, as its last turn, its only answer."""
    roles = [message.role for message in conversation]
    return len(roles) > 1 and roles.index("assistant") == len(roles) - 1


def _turns(conversation: Conversation) -> list[Row]:
    return [message._asdict() for message in conversation]


def _yaml(values: Row, notes: Sequence[str] = ()) -> str:
    """Return the options that are not None, after comments."""
    import yaml  # type: ignore[import-untyped]

    given = {key: value for key, value in values.items() if value is not None}
    comments = "".join(f"# {note}\n" for note in (_BY, *notes))
    content: str = yaml.safe_dump(given, sort_keys=False, allow_unicode=True, width=math.inf)
    return comments + content
