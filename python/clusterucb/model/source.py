"""Load the tokenizer, the base model and the LoRA adapter that gradients are computed with.

Nothing is substituted silently. A dtype or device that the user did not ask for, another model's tokenizer, or an
adapter whose weights do not all fit is an error, because the scores would be those of another model.
"""

from __future__ import annotations

import hashlib
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from clusterucb.errors import ModelError, OptionError
from clusterucb.wording import one_line

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
_POSITIONS = re.compile(r"(?:^|\.)(?:wpe|\w*position\w*)$")
_PLAIN_INIT = (
    True,
    False,
    "gaussian",
    "orthogonal",
)  # LoRA initialisations that leave the base model unchanged
_BLOCK = 1 << 20  # bytes of each block of a weight file that enters its fingerprint
_BLOCKS = 16  # such blocks of each file
_WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
_TOKENIZERS = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "tekken.json")
_PATIENCE = 10  # seconds to wait for the hub's answer


def resolve_device(device: str) -> str:
    """Return the device to use: ``cuda`` if available, else ``cpu``, for ``auto``; otherwise ``device``, checked.

    Raises:
        OptionError: the device does not exist or cannot be used.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.empty(0, device=device).is_meta:
            raise RuntimeError("its tensors hold no data")
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise OptionError(
            f"--device is {device!r}, which cannot be used: {reason:.200}. Try cpu or auto"
        ) from error
    return device


@dataclass(frozen=True)
class ModelSource:
    """The folder or hub id that a base model is loaded from.

    Attributes:
        name: a folder in Hugging Face format, or a hub id.
        revision: the branch, tag or commit of a hub id; None for the default branch.
        trust_remote_code: whether code that comes with the model may run.
    """

    name: str
    revision: str | None = None
    trust_remote_code: bool = False

    def fingerprint(self) -> str:
        """Return an identifier of the content: a hub id's commit, or a hex SHA-256 of a folder's files.

        Small files are hashed whole. A weight file has gigabytes, so only its size and 16 evenly spaced blocks of 1 MiB
        are hashed. The first block holds all tensor names and shapes.

        Raises:
            ModelError: there is no such model.
        """
        folder = Path(self.name)
        if not folder.is_dir():
            with _explain_errors("model", self.name):
                commit = AutoConfig.from_pretrained(self.name, **self._options())._commit_hash
            if commit is None:
                raise ModelError(
                    f"the commit of {self.name!r} is unknown; expected a hub id with a commit. Download the model and "
                    "give its folder"
                )
            return str(commit)
        digest = hashlib.sha256()
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            for block in _spaced_blocks(path) if path.suffix in _WEIGHTS else (path.read_bytes(),):
                digest.update(block)
        return digest.hexdigest()

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer.

        Raises:
            ModelError: the tokenizer cannot be loaded.
        """
        with _explain_errors("tokenizer", self.name):
            return AutoTokenizer.from_pretrained(self.name, **self._options())

    def model(self, dtype: str, device: str) -> PreTrainedModel:
        """Load the causal language model in evaluation mode.

        Args:
            dtype: one of `DTYPES`, or ``auto``: float32 on a CPU, the dtype of the model's files elsewhere.
            device: where to put the model.

        Raises:
            ModelError: the model cannot be loaded, or lacks weights.
        """
        automatic = torch.float32 if torch.device(device).type == "cpu" else "auto"
        with _explain_errors("model", self.name):
            model, report = AutoModelForCausalLM.from_pretrained(
                self.name,
                dtype=DTYPES.get(dtype, automatic),
                output_loading_info=True,
                **self._options(),
            )
        if missing := sorted(report["missing_keys"]):
            raise ModelError(
                f"the model {self.name!r} lacks {len(missing)} of its weights, such as {missing[0]}; expected all, "
                "because missing weights would be random. Download it again, or give a model that was saved as a "
                "causal language model"
            )
        return model.to(device).eval()

    def _options(self) -> dict[str, Any]:
        return {
            "revision": self.revision,
            "trust_remote_code": self.trust_remote_code,
            "local_files_only": self._offline,
        }

    @cached_property
    def _offline(self) -> bool:
        """Whether the hub cannot be reached, so that the model comes from the cache.

        The answer is kept, because the hub's library keeps trying for most of a minute, for every file.

        Raises:
            ModelError: the hub cannot be reached, and the model is not in the cache.
        """
        if Path(self.name).is_dir():
            return False
        from huggingface_hub import HfApi, try_to_load_from_cache
        from huggingface_hub.errors import HfHubHTTPError

        try:
            HfApi().model_info(self.name, timeout=_PATIENCE)
        except HfHubHTTPError:
            return False  # the hub answers; it says what is wrong when files are requested
        except Exception as error:  # its type depends on the version of huggingface_hub
            if isinstance(try_to_load_from_cache(self.name, "config.json", revision=self.revision), str):
                return True
            raise ModelError(
                f"there is no folder {self.name!r}; as a hub id it is not in the cache, and the hub cannot be reached "
                f"({_reason(error)}). Expected a model's folder, or a hub id: correct the name, or connect"
            ) from error
        return False


