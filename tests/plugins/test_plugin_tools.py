"""A package that `create` writes installs and passes its suite; `check` tells what an installed strategy breaks."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import clusterucb
from clusterucb import plugins
from clusterucb.clusterers import Clusterer
from clusterucb.errors import OptionError
from clusterucb.hookspecs import hookimpl
from clusterucb.plugins.scaffold import create
from clusterucb.policies import Policy, Random
from clusterucb.testing.installed import check

KINDS = ("policy", "clusterer", "feature")


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture
def provide(monkeypatch: pytest.MonkeyPatch):
    """Install strategies beside the built-in ones for as long as the test runs."""

    def provide(**hooks) -> None:
        module = ModuleType("provided")
        for hook, strategies in hooks.items():
            setattr(module, hook, hookimpl(lambda strategies=strategies: strategies))
        monkeypatch.setitem(sys.modules, "provided", module)
        points = [
            *(EntryPoint(k, f"clusterucb.{k}", "clusterucb") for k in ("policies", "clusterers", "features")),
            EntryPoint("provided", "provided", "clusterucb"),
        ]
        load = plugins.load
        monkeypatch.setattr(plugins, "load", lambda: load(lambda: points))

    return provide


# A new package -----------------------------------------------------------------------------------------------


def test_new_packages_install_pass_their_suites_and_are_found(tmp_path: Path) -> None:
    packages = [tmp_path / "new" / f"my-{kind}-2" for kind in KINDS]
    for kind, package in zip(KINDS, packages, strict=True):
        written = create(package.name, kind, package.parent)
        assert sorted(path for path in package.rglob("*") if path.is_file()) == sorted(written)
    site = tmp_path / "site"
    installed = run(
        *("pip", "--disable-pip-version-check", "install", "-q", "--no-build-isolation", "--no-deps"),
        *("--no-index", "--target", str(site), *map(str, packages)),
    )
    assert installed.returncode == 0, installed.stderr
    tested = run(
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *map(str, packages),
        PYTHONPATH=str(site),
        PYTHONDONTWRITEBYTECODE="1",
    )
    assert tested.returncode == 0, tested.stdout
    assert " passed" in tested.stdout
    assert "skipped" not in tested.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_new_package_depends_on_this_release_and_is_explained(kind: str, tmp_path: Path) -> None:
    create("my-own", kind, tmp_path)
    project = tomllib.loads((tmp_path / "my-own" / "pyproject.toml").read_text())["project"]
    release = clusterucb.__version__.rpartition(".")[0]
    assert project["name"] == "my-own"
    assert f"clusterucb>={release}" in project["dependencies"]
    assert project["entry-points"]["clusterucb"] == {"my-own": "my_own"}
    readme = (tmp_path / "my-own" / "README.md").read_text()
    assert f"--{'features' if kind == 'feature' else kind} my-own" in readme
    changes = (tmp_path / "my-own" / "CHANGELOG.md").read_text()
    assert changes == f"# Changelog\n\n## 0.1.0 (unreleased)\n\n- The {kind} `my-own`.\n"
    for path in (tmp_path / "my-own").rglob("*.*"):
        assert "$" not in path.read_text()
        assert all(line == line.rstrip() for line in path.read_text().splitlines())


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("My-Policy", "policy", "the name is 'My-Policy'; expected lower-case letters, digits and -"),
        ("my_policy", "policy", "expected lower-case letters"),
        ("2fast", "policy", "expected lower-case letters"),
        ("../up", "policy", "expected lower-case letters"),
        ("a--b", "policy", "expected lower-case letters"),
        ("", "policy", "expected lower-case letters"),
        ("class", "policy", "and not a keyword of Python. Use a name such as my-policy"),
        ("none", "policy", "and not a keyword of Python"),
        ("random", "clusterer", "the name is 'random', but there is a module 'random' already; use another"),
        ("numpy", "policy", "there is a module 'numpy' already"),
        ("ucb1", "policy", "the name is 'ucb1', but clusterucb has a policy of that name; use another one"),
        (
            "my-own",
            "polcy",
            "kind is 'polcy'; expected one of policy, clusterer, feature. Did you mean 'policy'",
        ),
    ],
)
def test_name_that_cannot_be_used_is_refused(name: str, kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        create(name, kind, tmp_path)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("policy-suite", "PolicySuite"),
        ("clusterer-suite", "ClustererSuite"),
        ("feature-suite", "FeatureSuite"),
        ("option-error", "OptionError"),
        ("index-policy", "IndexPolicy"),
        ("clusterer", "Clusterer"),
        ("feature", "Feature"),
        ("policy", "Policy"),
        ("hookimpl", "hookimpl"),
        ("dataclass", "dataclass"),
        ("np", "np"),
        ("plugins", "plugins"),
        ("pytest", "pytest"),
    ],
)
def test_name_that_the_package_imports_is_refused(name: str, taken: str, kind: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        create(name, kind, tmp_path)
    assert str(caught.value) == (
        f"the name is {name!r}, but {taken} is a name that packages import; use another name, such "
        f"as my-{name}"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_name_that_a_package_imports_is_refused(kind: str, tmp_path: Path) -> None:
    for path in create("my-own", kind, tmp_path):
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", "") != "my_own":
                for alias in node.names:
                    # OptionError is written option-error where it is a package's name.
                    bound = alias.asname or alias.name
                    name = re.sub(r"(?<=.)(?=[A-Z])", "-", bound).lower()
                    with pytest.raises(OptionError, match=f"but {bound} is a name that packages import"):
                        create(name, kind, tmp_path)


def test_what_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "my-own").write_text("mine")
    with pytest.raises(OptionError, match="my-own exists; expected a name whose folder does not exist yet"):
        create("my-own", "policy", tmp_path)
    assert (tmp_path / "my-own").read_text() == "mine"


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match=r"cannot write .*my-own: Not a directory; expected a folder"):
        create("my-own", "policy", tmp_path / "file")


# What is installed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ucb", "kmeans", "gradient"])
def test_built_in_strategy_is_found_and_passes(name: str) -> None:
    found = check(name)
    assert len(found) > 10
    assert all(one.passed and not one.message for one in found)
    assert "hyper parameters are kept" in [one.property for one in found]


def test_mistake_is_told_in_words(provide, capsys: pytest.CaptureFixture[str]) -> None:
    class Hasty(Random):
        def ask(self, n, available, rng):
            print("asked")
            return super().ask(n, available, rng).astype(float)

    provide(clusterucb_policies={"hasty": Hasty})
    (found,) = [one for one in check("hasty") if one.property == "ask returns whole numbers"]
    assert not found.passed
    assert found.message == "got float64 from ask(1); expected int64. Return rows.astype(np.int64)"
    assert capsys.readouterr().out == ""


def test_strategies_of_two_kinds_are_both_checked(provide) -> None:
    class Gaps(Clusterer):
        def fit_predict(self, pool, rng):
            return np.full(len(pool), 3)

    provide(clusterucb_policies={"twice": Random}, clusterucb_clusterers={"twice": Gaps})
    found = check("twice")
    assert {one.property.partition(": ")[0] for one in found} == {"policy", "clusterer"}
    assert [one.property for one in found if not one.passed] == ["clusterer: labels have no gaps"]


def test_options_reach_the_strategy(provide) -> None:
    class Needs(Policy):
        def __init__(self, share: float) -> None:
            self.share = share

        def ask(self, n, available, rng):
            assert self.share == 0.5
            return rng.permutation(np.flatnonzero(available))[:n]

    provide(clusterucb_policies={"needs": Needs})
    assert all(one.passed for one in check("needs", {"share": "0.5"}))
    with pytest.raises(OptionError, match="policy needs needs a value for share; expected key=value"):
        check("needs")
    with pytest.raises(OptionError, match=r"policy needs has no option 'shar'.*Did you mean 'share'"):
        check("needs", {"shar": "1"})


def test_unknown_name_lists_what_is_installed() -> None:
    with pytest.raises(OptionError) as caught:
        check("kmean")
    message = str(caught.value)
    assert message.startswith("there is no strategy 'kmean'; installed: clusterer: ")
    listed = dict(
        one.split(": ") for one in message.partition("installed: ")[2].partition(". ")[0].split("; ")
    )
    for kind, names in listed.items():
        assert names.split(", ") == [one.name for one in plugins.load().of_kind(kind)]
    assert set(listed) == set(KINDS)
    assert "Did you mean 'kmeans'?" in message
