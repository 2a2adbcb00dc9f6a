"""For authors of plugins: a package to begin with, and the suites run on what is installed.

Decision: what `create` writes is a strategy that works and passes its suite, not a skeleton of gaps. Who begins with it
sees at once that everything is wired, and replaces a method.
"""

from __future__ import annotations

import ast
import keyword
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from clusterucb import plugins
from clusterucb.errors import OptionError, check_choice
from clusterucb.versions import __version__

if TYPE_CHECKING:
    pass

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def create(name: str, kind: str, folder: Path = Path()) -> list[Path]:
    """Write a package with one strategy into the folder ``name``.

    Args:
        name: of the package and the strategy: lower-case letters, digits and -.
        kind: ``policy``, ``clusterer`` or ``feature``.
        folder: where the package's folder is put; it is created where it is missing.

    Returns:
        The files that were written.

    Raises:
        OptionError: there is no such kind, the name cannot be used or is taken, or nothing can be written there.
    """
    check_choice("kind", kind, _SOURCES)
    package = folder / name
    _check_name(name, kind, package)
    words = _words(name, kind)
    module = words["module"]
    files = {
        "pyproject.toml": _PYPROJECT,
        "README.md": _README,
        "CHANGELOG.md": _CHANGELOG,
        f"src/{module}/__init__.py": _SOURCES[kind],
        f"tests/test_{module}.py": _TEST,
    }
    written = []
    try:
        for path, template in files.items():
            target = package / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(Template(template).substitute(words).replace(" \n", "\n"), encoding="utf-8")
            written.append(target)
    except OSError as error:
        raise OptionError(
            f"cannot write {package}: {error.strerror}; expected a folder that can be written to"
        ) from error
    return written


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("-"))


def _words(name: str, kind: str) -> dict[str, str]:
    """Return what the templates' placeholders stand for."""
    return {
        "name": name,
        "kind": kind,
        "module": name.replace("-", "_"),
        "cls": _class_name(name),
        "suite": f"{kind.capitalize()}Suite",
        "release": ".".join(__version__.split(".")[:2]),
        "option": {"policy": "-p bonus=0.2", "clusterer": "-c n_clusters=5", "feature": ""}[kind],
        "flag": "features" if kind == "feature" else kind,
    }


def _imported() -> set[str]:
    """Return the names that a package imports, or that its author may want to, and so cannot have itself."""
    names = {base.__name__ for base in plugins.KINDS.values()}
    for kind, source in _SOURCES.items():
        for template in (source, _TEST):
            for node in ast.walk(ast.parse(Template(template).substitute(_words("x", kind)))):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names |= {alias.asname or alias.name for alias in node.names}
    return names - {_class_name("x")}  # what a test imports is the package's own


def _check_name(name: str, kind: str, package: Path) -> None:
    module = name.replace("-", "_")
    if not _NAME.fullmatch(name) or keyword.iskeyword(module) or keyword.iskeyword(_class_name(name)):
        raise OptionError(
            f"the name is {name!r}; expected lower-case letters, digits and -, beginning with a letter, and no "
            "word of Python's own, such as my-policy"
        )
    for taken in sorted(_imported()):
        if taken.lower() == module.replace("_", ""):
            raise OptionError(
                f"the name is {name!r}, but {taken} is a name that packages import; use another name, such "
                f"as my-{name}"
            )
    if package.exists():
        raise OptionError(f"{package} exists; expected a name whose folder is still to be made")
    if module in sys.stdlib_module_names or find_spec(module) is not None:
        raise OptionError(f"the name is {name!r}, but there is a module {module!r} already; use another name")
    if (other := plugins.load().table.get((kind, name))) is not None:
        raise OptionError(
            f"the name is {name!r}, but {other.provider} has a {kind} of that name; use another one"
        )


_PYPROJECT = """\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "$name"
version = "0.1.0"
description = "A $kind for clusterucb"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["clusterucb>=$release", "numpy"]

[project.optional-dependencies]
test = ["pytest"]

[project.entry-points.clusterucb]
$name = "$module"

[tool.hatch.build.targets.wheel]
packages = ["src/$module"]
"""