def check_limits(model: PreTrainedModel, *, longest: int, largest_token: int) -> None:
    """Check that a model has an embedding for every token, and enough positions for every sample.

    Args:
        model: the base model.
        longest: the number of tokens of the longest sample.
        largest_token: the largest token id of any sample.

    Raises:
        ModelError: the model lacks embeddings or positions.
    """
    tokens = model.get_input_embeddings().num_embeddings
    if largest_token >= tokens:
        raise ModelError(
            f"the tokenizer gives token {largest_token}, but the model embeds {tokens} tokens; expected the model's "
            "own tokenizer, or a model with embeddings resized for the tokenizer"
        )
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Embedding) and _POSITIONS.search(name):
            positions = layer.num_embeddings - getattr(layer, "offset", 0)  # OPT reserves two rows
            if longest > positions:
                raise ModelError(
                    f"the longest sample has {longest} tokens, the model has {positions} positions ({name}); expected "
                    f"at most as many tokens. Use --max-length {positions}"
                )

    limit = _rotary_limit(model.config)
    if limit is not None and longest > limit:
        raise ModelError(
            f"the longest sample has {longest} tokens; beyond {limit} the model's rotary positions depend on the "
            f"length of the batch, and so would the scores. Use --max-length {limit}"
        )


def _rotary_limit(config: Any) -> int | None:
    """Return the length beyond which rotary embeddings depend on the padded length; None if they never do."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    limits = []
    for settings in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if (settings.get("rope_type") or settings.get("type")) in ("dynamic", "longrope"):
            original = settings.get("original_max_position_embeddings")
            original = original or getattr(config, "original_max_position_embeddings", None)
            limits.append(int(original or config.max_position_embeddings))
    return min(limits, default=None)


def attach_lora(
    model: PreTrainedModel, *, rank: int, alpha: float, targets: Sequence[str] | None, seed: int
) -> PeftModel:
    """Put a fresh LoRA on a model's linear layers; the same seed gives the same matrices.

    Args:
        model: the base model.
        rank, alpha: LoRA's rank and alpha; its update is scaled by alpha / rank.
        targets: names of linear layers, or ``["all-linear"]``; None takes PEFT's choice for the architecture.
        seed: the seed of the A matrices; the B matrices begin at zero.

    Raises:
        ModelError: the model has no such layers.
    """
    from peft import LoraConfig, get_peft_model

    chosen = "all-linear" if targets and list(targets) == ["all-linear"] else targets
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=chosen, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT still reads this attribute, which transformers has deprecated.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        torch.manual_seed(seed)
        try:
            lora = get_peft_model(model, config)
        except ValueError as error:
            raise ModelError(_no_layer(model, targets)) from error
    adapted = {name.partition(".lora_A.")[0] for name, _ in lora.named_parameters() if ".lora_A." in name}
    names = [] if targets is None or chosen == "all-linear" else targets
    for target in names:
        if not any(name == target or name.endswith(f".{target}") for name in adapted):
            lora.unload()
            raise ModelError(_no_layer(model, [target]))
    return lora


def _no_layer(model: nn.Module, targets: Sequence[str] | None) -> str:
    linear = sorted(
        {name.rpartition(".")[2] for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    )
    wanted = "PEFT knows no default for this architecture" if targets is None else f"got {', '.join(targets)}"
    return (
        f"LoRA finds no layer to adapt: {wanted}; this model's linear layers are {', '.join(linear)}. Name some of "
        "them with --lora-targets"
    )


def adapter_name(number: int) -> str:
    """Return PEFT's name for the adapter of checkpoint ``number``, counted from 0."""
    return f"checkpoint-{number + 1}" if number else "default"


