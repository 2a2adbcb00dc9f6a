"""Define the commands. Each command passes its options to a job and shows the job's summary."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import (
    App,
    ArgumentCollection,
    Parameter,
)

from clusterucb.cli.arguments import (
    FILES,
    OPTIONS,
    SETTINGS,
    Chosen,
    Gradients,
    JobArguments,
    Jobs,
    Model,
    Outputs,
    Pool,
    Replays,
    Search,
    Sketched,
    StrategyArguments,
    Target,
)
from clusterucb.cli.looking import diff, report, runs, show
from clusterucb.cli.plugins import Flag, plugins, print_json
from clusterucb.cli.stores import stores
from clusterucb.errors import OptionError
from clusterucb.options import config_file as config
from clusterucb.options.gradients import GradientSettings, SketchSettings
from clusterucb.options.kinds import values_of
from clusterucb.options.search import DrawSettings, OutputSettings, SearchSettings
from clusterucb.options.trial import TrialSettings
from clusterucb.terminal import Terminal, write
from clusterucb.versions import __version__

JOBS = ("select", "plan", "sketch", "compare")  # the commands that take --config


def _from_file(_: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill in a job's arguments from the file that --config names."""
    if commands and commands[0] in JOBS:
        config.fill(
            arguments,
            commands[0],
            lambda: {name: app[name].assemble_argument_collection(parse_docstring=True) for name in JOBS},
        )


_ENVIRONMENT = """\
Environment variables:

- `CLUSTERUCB_CACHE`: folder of the cache (~/.cache/clusterucb)
- `CLUSTERUCB_CACHE_LIMIT`: largest size of cached features in GB; 0: none (10)
- `CLUSTERUCB_SIMD`: CPU kernels: avx512, avx2, generic (the fastest here)
- `TMPDIR`: folder for temporary files: rows and tokens of a pool, features of a large one (/tmp)
- `HF_HOME`, `HF_TOKEN`: folder of hub models; your access token
- `HF_HUB_OFFLINE=1`: load hub models from the local cache only
- `CUDA_VISIBLE_DEVICES`: the GPUs to use
- `OMP_NUM_THREADS`: threads of the model and the kernels (one per core)
- `NO_COLOR`, `COLUMNS`: turn colours off; width of tables and help"""

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


@app.command
def select(
    pool: Pool,
    /,
    *,
    target: Target,
    model: Model,
    out: Path,
    strategies: Chosen = StrategyArguments(),
    search: Search = SearchSettings(),
    gradients: Gradients = GradientSettings(),
    outputs: Outputs = OutputSettings(),
    job: Jobs = JobArguments(),
) -> None:
    """Select the pool samples whose gradients agree most with the target's, within a gradient budget.

    Repeat the command to resume an interrupted run, or to show the result of a finished one.

    Args:
        out: Folder of the run.
    """
    from clusterucb.jobs.select import select as run_selection
    from clusterucb.report.screen import show
    from clusterucb.report.summary import Summary

    result = run_selection(
        pool,
        target,
        model=model,
        out=out,
        **strategies.made(store=search.store is not None),
        overwrite=job.overwrite,
        observer=job.observer,
        **values_of(search),
        **values_of(gradients),
        **values_of(outputs),
    )
    summary = Summary.of(result)
    job.show(summary.to_json(), partial(show, summary))


