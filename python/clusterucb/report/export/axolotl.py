"""Write the file of axolotl.

axolotl 0.19 reads what "Conversation" (``type: chat_template``), "Dataset formats" (``type: completion``), "Dataset
loading" and "Config reference" say (docs.axolotl.ai).

Decisions:
    - Parameters of tools and arguments of calls are JSON text, which axolotl decodes: as objects, a table would give
      every tool the parameters of all.
"""

from __future__ import annotations

import msgspec

from clusterucb.filenames import CONVERSATIONS, TEXTS
from clusterucb.report.export.lora import ALL_LINEAR
from clusterucb.report.export.training import (
    Conversation,
    Row,
    Tool,
    Training,
    defined_tools,
    output_folder,
    turns,
    yaml_text,
)
from clusterucb.samples.message import TOOLS


def _messages(conversation: Conversation, _: bool) -> Row:
    said = [message for message in conversation if message.role != TOOLS]
    marked = [
        {**turn, "train": False} if message.context else turn
        for turn, message in zip(turns(said, as_text=True), said, strict=True)
    ]
    tools = defined_tools(conversation)
    return {"messages": marked, **({"tools": _with_texts(tools)} if tools else {})}


def _with_texts(tools: str) -> list[Row]:
    """Return definitions of tools whose parameters are JSON text."""
    definitions: list[Row] = msgspec.json.decode(tools)
    for tool in definitions:
        if "parameters" in tool["function"]:
            tool["function"]["parameters"] = msgspec.json.encode(tool["function"]["parameters"]).decode()
    return definitions


def _files(training: Training) -> dict[str, str]:
    chat = {
        "type": "chat_template",
        "field_messages": "messages",
        "roles_to_train": ["assistant"],
        "train_on_eos": "turn",
        **({"message_field_training": "train"} if training.context else {}),
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
        "output_dir": output_folder(training, text=False),
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
    return {"axolotl.yaml": yaml_text(values, notes)} if datasets else {}


AXOLOTL = Tool(
    reads=_messages,
    files=_files,
    program="axolotl train",
    globs=True,
    cannot="",  # it reads all conversations, with marks
    last=lambda _: False,  # each answer has its own mark
)
