"""Name every file and folder that a run, a store, a comparison or a trial writes into its folder."""

from __future__ import annotations

MANIFEST = "manifest.json"
REMOVED = "manifest.json.removed"  # a former run's manifest, until the next run has its own
CONFIG = "config.yaml"
LEDGER = "ledger.sqlite"
LOCK = "lock"
LEASE = "lease"  # stands for the lock where the file system has none
ADAPTER = "adapter"
DIRECTIONS = "directions.safetensors"
ESTIMATES = "estimates.safetensors"
LABELS = "labels.safetensors"
SIMILARITY = "similarity.safetensors"
SELECTED = "selected.jsonl"
SCORES = "scores.jsonl"
REJECTED = "rejected.jsonl"
SCORES_TABLE = "scores.parquet"
# What the page of a run needs beside the run's other files, and the page.
OVERVIEW = "overview.safetensors"
TRAIL = "trail.jsonl"
DETAILS = "details.json"
RUN_PAGE = "report.html"
COMPARISON = "comparison.json"
COMPARISON_PAGE = "comparison.html"
TRIAL = "trial.json"
TRIAL_PAGE = "trial.html"
CELLS = "cells"

# An export holds the samples (conversations, texts or both) and the files that the training tool reads.
CONVERSATIONS = "conversations.jsonl"
TEXTS = "text.jsonl"
EXPORTS = {
    "llamafactory": ("dataset_info.json", "sft.yaml", "pt.yaml"),
    "trl": ("sft.py", "text.py", "reselect.py"),
    "axolotl": ("axolotl.yaml",),
}


def export_files(tool: str) -> list[str]:
    """Return the paths of the files that an export for ``tool`` may contain, relative to the run's folder."""
    return [f"export-{tool}/{name}" for name in (CONVERSATIONS, TEXTS, *EXPORTS[tool])]


EXPORT_FILES = tuple(name for tool in EXPORTS for name in export_files(tool))

# Patterns of files that exist before anything is computed. The ledger exists that early too: its first draw is
# recorded only after the other stages.
AT_ONCE = (f"{LEDGER}*", CONFIG)

# Patterns of the files that a later stage reads.
KEPT = (
    f"{ADAPTER}/**/*",
    f"{ADAPTER}-[0-9]/**/*",
    f"{ADAPTER}-[0-9][0-9]/**/*",
    DIRECTIONS,
    ESTIMATES,
    "features-*.safetensors",
    "features-*/*.safetensors",
    "sketches-*.safetensors",
    "samples-*.safetensors",
    LABELS,
    SIMILARITY,
    OVERVIEW,
    f"{CELLS}/*.json",
)

# Patterns of everything that a folder holds besides its manifest and lock. --overwrite removes what they match and
# nothing else.
ALL = (
    ADAPTER,
    f"{ADAPTER}-[0-9]",
    f"{ADAPTER}-[0-9][0-9]",
    DIRECTIONS,
    ESTIMATES,
    "features-*",
    "sketches-*.safetensors",
    "samples-*.safetensors",
    LABELS,
    SIMILARITY,
    *AT_ONCE,
    SELECTED,
    SCORES,
    REJECTED,
    COMPARISON,
    COMPARISON_PAGE,
    TRIAL,
    TRIAL_PAGE,
    CELLS,
    SCORES_TABLE,
    OVERVIEW,
    TRAIL,
    DETAILS,
    RUN_PAGE,
    *EXPORT_FILES,
)
