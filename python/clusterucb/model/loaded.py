"""A model and a tokenizer that the caller has loaded: lent for a job, and given back as they were.

Decisions:
    - Where a path is expected, an object may stand: the decorator `borrowing` is the one place that knows, and
      what lies behind it sees a `LoadedModel` with the methods of `clusterucb.model.source.ModelSource`.
    - A PEFT model is the checkpoint itself: its LoRA layers are put aside while the job works on a copy that it loads
      from a temporary folder, like any other adapter. So what a run computes depends on files alone,
      and the caller's layers are not touched at all.
    - The optimiser may be an object too. Its parameters are known, so its state is written under their names.
    - What is given back is checked by nobody: everything that a job changes is noted before, on every module, and
      put back afterwards, whatever happens.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from clusterucb.errors import ClusterUCBError, ModelError, OptionError
from clusterucb.wording import one_line

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SAMPLED = 1 << 16  # values of a parameter that its fingerprint looks at

Function = TypeVar("Function", bound=Callable[..., Any])


class LoadedModel:
    """A base model and its tokenizer, in the place of a folder.

    Attributes:
        given: the model itself.
        name: of the folder or hub id that it came from, as far as it says.
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
        """Return a copy of the tokenizer, whose padding and truncation may be set."""
        return copy.deepcopy(self._tokenizer)

    def model(self, dtype: str, device: str) -> PreTrainedModel:
        """Return the model itself, in evaluation mode.

        Raises:
            OptionError: it is of another dtype, or on another device, than asked for.
        """
        self._check("dtype", dtype, str(next(self.given.parameters()).dtype).removeprefix("torch."))
        self.device(device)
        return self.given.eval()

    def device(self, asked: str) -> str:
        """Return where the model is.

        Raises:
            OptionError: it is not where it should be.
        """
        found = str(next(self.given.parameters()).device)
        self._check("device", asked, found)
        return found

    def _check(self, option: str, asked: str, got: str) -> None:
        if asked not in ("auto", got) and f"{asked}:0" != got:
            raise OptionError(
                f"{option} is {asked!r}, the model that was given {got}; expected auto or {got}"
            )


def borrowing(job: Function) -> Function:
    """Return a job that takes a loaded ``model``, with its ``tokenizer``, where it takes a path.

    The ``optimizer`` of a PEFT model may then be a torch optimiser.
    """

    @functools.wraps(job)
    def call(*arguments: Any, model: Any, tokenizer: Any = None, **options: Any) -> Any:
        if isinstance(model, str | PathLike):
            if tokenizer is not None:
                raise OptionError(
                    "a tokenizer is given with the path of a model, which has its own; leave it away"
                )
            return job(*arguments, model=model, **options)
        with _lent(model, tokenizer, options) as (source, options_now):
            return job(*arguments, model=source, **options_now)

    signature = inspect.signature(job)
    named = list(signature.parameters.values())
    at = 1 + list(signature.parameters).index("model")
    named.insert(
        at, inspect.Parameter("tokenizer", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Any)
    )
    call.__signature__ = signature.replace(parameters=named)  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]


@contextmanager
def _lent(
    model: Any, tokenizer: Any, options: Mapping[str, Any]
) -> Iterator[tuple[LoadedModel, dict[str, Any]]]:
    """Yield a model in the place of a folder, and options with the adapter that it had."""
    from peft import PeftModel
    from transformers import PreTrainedModel

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
            _refuse_adapters(model)
            optimizer = options.get("optimizer")
            whole = options.get("parameters") is not None
            if optimizer is not None and options.get("adapter") is None and not whole:
                raise OptionError(
                    "an optimizer is given with a model that has no adapter; expected a PEFT model"
                )
            options_now = dict(options)
            if hasattr(optimizer, "state_dict"):
                folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="clusterucb-")))
                options_now["optimizer"] = _saved_state(optimizer, model, folder / "optimizer.pt")
                undo.enter_context(_in_memory({folder / "optimizer.pt": "the optimizer"}))
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
        adapter = _saved(model, folder)
        options_now = {**options, "adapter": adapter}
        optimizer = options.get("optimizer")
        if hasattr(optimizer, "state_dict"):
            options_now["optimizer"] = _saved_state(optimizer, model, folder / "optimizer.pt")
        undo.enter_context(
            _in_memory({folder / "optimizer.pt": "the optimizer", adapter: "the model's adapter"})
        )
        yield LoadedModel(_without_lora(model), tokenizer), options_now