_README = """\
# $name

A $kind for clusterucb.

```bash
pip install -e '.[test]'
pytest
clusterucb plugins check $name
clusterucb select pool.jsonl --target dev.jsonl --model path/to/model --out runs/a --$flag $name $option
```
"""

_CHANGELOG = """\
# Changelog

## 0.1.0 (unreleased)

- The $kind `$name`.
"""

_TEST = """\
import pytest
from clusterucb import plugins
from clusterucb.testing import $suite

from $module import $cls


class Test$cls($suite):
    @pytest.fixture
    def $kind(self):
        return $cls()


def test_command_line_finds_it():
    assert isinstance(plugins.load().make("$kind", "$name", {}), $cls)
"""

_POLICY = '''\
"""A policy: draws where rewards are high, with a bonus for clusters that were seldom drawn from."""

from dataclasses import dataclass

import numpy as np
from clusterucb.errors import OptionError
from clusterucb.hookspecs import hookimpl
from clusterucb.policies import IndexPolicy


@dataclass
class $cls(IndexPolicy):
    """Draw from the cluster with the largest mean + bonus / sqrt(draws).

    Attributes:
        bonus: what a cluster is worth beyond its mean after its first draw, at least 0.
    """

    bonus: float = 0.1

    def __post_init__(self):
        if not self.bonus >= 0:
            raise OptionError(f"$name: bonus is {self.bonus!r}; expected a number of at least 0")

    def index(self, arms, rng):
        """Return a value for each arm; those without an observation (count 0) may have any."""
        return arms.mean + self.bonus / np.sqrt(np.maximum(arms.count, 1))


@hookimpl
def clusterucb_policies():
    """Name the policies for the command line."""
    return {"$name": $cls}
'''

_CLUSTERER = '''\
"""A clusterer: samples of similar length."""

from dataclasses import dataclass

import numpy as np
from clusterucb.clusterers import Clusterer
from clusterucb.errors import OptionError
from clusterucb.hookspecs import hookimpl


@dataclass
class $cls(Clusterer):
    """Cut the pool at the quantiles of its samples' lengths.

    Attributes:
        n_clusters: clusters at most, at least 1; fewer where many samples are of one length.
    """

    n_clusters: int = 10

    def __post_init__(self):
        if not self.n_clusters >= 1:
            raise OptionError(f"$name: n_clusters is {self.n_clusters!r}; expected at least 1")

    def fit_predict(self, pool, rng):
        """Return the cluster of every row; `pool.matrix()` would be the features."""
        tokens = pool.columns["tokens"]
        edges = np.quantile(tokens, np.arange(1, self.n_clusters) / self.n_clusters)
        return np.unique(np.searchsorted(edges, tokens), return_inverse=True)[1]


@hookimpl
def clusterucb_clusterers():
    """Name the clusterers for the command line."""
    return {"$name": $cls}
'''

_FEATURE = '''\
"""A feature: how much a sample repeats itself."""

from dataclasses import dataclass

import numpy as np
from clusterucb.features import Feature
from clusterucb.hookspecs import hookimpl


@dataclass
class $cls(Feature):
    """Length and variety of a sample's tokens.

    Block: ``variety`` f32[m, 2], log of the number of tokens, and the share of different ones.
    """

    def compute(self, batch):
        """Return blocks with a row for each sample, which must not depend on the other samples.

        What uses `batch.model` for a pass sets `forward_passes`; what uses `batch.gradient_sketches` sets
        `gradients`: a run reports its cost by them.
        """
        rows = [
            [np.log(len(sample)), len(np.unique(sample.tokens)) / len(sample)] for sample in batch.encoded
        ]
        return {"variety": np.array(rows, np.float32)}


@hookimpl
def clusterucb_features():
    """Name the features for the command line."""
    return {"$name": $cls}
'''

_SOURCES = {"policy": _POLICY, "clusterer": _CLUSTERER, "feature": _FEATURE}
