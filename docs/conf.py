"""The documentation site: `make docs` builds it into build/docs, without a network."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx

import clusterucb

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))  # for `tables`

project = "clusterucb"
author = copyright = "the clusterucb developers"
version = release = clusterucb.__version__
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_nb",
    "sphinx_design",
    "tables",
]
exclude_patterns = ["**/.ipynb_checkpoints"]

# Pages
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "build" / "notebooks")
nb_execution_raise_on_error = True
nb_execution_timeout = 300

# The public names, documented where `clusterucb` itself has them: the modules behind it may move.
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings give shapes, which types cannot
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 88
add_module_names = False
default_role = "py:obj"  # `UCB` in a docstring
nitpicky = True

# Look
html_theme = "pydata_sphinx_theme"
html_title = "clusterucb"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_math_renderer = "mathml"
html_theme_options = {
    "logo": {"text": "clusterucb"},
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "header_links_before_dropdown": 8,
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {name: [] for name in ("index", "get-started", "select", "compare", "plugins")} | {
    name: [] for name in ("production", "how-it-works", "benchmarks")
}

_MANY = 25  # parameters: the options of a job are listed in tables, not in signatures
_INCLUDED = re.compile(r"^<!-- include (\S+) -->$", re.M)
_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#)([^)#]*)(#[^)]*)?\)")
_PAGES = {ROOT / "benchmarks" / "README.md": "benchmarks.md", ROOT / "plugins" / "README.md": "plugins.md"}


def included(name: str) -> str:
    """Return the text of a page that stands elsewhere in the repository, without its title.

    Links to other pages of the site lead there; of links to files, which the site does not have, the words are left.
    """
    path = (HERE / name).resolve()

    def link(match: re.Match[str]) -> str:
        words, file, anchor = match[1], match[2], match[3] or ""
        page = _PAGES.get((path.parent / file).resolve())
        return f"[{words}]({page}{anchor})" if page else words

    return _LINK.sub(link, path.read_text().partition("\n")[2])


def include_pages(_: Sphinx, __: str, source: list[str]) -> None:
    """Put the pages that stand elsewhere in the place of the lines that name them."""
    source[0] = _INCLUDED.sub(lambda match: included(match[1]), source[0])


def shorten(
    _: Sphinx, what: str, __: str, found: object, ___: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None] | None:
    """Leave the options of a job out of its signature."""
    if what != "function" or len(inspect.signature(found).parameters) < _MANY:
        return None
    codes = (found.__code__, inspect.unwrap(found).__code__)
    own = {name for code in codes for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]}
    parameters = inspect.signature(found).parameters.values()
    kept = [one.replace(annotation=one.empty) for one in parameters if one.name in own]
    options = inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)
    return str(inspect.Signature([*kept, options])), returns


def mathml(display: bool):
    """Return what writes formulas as MathML, which browsers draw without a script."""

    def visit(translator, node: nodes.math | nodes.math_block) -> None:
        drawn = latex2mathml.tex2mathml(node.astext(), as_block=display)
        translator.body.append(f'<div class="formula">{drawn}</div>' if display else drawn)
        raise nodes.SkipNode

    return visit


def setup(app: Sphinx) -> None:
    """Connect all that."""
    app.connect("source-read", include_pages)
    app.connect("autodoc-process-signature", shorten)
    app.add_html_math_renderer("mathml", (mathml(False), None), (mathml(True), None))
