"""Write the files of TRL.

TRL 1.16 reads, according to "Dataset formats" and "SFT Trainer" (huggingface.co/docs/trl): ``prompt`` and
``completion`` as lists of turns, and trains on the completion; ``messages`` with ``assistant_only_loss``; ``text``.

Decisions:
    - TRL trains on all answers of a conversation only if it knows the model's chat template, or if the template marks
      the answers. So conversations with one answer to learn, the usual case, are written as prompt and completion,
      which need neither. If some have several, all conversations are written as ``messages``, unless that leaves out
      more of them.
    - ``tools`` are JSON text, which TRL decodes: as objects, a table would give every tool the parameters of all.
    - ``messages`` have no mark for answers that are context. Conversations with some are then left out and counted.
      Turns after the last answer that is learnt are cut if one of them is such an answer.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence

from clusterucb.filenames import CONVERSATIONS, TEXTS
from clusterucb.report.export.training import (
    WRITTEN_BY,
    Conversation,
    Row,
    Tool,
    Training,
    defined_tools,
    has_context,
    learns_last_alone,
    output_folder,
    turns,
    up_to_last_learnt,
)

EPOCHS, BATCH = 3, 8
_USUAL = {
    "learning_rate": 1e-4,
    "num_train_epochs": EPOCHS,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": BATCH,
}
_ANEW = """This training selects anew on the way, from the files of the pool. trainer.train(resume_from_checkpoint=True)
goes on after an interruption."""
_ANSWERS_ONLY = """assistant_only_loss needs a chat template with {% generation %}; TRL has one for the common families
of models. For others, add it to the template, or set False to train on the questions too."""


def _last(conversations: Sequence[Conversation]) -> bool:
    """Return whether conversations are written as prompt and completion: all fit, or more than fit ``messages``."""
    alone = sum(map(learns_last_alone, conversations))
    return alone == len(conversations) or alone > sum(
        not has_context(up_to_last_learnt(one)) for one in conversations
    )


def _prompt_completion(conversation: Conversation, last: bool) -> Row | None:
    tools = {"tools": text} if (text := defined_tools(conversation)) else {}
    if not last:
        kept = up_to_last_learnt(conversation) if has_context(conversation) else conversation
        return None if has_context(kept) else {"messages": turns(kept), **tools}
    if not learns_last_alone(conversation):
        return None
    return {"prompt": turns(conversation[:-1]), "completion": turns(conversation[-1:]), **tools}


def _files(training: Training) -> dict[str, str]:
    files = {}
    if training.conversations:
        loss = {} if training.last else {"assistant_only_loss": True}
        files["sft.py"] = _script(training, CONVERSATIONS, loss)
    if training.texts:
        files["text.py"] = _script(training, TEXTS, {})
    if training.reselection:
        files["reselect.py"] = _reselecting_script(training, training.reselection)
    return files


def _script(training: Training, name: str, loss: Row) -> str:
    revision = {"model_init_kwargs": {"revision": training.revision}} if training.revision else {}
    options = {
        "output_dir": output_folder(training, text=name == TEXTS),
        **revision,
        **loss,
        "max_length": training.max_length,
        **_USUAL,
    }
    pattern = glob.escape(str(training.folder / name))
    notes = [WRITTEN_BY, *([_ANSWERS_ONLY] if loss else []), *training.lora.notes()]
    docstring = "\n\n".join(notes) + ("\n" if len(notes) > 1 else "")
    return f'''"""{docstring}"""

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
    peft_config=LoraConfig({_keywords(_lora(training))}),
)
trainer.train()
trainer.save_model()
'''


def _reselecting_script(training: Training, reselection: str) -> str:
    revision = {"revision": training.revision} if training.revision else {}
    trusted = {"trust_remote_code": True} if training.trusted else {}
    options = {
        "output_dir": str(training.folder / "trained-anew"),
        "max_length": None,  # the selection cuts samples
        **_USUAL,
        "save_strategy": "epoch",
    }
    own = trusted if training.tokenizer else {**revision, **trusted}
    docstring = "\n\n".join([WRITTEN_BY, _ANEW, *training.lora.notes()]) + "\n"
    return f'''"""{docstring}"""

import clusterucb as cu
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import is_torch_bf16_gpu_available
from trl import SFTConfig, SFTTrainer

selection = {reselection}
trainer = cu.training.reselecting(SFTTrainer)(
    model=AutoModelForCausalLM.from_pretrained(
        {training.model!r},{_keywords({**revision, **trusted})}),
    processing_class=AutoTokenizer.from_pretrained(
        {(training.tokenizer or training.model)!r},{_keywords(own)}),
    args=SFTConfig(
        bf16=is_torch_bf16_gpu_available(),{_keywords(options)}),
    peft_config=LoraConfig(
        task_type="CAUSAL_LM",{_keywords(_lora(training))}),
    selection=selection,
)
trainer.train()
trainer.save_model()
'''


def _lora(training: Training) -> Row:
    return {
        "r": training.lora.rank,
        "lora_alpha": training.lora.alpha,
        "target_modules": training.lora.targets,
        **({"use_rslora": True} if training.lora.rslora else {}),
    }


def _keywords(values: Row) -> str:
    return "".join(f"\n        {key}={value!r}," for key, value in values.items()) + "\n    "


TRL = Tool(
    reads=_prompt_completion,
    files=_files,
    program="python",
    globs=False,
    cannot="it learns either the last answer of every conversation or all answers, and cannot be told to learn some "
    "answers of a conversation and not others",
    last=_last,
)
