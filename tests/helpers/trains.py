"""Train with a selection, in one process or in several, and write what was trained on.

python trains.py JOB OUT BATCH
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import clusterucb as cu


def main(job: Path, out: Path, batch: int) -> None:
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(job / "model"), LoraConfig(r=4, task_type="CAUSAL_LM")
    )
    selection = cu.Reselect(job / "pool.jsonl", job / "dev.jsonl", every=3, warmup=2, budget="30%", select=9)
    visited = []

    class Watched(Trainer):
        def training_step(self, model, inputs, *more):
            tokens = [None] * self.args.world_size
            own = inputs["input_ids"][inputs["attention_mask"].bool()].tolist()
            if self.args.world_size > 1:
                torch.distributed.all_gather_object(tokens, own)
            else:
                tokens = [own]
            visited.append(sum(map(sum, tokens)))
            return super().training_step(model, inputs, *more)

    args = TrainingArguments(
        str(out),
        max_steps=6,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=2,
        save_steps=3,
        report_to=[],
        use_cpu=True,
        learning_rate=1e-3,
    )
    tokenizer = AutoTokenizer.from_pretrained(job / "model")
    trainer = cu.training.reselecting(Watched)(
        model=model, args=args, processing_class=tokenizer, selection=selection
    )
    trainer.train()
    if args.process_index == 0:
        weight = max(
            float(weight.abs().max()) for name, weight in model.named_parameters() if "lora_B" in name
        )
        rounds = [sorted(one.rows) for one in selection.rounds]
        (out / "trained.json").write_text(
            json.dumps({"rounds": rounds, "visited": visited, "weight": weight})
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
