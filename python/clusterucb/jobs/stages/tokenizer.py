"""Choose the tokenizer and the chat template that samples are encoded with.

Decisions:
    - Trainers save the tokenizer with the adapter, with the tokens that were added and the template that was trained
      with (TRL's ``chat_template_path``). So the adapter's folder comes before the model's. A folder with a template
      and no tokenizer gives the template alone.
    - If an adapter's tokenizer has no template, the model's template is used: older trainers saved none.
    - ``--tokenizer`` and ``--chat-template`` come before both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clusterucb.errors import ModelError, OptionError
from clusterucb.model.checkpoint_files import adapter_folder
from clusterucb.options.gradients import GradientSettings
from clusterucb.progress import Observer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from clusterucb.model.source import ModelSource

_TEMPLATE = "chat_template.jinja"
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


def tokenizer_for(
    source: ModelSource, settings: GradientSettings, observer: Observer
) -> PreTrainedTokenizerBase:
    """Return the tokenizer, with its chat template, for a model from a folder or a hub, and its adapter.

    Args:
        source: the model.
        settings: the options.
        observer: told which tokenizer or template is used, if it is not the model's.

    Raises:
        ModelError: a tokenizer cannot be loaded, or the checkpoints have different ones.
        OptionError: the file of the template cannot be read.
    """
    if settings.tokenizer is not None:
        return with_given_template(source.named(settings.tokenizer).tokenizer(), settings)
    folders = _saved_with([adapter for adapter, _ in settings.given_checkpoints if adapter])
    if folder := _first(folders, _TOKENIZER):
        tokenizer = source.named(str(folder)).tokenizer()
        observer.step(f"Tokenizer: the adapter's, in {folder}")
        if tokenizer.chat_template is None:
            tokenizer.chat_template = source.tokenizer().chat_template
    else:
        tokenizer = source.tokenizer()
    own = _first(folders, (_TEMPLATE,))
    if own and settings.chat_template is None:
        tokenizer.chat_template = _text(own / _TEMPLATE)
        observer.step(f"Chat template: the adapter's, in {own}")
    return with_given_template(tokenizer, settings)


def with_given_template(
    tokenizer: PreTrainedTokenizerBase, settings: GradientSettings
) -> PreTrainedTokenizerBase:
    """Return a tokenizer with the chat template of ``--chat-template``, if it is given.

    Raises:
        OptionError: the file cannot be read.
    """
    if settings.chat_template is not None:
        tokenizer.chat_template = _text(settings.chat_template)
    return tokenizer


def _saved_with(adapters: Sequence[Path]) -> list[Path]:
    """Return the folders in which a tokenizer may lie: those of the adapter, and what is above a named adapter."""
    places = [
        [adapter, own] if (own := adapter_folder(adapter)) != adapter else [adapter] for adapter in adapters
    ]
    if len(places) > 1 and len({tuple(_content(folders)) for folders in places}) > 1:
        raise ModelError(
            "the checkpoints have different tokenizers or chat templates in their folders; expected those of one "
            "training. Name the one to use: --tokenizer, and --chat-template for its template"
        )
    return places[0] if places else []


def _content(folders: Sequence[Path]) -> list[bytes]:
    files = (
        folder / name for folder in folders for name in ("tokenizer.json", "tokenizer_config.json", _TEMPLATE)
    )
    return [file.read_bytes() if file.is_file() else b"" for file in files]


def _first(folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    return next((folder for folder in folders for name in names if (folder / name).is_file()), None)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise OptionError(
            f"cannot read the chat template {path}: {reason}; expected a text file in Jinja"
        ) from error
