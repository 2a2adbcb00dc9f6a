"""Write the files of LLaMA-Factory.

LLaMA-Factory 0.9.5 reads, according to its ``data/README.md``, a ``dataset_info.json`` beside the samples. Its "OpenAI
format" is ``formatting: sharegpt`` with tags. Plain texts are the column ``prompt`` of ``stage: pt``. The options are
those of ``examples/train_lora``.

Decisions:
    - LLaMA-Factory skips conversations in which user and assistant do not take turns. They are left out here and
      counted, so that nobody believes that they are trained on. Turns after the last answer are cut, because nothing
      is learnt from them.
    - A call is a turn of its own, ``function_call``, and its result is one ``observation``. So conversations are left
      out in which a turn says something and calls a tool, or in which several results follow one turn. Thoughts stand
      in the content, where LLaMA-Factory's templates look for them.
    - Answers that are context have no mark. ``mask_history`` learns the last answer of every conversation alone, and
      without it all answers are learnt. Of the two, that one is chosen which leaves out fewer conversations; what it
      would learn otherwise than it was scored is left out and counted.
    - ``formatting: openai`` is not used, because it adds "detailed thinking off" to every system message.
    - Packing is off: LLaMA-Factory packs by default, which cuts texts into blocks and drops the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from clusterucb.filenames import CONVERSATIONS, TEXTS
from clusterucb.report.export.lora import ALL_LINEAR
from clusterucb.report.export.training import (
    Conversation,
    Row,
    Tool,
    Training,
    defined_tools,
    has_context,
    output_folder,
    up_to_last_learnt,
    yaml_text,
)
from clusterucb.samples.message import TOOLS, Message
from clusterucb.samples.tools import with_thought

_CALL, _RESULT = "function_call", "observation"


def _last(conversations: Sequence[Conversation]) -> bool:
    """Return whether ``mask_history`` leaves out fewer conversations than learning all answers."""
    known = [kept for one in conversations if (kept := _kept(one)) is not None]
    return sum(map(_has_one_to_learn, known)) > sum(not has_context(one) for one in known)


def _has_one_to_learn(kept: Sequence[Message]) -> bool:
    return sum(message.learnt for message in kept) == 1


def _kept(conversation: Conversation) -> Sequence[Message] | None:
    """Return a conversation up to its last learnt answer, without tools; None if the turns do not alternate."""
    kept = [message for message in up_to_last_learnt(conversation) if message.role != TOOLS]
    said = kept[1:] if kept[0].role == "system" else kept
    if any(message.calls and message.content for message in said):
        return None
    asked = [message.role in ("user", "tool") for message in said]
    return kept if asked == [True, False] * (len(said) // 2) else None


def _alternating(conversation: Conversation, last: bool) -> Row | None:
    kept = _kept(conversation)
    if kept is None or not (_has_one_to_learn(kept) if last else not has_context(kept)):
        return None
    tools = {"tools": text} if (text := defined_tools(conversation)) else {}
    return {"messages": [_turn(message) for message in kept], **tools}


def _turn(message: Message) -> Row:
    thought = with_thought(message.thought, "") if message.thought else ""
    if message.calls:
        return {"role": _CALL, "content": f"{thought}[{', '.join(call.text for call in message.calls)}]"}
    return {"role": _RESULT if message.role == "tool" else message.role, "content": thought + message.content}


def _files(training: Training) -> dict[str, str]:
    tags = {"role_tag": "role", "content_tag": "content"}
    tags |= {f"{role}_tag": role for role in ("user", "assistant", "system")}
    if training.tools:
        tags |= {"function_tag": _CALL, "observation_tag": _RESULT}
    known: dict[str, Row] = {}
    files = {}
    if training.conversations:
        columns = {"messages": "messages", **({"tools": "tools"} if training.tools else {})}
        form = {"formatting": "sharegpt", "columns": columns, "tags": tags}
        known["clusterucb"] = {"file_name": CONVERSATIONS, **form}
        files["sft.yaml"] = _configuration(training, "sft", "clusterucb")
    if training.texts:
        known["clusterucb_text"] = {"file_name": TEXTS, "columns": {"prompt": "text"}}
        files["pt.yaml"] = _configuration(training, "pt", "clusterucb_text")
    entries = msgspec.json.format(msgspec.json.encode(known), indent=2).decode()
    return {"dataset_info.json": entries + "\n", **files}


def _configuration(training: Training, stage: str, dataset: str) -> str:
    from transformers.utils import is_torch_bf16_gpu_available

    notes = [
        "Without `template: NAME`, the name of the model's family, LLaMA-Factory uses the tokenizer's template."
    ]
    bf16, lora = bool(is_torch_bf16_gpu_available()), training.lora
    layers = ",".join(lora.targets) if isinstance(lora.targets, list) else "all"
    if not bf16:
        notes.append("Written on a machine without a bf16 GPU; on one with such a GPU, add `bf16: true`.")
    notes += lora.notes("lora_target" if layers == "all" and lora.targets != ALL_LINEAR else "")
    return yaml_text(
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
            "mask_history": (training.last and stage == "sft") or None,
            "packing": False,
            "output_dir": output_folder(training, text=stage == "pt"),
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


LLAMAFACTORY = Tool(
    reads=_alternating,
    files=_files,
    program="llamafactory-cli train",
    globs=True,
    cannot="it reads only conversations in which questions and answers take turns, and cannot be told to learn some "
    "answers of a conversation and not others",
    last=_last,
)