def load_adapter(model: PreTrainedModel | PeftModel, adapter: Path, number: int = 0) -> PeftModel:
    """Load a PEFT LoRA adapter, trainable and active, in fp32 whatever the base model's dtype.

    Args:
        model: the base model, or the model with the adapters of earlier checkpoints.
        adapter: the adapter's folder.
        number: the checkpoint's number, counted from 0.

    Raises:
        ModelError: the adapter cannot be loaded, is not plain LoRA, or does not fit the model.
    """
    from peft import PeftConfig, PeftModel

    if not (adapter / "adapter_config.json").is_file():
        raise ModelError(f"{adapter} holds no adapter_config.json; expected the folder of a PEFT adapter")
    with _explain_errors("adapter", str(adapter)), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = PeftConfig.from_pretrained(adapter)
        kind = getattr(config.peft_type, "value", config.peft_type)
        if kind != "LORA":
            raise ModelError(f"{adapter} is an adapter of type {kind}; expected LORA")
        if config.init_lora_weights not in _PLAIN_INIT:
            raise ModelError(
                f"{adapter} was initialised by {config.init_lora_weights!r}, which changes the base model as well; "
                "expected plain LoRA. Save it with path_initial_model_for_weight_conversion"
            )
        with torch.random.fork_rng(devices=[]):  # PEFT draws random weights before it loads the adapter's
            name = adapter_name(number)
            if isinstance(model, PeftModel):
                loaded = model
                loaded.load_adapter(str(adapter), name, is_trainable=True)
                loaded.set_adapter(name)
            else:
                loaded = PeftModel.from_pretrained(model, adapter, name, is_trainable=True)
    for warning in caught:
        if "missing adapter keys" in str(warning.message):
            raise ModelError(
                f"{adapter} lacks weights that its configuration names: {warning.message!s:.300}"
            )
    return loaded


def _spaced_blocks(path: Path) -> Iterator[bytes]:
    """Yield `_BLOCKS` evenly spaced blocks of a file."""
    size = path.stat().st_size
    with path.open("rb") as content:
        for number in range(_BLOCKS):
            content.seek(max(size - _BLOCK, 0) * number // (_BLOCKS - 1))
            yield content.read(_BLOCK)


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep transformers' progress bars off the screen."""
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def _explain_errors(what: str, name: str) -> Iterator[None]:
    """Turn any error of a library that loads into one clear line, and silence the hub's warnings.

    Raises:
        ModelError: the library raised an error.
    """
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)
    try:
        with without_bars():
            yield
    except ModelError:
        raise
    except Exception as error:  # libraries raise many types, and all of them concern the user's files
        raise ModelError(f"cannot load the {what} {name!r}: {_fault(what, name, error)}") from error
    finally:
        hub.setLevel(level)


def _fault(what: str, name: str, error: Exception) -> str:
    """Return why loading failed, as far as the files show, and what to do."""
    folder = Path(name)
    if not folder.is_dir():
        return (
            f"there is no such folder, and loading it as a hub id failed: {_reason(error)}. Expected a folder in "
            "Hugging Face format, or an available hub id"
        )
    if what != "adapter" and not (folder / "config.json").is_file():
        return "the folder has no config.json. Expected the folder of a model in Hugging Face format"
    if what == "tokenizer" and not any(path for form in _TOKENIZERS for path in folder.glob(form)):
        return (
            "the folder has no tokenizer, such as tokenizer.json. Expected one beside the model: save the base "
            "model's tokenizer there"
        )
    weights = [path for path in folder.iterdir() if path.suffix in _WEIGHTS]
    if what == "model" and not weights:
        return "the folder has no weights, such as model.safetensors. Expected model weights: download them"
    for path in weights:
        if what != "tokenizer" and path.suffix == ".safetensors" and (damage := _damage(path)):
            return f"{path.name} is damaged ({damage}). Expected a complete file: download it again"
    return f"{_reason(error)}. Expected a folder in Hugging Face format"


def _damage(path: Path) -> str:
    """Return why a safetensors file cannot be read; empty if it can."""
    try:
        with safe_open(path, "numpy"):
            return ""
    except (SafetensorError, OSError) as error:
        return _reason(error)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error):.300}".rstrip(".: ")
