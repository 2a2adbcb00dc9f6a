"""Strategies are found by name, and a broken plugin harms nobody but itself."""

from __future__ import annotations

import doctest
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
from msgspec import Meta

import clusterucb as cu
import clusterucb.clusterers
import clusterucb.features
import clusterucb.policies
from clusterucb import hookspecs, plugins
from clusterucb.cli import main as cli
from clusterucb.clusterers import KMeans
from clusterucb.errors import OptionError, PluginError
from clusterucb.features import Concatenation, Hidden, Lexical
from clusterucb.jobs.comparison.spelling import contender
from clusterucb.plugins import describe, packages
from clusterucb.policies import UCB, IndexPolicy, Random
from clusterucb.versions import recorded_versions
from clusterucb.wording import in_words
from helpers.searching import search

HOOKS = [name for name in vars(hookspecs) if name.startswith("clusterucb_")]
GREEDY = """
    from clusterucb.hookspecs import hookimpl
    from clusterucb.policies import IndexPolicy

    class Greedy(IndexPolicy):
        "Draws from the arm with the largest mean."
        def index(self, arms, rng):
            return arms.mean

    @hookimpl
    def clusterucb_policies():
        return {"greedy": Greedy}
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package with one module and one entry point, for as long as the test runs."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(package: str, source: str, module: str | None = None) -> None:
        module = module or package.replace("-", "_")
        monkeypatch.delitem(sys.modules, module, raising=False)
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        metadata = tmp_path / f"{package.replace('-', '_')}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[clusterucb]\nplugin = {module}\n")

    return install


def reason_of(package: str) -> str:
    """Return why a package is broken, and check that nothing else is harmed."""
    found = plugins.load()
    assert isinstance(found.make("policy", "ucb", {}), UCB)
    (broken,) = [plugin for plugin in found.broken if plugin.provider == package]
    assert package not in {strategy.provider for strategy in found.table.values()}
    return broken.reason


# Finding -------------------------------------------------------------------------------------------------


def test_built_in_strategies_are_found_as_plugins_are() -> None:
    found = plugins.load()
    named = {
        "policy": clusterucb.policies.clusterucb_policies(),
        "clusterer": clusterucb.clusterers.clusterucb_clusterers(),
        "feature": clusterucb.features.clusterucb_features(),
    }
    assert named.keys() == plugins.KINDS.keys()
    for kind, classes in named.items():
        mine = [strategy for strategy in found.of_kind(kind) if strategy.provider == "clusterucb"]
        assert {strategy.name: strategy.factory for strategy in mine} == classes
        for strategy in mine:
            assert strategy.summary.endswith(".")
            assert isinstance(found.make(kind, strategy.name, {}), plugins.KINDS[kind])
    assert {"ucb", "ucb1", "threshold-hard", "threshold-normal", "random"} <= named["policy"].keys()
    assert {"kmeans", "source"} <= named["clusterer"].keys()
    assert "embedding" in named["feature"]


def test_installed_package_is_found_and_used(install: Install) -> None:
    install("cucb-greedy", GREEDY)
    found = plugins.load()
    assert not found.broken
    strategy = found.table["policy", "greedy"]
    assert (strategy.provider, strategy.name, strategy.kind) == ("cucb-greedy", "greedy", "policy")
    assert strategy.summary == "Draws from the arm with the largest mean."
    assert isinstance(found.make("policy", "greedy", {}), IndexPolicy)


@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        (">=0.1", True),
        (">=99", False),
        ("<0.1", False),
        ('>=99; extra == "next"', True),
        ('>=99; python_version < "3"', True),
        ('>=99; python_version >= "3"', False),
    ],
)
def test_a_plugin_of_another_clusterucb_is_set_aside(
    install: Install, tmp_path: Path, asked: str, fits: bool
) -> None:
    install("cucb-greedy", GREEDY)
    metadata = tmp_path / "cucb_greedy-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text() + f"Requires-Dist: numpy\nRequires-Dist: ClusterUCB{asked}\n")
    if fits:
        assert plugins.load().table["policy", "greedy"].version == "1.0"
    else:
        asked = asked.partition(";")[0]
        expected = (
            f"needs clusterucb{asked}, but {clusterucb.__version__} is installed; upgrade one of the two"
        )
        assert expected in reason_of("cucb-greedy")


def test_nothing_is_remembered_from_one_load_to_the_next(install: Install) -> None:
    before = plugins.load()
    install("cucb-greedy", GREEDY)
    assert ("policy", "greedy") in plugins.load().table
    assert ("policy", "greedy") not in before.table


def test_entry_points_can_be_given() -> None:
    point = EntryPoint("p", "clusterucb.policies", "clusterucb")
    found = plugins.load(lambda: [point])
    assert {strategy.kind for strategy in found.table.values()} == {"policy"}
    assert plugins.load(list).table == {}


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_tells_the_required_method_its_shapes_and_what_is_returned(hook: str) -> None:
    text = " ".join((inspect.getdoc(getattr(hookspecs, hook)) or "").partition("Example:")[0].split())
    bases = {
        "clusterucb_clusterers": [clusterucb.clusterers.Clusterer],
        "clusterucb_policies": [clusterucb.policies.Policy, IndexPolicy],
        "clusterucb_features": [clusterucb.features.Feature],
    }[hook]
    for base in bases:
        assert base.__abstractmethods__
        for method in base.__abstractmethods__:
            parameters = [*inspect.signature(getattr(base, method)).parameters][1:]
            # The signature, then the type and shape of what comes out: f64[K], or {block: f32[m, k]}.
            signature = re.escape(f"``{method}({', '.join(parameters)}) -> ")
            assert re.search(rf"{signature}({{\w+: )?[if]\d\d\[[^`]+\]}}?``", text), method
    returns = text.partition("Returns: ")[2]
    assert returns.startswith(
        "A dictionary that maps names, as the command line spells them, to classes derived from"
    )
    named = re.findall(r"`clusterucb\.(\w+)`", returns)
    assert [getattr(clusterucb, name) for name in named] == bases[:1]


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_with_an_example_that_works(
    hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = getattr(hookspecs, hook)
    assert not inspect.signature(spec).parameters
    (example,) = doctest.DocTestFinder().find(
        spec,
        hook,
        globs={
            "hookimpl": hookspecs.hookimpl,
            "Clusterer": clusterucb.clusterers.Clusterer,
            "IndexPolicy": IndexPolicy,
            "Feature": clusterucb.features.Feature,
            "np": np,
        },
    )
    assert example.examples
    assert doctest.DocTestRunner().run(example, clear_globs=False).failed == 0
    module = type(hookspecs)(f"example_of_{hook}")
    vars(module).update({hook: example.globs[hook]})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    found = plugins.load(lambda: [EntryPoint("example", module.__name__, "clusterucb")])
    assert not found.broken
    assert len(found.table) == 1


# Broken plugins ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def broken(:", "SyntaxError: "),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit('needs a GPU')", "SystemExit: needs a GPU"),
        (
            "def clusterucb_policies():\n    return {}",
            "PluginError: cucb_bad implements no hook; expected one or more of clusterucb_clusterers, "
            "clusterucb_policies, clusterucb_features, each marked with clusterucb.hookspecs.hookimpl",
        ),
        (GREEDY.replace("clusterucb_policies", "clusterucb_policy"), "unknown hook 'clusterucb_policy'"),
        (
            GREEDY.replace("clusterucb_policies", "clusterucb_policy"),
            "Did you mean 'clusterucb_policies'?",
        ),
        (GREEDY.replace("policies()", "policies(pool)"), "Argument(s) {'pool'} are declared in the hookimpl"),
        (GREEDY.replace('return {"greedy": Greedy}', "raise KeyError('x')"), "KeyError: 'x'"),
        (
            GREEDY.replace('return {"greedy": Greedy}', "return [Greedy]"),
            "PluginError: hook clusterucb_policies returned [<class 'cucb_bad.Greedy'>]; expected a "
            'dictionary of classes by name: return {"my-policy": MyPolicy}',
        ),
        (
            GREEDY.replace('return {"greedy": Greedy}', '{"greedy": Greedy}'),
            "PluginError: hook clusterucb_policies returned None; expected a dictionary of classes by name",
        ),
        (
            GREEDY.replace('return {"greedy": Greedy}', "return {}"),
            "PluginError: hook clusterucb_policies returned {}; expected a dictionary of classes by name",
        ),
        (
            GREEDY + "\n    @hookimpl\n    def clusterucb_clusterers(): pass",
            "PluginError: hook clusterucb_clusterers returned None; expected a dictionary of classes by "
            'name: return {"my-clusterer": MyClusterer}',
        ),
        (
            GREEDY + "\n    def clusterucb_features():\n        return {}",
            "PluginError: clusterucb_features is named like a hook, but is not a function marked with "
            "clusterucb.hookspecs.hookimpl; mark it, or rename it if it is not a hook.",
        ),
        (
            GREEDY + "\n    def clusterucb_feature():\n        return {}",
            "clusterucb_feature is named like a hook, but is not a function marked with "
            "clusterucb.hookspecs.hookimpl; mark it, or rename it if it is not a hook. Did you mean "
            "'clusterucb_features'?",
        ),
        (
            GREEDY + "\n    clusterucb_features = {}",
            "clusterucb_features is named like a hook, but is not a function marked with",
        ),
        (GREEDY.replace(": Greedy}", ": Greedy()}"), "expected a class derived from clusterucb.Policy"),
        (GREEDY.replace(": Greedy}", ": dict}"), "expected a class derived from clusterucb.Policy"),
        (
            GREEDY.replace("clusterucb_policies", "clusterucb_clusterers"),
            "PluginError: clusterer 'greedy' is <class 'cucb_bad.Greedy'>; expected a class derived from",
        ),
        (GREEDY.replace('"greedy"', "3"), "PluginError: policy 3: expected a name of letters"),
        (GREEDY.replace('"greedy"', '"two words"'), "PluginError: policy 'two words': expected a name"),
        (
            GREEDY.replace("        def index", "        __signature__ = 5\n        def index"),
            "TypeError: unexpected object 5 in __signature__",
        ),
        (
            GREEDY.replace("        def index", "        def __init__(self, *args): ...\n        def index"),
            "PluginError: the constructor of policy 'greedy' takes *args; expected named hyper-parameters: "
            "name each of them",
        ),
        (
            GREEDY.replace("        def index", "        def __init__(self, **kw): ...\n        def index"),
            "the constructor of policy 'greedy' takes **kw; expected named hyper-parameters",
        ),
        (
            GREEDY.replace("        def index", "        def __init__(self, a, /): ...\n        def index"),
            "the constructor of policy 'greedy' takes a, /; expected named hyper-parameters",
        ),
        (GREEDY.replace("def index", "def indx"), "PluginError: policy 'greedy' does not define index"),
    ],
)
def test_broken_plugin_is_named_and_explained_and_the_rest_works(
    install: Install, source: str, reason: str
) -> None:
    install("cucb-bad", source)
    install("cucb-good", GREEDY.replace('"greedy"', '"good"'))
    assert reason in reason_of("cucb-bad")
    assert plugins.load().table["policy", "good"].provider == "cucb-good"


@pytest.mark.parametrize(
    "beside",
    [
        "from clusterucb.hookspecs import clusterucb_features",
        "import clusterucb as clusterucb_itself",
        "clusterucb_version = 3",
        "@hookimpl(specname='clusterucb_features')\n    def clusterucb_more(): return {'f': Embedding}",
    ],
)
def test_what_is_no_forgotten_hook_is_let_be(install: Install, beside: str) -> None:
    install("cucb-good", f"{GREEDY}\n    from clusterucb.features import Embedding\n    {beside}\n")
    found = plugins.load()
    assert not found.broken
    assert ("policy", "greedy") in found.table
    assert (("feature", "f") in found.table) == ("specname" in beside)


def test_broken_plugin_has_the_version_of_its_package(install: Install) -> None:
    install("cucb-bad", "assert False")
    assert plugins.load().broken == (plugins.Broken("cucb-bad", "AssertionError", "1.0"),)
    (module,) = plugins.load(lambda: [EntryPoint("p", "cucb_bad", "clusterucb")]).broken
    assert (module.provider, module.version) == ("cucb_bad", "")


def test_what_a_plugin_prints_is_not_a_result(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("cucb-loud", GREEDY + "\n    print('hello')")
    assert ("policy", "greedy") in plugins.load().table
    assert capsys.readouterr() == ("", "hello\n")


def test_values_that_a_constructor_refuses_are_the_users_mistake(install: Install) -> None:
    picky = "        def __init__(self, a=1):\n            if a > 2: raise ValueError('a too big')\n"
    install("cucb-picky", GREEDY.replace("        def index", picky + "        def index"))
    with pytest.raises(OptionError, match="policy greedy rejects its options: a too big"):
        plugins.load().make("policy", "greedy", {"a": "3"})


def test_refusal_without_a_message_has_its_type(install: Install) -> None:
    picky = "        def __init__(self, a=1):\n            assert a < 2\n"
    install("cucb-picky", GREEDY.replace("        def index", picky + "        def index"))
    with pytest.raises(OptionError, match=r"policy greedy rejects its options: AssertionError$"):
        plugins.load().make("policy", "greedy", {"a": "3"})


def test_missing_module_of_an_entry_point_is_explained(install: Install, tmp_path: Path) -> None:
    install("cucb-bad", "", module="cucb_gone")
    (tmp_path / "cucb_gone.py").unlink()
    assert reason_of("cucb-bad") == "ModuleNotFoundError: No module named 'cucb_gone'"


def test_a_name_that_two_packages_provide_stands_for_neither(install: Install, capsys) -> None:
    install("cucb-one", GREEDY)
    install("cucb-two", GREEDY.replace("return {", 'return {"other": Greedy, '))
    found = plugins.load()
    assert not found.broken
    assert ("policy", "greedy") not in found.table
    assert found.table["policy", "other"].provider == "cucb-two"  # only what is contested is set aside
    message = "several packages provide the policy 'greedy'; expected cucb-one:greedy or cucb-two:greedy"
    with pytest.raises(OptionError, match=message):
        found.make("policy", "greedy", {})
    for package in ("cucb-one", "cucb-two"):
        made = found.make("policy", f"{package}:greedy", {})
        assert found.named(made) == (f"{package}:greedy", {})
        assert describe(made)["class"] == f"{package}:Greedy"
    assert found.make("policy", "cucb-two:other", {}) is not None
    assert contender("cucb-one:greedy@kmeans", found).name == "cucb-one:greedy@kmeans"
    assert cli.run(["plugins"]) == 0
    shown = capsys.readouterr().out.replace("\n", " ")
    assert "Several packages provide the policy greedy: cucb-one:greedy, cucb-two:greedy" in shown


def test_no_package_takes_the_name_of_a_strategy_of_ours(install: Install) -> None:
    install("cucb-bad", GREEDY.replace('"greedy"', '"ucb"'))
    found = plugins.load()
    assert found.table["policy", "ucb"].provider == "clusterucb"
    assert isinstance(found.make("policy", "ucb", {}), cu.UCB)
    assert found.make("policy", "clusterucb:ucb", {}) == cu.UCB()
    assert type(found.make("policy", "cucb-bad:ucb", {})).__name__ == "Greedy"
    with pytest.raises(OptionError, match="there is no policy 'elsewhere:ucb'"):
        found.make("policy", "elsewhere:ucb", {})


def test_a_package_that_provides_a_name_twice_is_set_aside(install: Install) -> None:
    install("cucb-one", GREEDY)
    points = [
        point for point in entry_points(group="clusterucb") if point.dist and point.dist.name == "cucb-one"
    ]
    found = plugins.load(lambda: [*points, *points])
    assert (
        found.broken[0].reason
        == "PluginError: it provides the policy 'greedy' twice; expected different names"
    )


def test_a_run_records_the_version_of_the_package_of_its_strategies(install: Install) -> None:
    install("cucb-one", GREEDY)
    described = describe(plugins.load().make("policy", "greedy", {}))
    assert packages({"--policy": described, "--seed": 3, "--features": [described]}) == ["cucb-one"]
    assert recorded_versions(["cucb-one"])["cucb-one"] == version("cucb-one")


def test_unknown_name_lists_the_choices_the_closest_and_what_is_broken(install: Install) -> None:
    install("cucb-bad", "1 / 0")
    with pytest.raises(OptionError) as caught:
        plugins.load().make("policy", "treshold-hard", {})
    message = str(caught.value)
    assert message.startswith(
        "there is no policy 'treshold-hard'; installed: cluster-mean, exhaustive, random, "
    )
    assert "Did you mean 'threshold-hard'? Plugin cucb-bad could not be loaded." in message


# Options -------------------------------------------------------------------------------------------------


@dataclass
class Every(Random):
    """Has options of every plain type."""

    count: int = 1
    share: float = 0.5
    on: bool = False
    name: str = "x"
    limit: int | None = 3
    column: str | None = None


class Undecorated(Random):
    """Is no dataclass."""

    def __init__(self, power=2, *, required: float) -> None:
        self.power = power
        self.required = required


STRATEGIES = plugins.Strategies(
    {
        ("policy", name): plugins.Strategy("policy", name, factory, "test")
        for name, factory in {"every": Every, "undecorated": Undecorated, "random": Random}.items()
    },
    (),
)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("7", "count", 7),
        ("-7", "count", -7),
        ("2", "share", 2.0),
        ("1e-3", "share", 0.001),
        ("true", "on", True),
        ("0", "on", False),
        ("None", "name", "None"),
        ("null", "name", "null"),
        ("5", "name", "5"),
        ("", "name", ""),
        ("none", "limit", None),
        ("12", "limit", 12),
        ("None", "column", None),
        ("source", "column", "source"),
    ],
)
def test_option_is_parsed_by_the_type_of_its_parameter(text: str, key: str, value: object) -> None:
    made = STRATEGIES.make("policy", "every", {key: text})
    assert getattr(made, key) == value
    assert type(getattr(made, key)) is type(value)


def test_option_without_annotation_has_the_type_of_its_default() -> None:
    made = STRATEGIES.make("policy", "undecorated", {"power": "3", "required": "1"})
    assert (made.power, made.required) == (3, 1.0)


def test_annotation_that_cannot_be_resolved_gives_way_to_the_default(install: Install) -> None:
    fields = """
        count: int = 1
        share: Nope = 0.5
        limit: Nope | None = None
    """
    source = "from __future__ import annotations\nfrom dataclasses import dataclass\n" + textwrap.dedent(
        GREEDY
    )
    source = source.replace("class Greedy", "@dataclass\nclass Greedy")
    source = source.replace(
        "    def index", f"{textwrap.indent(textwrap.dedent(fields), '    ')}    def index"
    )
    install("cucb-typed", source)
    found = plugins.load()
    made = found.make("policy", "greedy", {"count": "2", "share": "1"})
    assert (made.count, made.share) == (2, 1.0)
    with pytest.raises(OptionError, match="greedy: share is 'much'; expected a number"):
        found.make("policy", "greedy", {"share": "much"})
    with pytest.raises(PluginError) as caught:
        found.make("policy", "greedy", {"limit": "3"})
    assert str(caught.value) == (
        "cucb_typed.Greedy annotates limit as 'Nope | None', which cannot be resolved; expected a name that "
        "its module has at run time: import it outside TYPE_CHECKING"
    )


def test_annotation_of_an_inherited_option_is_of_the_module_that_wrote_it(install: Install) -> None:
    base = """
        from __future__ import annotations
        from dataclasses import dataclass
        from typing import Literal
        from clusterucb.policies import Random

        @dataclass
        class Base(Random):
            how: Literal["fast", "slow"] = "fast"
    """
    install("cucb-base", base, "cucb_base")
    install(
        "cucb-derived",
        """
        from dataclasses import dataclass
        import cucb_base
        from clusterucb.hookspecs import hookimpl

        @dataclass
        class Derived(cucb_base.Base):
            more: int = 1

        @hookimpl
        def clusterucb_policies():
            return {"derived": Derived}
        """,
    )
    with pytest.raises(OptionError, match=r"policy derived: how is 'idle'; expected one of fast, slow"):
        plugins.load().make("policy", "derived", {"how": "idle"})


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "a whole number"),
        (int | None, "a whole number or none"),
        (int | float, "a whole number or a number"),
        (Literal["a", 2] | None, "one of a, 2 or none"),
        (list[int] | bool, "a list (list[int]) or true or false"),
        (Annotated[int, ["unhashable"]], "a whole number"),
        (Annotated[int, Meta(ge=1)] | None, "a whole number or none"),
        (Annotated[int | Annotated[float, Meta(ge=1)], []], "a whole number or a number"),
        (Literal[True, 1.5], "one of True, 1.5"),
    ],
)
def test_a_type_is_told_in_words(hint: object, words: str) -> None:
    assert in_words(hint) == words


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("every", {"count": "x"}, "policy every: count is 'x'; expected a whole number"),
        ("every", {"count": "2.5"}, "policy every: count is '2.5'; expected a whole number"),
        ("every", {"count": "none"}, "policy every: count is 'none'; expected a whole number"),
        ("every", {"share": "a lot"}, "policy every: share is 'a lot'; expected a number"),
        ("every", {"on": "maybe"}, "policy every: on is 'maybe'; expected true or false"),
        ("every", {"limit": "x"}, "policy every: limit is 'x'; expected a whole number or none"),
        (
            "every",
            {"shar": "1"},
            "policy every has no option 'shar'; its options: count, share, on, name, limit",
        ),
        ("every", {"shar": "1"}, "Did you mean 'share'?"),
        ("random", {"beta": "1"}, "policy random has no option 'beta'; its options: none."),
        ("undecorated", {}, "policy undecorated needs a value for required; expected key=value"),
    ],
)
def test_unusable_option_says_what_is_expected(name: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        STRATEGIES.make("policy", name, options)
    assert message in str(caught.value)


def test_value_that_the_strategy_refuses_is_an_option_error() -> None:
    with pytest.raises(OptionError, match="kmeans: n_clusters is 0; expected a whole number of at least 1"):
        plugins.load().make("clusterer", "kmeans", {"n_clusters": "0"})


def test_description_names_the_class_and_its_options() -> None:
    assert plugins.describe(KMeans(n_clusters=5)) == {
        "class": "clusterucb.KMeans",
        "options": {"n_clusters": 5, "max_iter": 50},
    }
    made = Undecorated(power=np.int64(3), required=np.float64(0.5))
    assert json.dumps(plugins.describe(made)["options"]) == '{"power": 3, "required": 0.5}'


def test_strategy_that_cannot_be_described_is_refused() -> None:
    class Forgets(Random):
        def __init__(self, power=2) -> None:
            self._power = power

    with pytest.raises(PluginError, match="Forgets does not store its hyper-parameter 'power'; expected an"):
        plugins.describe(Forgets())
    with pytest.raises(PluginError, match="Undecorated has a hyper-parameter of type object; expected plain"):
        plugins.describe(Undecorated(required=object()))


def test_the_identity_of_a_class_is_no_file_path() -> None:
    thompson = plugins.load().table["policy", "thompson"].factory
    strategies = (UCB(), cu.Embedding(), thompson(), Undecorated(required=0.5))
    assert [plugins.describe(strategy)["class"] for strategy in strategies] == [
        "clusterucb.UCB",
        "clusterucb.Embedding",
        "clusterucb-thompson:Thompson",
        f"{__name__}.Undecorated",
    ]


def test_recorded_import_paths_are_translated() -> None:
    thompson = plugins.load().table["policy", "thompson"].factory
    strategies = (UCB(), thompson(), cu.Concatenation((cu.Embedding(), cu.Lexical())))
    former = [plugins.describe(strategy, plugins.import_path) for strategy in strategies]
    assert former[0]["class"] == "clusterucb.policies.ucb.UCB"
    now = [plugins.describe(strategy) for strategy in strategies]
    assert plugins.renewed(former) == now
    assert plugins.renewed(now) == now
    other = {"class": "my.module.Policy", "options": {"a": [1, None]}}
    assert plugins.renewed({"--policy": other, "--seed": 0}) == {"--policy": other, "--seed": 0}


def test_description_does_not_change_with_use() -> None:
    policy = UCB()
    before = plugins.describe(policy)
    search([[0.0], [1.0]], lambda rows: rows * 1.0, clusterer=None, policy=policy, budget=2, n_select=1)
    assert plugins.describe(policy) == before


# Joined features -----------------------------------------------------------------------------------------


def test_features_are_joined_by_their_names_and_options_find_their_part() -> None:
    found = plugins.load()
    made = found.make("feature", "hidden + lexical", {"depth": "0.5", "lexical.dim": "8"})
    assert made == Concatenation((Hidden(depth=0.5), Lexical(dim=8)))
    assert found.options("feature", "hidden+lexical") == ["depth", "dim", "hidden.depth", "lexical.dim"]
    assert found.options("feature", "lexical") == ["dim"]
    assert found.options("feature", "hidden+none") == ["depth", "hidden.depth"]
    described = plugins.describe(made)
    assert described["options"]["parts"] == [plugins.describe(part) for part in made.parts]
    assert described != plugins.describe(found.make("feature", "hidden+lexical", {"dim": "8"}))


def test_what_is_made_by_name_can_be_named_again() -> None:
    found = plugins.load()
    made = found.make("feature", "lexical+hidden", {"dim": "8"})
    assert found.named(made) == ("lexical+hidden", {"lexical.dim": 8, "hidden.depth": 0.15})
    assert found.named(UCB(beta=2.0)) == ("ucb", {"beta": 2.0})
    assert found.named(Concatenation((Hidden(depth=0.5), Hidden()))) is None  # no name tells them apart
    assert found.named(Undecorated(required=0.5)) is None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hidden+lexcal", {}, r"there is no feature 'lexcal'; .* Did you mean 'lexical'\?"),
        ("hidden+", {}, r"feature 'hidden\+' has an empty name beside a \+; expected names joined as in "),
        ("hidden+hidden", {}, r"features hidden\+hidden repeat a feature; expected different features"),
        ("hidden+lexical", {"dept": "1"}, r"have no option 'dept'; their options: depth, .* mean 'depth'\?"),
        ("hidden+lexical", {"ngrams.dim": "1"}, "have no option 'ngrams.dim'"),
        ("hidden+lexical", {"hidden.dim": "1"}, "feature hidden has no option 'dim'"),
        (
            "hidden+lexical",
            {"dim": "1", "lexical.dim": "1"},
            r"lexical\.dim is given twice; expected it once",
        ),
        (
            "ngrams+lexical",
            {"dim": "1"},
            r"dim is an option of several features; expected ngrams\.dim or lexical\.dim",
        ),
    ],
)
def test_joined_features_that_cannot_be_made_are_explained(
    name: str, options: dict[str, str], message: str
) -> None:
    found = plugins.load()
    if "ngrams" in name and ("feature", "ngrams") not in found.table:
        other = dataclass(type("Other", (Hidden,), {"__annotations__": {"dim": int}, "dim": 1}))
        ngrams = plugins.Strategy("feature", "ngrams", other, "test")
        found = plugins.Strategies({**found.table, ("feature", "ngrams"): ngrams}, ())
    with pytest.raises(OptionError, match=message):
        found.make("feature", name, options)


def test_contenders_may_have_joined_features() -> None:
    found = plugins.load()
    expected = Concatenation((Hidden(), Lexical(dim=3)))
    for spec in (
        "ucb@hidden+lexical[dim=3]",
        "ucb@kmeans@hidden+lexical[lexical.dim=3]",
        "ucb@kmeans@hidden+lexical[features.lexical.dim=3]",
    ):
        one = contender(spec, found)
        assert (one.features, one.clusterer, one.name) == (expected, KMeans(), spec)
    with pytest.raises(OptionError, match="there is no feature 'lexcal'"):
        contender("ucb@hidden+lexcal", found)
    with pytest.raises(OptionError, match=r"has no option 'dimm'; .* Did you mean 'dim'"):
        contender("ucb@hidden+lexical[dimm=3]", found)


def test_show_says_what_a_strategy_and_its_options_are(capsys) -> None:
    assert cli.run(["plugins", "show", "ucb", "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert (shown["kind"], shown["name"], shown["package"]) == ("policy", "ucb", "clusterucb")
    assert shown["options"] == [
        {
            "name": "beta",
            "type": "a number",
            "default": "1.0",
            "meaning": "the weight of the standard deviation (1 in the paper).",
        }
    ]
    assert cli.run(["plugins", "show", "hidden"]) == 0
    assert "depth" in capsys.readouterr().out
    assert cli.run(["plugins", "show", "random"]) == 0
    assert "It has no options." in capsys.readouterr().out
    assert cli.run(["plugins", "show", "rdss"]) == 2
    assert "there is no strategy 'rdss'" in capsys.readouterr().err


@pytest.mark.parametrize("strategy", plugins.load().table.values(), ids=lambda one: f"{one.kind} {one.name}")
def test_every_option_of_an_installed_strategy_is_described(strategy: plugins.Strategy) -> None:
    for option in strategy.described()["options"]:
        assert option["type"]
        assert option["meaning"], f"{strategy.name} says nothing of {option['name']}"
