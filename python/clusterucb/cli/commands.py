"""The command line: options in, the summary out, errors as one line each.

Standard output is for results, standard error for progress and messages. Exit codes: 0 done, 2 what
was asked for cannot be done (one line says why), 130 interrupted (one line says how to go on), 141 nobody
reads the output, 1 a bug in clusterucb. Only ``--debug`` shows tracebacks.
"""

from __future__ import annotations

import errno
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

from cyclopts import (
    App,
    ArgumentCollection,
    CoercionError,
    CycloptsError,
    Group,
    MissingArgumentError,
    Parameter,
    UnknownOptionError,
    UnusedCliTokensError,
)
from rich.console import Console
from rich.text import Text

from clusterucb.cli.plugins import OUTPUT, STRATEGIES, Flag, Pairs, key_values, plugins, print_json
from clusterucb.errors import ClusterUCBError, ClusterUCBWarning, OptionError
from clusterucb.options import config_file as config
from clusterucb.options.gradients import GradientSettings
from clusterucb.options.kinds import Whole
from clusterucb.options.search import DrawSettings, OutputSettings, SearchSettings
from clusterucb.versions import __version__
from clusterucb.wording import in_words, printable

if TYPE_CHECKING:
    from clusterucb.progress import Observer

_JOBS = ("select", "plan", "sketch", "compare")  # take --config