@app.command
def plan(
    pool: Pool,
    /,
    *,
    target: Target,
    model: Model,
    out: Path | None = None,
    strategies: Chosen = StrategyArguments(),
    search: Search = SearchSettings(),
    gradients: Gradients = GradientSettings(),
    outputs: Outputs = OutputSettings(),
    job: Jobs = JobArguments(),
) -> None:
    """Estimate the time, memory, disk space and gradients of a selection before it runs. Takes the options of select.

    Reads the pool and computes a few gradients. Saves no files.

    Args:
        out: Intended folder of the run.
    """
    from msgspec import to_builtins

    from clusterucb.jobs.plan import plan as make_plan
    from clusterucb.report.screen import show_plan

    found = make_plan(
        pool,
        target,
        model=model,
        out=out,
        **strategies.made(store=search.store is not None),
        observer=job.observer,
        **values_of(search),
        **values_of(gradients),
        **values_of(outputs),
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
    gradients: Sketched = SketchSettings(),
    job: Jobs = JobArguments(),
) -> None:
    """Sketch the gradient of every pool sample once, for `select --store` with any number of targets.

    Repeat the command to resume an interrupted store, or to show the cost of a finished one. With another pool, the
    store gets the samples that it lacks.

    Args:
        out: Folder of the gradient store.
    """
    from clusterucb.jobs.sketch import sketch as sketch_pool
    from clusterucb.report.screen import show_store

    store = sketch_pool(
        pool,
        model=model,
        out=out,
        overwrite=job.overwrite,
        observer=job.observer,
        **values_of(gradients),
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
    replays: Annotated[Replays, Parameter(name="*")] = Replays(),
    search: Annotated[DrawSettings, Parameter(group=OPTIONS), SETTINGS] = DrawSettings(),
    gradients: Gradients = GradientSettings(),
    job: Jobs = JobArguments(),
) -> None:
    """Compare strategies: score the whole pool once, then replay each strategy on the recorded scores.

    The folder keeps scores and features, so a repeat with other strategies, budgets or seeds takes seconds.

    Args:
        out: Folder of the comparison, with comparison.html and comparison.json.
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
        strategies=[contender(spec, installed) for spec in split(replays.strategies)],
        budgets=[budget.strip() for budget in replays.budgets.split(",")],
        seeds=replays.seeds,
        scores=replays.scores,
        overwrite=job.overwrite,
        observer=job.observer,
        **values_of(search),
        **values_of(gradients),
    )
    job.show(comparison.content, partial(show, comparison))


@app.command(name="try")
def try_runs(
    runs: Annotated[list[Path], Parameter(negative=(), json_list=False, name="RUN...")],
    /,
    *,
    judge: Annotated[list[Path] | None, FILES, Parameter(group=OPTIONS)] = None,
    trial: Annotated[TrialSettings, Parameter(group=OPTIONS), SETTINGS] = TrialSettings(),
    out: Annotated[Path | None, Parameter(group=OPTIONS)] = None,
    overwrite: Flag = False,
    quiet: Flag = False,
    json: Flag = False,
    debug: Flag = False,  # noqa: ARG001  (`run` acts on it, even if other arguments cannot be parsed)
) -> None:
    """Train on a selection and on random samples, and compare the losses on unseen samples of the target.

    Repeat the command to resume an interrupted trial, or to show the result of a finished one.

    Args:
        runs: Folder of a finished selection, or of several with the same pool, target and model.
        judge: Files of the samples that judge, in the form of the target. By default, the samples judge that
            select --hold-out kept away from the selection.
        out: Folder of the trial. By default, trial in the folder of the first run.
        overwrite: Delete the earlier trial in the folder and start again.
        quiet: Hide the progress and the summary.
        json: Print the summary as JSON.
        debug: Show tracebacks and the libraries' warnings.
    """
    from clusterucb.jobs.trial.job import trial as run_trial
    from clusterucb.jobs.trial.results import show

    job = JobArguments(quiet=quiet, json=json)
    found = run_trial(
        runs, judge=judge, out=out, overwrite=overwrite, observer=job.observer, **values_of(trial)
    )
    job.show(found.content, partial(show, found))


@app.command
def doctor(
    pool: Annotated[list[Path] | None, FILES] = None,
    *,
    target: Annotated[list[Path] | None, FILES] = None,
    model: str | None = None,
    search: Search = SearchSettings(),
    gradients: Gradients = GradientSettings(),
    json: Flag = False,
    debug: Flag = False,  # noqa: ARG001  (`run` acts on it, even if other arguments cannot be parsed)
) -> None:
    """Check the installation, the files of a selection, or the exactness of a model's gradients on this machine.

    With a pool, read the first rows of every file and, with --model, compute a few gradients. With --model alone,
    measure how much a sample's gradient changes with its batch, attention and data type, and show remedies. Saves no
    files.

    Args:
        pool: Files of the pool, as in select.
        target: Files of the target, as in select.
        model: Folder of the model, or a hub id, as in select.
        json: Print the results as JSON.
        debug: Show tracebacks and the libraries' warnings.
    """
    from msgspec import to_builtins

    from clusterucb.jobs.doctor.dry_run import examine_files
    from clusterucb.jobs.doctor.installation import examine_machine
    from clusterucb.jobs.doctor.screen import show_dry_run, show_machine, show_probed
    from clusterucb.options.search import Settings
    from clusterucb.progress import Screen, Silent

    if pool is None and target:
        raise OptionError(
            "--target is given without a pool; expected both: clusterucb doctor POOL --target ..."
        )
    settings = Settings(**values_of(search), **values_of(gradients))
    observer = Silent() if json else Screen()
    files = examine_files(pool, target, model, settings, observer) if pool else None
    probed = None
    if model and not pool:
        from clusterucb.jobs.doctor.probes import probe

        probed = probe(model, settings, observer)
    console = Terminal()
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
    debug: Flag = False,  # noqa: ARG001  (`run` acts on it, even if other arguments cannot be parsed)
) -> None:
    """Select data for a real model (SmolLM2-135M) from a real pool; under 5 minutes after downloads.

    Args:
        exhaustive: Also score the whole pool, and report how many of its best samples the run found (15 minutes).
        out: Folder of the run.
        debug: Show tracebacks and the libraries' warnings.
    """
    from clusterucb.demo.run import demo as run_demo

    run_demo(out=out, exhaustive=exhaustive)


app.command(stores)
app.command(show)
app.command(report)
app.command(runs)
app.command(diff)
app.command(plugins)


@app.command
def completion(
    shell: Literal["bash", "zsh", "fish"],
    /,
    *,
    debug: Flag = False,  # noqa: ARG001
) -> None:
    """Print a shell script that completes commands and options: source <(clusterucb completion bash).

    Args:
        shell: Name of the shell.
        debug: Show tracebacks and the libraries' warnings.
    """
    write(app.generate_completion(shell=shell))


for _command in (
    *JOBS,
    "stores",
    "try",
    "show",
    "report",
    "runs",
    "diff",
    "doctor",
    "demo",
    "plugins",
    "completion",
):
    app[_command].help_epilogue = ""  # only the first page of the help shows it
