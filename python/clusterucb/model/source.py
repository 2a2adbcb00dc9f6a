"""Load the tokenizer and the base model that gradients are computed with.

Nothing is substituted silently. A dtype or device that the user did not ask for, or
another model's tokenizer is an error, because the scores would be those of another model.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from clusterucb.errors import ModelError, OptionError, is_panic
from clusterucb.model.parameters import of_other_inputs
from clusterucb.model.plausible import check_plausible
from clusterucb.model.quantized import quantization
from clusterucb.wording import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
_POSITIONS = re.compile(r"(?:^|\.)(?:wpe|\w*position\w*)$")
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
            with explain_errors("model", self.name):
                check_plausible(self.name, self._options())
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

    def named(self, name: str) -> ModelSource:
        """Return another folder or hub id, with the same permission to run code."""
        return ModelSource(name, trust_remote_code=self.trust_remote_code)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer.

        Raises:
            ModelError: the tokenizer cannot be loaded.
        """
        with explain_errors("tokenizer", self.name):
            check_plausible(self.name, self._options())
            return AutoTokenizer.from_pretrained(self.name, **self._options())

    def model(
        self, dtype: str, device: str, layers: Collection[str] = (), quantize: str | None = None
    ) -> PreTrainedModel:
        """Load the causal language model in evaluation mode.

        Args:
            dtype: one of `DTYPES`, or ``auto``: float32 on a CPU, the dtype of the model's files elsewhere.
            device: where to put the model.
            quantize: ``4bit`` or ``8bit`` to quantise the linear layers (`clusterucb.model.quantized`); None for none.
            layers: names of layers that an adapter is on. If only the checkpoint's own class has them (a model for
                images and texts, say), that class is loaded, and not the one for texts alone.

        Raises:
            ModelError: the model cannot be loaded, or lacks weights.
        """
        automatic = torch.float32 if torch.device(device).type == "cpu" else "auto"
        quantised = quantization(quantize, DTYPES.get(dtype, automatic), device)
        with explain_errors("model", self.name):
            check_plausible(self.name, self._options())
            model, report = self._class(layers).from_pretrained(
                self.name,
                dtype=DTYPES.get(dtype, automatic),
                output_loading_info=True,
                **quantised,
                **self._options(),
            )
        if missing := sorted(report["missing_keys"]):
            raise ModelError(
                f"the model {self.name!r} lacks {len(missing)} of its weights, such as {missing[0]}; expected all, "
                "because missing weights would be random. Download it again, or give a model that was saved as a "
                "causal language model"
            )
        return (model if quantize else model.to(device)).eval()

    def _class(self, layers: Collection[str]) -> Any:
        """Return the class that loads the model: `AutoModelForCausalLM`, or the checkpoint's own.

        Raises:
            ModelError: the model is an encoder-decoder model.
        """
        config = AutoConfig.from_pretrained(self.name, **self._options())
        if getattr(config, "is_encoder_decoder", False):
            raise ModelError(
                f"the model {self.name!r} is an encoder-decoder model ({config.model_type}); expected a causal "
                "language model, which has a decoder alone"
            )
        own = getattr(transformers, next(iter(config.architectures or []), ""), None)
        if not layers or own is None or own.__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
            return AutoModelForCausalLM
        for kind, build in (
            (AutoModelForCausalLM, AutoModelForCausalLM.from_config),
            (own, own._from_config),
        ):
            with torch.device("meta"):
                names = {name for name, _ in build(config).named_modules()}
            if names.issuperset(layers):
                return kind
        return AutoModelForCausalLM

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
            "own tokenizer, or a model with embeddings resized for the tokenizer. An adapter brings them if it is "
            "saved with save_embedding_layers=True"
        )
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Embedding) and _POSITIONS.search(name) and not of_other_inputs(model, name):
            positions = layer.num_embeddings - getattr(layer, "offset", 0)  # OPT reserves two rows
            if longest > positions:
                raise ModelError(
                    f"the longest sample has {longest} tokens, the model has {positions} positions ({name}); expected "
                    f"at most as many tokens. Use --max-length {positions}"
                )

    limit = _rotary_limit(model.config.get_text_config())
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
def explain_errors(what: str, name: str) -> Iterator[None]:
    """Turn any error of a library that loads into one clear line, and silence the hub's warnings.

    Args:
        what: what is loaded: ``model``, ``tokenizer`` or ``adapter``.
        name: its folder or hub id.

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
    except BaseException as error:  # libraries raise many types, and all of them concern the user's files
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise ModelError(f"cannot load the {what} {name!r}: {_fault(what, name, error)}") from error
    finally:
        hub.setLevel(level)


def _fault(what: str, name: str, error: BaseException) -> str:
    """Return why loading failed, as far as the files show, and what to do."""
    folder = Path(name)
    if "trust_remote_code" in str(error):
        return (
            "it comes with code of its own, which does not run unless you allow it. Read the code; then allow it with "
            "--trust-remote-code"
        )
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
    if "weights_only" in str(error):  # torch's own text advises to run the code in the file
        return (
            "its weights are damaged or hold more than tensors, and code from a file is never run. Expected complete "
            "weights: download them again"
        )
    if what == "adapter":
        return f"{_reason(error)}. Expected the files that PEFT's save_pretrained wrote for an adapter of this model"
    return f"{_reason(error)}. Expected a folder in Hugging Face format"


def _damage(path: Path) -> str:
    """Return why a safetensors file cannot be read; empty if it can."""
    try:
        with safe_open(path, "numpy"):
            return ""
    except (SafetensorError, OSError) as error:
        return _reason(error)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error):.300}".rstrip(".: ")
