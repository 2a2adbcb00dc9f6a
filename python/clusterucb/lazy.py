"""Import a package's modules only when one of their names is first used, so that the program starts fast."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from clusterucb.errors import OptionError


def imported(name: str, what: str) -> Any:
    """Return a module that clusterucb is installed without.

    Args:
        name: the module, which is also the name of the extra that installs it.
        what: what needs it, such as ``to_pandas()``.

    Raises:
        OptionError: it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # it is installed, and something else is not
            raise
        raise OptionError(
            f"{what} needs {name}, which is not installed: pip install 'clusterucb[{name}]'"
        ) from error


def lazy_names(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the functions ``__getattr__`` and ``__dir__`` for a package.

    Args:
        package: the package's ``__name__``.
        homes: for each module of the package, the names that it provides; none for a module that is a name itself.
    """
    home_of = {name: module for module, names in homes.items() for name in names}

    def __getattr__(name: str) -> Any:  # noqa: N807
        if name in homes and not homes[name]:
            return import_module(f"{package}.{name}")
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{home_of[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:  # noqa: N807
        themselves = {module for module, names in homes.items() if not names}
        return sorted({*vars(sys.modules[package]), *home_of, *themselves})

    return __getattr__, __dir__
