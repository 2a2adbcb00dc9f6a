"""Read the marks of turns that say which answers are learnt.

Sources: OpenAI's ``weight``, axolotl's ``train`` and ``training``, ms-swift's ``loss`` and
``loss_scale``, LLaMA-Factory's ``loss_weight``, xtuner's ``output_with_loss``.

A mark matters on an assistant's turn alone: other turns are never learnt. An answer that is marked as not to be learnt
stays in the conversation as context. A fraction is refused, because an answer is learnt or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clusterucb.samples.message import Unreadable

_LEARNT = (
    "train",
    "training",
    "trainable",
    "loss",
    "loss_scale",
    "loss_weight",
    "loss_mask",
    "weight",
    "output_with_loss",
)  # 0 or false: context
_SPANS = ("train_detail", "training_detail")  # axolotl's marks of parts of an answer
MARKS = (*_LEARNT, *_SPANS, "masked")
_ASIDE = "--learn all or --learn last sets marks aside"


def is_context(turn: Mapping[str, Any], what: str) -> bool:
    """Return whether an answer is marked as not to be learnt.

    Args:
        turn: the turn.
        what: what the turn is, for messages.

    Raises:
        Unreadable: a mark is no yes or no, or marks a part of the answer.
    """
    for name in _SPANS:
        if turn.get(name):
            raise Unreadable(
                f"unsupported content: {what} marks parts of the answer ({name!r}); expected a mark of the "
                f"whole answer. {_ASIDE}"
            )
    context = False
    for name in (*_LEARNT, "masked"):
        value = turn.get(name)
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise Unreadable(
                f"unsupported content: {what} has {name} {value!r:.40}; expected 0 or 1 (false or true), "
                f"because an answer is learnt or not. {_ASIDE}"
            )
        context = context or bool(value) == (name == "masked")
    return context
