"""Write a new plugin package from the templates in the folder ``templates``.

Decision: `create` writes a strategy that works and passes its suite, not a skeleton with gaps. The author sees at once
that the package is wired correctly, and then replaces one method.
"""

from __future__ import annotations

import ast
import keyword
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from string import Template

from clusterucb import plugins
from clusterucb.errors import OptionError, check_choice
from clusterucb.versions import __version__

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_TEMPLATES = Path(__file__).parent / "templates"
_SOURCES = {kind: f"{kind}.py.tmpl" for kind in ("policy", "clusterer", "feature")}
_TEST = "test.py.tmpl"


def create(name: str, kind: str, folder: Path = Path()) -> list[Path]:
    """Write a package with one strategy into the folder ``name``.

    Args:
        name: the name of the package and of the strategy: lower-case letters, digits and -.
        kind: ``policy``, ``clusterer`` or ``feature``.
        folder: the folder in which to create the package's folder; it is created if it is missing.

    Returns:
        The files that were written.

    Raises:
        OptionError: there is no such kind, the name is invalid or taken, or the folder cannot be written to.
    """
    check_choice("kind", kind, _SOURCES)
    package = folder / name
    _check_name(name, kind, package)
    words = _words(name, kind)
    module = words["module"]
    templates = {
        "pyproject.toml": "pyproject.toml.tmpl",
        "README.md": "README.md.tmpl",
        "CHANGELOG.md": "CHANGELOG.md.tmpl",
        f"src/{module}/__init__.py": _SOURCES[kind],
        f"tests/test_{module}.py": _TEST,
    }
    texts = {path: _filled(template, words) for path, template in templates.items()}
    written = []
    try:
        for path, text in texts.items():
            target = package / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
            written.append(target)
    except OSError as error:
        raise OptionError(
            f"cannot write {package}: {error.strerror}; expected a folder that can be written to"
        ) from error
    return written


def _filled(template: str, words: dict[str, str]) -> str:
    """Return a template's text with ``words`` in its placeholders; drop the space that an empty word leaves."""
    text = Template((_TEMPLATES / template).read_text(encoding="utf-8")).substitute(words)
    return text.replace(" \n", "\n")


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("-"))


def _words(name: str, kind: str) -> dict[str, str]:
    """Return the words that replace the templates' placeholders."""
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
    """Return the names that a package imports or that its author may want to import; no package may have them."""
    names = {base.__name__ for base in plugins.KINDS.values()}
    for kind, source in _SOURCES.items():
        for template in (source, _TEST):
            for node in ast.walk(ast.parse(_filled(template, _words("x", kind)))):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names |= {alias.asname or alias.name for alias in node.names}
    return names - {_class_name("x")}  # the test imports the package's own class


def _check_name(name: str, kind: str, package: Path) -> None:
    """Refuse a name that is invalid, that clashes with an import, or that is taken."""
    module = name.replace("-", "_")
    if not _NAME.fullmatch(name) or keyword.iskeyword(module) or keyword.iskeyword(_class_name(name)):
        raise OptionError(
            f"the name is {name!r}; expected lower-case letters, digits and -, beginning with a letter, and not a "
            "keyword of Python. Use a name such as my-policy"
        )
    for taken in sorted(_imported()):
        if taken.lower() == module.replace("_", ""):
            raise OptionError(
                f"the name is {name!r}, but {taken} is a name that packages import; use another name, such "
                f"as my-{name}"
            )
    if package.exists():
        raise OptionError(f"{package} exists; expected a name whose folder does not exist yet")
    if module in sys.stdlib_module_names or find_spec(module) is not None:
        raise OptionError(f"the name is {name!r}, but there is a module {module!r} already; use another name")
    if (other := plugins.load().table.get((kind, name))) is not None:
        raise OptionError(
            f"the name is {name!r}, but {other.provider} has a {kind} of that name; use another one"
        )
