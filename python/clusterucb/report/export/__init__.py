"""Internal. Writes the selection in the form that training tools read, with a configuration to start from.

``--export TOOL`` writes the folder ``export-TOOL`` into the run. It holds ``conversations.jsonl``, ``text.jsonl`` (the
plain texts, because every tool reads them from a separate file), and the files that start the tool.

Each tool has a module, which says what the tool reads according to its documentation. `tools` has the table of all
tools, and writes the files.

Decisions:
    - The turns are exported as clusterucb read them. So every shape of row gets the one form that the tool reads best,
      and a training learns exactly what was scored: the assistant's turns.
    - File names are fixed. Paths are quoted so that no path can break out of YAML or Python. Paths are absolute,
      because each tool resolves relative ones from another folder. A training writes its results to ``trained`` beside
      its configuration, or to ``trained-text`` if texts have a training of their own.
    - LLaMA-Factory and axolotl look for a file under its own name, and then read that name as a pattern. No name with
      ``[``, ``*`` or ``?`` satisfies both, so nothing is written for these tools in such a folder.
    - All tools train in bf16 if a GPU supports it. TRL and axolotl find out when they start. LLaMA-Factory would stop
      without such a GPU, so its configuration has the line only if this machine has one.
    - If the run already has an export, every selection writes it again, even without the option: an export of an
      earlier selection would be worse than none. An export that cannot be written again is removed. Only clusterucb's
      own files are touched, because people train in these folders.
"""

from clusterucb.report.export.tools import TOOLS, Exported, export

__all__ = ["TOOLS", "Exported", "export"]
