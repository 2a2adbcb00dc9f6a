"""The command line: options in, the summary out, errors as one line each.

Standard output is for results, standard error for progress and messages. Exit codes: 0 done, 2 what
was asked for cannot be done (one line says why), 130 interrupted (one line says how to go on), 141 nobody
reads the output, 1 a bug in clusterucb. Only ``--debug`` shows tracebacks.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TextIO

from cyclopts import App, CycloptsError, Group, Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clusterucb import __version__
from clusterucb.errors import ClusterUCBError, ClusterUCBWarning, OptionError, PluginError
from clusterucb.settings import DrawSettings, GradientSettings, SearchSettings, Whole

app = App(
    name="clusterucb",
    version=__version__,
    help="Select fine-tuning data by gradient influence under a budget.",
    help_format="plaintext",
    version_flags=["--version"],
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
_STRATEGIES = Group("Strategies", sort_key=1)
_OPTIONS = Group("Options", sort_key=2)
_GRADIENTS = Group("Model and gradients", sort_key=3)
_OUTPUT = Group("Output", sort_key=4)

_BROKEN_PIPE = 141  # as of a program that SIGPIPE ends

Flag = Annotated[bool, Parameter(negative=(), group=_OUTPUT, show_default=False)]
Name = Annotated[str, Parameter(group=_STRATEGIES)]
Gradients = Annotated[GradientSettings, Parameter(name="*", group=_GRADIENTS, negative=())]
Pairs = Annotated[tuple[str, ...], Parameter(negative=(), group=_STRATEGIES, show_default=False)]


@app.command
def select(
    pool: Annotated[list[Path], Parameter(negative=(), name="POOL...")],
    /,
    *,
    target: Annotated[list[Path], Parameter(negative=(), consume_multiple=True)],
    model: str,
    out: Path,
    features: Annotated[str | None, Parameter(group=_STRATEGIES)] = None,
    feature_option: Annotated[Pairs, Parameter(name=("--feature-option", "-f"))] = (),
    clusterer: Name = "kmeans",
    clusterer_option: Annotated[Pairs, Parameter(name=("--clusterer-option", "-c"))] = (),
    policy: Name = "ucb",
    policy_option: Annotated[Pairs, Parameter(name=("--policy-option", "-p"))] = (),
    search: Annotated[SearchSettings, Parameter(name="*", group=_OPTIONS, negative=())] = SearchSettings(),  # noqa: B008
    gradients: Gradients = GradientSettings(),  # noqa: B008
    overwrite: Flag = False,
    quiet: Flag = False,
    json: Flag = False,
    debug: Flag = False,  # noqa: ARG001  (acted on in `run`, whatever else cannot be parsed)
) -> None:
    """Select the pool samples whose gradients agree most with the target's, within a gradient budget.

    The same command again resumes an interrupted run, or shows what a finished one found.

    Args:
        pool: JSONL files with `messages`, or `prompt` and `completion`, on each line.
        target: JSONL files of the samples to do well on; a subtask each, or a column `subtask`.
        model: Folder of a causal language model in Hugging Face form, or a hub id.
        out: Folder of the run.
        features: What the pool is clustered by: embedding by default, gradient with a store.
        feature_option: An option of the features, as key=value.
        clusterer: What makes the clusters.
        clusterer_option: An option of the clusterer, as key=value.
        policy: What spends the budget.
        policy_option: An option of the policy, as key=value.
        overwrite: Begin anew in a folder that holds another run.
        quiet: Show neither progress nor summary.
        json: Print the summary as JSON.
        debug: Show tracebacks and the libraries' warnings.
    """
    from clusterucb import plugins
    from clusterucb.pipeline import select as run_selection
    from clusterucb.progress import Screen, Silent
    from clusterucb.report import show

    installed = plugins.load()
    if feature_option and not features:
        raise OptionError(f"-f is {feature_option[0]!r}, but there are no --features that it could belong to")
    result = run_selection(
        pool,
        target,
        model=model,
        out=out,
        features=installed.make("feature", features, _pairs("-f", feature_option)) if features else None,
        clusterer=installed.make("clusterer", clusterer, _pairs("-c", clusterer_option)),
        policy=installed.make("policy", policy, _pairs("-p", policy_option)),
        overwrite=overwrite,
        observer=Silent() if quiet else Screen(),
        **vars(search),
        **vars(gradients),
    )
    if json:
        _print_json(result.to_json())
    elif not quiet:
        show(result, Console(highlight=False, emoji=False))


@app.command
def sketch(
    pool: Annotated[list[Path], Parameter(negative=(), name="POOL...")],
    /,
    *,
    model: str,
    out: Path,
    gradients: Gradients = GradientSettings(),  # noqa: B008
    overwrite: Flag = False,
    quiet: Flag = False,
    json: Flag = False,
    debug: Flag = False,  # noqa: ARG001
) -> None:
    """Sketch the gradient of every pool sample once, for `select --store` with any number of targets.

    The same command again goes on with an interrupted store, or shows what a finished one cost.

    Args:
        pool: JSONL files with `messages`, or `prompt` and `completion`, on each line.
        model: Folder of a causal language model in Hugging Face form, or a hub id.
        out: Folder of the gradient store.
        overwrite: Begin anew in a folder that holds another store or run.
        quiet: Show neither progress nor summary.
        json: Print the summary as JSON.
        debug: Show tracebacks and the libraries' warnings.
    """
    from clusterucb.progress import Screen, Silent
    from clusterucb.report import show_store
    from clusterucb.sketching import sketch as sketch_pool

    observer = Silent() if quiet else Screen()
    store = sketch_pool(pool, model=model, out=out, overwrite=overwrite, observer=observer, **vars(gradients))
    if json:
        _print_json(store.to_json())
    elif not quiet:
        show_store(store, Console(highlight=False, emoji=False))


@app.command
def compare(
    pool: Annotated[list[Path], Parameter(negative=(), name="POOL...")],
    /,
    *,
    target: Annotated[list[Path], Parameter(negative=(), consume_multiple=True)],
    model: str,
    out: Path,
    strategies: Annotated[str, Parameter(group=_STRATEGIES)] = "random,rds@hidden,cluster-mean,ucb",
    budgets: Annotated[str, Parameter(group=_OPTIONS)] = "5%,10%,20%",
    seeds: Annotated[Whole, Parameter(group=_OPTIONS)] = 5,
    scores: Annotated[Path | None, Parameter(group=_OPTIONS)] = None,
    search: Annotated[DrawSettings, Parameter(name="*", group=_OPTIONS, negative=())] = DrawSettings(),  # noqa: B008
    gradients: Gradients = GradientSettings(),  # noqa: B008
    overwrite: Flag = False,
    quiet: Flag = False,
    json: Flag = False,
    debug: Flag = False,  # noqa: ARG001
) -> None:
    """Compare strategies: score the whole pool once, then replay each of them on the recorded scores.

    The folder keeps scores and features: the same command with other strategies, budgets or seeds takes seconds.

    Args:
        pool: JSONL files with `messages`, or `prompt` and `completion`, on each line.
        target: JSONL files of the samples to do well on; a subtask each, or a column `subtask`.
        model: Folder of a causal language model in Hugging Face form, or a hub id.
        out: Folder of the comparison, with comparison.html and comparison.json.
        strategies: What to compare, comma-separated: policy[@clusterer][@features][key=value,...] each.
        budgets: Draws, comma-separated: percentages of the pool, or numbers.
        seeds: Searches of every strategy and budget.
        scores: Folder of a run that has scored the whole pool for this target, or for its subtasks among others, in
            place of scoring it here.
        overwrite: Begin anew in a folder that holds something else.
        quiet: Show neither progress nor table.
        json: Print what was found as JSON.
        debug: Show tracebacks and the libraries' warnings.
    """
    from clusterucb import plugins
    from clusterucb.comparing import compare as run_comparison
    from clusterucb.comparison_report import show
    from clusterucb.contenders import contender, split
    from clusterucb.progress import Screen, Silent

    installed = plugins.load()
    comparison = run_comparison(
        pool,
        target,
        model=model,
        out=out,
        strategies=[contender(spec, installed) for spec in split(strategies)],
        budgets=[budget.strip() for budget in budgets.split(",")],
        seeds=seeds,
        scores=scores,
        overwrite=overwrite,
        observer=Silent() if quiet else Screen(),
        **vars(search),
        **vars(gradients),
    )
    if json:
        _print_json(comparison.content)
    elif not quiet:
        show(comparison, Console(highlight=False, emoji=False))


@app.command
def demo(
    *,
    exhaustive: Flag = False,
    out: Path = Path("clusterucb-demo"),
    debug: Flag = False,  # noqa: ARG001  (acted on in `run`, whatever else cannot be parsed)
) -> None:
    """Select data for a real model (SmolLM2-135M) from a real pool; under 5 minutes after downloads.

    Args:
        exhaustive: Score the whole pool as well, and say how much of the true best was found (15 minutes).
        out: Folder of the run.
        debug: Show tracebacks and the libraries' warnings.
    """
    from clusterucb.demo.run import demo as run_demo

    run_demo(out=out, exhaustive=exhaustive)


plugins = App(name="plugins", help="List the installed strategies; write or check one of your own.")
app.command(plugins)


@plugins.default
def list_plugins(
    *,
    json: Flag = False,
    debug: Flag = False,  # noqa: ARG001
) -> None:
    """List the installed features, clusterers and policies with their options.

    Args:
        json: Print the list as JSON.
        debug: Show tracebacks and the libraries' warnings.
    """
    from clusterucb.plugins import KINDS, load

    installed = load()
    if json:
        strategies = [
            {
                "kind": strategy.kind,
                "name": strategy.name,
                "package": strategy.provider,
                "version": strategy.version,
                "summary": strategy.summary,
                "options": strategy.defaults(),
            }
            for kind in KINDS
            for strategy in installed.of_kind(kind)
        ]
        broken = [
            {"package": plugin.provider, "version": plugin.version, "reason": plugin.reason}
            for plugin in installed.broken
        ]
        _print_json({"strategies": strategies, "broken": broken})
        return
    table = Table(
        "name", "what it does, its options, its package", box=None, pad_edge=False, header_style="dim"
    )
    for kind in KINDS:
        table.add_row(Text(kind, style="bold"))
        for strategy in installed.of_kind(kind):
            options = ", ".join(f"{key}={value}" for key, value in strategy.defaults().items())
            package = f"{'   ' if options else ''}{strategy.provider} {strategy.version}"
            about = Text.assemble(strategy.summary, "\n", (options, "cyan"), (package, "dim"))
            table.add_row(Text(f"  {strategy.name}"), about)
    console = Console(highlight=False, emoji=False)
    console.print(table)
    for plugin in installed.broken:
        package = f"{plugin.provider} {plugin.version}".rstrip()
        console.print(Text(f"{package} could not be loaded: {plugin.reason}", style="red"), soft_wrap=True)


@plugins.command(name="new")
def new_plugin(
    name: str,
    /,
    *,
    kind: str,
    debug: Flag = False,  # noqa: ARG001
) -> None:
    """Write a package with a working strategy and its tests into the folder NAME.

    Args:
        name: Of the package and its strategy: lower-case letters, digits and -.
        kind: policy, clusterer or feature.
        debug: Show tracebacks and the libraries' warnings.
    """
    from clusterucb.plugin_tools import create

    console = Console(highlight=False, emoji=False)
    for path in create(name, kind):
        console.print(Text(str(path)), soft_wrap=True)
    console.print(
        Text.assemble("Try it: ", (f"pip install --no-build-isolation ./{name} && pytest {name}", "bold"))
    )


@plugins.command(name="check")
def check_plugin(
    name: str,
    /,
    *,
    option: Annotated[Pairs, Parameter(name=("--option", "-o"))] = (),
    debug: Flag = False,  # noqa: ARG001
) -> None:
    """Run the tests that every strategy has to pass on an installed one.

    Args:
        name: Of the policy, clusterer or feature.
        option: An option of the strategy, as key=value.
        debug: Show tracebacks and the libraries' warnings.
    """
    from clusterucb.plugin_tools import check

    console = Console(highlight=False, emoji=False)
    found = check(name, _pairs("-o", option))
    for one in found:
        mark = ("passed ", "green") if one.passed else ("FAILED ", "bold red")
        console.print(Text.assemble(mark, one.property), soft_wrap=True)
        if not one.passed:
            console.print(Text(f"       {one.message}"), soft_wrap=True)
    failed = sum(not one.passed for one in found)
    if failed:
        raise PluginError(f"{name} fails {failed} of {len(found)} tests")
    console.print(Text(f"{name} passes all {len(found)} tests"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code."""
    debug = "--debug" in arguments
    messages = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True, markup=False)
    with warnings.catch_warnings():
        _show_warnings(messages, debug)
        try:
            app(list(arguments), exit_on_error=False, print_error=False)
            sys.stdout.flush()
        except (ClusterUCBError, CycloptsError) as error:
            _complain(messages, str(error), debug)
            return 2
        except KeyboardInterrupt:
            again = [one for one in arguments if one != "--overwrite"]  # it would remove what was computed
            messages.print(
                f"\nInterrupted; what was computed is kept. To go on: {shlex.join(['clusterucb', *again])}"
            )
            return 130
        except (BrokenPipeError, SystemExit):  # nobody reads any more; rich makes an exit of it
            _discard(sys.stdout, sys.stderr)
            return _BROKEN_PIPE
        except Exception as error:  # whatever it is, it is ours to mend
            if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
                _discard(sys.stdout)
                _complain(
                    messages, "cannot write to standard output: no space left; make room, then repeat", debug
                )
                return 2
            reason = f"{type(error).__name__}: {error}"
            _complain(
                messages, f"this is a bug in clusterucb, please report it with --debug: {reason}", debug
            )
            return 1
    return 0


def _discard(*streams: TextIO) -> None:
    """Send what is left in the buffers nowhere, so that the interpreter can end in peace."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nowhere, stream.fileno())


def _pairs(option: str, pairs: Sequence[str]) -> dict[str, str]:
    """Return ``key=value`` options as a dict."""
    values: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise OptionError(
                f"{option} is {pair!r}; expected key=value; `clusterucb plugins` lists the options"
            )
        if key in values:
            raise OptionError(f"{option} gives {key!r} twice; expected each option once")
        values[key] = value
    return values


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _show_warnings(console: Console, debug: bool) -> None:
    """Show our own warnings as lines, and those of libraries with ``--debug`` alone."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: object = None,  # noqa: ARG001
        line: str | None = None,  # noqa: ARG001
    ) -> None:
        place = (
            "" if issubclass(category, ClusterUCBWarning) else f"{filename}:{lineno}: {category.__name__}: "
        )
        console.print(Text(f"warning: {place}{message}", style="yellow"))

    warnings.showwarning = show
    if not debug:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ClusterUCBWarning)


def _complain(console: Console, text: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    console.print(Text.assemble(("error: ", "bold red"), text))
