"""List the training tools, and write a selection for them."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from clusterucb.atomic import make_folder, remove_file, write_lines, write_whole
from clusterucb.errors import ClusterUCBWarning, RunError
from clusterucb.filenames import CONVERSATIONS, EXPORTS, TEXTS, export_files
from clusterucb.report.export.axolotl import AXOLOTL
from clusterucb.report.export.llamafactory import LLAMAFACTORY
from clusterucb.report.export.lora import lora_of
from clusterucb.report.export.training import Training, has_context, has_tools
from clusterucb.report.export.trl import TRL
from clusterucb.samples.message import TEXT

if TYPE_CHECKING:
    from clusterucb.options.search import Settings
    from clusterucb.samples.pool import Sample

TOOLS = {"llamafactory": LLAMAFACTORY, "trl": TRL, "axolotl": AXOLOTL}


class Exported(NamedTuple):
    """The files that were written for one tool.

    Attributes:
        folder: the export's folder.
        trainings: the program and the configuration file of each training.
    """

    folder: Path
    trainings: tuple[tuple[str, Path], ...]


def export(
    run: Path,
    tools: Sequence[str],
    samples: Sequence[Sample],
    *,
    model: str,
    settings: Settings,
    reselection: str | None = None,
) -> list[Exported]:
    """Write a selection for the given tools, and again for each tool that the run already has an export for.

    Args:
        run: the run's folder.
        tools: names in `TOOLS`.
        samples: the selection, best first.
        model: the model's folder or hub id.
        settings: the run's options.
        reselection: the call that selects anew in a training, or None.

    Raises:
        RunError: a file or folder cannot be written.
    """
    present = [tool for tool in TOOLS if any((run / name).exists() for name in export_files(tool))]
    wanted = [tool for tool in TOOLS if tool in {*tools, *present}]
    barred = [tool for tool in wanted if TOOLS[tool].globs and glob.has_magic(str(run.absolute()))]
    for what, those in (
        ("--export {} is not written", [tool for tool in barred if tool in tools]),
        ("the earlier export for {} is removed", [tool for tool in barred if tool not in tools]),
    ):
        if those:
            warnings.warn(
                f"{what.format(','.join(those))}: in a path such as {run.absolute()}, these tools read [, * and ? as a "
                "pattern. Expected a path without them: choose another --out",
                ClusterUCBWarning,
                stacklevel=4,
            )
        for name in (name for tool in those for name in export_files(tool)):
            remove_file(run / name)
    return [
        _export(run, tool, samples, model, settings, reselection) for tool in wanted if tool not in barred
    ]


def _export(
    run: Path,
    name: str,
    samples: Sequence[Sample],
    model: str,
    settings: Settings,
    reselection: str | None,
) -> Exported:
    tool, own, folder = TOOLS[name], EXPORTS[name], run / f"export-{name}"
    conversations = [sample.messages for sample in samples if sample.messages[0].role != TEXT]
    texts = [{"text": sample.messages[0].content} for sample in samples if sample.messages[0].role == TEXT]
    last = tool.last(conversations)
    read = [(turns, row) for turns in conversations if (row := tool.reads(turns, last)) is not None]
    exported, rows = [turns for turns, _ in read], [row for _, row in read]
    if left_out := len(conversations) - len(rows):
        warnings.warn(
            f"--export {name} leaves out {left_out} of {len(samples)} selected samples: {tool.cannot}",
            ClusterUCBWarning,
            stacklevel=5,
        )
    training = Training(
        folder=folder.absolute(),
        model=str(Path(model).absolute()) if Path(model).is_dir() else model,
        revision=settings.revision,
        max_length=settings.max_length,
        lora=lora_of(settings),
        conversations=bool(rows),
        texts=bool(texts),
        last=last,
        context=any(map(has_context, exported)),
        tools=any(map(has_tools, exported)),
        tokenizer=settings.tokenizer,
        trusted=settings.trust_remote_code,
        reselection=reselection,
    )
    try:
        make_folder(folder)
    except OSError as error:
        raise RunError(f"cannot create {folder}: {error.strerror}; move or delete the file there") from error
    files = tool.files(training)
    for name, lines in ((CONVERSATIONS, rows), (TEXTS, texts)):
        write_lines(folder / name, lines) if lines else remove_file(folder / name)
    for name in own:
        if name in files:
            write_whole(folder / name, files[name].encode())
        else:
            remove_file(folder / name)
    started = tuple(name for name in files if name != "dataset_info.json")
    return Exported(folder, tuple((tool.program, folder / name) for name in started))
