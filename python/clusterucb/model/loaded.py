"""Let a job borrow a model and a tokenizer that the caller has loaded, and give them back unchanged.

Decisions:
    - A job accepts an object in place of a path. Only the decorator `borrowing` knows about this; the code behind it
      sees a `LoadedModel`, which has the methods of `clusterucb.model.source.ModelSource`.
    - A PEFT model is the checkpoint itself. Its LoRA layers are put aside while the job works on a copy of the adapter,
      which it loads from a temporary folder like any other adapter. So a run's numbers depend on files alone, and the
      job never touches the caller's layers.
    - The optimiser may be an object too. Its parameters are known, so its state is written under their names.
    - Nothing checks afterwards that the model is unchanged. Instead, the state of every module is noted before the job
      and restored after it, whatever happens.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from clusterucb.errors import ClusterUCBError, OptionError
from clusterucb.wording import one_line

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_OBJECT = "the optimizer"  # the name of an optimiser's temporary file, since names are shown
_FOR_FILES = {  # what errors advise for files, and what helps with an object
    "--preconditioner sgd": "preconditioner='sgd'",
    "--preconditioner second_moment": "preconditioner='second_moment'",
    "Save it after": "Give it after",
    "; save it again": "",
    "optimizer.pt of a Hugging Face Trainer, optimizer.bin of accelerate, or torch.save(optimizer.state_dict(), ...)": (
        "AdamW or Adam"
    ),
    "give that state with --optimizer": "give that optimizer",
}
_SAMPLED = 1 << 16  # a fingerprint takes about this many values of each parameter

Function = TypeVar("Function", bound=Callable[..., Any])


class LoadedModel:
    """A base model and its tokenizer in memory, used in place of a model's folder.

    Attributes:
        given: the model itself.
        name: the folder or hub id that the model came from, or the name of its class if the model does not say.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.given = model
        self._tokenizer = tokenizer
        self.name = str(getattr(model.config, "name_or_path", "") or type(model).__name__)

    def __str__(self) -> str:
        return self.name

    def fingerprint(self) -> str:
        """Return a hex SHA-256 of the configuration and of evenly spaced values of every parameter."""
        digest = hashlib.sha256(self.given.config.to_json_string().encode())
        for name, values in sorted(self.given.state_dict().items()):
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
            flat = values.detach().flatten()
            some = flat[:: max(flat.numel() // _SAMPLED, 1)]
            digest.update(some.cpu().double().numpy().tobytes())
        return digest.hexdigest()

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return a copy of the tokenizer; its padding and truncation may be changed."""
        return copy.deepcopy(self._tokenizer)

    def model(
        self,
        dtype: str,
        device: str,
        layers: Collection[str] = (),  # noqa: ARG002
        quantize: str | None = None,
    ) -> PreTrainedModel:
        """Return the model itself, in evaluation mode.

        Args:
            dtype: the expected dtype, or ``auto`` for the model's own.
            device: the expected device, or ``auto`` for the model's own.
            layers: names of layers that an adapter is on; the model is what it is.
            quantize: None, because the model is what it is.

        Raises:
            OptionError: the model has another dtype, is on another device, or should be quantised.
        """
        if quantize:
            raise OptionError(
                f"--quantize {quantize} is given with a loaded model; expected the model's folder"
            )
        self._check("dtype", dtype, str(next(self.given.parameters()).dtype).removeprefix("torch."))
        self.device(device)
        return self.given.eval()

    def device(self, asked: str) -> str:
        """Return the model's device.

        Args:
            asked: the expected device, or ``auto``.

        Raises:
            OptionError: the model is on another device.
        """
        device = str(next(self.given.parameters()).device)
        self._check("device", asked, device)
        return device

    def _check(self, option: str, asked: str, got: str) -> None:
        if asked not in ("auto", got) and f"{asked}:0" != got:
            raise OptionError(
                f"{option} is {asked!r}, but the given model's {option} is {got}; expected auto or {got}"
            )


def borrowing(job: Function) -> Function:
    """Decorate a job so that ``model`` may also be a loaded model, given with its ``tokenizer``.

    With the path of a model, ``tokenizer`` is a path, too. With a PEFT model, ``optimizer`` may be a torch optimiser.
    """

    @functools.wraps(job)
    def call(*arguments: Any, model: Any, tokenizer: Any = None, **options: Any) -> Any:
        with ExitStack() as undo:
            plain_torch(undo)
            return lent(*arguments, model=model, tokenizer=tokenizer, **options)

    def lent(*arguments: Any, model: Any, tokenizer: Any, **options: Any) -> Any:
        if isinstance(model, str | PathLike):
            if tokenizer is None or isinstance(tokenizer, str | PathLike):
                named = {} if tokenizer is None else {"tokenizer": str(tokenizer)}
                return job(*arguments, model=model, **named, **options)
            raise OptionError(
                f"tokenizer is a {type(tokenizer).__name__}, given with the path of a model; expected the path of a "
                "tokenizer's folder, or a loaded model"
            )
        with _lend(model, tokenizer, options) as (source, options_now):
            return job(*arguments, model=source, **options_now)

    signature = inspect.signature(job)
    named = [parameter for parameter in signature.parameters.values() if parameter.name != "tokenizer"]
    at = 1 + [parameter.name for parameter in named].index("model")
    named.insert(
        at, inspect.Parameter("tokenizer", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Any)
    )
    call.__signature__ = signature.replace(parameters=named)  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]


@contextmanager
def _lend(
    model: Any, tokenizer: Any, options: Mapping[str, Any]
) -> Iterator[tuple[LoadedModel, dict[str, Any]]]:
    """Yield a model for use in place of a folder, and the options with the model's adapter; restore the model."""
    from peft import PeftModel
    from transformers import PreTrainedModel

    from clusterucb.model.peft_object import refuse_adapters, save_adapter, save_state, without_lora

    if isinstance(inner := getattr(model, "_orig_mod", None), PreTrainedModel | PeftModel):
        raise OptionError(
            f"model is a {type(inner).__name__} that torch.compile made; expected the model as it was before, because "
            "compiled layers have no hooks. Give the model that you compiled (model._orig_mod)"
        )
    if not isinstance(model, PreTrainedModel | PeftModel):
        raise OptionError(
            f"model is {one_line(repr(model)):.80}; expected the path of a model's folder, a hub id, or a causal "
            "language model of transformers or PEFT"
        )
    if tokenizer is None:
        raise OptionError(
            "a loaded model is given without its tokenizer; expected tokenizer=AutoTokenizer..."
        )
    with ExitStack() as undo:
        keep(model, undo)
        if not isinstance(model, PeftModel):
            refuse_adapters(model)
            optimizer = options.get("optimizer")
            whole = options.get("parameters") is not None
            if optimizer is not None and options.get("adapter") is None and not whole:
                raise OptionError(
                    "an optimizer is given with a model that has no adapter; expected a PEFT model"
                )
            options_now = dict(options)
            if hasattr(optimizer, "state_dict"):
                folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="clusterucb-")))
                options_now["optimizer"] = save_state(optimizer, model, folder / _OBJECT)
                undo.enter_context(_errors_naming({folder / _OBJECT: _OBJECT}))
            yield LoadedModel(model, tokenizer), options_now
            return
        for name in ("adapter", "checkpoint", "parameters", "store"):
            if options.get(name) is not None:
                raise OptionError(
                    f"{name} is given with a model that has an adapter; expected one of the two: give the base model, "
                    f"or leave {name} out"
                )
        if options.get("optimizer") is None and options.get("preconditioner") != "sgd":
            raise OptionError(
                "a PEFT model is given without the optimizer that trains it; expected optimizer=..., AdamW or Adam "
                "after at least one step, or preconditioner='sgd', which needs none"
            )
        for config in model.peft_config.values():
            undo.callback(vars(config).update, dict(vars(config)))
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="clusterucb-")))
        adapter = save_adapter(model, folder, lora_only=bool(options.get("lora_only")))
        options_now = {**options, "adapter": adapter}
        optimizer = options.get("optimizer")
        if hasattr(optimizer, "state_dict"):
            options_now["optimizer"] = save_state(optimizer, model, folder / _OBJECT)
        undo.enter_context(_errors_naming({folder / _OBJECT: _OBJECT, adapter: "the model's adapter"}))
        yield LoadedModel(without_lora(model), tokenizer), options_now