def _from_file(_: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Give a job's arguments what its --config says."""
    if commands and commands[0] in _JOBS:
        config.fill(
            arguments,
            commands[0],
            lambda: {name: app[name].assemble_argument_collection(parse_docstring=True) for name in _JOBS},
        )


_ENVIRONMENT = """\
Environment variables:

- `CLUSTERUCB_CACHE`: folder of what outlives a run (~/.cache/clusterucb)
- `CLUSTERUCB_CACHE_LIMIT`: GB that features may take in it; 0 keeps none (10)
- `CLUSTERUCB_SIMD`: CPU kernels: avx512, avx2, generic (the fastest here)
- `TMPDIR`: where the rows and tokens of a pool wait (/tmp)
- `HF_HOME`, `HF_TOKEN`: where hub models are kept; your token for them
- `HF_HUB_OFFLINE=1`: no model is looked for in the network
- `CUDA_VISIBLE_DEVICES`: the GPUs that may be used
- `OMP_NUM_THREADS`: threads of the model and the kernels (one a core)
- `NO_COLOR`, `COLUMNS`: no colours; how wide tables and help are"""

app = App(
    name="clusterucb",
    version=__version__,
    config=_from_file,
    help="Select fine-tuning data by gradient influence under a budget.",
    help_epilogue=_ENVIRONMENT,
    help_format="markdown",
    version_flags=["--version"],
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
_OPTIONS = Group("Options", sort_key=2)
_GRADIENTS = Group("Model and gradients", sort_key=3)

_BROKEN_PIPE = 141  # as of a program that SIGPIPE ends


def _installed(kind: str) -> Callable[[object], list[tuple[str, str]]]:
    """Return what tells a shell the names of the strategies of a kind."""

    def names(_: object) -> list[tuple[str, str]]:
        from clusterucb import plugins

        return [(strategy.name, strategy.summary) for strategy in plugins.load().of_kind(kind)]

    return names


Pool = Annotated[
    list[Path],
    Parameter(
        negative=(),
        json_list=False,  # [ab].jsonl is a pattern
        name="POOL...",
        help="Files, folders and patterns with a conversation in each row: JSONL, JSON, CSV, TSV (also .gz, .zst), "
        "Parquet, Arrow, saved datasets.",
    ),
]
Target = Annotated[
    list[Path],
    Parameter(
        negative=(),
        json_list=False,
        consume_multiple=True,
        help="Files of the samples to do well on; a subtask each, or a column `subtask`.",
    ),
]
_FILES = Parameter(negative=(), json_list=False, consume_multiple=True)
Model = Annotated[str, Parameter(help="Folder of a causal language model in Hugging Face form, or a hub id.")]
Clusterers = Annotated[str, Parameter(group=STRATEGIES, completer=_installed("clusterer"))]
Policies = Annotated[str, Parameter(group=STRATEGIES, completer=_installed("policy"))]
Features = Annotated[str | None, Parameter(group=STRATEGIES, completer=_installed("feature"))]
_SETTINGS = Parameter(name="*", negative=(), show_default=lambda value: None if value is False else value)
Search = Annotated[SearchSettings, Parameter(group=_OPTIONS), _SETTINGS]
Gradients = Annotated[GradientSettings, Parameter(group=_GRADIENTS), _SETTINGS]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every job takes beside its settings.

    Attributes:
        config: YAML or JSON file with options of this command, such as a run's config.yaml; the command line
            goes before it.
        overwrite: Begin anew in a folder that holds another run.
        quiet: Show neither progress nor summary.
        json: Print the summary as JSON.
        debug: Show tracebacks and the libraries' warnings.
    """

    config: Path | None = None
    overwrite: bool = False
    quiet: bool = False
    json: bool = False
    debug: bool = False  # acted on in `run`, whatever else cannot be parsed

    @property
    def observer(self) -> Observer:
        """Who is told how the job gets on."""
        from clusterucb.progress import Screen, Silent

        return Silent() if self.quiet else Screen()

    def show(self, summary: object, show: Callable[[Console], None]) -> None:
        """Print a job's summary."""
        if self.json:
            print_json(summary)
        elif not self.quiet:
            show(Console(highlight=False, emoji=False))


Outputs = Annotated[OutputSettings, Parameter(group=OUTPUT), _SETTINGS]
Jobs = Annotated[Job, Parameter(name="*", group=OUTPUT, negative=(), show_default=False)]


@dataclass(frozen=True, kw_only=True)
class Strategies:
    """The strategies of a selection, by name.

    Attributes:
        features: What is known of samples beforehand: embedding by default; gradient with a store and a policy that
            does not predict scores.
        feature_option: An option of the features, as key=value.
        feature_depth: Depth of the layer of hidden, as a share of all layers; the same as -f depth=.
        clusterer: What makes the clusters.
        clusterer_option: An option of the clusterer, as key=value.
        policy: What spends the budget.
        policy_option: An option of the policy, as key=value.
    """

    features: Features = None
    feature_option: Annotated[Pairs, Parameter(name=("--feature-option", "-f"))] = ()
    feature_depth: Annotated[float | None, Parameter(group=STRATEGIES)] = None
    clusterer: Clusterers = "kmeans"
    clusterer_option: Annotated[Pairs, Parameter(name=("--clusterer-option", "-c"))] = ()
    policy: Policies = "surrogate"
    policy_option: Annotated[Pairs, Parameter(name=("--policy-option", "-p"))] = ()

    def made(self, *, store: bool) -> dict[str, Any]:
        """Return the strategies themselves, for a selection with a gradient store or without."""
        from clusterucb import plugins
        from clusterucb.jobs.stages.strategies import default_features

        installed, features, options = plugins.load(), self.features, self.feature_option
        policy = installed.make("policy", self.policy, key_values("-p", self.policy_option))
        if self.feature_depth is not None:
            if not features:
                raise OptionError("--feature-depth is given without --features; expected --features hidden")
            options = (*options, f"depth={self.feature_depth}")
        if options and not features and (named := installed.named(default_features(policy, store=store))):
            features = named[0]
        return {
            "features": installed.make("feature", features, key_values("-f", options)) if features else None,
            "clusterer": installed.make("clusterer", self.clusterer, key_values("-c", self.clusterer_option)),
            "policy": policy,
        }


Chosen = Annotated[Strategies, Parameter(name="*")]


@app.command
def select(
    pool: Pool,
    /,
    *,
    target: Target,
    model: Model,
    out: Path,
    strategies: Chosen = Strategies(),
    search: Search = SearchSettings(),  # noqa: B008
    gradients: Gradients = GradientSettings(),  # noqa: B008
    outputs: Outputs = OutputSettings(),  # noqa: B008
    job: Jobs = Job(),
) -> None:
    """Select the pool samples whose gradients agree most with the target's, within a gradient budget.

    The same command again resumes an interrupted run, or shows what a finished one found.

    Args:
        out: Folder of the run.
    """
    from clusterucb.jobs.select import select as run_selection
    from clusterucb.report.written import show

    result = run_selection(
        pool,
        target,
        model=model,
        out=out,
        **strategies.made(store=search.store is not None),
        overwrite=job.overwrite,
        observer=job.observer,
        **vars(search),
        **vars(gradients),
        **vars(outputs),
    )
    job.show(result.to_json(), partial(show, result))


@app.command
def plan(
    pool: Pool,
    /,
    *,
    target: Target,
    model: Model,
    out: Path | None = None,
    strategies: Chosen = Strategies(),
    search: Search = SearchSettings(),  # noqa: B008
    gradients: Gradients = GradientSettings(),  # noqa: B008
    outputs: Outputs = OutputSettings(),  # noqa: B008
    job: Jobs = Job(),
) -> None:
    """Say what a selection takes before it runs: time, memory, disk and gradients. Options are those of select.

    The pool is read, and a few gradients are computed; nothing is kept.

    Args:
        out: Folder that the run is meant for.
    """
    from msgspec import to_builtins

    from clusterucb.jobs.plan import plan as make_plan
    from clusterucb.report.written import show_plan

    found = make_plan(
        pool,
        target,
        model=model,
        out=out,
        **strategies.made(store=search.store is not None),
        observer=job.observer,
        **vars(search),
        **vars(gradients),
        **vars(outputs),
    )
    job.show(
        {**to_builtins(found), "seconds": found.seconds, "misfits": found.misfits()},
        partial(show_plan, found),
    )


@app.command
def sketch(
    pool: Pool,
    /,
    *,
    model: Model,
    out: Path,
    gradients: Gradients = GradientSettings(),  # noqa: B008
    job: Jobs = Job(),
) -> None:
    """Sketch the gradient of every pool sample once, for `select --store` with any number of targets.

    The same command again goes on with an interrupted store, or shows what a finished one cost.

    Args:
        out: Folder of the gradient store.
    """
    from clusterucb.jobs.sketch import sketch as sketch_pool
    from clusterucb.report.written import show_store

    store = sketch_pool(
        pool,
        model=model,
        out=out,
        overwrite=job.overwrite,
        observer=job.observer,
        **vars(gradients),
    )
    job.show(store.to_json(), partial(show_store, store))


@app.command
def compare(
    pool: Pool,
    /,
    *,
    target: Target,
    model: Model,
    out: Path,
    strategies: Annotated[str, Parameter(group=STRATEGIES)] = "random,rds@hidden,cluster-mean,ucb,surrogate",
    budgets: Annotated[str, Parameter(group=_OPTIONS)] = "5%,10%,20%",
    seeds: Annotated[Whole, Parameter(group=_OPTIONS)] = 5,
    scores: Annotated[Path | None, Parameter(group=_OPTIONS)] = None,
    search: Annotated[DrawSettings, Parameter(group=_OPTIONS), _SETTINGS] = DrawSettings(),  # noqa: B008
    gradients: Gradients = GradientSettings(),  # noqa: B008
    job: Jobs = Job(),
) -> None:
    """Compare strategies: score the whole pool once, then replay each of them on the recorded scores.

    The folder keeps scores and features: the same command with other strategies, budgets or seeds takes seconds.

    Args:
        out: Folder of the comparison, with comparison.html and comparison.json.
        strategies: What to compare, comma-separated: policy[@clusterer][@features][key=value,...] each.
        budgets: Draws, comma-separated: percentages of the pool, or numbers.
        seeds: Searches of every strategy and budget.
        scores: Folder of a run that has scored the whole pool for this target, or for its subtasks among others, in
            place of scoring it here.
    """
    from clusterucb import plugins
    from clusterucb.jobs.comparison.job import compare as run_comparison
    from clusterucb.jobs.comparison.results import show
    from clusterucb.jobs.comparison.spelling import contender, split

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
        overwrite=job.overwrite,
        observer=job.observer,
        **vars(search),
        **vars(gradients),
    )
    job.show(comparison.content, partial(show, comparison))


@app.command
def doctor(
    *,
    pool: Annotated[list[Path] | None, _FILES] = None,
    target: Annotated[list[Path] | None, _FILES] = None,
    model: str | None = None,
    search: Search = SearchSettings(),  # noqa: B008
    gradients: Gradients = GradientSettings(),  # noqa: B008
    json: Flag = False,
    debug: Flag = False,  # noqa: ARG001  (acted on in `run`, whatever else cannot be parsed)
) -> None:
    """Describe this installation, what a selection would make of its files, or how exact a model's gradients are here.

    Of every file the first rows are read, and of a model a few gradients computed; nothing is kept. With --model and
    without --pool, the model is probed: what its gradients depend on beside the sample, and what removes that.

    Args:
        pool: As of select.
        target: As of select.
        model: As of select.
        json: Print what was found as JSON.
        debug: Show tracebacks and the libraries' warnings.
    """
    from msgspec import to_builtins

    from clusterucb.jobs.doctor.dry_run import examine as examine_files
    from clusterucb.jobs.doctor.installation import examine as examine_machine
    from clusterucb.jobs.doctor.screen import show_dry_run, show_machine, show_probed
    from clusterucb.options.search import Settings
    from clusterucb.progress import Screen, Silent

    if pool is None and target:
        raise OptionError("--target is given without --pool; expected the pool, too")
    settings = Settings(**vars(search), **vars(gradients))
    observer = Silent() if json else Screen()
    files = examine_files(pool, target, model, settings, observer) if pool else None
    probed = None
    if model and not pool:
        from clusterucb.jobs.doctor.probes import probe

        probed = probe(model, settings, observer)
    console = Console(highlight=False, emoji=False)
    if json:
        parts = {"machine": examine_machine(), "dry_run": files, "probed": probed}
        print_json({name: to_builtins(part) for name, part in parts.items()})
    elif files:
        show_dry_run(files, console)
    elif probed:
        show_probed(probed, console)
    else:
        show_machine(examine_machine(), console)


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


app.command(plugins)


@app.command
def completion(
    shell: Literal["bash", "zsh", "fish"],
    /,
    *,
    debug: Flag = False,  # noqa: ARG001
) -> None:
    """Print a script with which a shell completes commands and options: source <(clusterucb completion bash).

    Args:
        shell: The shell.
        debug: Show tracebacks and the libraries' warnings.
    """
    sys.stdout.write(app.generate_completion(shell=shell))


for _command in (*_JOBS, "doctor", "demo", "plugins", "completion"):
    app[_command].help_epilogue = ""  # the first page of the help has it


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
            said = _said(error, arguments) if isinstance(error, CycloptsError) else str(error)
            _complain(messages, config.placed(said, arguments), debug)
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


def _said(error: CycloptsError, arguments: Sequence[str]) -> str:
    """Return what is wrong with the words of a command, and what to do."""
    said, command = str(error), " ".join(error.command_chain or ())
    if isinstance(error, MissingArgumentError):
        there = error.keyword is not None
        said = said.replace(" requires an argument", " has no value" if there else " is missing")
        if there:
            said = f"{said.rstrip('.')}; expected one after it."
        elif not said.endswith("?") and (file := config.value_of("--config", arguments)) is not None:
            said = f"{said.rstrip('.')}; expected it on the command line or in {file}."
        if "POOL" in said and "--target" in arguments:
            said += " It stands first: --target takes every file that follows it."
    elif isinstance(error, UnusedCliTokensError):
        unused = shlex.join(error.unused_tokens or ())
        hint = (
            "the pool has a name here: --pool" if command == "doctor" else f"see clusterucb {command} --help"
        )
        said = f"{command} does not take {unused}; {hint}"
    elif (
        isinstance(error, UnknownOptionError)
        and said.startswith("Unknown option: --pool")
        and command in _JOBS
    ):
        said = f"Unknown option: --pool. The pool stands first, without a name: clusterucb {command} POOL ..."
    elif isinstance(error, CoercionError) and error.token and error.target_type in (bool, float):
        said = f"Invalid value for {error.token.keyword}: {error.token.value!r} is not {in_words(error.target_type)}"
    return said


def _discard(*streams: TextIO) -> None:
    """Send what is left in the buffers nowhere, so that the interpreter can end in peace."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nowhere, stream.fileno())


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
        console.print(Text(printable(f"warning: {place}{message}"), style="yellow"))

    warnings.showwarning = show
    if not debug:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ClusterUCBWarning)


def _complain(console: Console, text: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    console.print(Text.assemble(("error: ", "bold red"), printable(text)))