@contextmanager
def _in_memory(names: Mapping[Path, str]) -> Iterator[None]:
    """Let errors name objects, as the caller knows them, in place of files that are gone by then."""
    try:
        yield
    except ClusterUCBError as error:
        said = str(error)
        for path, name in names.items():
            said = said.replace(str(path), name)
        if said == str(error):
            raise
        said = said.replace("--preconditioner sgd", "preconditioner='sgd'").replace(
            "Save it after", "Give it after"
        )
        raise type(error)(said) from error


def keep(model: nn.Module, undo: ExitStack) -> None:
    """Note how every module and parameter is, to put it back: layers, hooks, mode, what is trained."""
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


def _saved(model: Any, folder: Path) -> Path:
    """Write the active adapter into a folder, and return where it is."""
    from clusterucb.model.source import without_bars

    name, *others = model.active_adapters
    if others:
        raise ModelError(f"the model has the adapters {', '.join([name, *others])} active; expected one")
    with without_bars():
        model.save_pretrained(folder, selected_adapters=[name], save_embedding_layers=False)
    adapter = folder if name == "default" else folder / name
    path = adapter / "adapter_config.json"
    config = {
        key: sorted(value)
        if isinstance(value, list) and all(isinstance(one, str) for one in value)
        else value
        for key, value in json.loads(path.read_text()).items()
    }  # PEFT writes sets in an order that is another one tomorrow
    config["init_lora_weights"] = (
        True  # PiSSA and its like would take their part out of the base model once more
    )
    path.write_text(json.dumps(config, indent=2, sort_keys=True))
    return adapter


def _saved_state(optimizer: Any, model: nn.Module, path: Path) -> Path:
    """Write an optimiser's state with its parameters' names, and return where it is."""
    import torch

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    state = optimizer.state_dict()
    for group, own in zip(state["param_groups"], optimizer.param_groups, strict=True):
        strangers = sum(id(parameter) not in names for parameter in own["params"])
        if strangers:
            raise ModelError(
                f"{strangers} parameters of the optimizer are not the model's; expected the optimizer that trains it"
            )
        group["param_names"] = [names[id(parameter)] for parameter in own["params"]]
    torch.save(state, path)
    return path


def _without_lora(model: Any) -> PreTrainedModel:
    """Return the base model of a PEFT model, with every LoRA layer put aside."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    base: PreTrainedModel = model.get_base_model()
    for name, layer in list(base.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            if layer.merged:
                raise ModelError(
                    "the adapter is merged into the model; expected model.unmerge_adapter() before"
                )
            if layer.disable_adapters:
                raise ModelError("the adapter is disabled; expected it enabled")
            parent, _, attribute = name.rpartition(".")
            setattr(base.get_submodule(parent), attribute, layer.get_base_layer())
    vars(base).pop("peft_config", None)  # or PEFT warns that it has an adapter
    _refuse_adapters(base)
    return base


def _refuse_adapters(model: nn.Module) -> None:
    """Refuse what PEFT has put into a model, other than the LoRA layers of a PEFT model."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, layer in model.named_modules():
        if isinstance(layer, AuxiliaryTrainingWrapper):
            raise ModelError(
                f"{name} is a {type(layer).__name__} (modules_to_save, or tokens that are trained), which is not "
                "supported; expected LoRA on linear layers alone"
            )
        if isinstance(layer, BaseTunerLayer):
            raise ModelError(
                f"{name} is a layer of PEFT, but the model is no PEFT model; expected the one that get_peft_model "
                "returned, or one without adapters"
            )
