"""The documentation site: `make docs` builds it into build/docs, without a network."""

from __future__ import annotations

import inspect
import os
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject

import clusterucb

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))  # for `tables`
os.environ["CLUSTERUCB_CACHE_LIMIT"] = "0"  # notebooks neither use nor fill the user's cache

project = "clusterucb"
author = "the clusterucb developers"
project_copyright = author
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
nb_output_stderr = "remove"

# The public names, documented where `clusterucb` itself has them: the modules behind it may move.
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings give shapes, which types cannot
napoleon_attr_annotations = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 88
add_module_names = False
default_role = "py:obj"  # `UCB` in a docstring
nitpicky = True
# Shapes where a property says them first, as in "f64[K]: ...", which napoleon takes for a type.
nitpick_ignore_regex = [("py:class", r"[fi](16|32|64)|bool|[A-Z]")]

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
    "header_links_before_dropdown": 9,
    "navbar_persistent": ["search-button"],
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
}
_WITHOUT_SIDEBAR = (
    "index",
    "get-started",
    "select",
    "compare",
    "plugins",
    "production",
    "how-it-works",
    "benchmarks",
)
html_sidebars = {name: [] for name in (*_WITHOUT_SIDEBAR, "notebooks/*")}

_PUBLIC_MODULES = ("errors", "hookspecs", "testing")
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


def shorten(*arguments: Any) -> tuple[str, str | None] | None:
    """Leave the options of a job out of its signature."""
    _, what, _, found, _, _, returns = arguments
    if what != "function" or len(inspect.signature(found).parameters) < _MANY:
        return None
    codes = (found.__code__, inspect.unwrap(found).__code__)
    own = {name for code in codes for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]}
    parameters = inspect.signature(found).parameters.values()
    kept = [one.replace(annotation=one.empty) for one in parameters if one.name in own]
    options = inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)
    return str(inspect.Signature([*kept, options])), returns


def split_attributes(*arguments: Any) -> None:
    """Give each of the attributes that share a description, ``low, high: ends of it``, the description."""
    lines: list[str] = arguments[-1]
    found: list[str] = []
    pair: list[str] = []
    inside = False
    for line in [*(line.replace(", **options:", ", options:") for line in lines), ""]:
        indent = len(line) - len(line.lstrip())
        if not line.strip() or indent <= 4:
            for name in re.split(r",\s*", pair[0].partition(":")[0].strip()) if pair else ():
                found += [f"    {name}:{pair[0].partition(':')[2]}", *pair[1:]]
            pair = []
        if not indent and line.strip():
            inside = line.strip() == "Attributes:"
        if inside and (pair or re.match(r"    \w+(, \w+)+:", line)):
            pair.append(line)
        else:
            found.append(line)
    lines[:] = found[:-1]


def public(app: Sphinx, env: Any, node: nodes.Element, content: nodes.Node) -> nodes.Node | None:
    """Resolve a name in a docstring that the site has by another path, such as that of the module behind it.

    Of others, those of public modules are mistakes; the rest are internal names, and shown as they are.
    """
    if node.get("refdomain") != "py" or node.get("reftype") != "obj":
        return None
    words = node["reftarget"].split(".")
    first = next((at for at, word in enumerate(words) if word in clusterucb.__all__), None)
    if first is not None:
        name = ".".join(["clusterucb", *words[first:]])
        domain = env.get_domain("py")
        if name in domain.objects:
            return domain.resolve_xref(env, node.get("refdoc"), app.builder, "obj", name, node, content)
    return None if words[:1] == ["clusterucb"] and words[1] in _PUBLIC_MODULES else content


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
    app.connect("autodoc-process-docstring", split_attributes, priority=400)  # before napoleon
    app.connect("missing-reference", public)
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"  # as the docstrings call them
    app.add_html_math_renderer("mathml", (mathml(False), None), (mathml(True), None))
