"""Load a file of ``torch.save`` without running any code that it names.

Decisions:
    - Files are loaded with ``weights_only``. Classes of libraries that states are read from are replaced by stand-ins
      of ours, which take any arguments and do nothing. So these libraries need not be installed, and nothing of theirs
      runs.
    - Everything else that a file names is refused; the error names it.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch

from clusterucb.errors import ModelError
from clusterucb.model.states.low_bit import PackedTensor
from clusterucb.wording import one_line

# What code that takes a damaged state for a good one may raise.
FAULTS = (
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    EOFError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
)
_OF_TORCHAO = "torchao.optim."
_OF_DEEPSPEED = "deepspeed."


class StandIn:
    """An object of a class that is not loaded: it keeps what the file says about it, and does nothing.

    Attributes:
        arguments: what the class would have been called with.
        state: what the object's attributes would have become.
    """

    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        """Keep the object's state as it is."""
        self.state = state


def load(path: Path, *, deepspeed: bool = False, mapped: bool = False) -> Any:
    """Load a file's content; the tensors lie in main memory.

    Args:
        path: the file.
        deepspeed: whether objects of DeepSpeed may be in the file; they become `StandIn`.
        mapped: whether tensors are mapped from the file, and read when they are used.

    Raises:
        Exception: the file is damaged, or needs other classes; torch raises many kinds.
    """
    known = {
        name: PackedTensor if name.startswith(_OF_TORCHAO) else StandIn
        for name in classes(path)
        if is_known(name, deepspeed=deepspeed)
    }
    # Pairs of a class and the name that the file gives it, as `torch.serialization.safe_globals` takes them.
    pairs: list[Any] = [(stand_in, name) for name, stand_in in known.items()]
    mapped = mapped and is_zipfile(path)  # the format since torch 1.6
    with torch.serialization.safe_globals(pairs):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped or None)


def is_known(name: str, *, deepspeed: bool) -> bool:
    """Return whether a stand-in takes the place of a class."""
    return name.startswith(_OF_TORCHAO) or (deepspeed and name.startswith(_OF_DEEPSPEED))


def classes(path: Path) -> list[str]:
    """Return the classes and functions, other than tensors, that a file asks for, without importing them."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # torch.save did not write the file
        return []


def reason(error: Exception) -> str:
    """Return why a file could not be loaded, in few words; torch's own words for a damaged file say nothing of it."""
    text = one_line(error)
    if isinstance(error, EOFError) or "PytorchStreamReader" in text or "miniz" in text:
        return "it is cut short, or not a file of torch.save"
    return f"{type(error).__name__}: {text:.200}"


def unreadable(path: Path, error: Exception, needed: list[str], expected: str) -> ModelError:
    """Return the error for a file that could not be loaded.

    Args:
        path: the file.
        error: what `load` raised.
        needed: the classes that the file asks for.
        expected: what the file should have been.
    """
    fault = reason(error)
    if needed:
        fault = f"it needs {', '.join(needed)}, and code from a file is never run"
    elif isinstance(error, pickle.UnpicklingError):  # torch's own text advises to run the code in the file
        fault = "it is damaged or holds more than tensors and numbers, and code from a file is never run"
    return ModelError(f"{path} cannot be read as an optimiser state ({fault}); expected {expected}")