@contextmanager
def _errors_naming(names: Mapping[Path, str]) -> Iterator[None]:
    """Replace temporary files in error messages by the caller's objects, since the files are soon deleted."""
    try:
        yield
    except ClusterUCBError as error:
        message = str(error)
        for path, name in names.items():
            message = message.replace(str(path), name)
        if message == str(error):
            raise
        for advice, own in _FOR_FILES.items():
            message = message.replace(advice, own)
        raise type(error)(message) from error


def plain_torch(undo: ExitStack) -> None:
    """Switch off what a caller may have set for all of torch, and let ``undo`` restore it.

    These are a default data type, a default device and autocast. Each would change the numbers of a job, or stop it.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if (dtype := torch.get_default_dtype()) != torch.float32:
        torch.set_default_dtype(torch.float32)
        undo.callback(torch.set_default_dtype, dtype)
    if torch.get_default_device().type != "cpu":
        undo.enter_context(torch.device("cpu"))
    for kind in ("cpu", "cuda"):
        if torch.is_autocast_enabled(kind):
            undo.enter_context(torch.autocast(kind, enabled=False))


def keep(model: nn.Module, undo: ExitStack) -> None:
    """Note the state of every module and parameter (layers, hooks, mode, requires_grad), and let ``undo`` restore it.

    Args:
        model: the model to restore later.
        undo: restores the model when it is closed.
    """
    for module in model.modules():
        attributes = vars(module)
        containers = {key: dict(value) for key, value in attributes.items() if isinstance(value, dict)}
        undo.callback(_put_back, module, dict(attributes), containers)
    for parameter in model.parameters():
        undo.callback(parameter.requires_grad_, parameter.requires_grad)


def _put_back(module: nn.Module, attributes: dict[str, Any], containers: dict[str, dict[Any, Any]]) -> None:
    vars(module).clear()
    vars(module).update(attributes)
    for key, content in containers.items():
        attributes[key].clear()
        attributes[key].update(content)
