"""Look up the versions of this package and of the packages that it uses."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

__version__ = "0.1.0"
_RECORDED = ("numpy", "torch", "transformers", "peft")


def version_of(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def recorded_versions(plugins: Iterable[str] = ()) -> dict[str, str]:
    """Return the versions that a manifest records: Python and the libraries that affect the computed numbers.

    Args:
        plugins: the packages that provide the run's strategies.
    """
    found = {package: version_of(package) for package in (*_RECORDED, *plugins)}
    return {
        "python": platform.python_version(),
        **{name: one for name, one in found.items() if one is not None},
    }
