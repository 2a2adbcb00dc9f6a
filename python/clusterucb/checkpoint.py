"""Load what gradients are taken of: tokenizer, base model and LoRA adapter.

Nothing is substituted. A dtype or device that the user did not ask for, a tokenizer of another
model, an adapter whose weights do not all fit: each is an error, since the scores would be those of
another model.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from clusterucb.errors import ModelError, OptionError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BLOCK = 1 << 20
_BLOCKS = 16
_WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")


def resolve_device(device: str) -> str:
    """Return the device that ``auto`` means here, or check that ``device`` is there.

    Raises:
        OptionError: no such device.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise OptionError(
            f"--device is {device!r}, which cannot be used: {reason:.200}. Try cpu or auto"
        ) from error
    return device


def load_tokenizer(model: str, *, revision: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder or hub id.

    Raises:
        ModelError: it cannot be loaded.
    """
    with _explained("tokenizer", model):
        return AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)


def load_model(
    model: str, *, revision: str | None, trust_remote_code: bool, dtype: str, device: str
) -> PreTrainedModel:
    """Load a causal language model in evaluation mode.

    Args:
        model: a folder in Hugging Face form, or a hub id.
        revision: of a hub id.
        trust_remote_code: whether code that comes with the model may run.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto``: float32 on a CPU, the checkpoint's own
            elsewhere.
        device: where to put it.

    Raises:
        ModelError: it cannot be loaded.
        OptionError: no such dtype.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise OptionError(f"--dtype is {dtype!r}; expected auto, {', '.join(DTYPES)}")
    on_cpu = torch.device(device).type == "cpu"
    loaded_dtype = DTYPES.get(dtype, torch.float32 if on_cpu else "auto")
    with _explained("model", model):
        loaded = AutoModelForCausalLM.from_pretrained(
            model, revision=revision, trust_remote_code=trust_remote_code, dtype=loaded_dtype
        )
    return loaded.to(device).eval()


def attach_lora(
    model: PreTrainedModel, *, rank: int, alpha: float, targets: Sequence[str] | None, seed: int
) -> PeftModel:
    """Put a fresh LoRA on a model's linear layers; the same seed gives the same matrices.

    Args:
        model: the base model.
        rank, alpha: of LoRA; its update is scaled by alpha / rank.
        targets: names of linear layers, or ``["all-linear"]``; None takes PEFT's choice for the architecture.
        seed: of the A matrices (B begins at zero).

    Raises:
        ModelError: no such layers.
    """
    from peft import LoraConfig, get_peft_model

    chosen = "all-linear" if targets and list(targets) == ["all-linear"] else targets
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=chosen, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return get_peft_model(model, config)
    except ValueError as error:
        linear = sorted(
            {name.rpartition(".")[2] for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
        )
        wanted = (
            "PEFT knows no default for this architecture" if targets is None else f"got {', '.join(targets)}"
        )
        raise ModelError(
            f"LoRA finds no layer to go on: {wanted}; this model's linear layers are {', '.join(linear)}. Name "
            "some with --lora-targets"
        ) from error


def load_adapter(model: PreTrainedModel, adapter: Path) -> PeftModel:
    """Load a PEFT LoRA adapter, trainable, in fp32 whatever the base model's dtype.

    Raises:
        ModelError: it cannot be loaded, is not LoRA, or its weights do not fit the model.
    """
    from peft import PeftConfig, PeftModel

    if not (adapter / "adapter_config.json").is_file():
        raise ModelError(f"{adapter} holds no adapter_config.json; expected the folder of a PEFT adapter")
    with _explained("adapter", str(adapter)), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = PeftConfig.from_pretrained(adapter)
        kind = getattr(config.peft_type, "value", config.peft_type)
        if kind != "LORA":
            raise ModelError(f"{adapter} is an adapter of type {kind}; expected LORA")
        loaded = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    for warning in caught:
        if "missing adapter keys" in str(warning.message):
            raise ModelError(
                f"{adapter} lacks weights that its configuration names: {warning.message!s:.300}"
            )
    return loaded


def model_fingerprint(model: str, *, revision: str | None, trust_remote_code: bool) -> str:
    """Return what identifies a model's content: a hub id's commit, or a hash of a folder's files.

    Small files are hashed whole. Of a weight file (gigabytes), the size and 16 evenly spaced blocks of
    1 MiB are hashed, the first with all tensor names and shapes.

    Raises:
        ModelError: there is no such model.
    """
    folder = Path(model)
    if not folder.is_dir():
        with _explained("model", model):
            config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)
        return str(config._commit_hash)
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        for block in _sampled(path) if path.suffix in _WEIGHTS else (path.read_bytes(),):
            digest.update(block)
    return digest.hexdigest()


def file_fingerprint(path: Path) -> str:
    """Return the hex SHA-256 of a whole file."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def adapter_fingerprint(adapter: Path) -> str:
    """Return a hex SHA-256 of an adapter's configuration and weights."""
    config = adapter / "adapter_config.json"
    weights = [
        path
        for path in (adapter / "adapter_model.safetensors", adapter / "adapter_model.bin")
        if path.is_file()
    ]
    if not config.is_file() or not weights:
        missing = "adapter_config.json" if not config.is_file() else "adapter_model.safetensors"
        raise ModelError(f"{adapter} holds no {missing}; expected the folder of a PEFT adapter")
    content = json.dumps(json.loads(config.read_bytes()), sort_keys=True)
    return hashlib.sha256((content + file_fingerprint(weights[0])).encode()).hexdigest()


def _sampled(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    with path.open("rb") as content:
        for number in range(_BLOCKS):
            content.seek(max(size - _BLOCK, 0) * number // (_BLOCKS - 1))
            yield content.read(_BLOCK)


@contextmanager
def _explained(what: str, name: str) -> Iterator[None]:
    """Turn whatever a library raises while loading into one clear line; keep its progress bars off."""
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except ModelError:
        raise
    except (
        Exception
    ) as error:  # transformers and peft raise every kind; all of them are about the user's files
        reason = " ".join(str(error).split())
        there = "" if Path(name).exists() else " (there is no such folder, so it was taken for a hub id)"
        raise ModelError(
            f"cannot load the {what} {name!r}{there}: {type(error).__name__}: {reason:.300}"
        ) from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
