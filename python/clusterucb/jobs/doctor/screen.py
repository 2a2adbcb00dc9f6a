"""Print the results of ``clusterucb doctor``.

They are the capabilities of the installation, a dry run of a job on its files, or how exact a model's scores are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clusterucb.jobs.doctor.dry_run import DryRun, FileFacts
from clusterucb.jobs.doctor.installation import Machine
from clusterucb.samples.sample import kinds_in_words
from clusterucb.wording import counted, in_bytes, listed_names, rounded_duration

if TYPE_CHECKING:
    from clusterucb.jobs.doctor.probes import Finding, Probed

_STYLES = {"template": "dim", "content": "", "label": "black on green"}
_MARKS = ("⟦", "⟧")  # around labels if there are no colours
_TEXT = 1500  # characters of a sample that are shown
_SOURCES = 6
_BAD = "bold red"


def show_machine(found: Machine, console: Console) -> None:
    """Print the capabilities of the installation."""
    libraries = ", ".join(f"{name} {number}" for name, number in found.versions.items())
    total, free = found.memory
    lines = {
        "versions": libraries,
        "kernels": found.kernels,
        "threads": found.threads,
        "GPU": found.gpu,
        "memory": f"{in_bytes(total)}, {in_bytes(free)} available",
        **{what: f"{in_bytes(free)} free in {place}" for what, (place, free) in found.disk.items()},
    }
    lines["cache"] += f", {in_bytes(found.cached)} in use"
    lines["plugins"] = ", ".join(name for name, reason in found.plugins.items() if not reason)
    broken = {name: reason for name, reason in found.plugins.items() if reason}
    console.print(
        _table({**lines, **{f"{name}": f"cannot be loaded: {reason}" for name, reason in broken.items()}})
    )


def show_dry_run(found: DryRun, console: Console) -> None:
    """Print the results of a dry run."""
    console.print(_table(dict(_facts(found))))
    if found.sample:
        plain = not console.is_terminal or console.no_color
        before, after = _MARKS if plain else ("", "")
        console.print(
            Text.assemble(
                "\nA sample as the model sees it: ",
                ("the template", _STYLES["template"]),
                ", the content, and ",
                (f"{before}the predicted tokens{after}", _STYLES["label"]),
                "\n",
            )
        )
        marked = [
            (f"{before}{piece}{after}" if kind == "label" else piece, kind) for piece, kind in found.sample
        ]
        console.print(_shown(marked), soft_wrap=True)


def show_probed(probed: Probed, console: Console) -> None:
    """Print how far a model's scores deviate from exact ones."""
    dtype = probed.dtype + (f", layers compute in {probed.autocast}" if probed.autocast else "")
    console.print(
        _table(
            {
                "model": f"{probed.model} on {probed.device}",
                "dtype": dtype,
                "attention": probed.attention,
                "gradients": f"{probed.parameters:,} numbers each",
                "probed with": probed.samples,
            }
        )
    )
    console.print(
        "\nThe largest change of a score (a difference of cosines) and of a gradient (relative to its length):\n"
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(style="dim")
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("gradient", justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for finding in probed.findings:
        style = _BAD if finding.fine is False else ""
        texts = _change(finding.score), _change(finding.gradient), _verdict(finding)
        table.add_row(finding.name, *(Text(text, style=style) for text in texts))
    console.print(table)


def _change(change: float | None) -> str:
    return "" if change is None else f"{change:.1e}" if change else "0"


def _verdict(finding: Finding) -> str:
    """Return a finding in words: whether the result is fine and, if not, what to do."""
    if finding.fine is None:
        return f"not measured: {finding.note}"
    if finding.fine:
        return f"fine; {finding.note}" if finding.note else "fine"
    parts = [finding.note] if finding.note else []
    if finding.score is not None and finding.promised is not None:
        most = f"at most {_change(finding.promised.score)} and {_change(finding.promised.gradient)}"
        parts.append(f"expected {most if any(finding.promised) else 'the same bits'}")
    remedy = f". Remedy: {finding.remedy}" if finding.remedy else ""
    return f"BAD: {'; '.join(parts)}{remedy}"


def _facts(found: DryRun) -> Iterator[tuple[str, str]]:
    for place, facts in found.files.items():
        yield place, _file(facts)
    counts = Counter(found.sources)
    shown = [f"{count:,} {name}" for name, count in counts.most_common(_SOURCES)]
    more = [f"and {len(counts) - _SOURCES} more"] if len(counts) > _SOURCES else []
    yield "sources", ", ".join([*shown, *more])
    yield "duplicates", f"{found.duplicates:,}"
    if found.overlap is not None:
        yield "in pool and target", f"{found.overlap:,}"
    for reason, count in found.unusable.items():
        yield "cannot be used", f"{counted(count, 'sample')}: {reason}"
    for what, lengths in found.lengths.items():
        cut = f"; {counted(lengths.at_limit, 'reaches', 'reach')} --max-length" if lengths.at_limit else ""
        yield (
            f"tokens, {what}",
            f"{lengths.shortest:,} to {lengths.longest:,}, median {lengths.median:,}, of which "
            f"{counted(lengths.answers, 'is', 'are')} predicted{cut}",
        )
    if expected := found.expected:
        of = f"a pool of {expected.samples:,}{'' if expected.whole else ', only these first lines'}"
        needs = f"{in_bytes(expected.memory)} of memory and {in_bytes(expected.disk)} of disk"
        time = "under 1 s" if expected.seconds < 1 else f"about {rounded_duration(expected.seconds)}"
        yield "a selection takes", f"{time} for {counted(expected.gradients, 'gradient')} ({of}), {needs}"


def _file(facts: FileFacts) -> str:
    shapes = ", ".join(f"{count:,} of {shape}" for shape, count in facts.shapes.items()) or "none"
    total = "" if facts.total == facts.read else f" of about {facts.total:,}" if facts.total else " or more"
    refused = f"; rejected: {kinds_in_words(facts.rejected)}" if facts.rejected else ""
    unread = f"; columns that are not read: {listed_names(facts.unread)}" if facts.unread else ""
    return f"{counted(facts.read, 'line')}{total}: {shapes}{refused}{unread}"


def _shown(pieces: list[tuple[str, str]]) -> Text:
    text = Text()
    for piece, kind in pieces:
        text.append(piece, _STYLES[kind])
    if len(text) > _TEXT:
        text.truncate(_TEXT, overflow="ellipsis")
    return text


def _table(lines: dict[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True, overflow="ellipsis")
    table.add_column(overflow="fold")
    for name, value in lines.items():
        bad = value.startswith(("none: the compiled", "cannot be loaded"))
        table.add_row(Text(name), Text(value, style=_BAD if bad else ""))
    return table
