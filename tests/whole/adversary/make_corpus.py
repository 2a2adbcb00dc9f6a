"""Write the corpora that fuzzing begins with, into tests/whole/adversary/corpus.

    python tests/whole/adversary/make_corpus.py

A file is the input of a harness: its first bytes are choices (`whole.adversary.harnesses.choices`), the others content.
Inputs named ``fault-*`` were found by fuzzing, and once ended in a traceback; this script leaves them alone.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[2]))

from helpers.bad_lines import BAD_LINES
from whole.adversary.harnesses import manifests, reading

CORPUS = Path(__file__).parent / "corpus"
_LONGEST = 2000  # bytes of a seed
ROWS = [
    {"prompt": "q", "completion": "a", "id": 1},
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "é"}], "source": "s"},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    {"instruction": "i", "input": "x", "output": "o", "history": [["q", "a"]]},
    {"prompt": "q", "chosen": "good", "rejected": "bad"},
    {"text": "plain"},
]
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


def of_reading() -> dict[str, bytes]:
    """A file of every kind."""
    columns, stream, table = ["prompt", "completion"], io.BytesIO(), io.BytesIO()
    rows = pa.table({name: ["q", "w"] for name in columns})
    pq.write_table(rows, table, compression="none", store_schema=False, write_statistics=False)
    with pa.ipc.new_stream(stream, rows.schema) as writer:
        writer.write_table(rows)
    contents = {
        ".jsonl": LINES + b"".join(line + b"\n" for line, _ in BAD_LINES if len(line) < 60),
        ".json": json.dumps(ROWS, indent=1).encode(),
        "wrapped.json": json.dumps({"version": 1, "data": ROWS[:2]}, indent=1).encode(),
        "bad.json": b'[{"text": "a"}, {"text": NaN}, {"text": "b"}]',
        ".csv": b'prompt,completion\nq,"a ""b"", c"\nw,"two\nlines"\nshort\n',
        ".tsv": b"\xef\xbb\xbfprompt\tcompletion\nq\ta\n",
        ".txt": b"a text\nanother\n",
        ".parquet": table.getvalue(),
        ".arrow": stream.getvalue(),
        reading.SAVED: json.dumps({"_data_files": [{"filename": "data.arrow"}]}).encode(),
        "not-utf8.saved": b"\xff",
        "utf16.json": '{"text": "a"}'.encode("utf-16"),
        "gguf": b"GGUF\0\0",
    }
    made = {}
    for name, content in contents.items():
        ending = name[name.find(".") :] if "." in name else ""
        first = reading.ENDINGS.index(ending)
        made[name.replace(".", "-")] = bytes([first]) + content
    for packing in (1, 2):
        first = packing * len(reading.ENDINGS)
        made[f"packed-{packing}"] = bytes([first]) + LINES
    return made


def random_choices(count: int, size: int) -> dict[str, bytes]:
    """Choices alone: any bytes are an input."""
    return {f"random-{seed}": random.Random(seed).randbytes(size) for seed in range(count)}


def of_states() -> dict[str, bytes]:
    """Pickles, whole and by kind of writer."""
    state = {"state": {0: {"step": 3}}, "param_groups": [{"params": [0], "betas": (0.9, 0.999)}]}
    metadata = pickle.dumps({"state_dict_metadata": {}, "storage_data": {}}, 2)
    contents = {
        "raw": b"\0" + pickle.dumps(state),
        "code": b"\0" + pickle.dumps(print),
        "pickled": b"\1" + pickle.dumps(state, 2),
        "pickled-code": b"\1cos\nsystem\n(S'true'\ntR.",
        "metadata-large-number": b"\3\x80\x02]r\xff\xff\xff\x7f.",
        "unchanged": bytes([2, 0, 0, 5, 0, 14]),
        "unchanged-fsdp": bytes([4]),
        "unchanged-zero-1": bytes([5, 0, 0]),
        "unchanged-zero-3": bytes([5, 1, 0, 1]),
        "metadata": b"\3" + metadata,
        "metadata-code": b"\3cos\nsystem\n(S'true'\ntR.",
    }
    odd = {
        f"{kind}-{seed}": bytes([kind]) + random.Random(seed).randbytes(24)
        for kind in (2, 4, 5, 6)
        for seed in range(4)
    }
    return contents | odd


_STORE = {
    "job": "sketch",
    "projection": {"version": 1, "nonzeros": 2},
    "options": {"--sketch-dim": 256, "--seed": 0},
}


def of_manifests() -> dict[str, bytes]:
    """Changes of each folder's manifest for each use, and a whole manifest."""
    made = {}
    for folder in range(len(manifests.FOLDERS)):
        for use in range(len(manifests.USES)):
            changes = random.Random(10 * folder + use).randbytes(24)
            made[f"changed-{folder}-{use}"] = bytes([folder, use, 1]) + changes
    settings = {"settings": {"--seed": 0, "pool content": "x"}, "budget": "5", "spent": "5 until recall=0.9"}
    odd = {
        "spent": (0, {"format": 1, "settings": {}, "spent": [1]}),
        "outcome": (0, {"format": 1, "settings": {}, "outcome": "x"}),
        "rule": (0, {"format": 2, "identity": {"options": {"--aggregate": ["x"]}}}),
        "strategy": (0, {"format": 2, "identity": {"options": {"--policy": {"class": 5, "options": 3}}}}),
        "store": (2, {"format": 2, "status": "finished", "inputs": {"pool_samples": -5}, "identity": _STORE}),
    }
    for name, (use, content) in odd.items():
        made[f"odd-{name}"] = bytes([1, use, 0]) + json.dumps(content).encode()
    made["whole"] = bytes([0, 0, 0]) + json.dumps({"format": 1, **settings}).encode()
    made["whole-store"] = bytes([1, 1, 0]) + b'{"format": 2, "identity": {"job": "sketch", "projection": {}}}'
    return made


def of_priors() -> dict[str, bytes]:
    """Scores, a shard's header, and changes of a ledger."""
    lines = b'{"id": "a", "subtasks": {"x": 0.5}}\n{"id": "1", "subtasks": {"x": -1}}\n'
    header = (
        b'{"sketches":{"dtype":"F16","shape":[40,256],"data_offsets":[0,20480]},"__metadata__":{"3":"odd"}}'
    )
    made = {"scores": b"\0" + lines, "sketches": b"\2\0" + header, "endless": bytes([4, 0, 0, 0, 1])}
    made["large-scores"] = b"\0" + b'{"id": "a", "subtasks": {"x": 1e39}}'
    made["negative-tokens"] = bytes([4, 0, 1, 0, 0, 2, *bytes(18), 5, 6])
    made["failure-of-bytes"] = bytes([4, 1, 1, 0, 0, 0, *bytes(17), 2, 0, 5, 8])
    for kind in (1, 3, 4):
        for seed in range(5):
            made[f"{kind}-{seed}"] = bytes([kind]) + random.Random(seed).randbytes(16 + 4 * seed)
    return made


def main() -> None:
    """Write every seed."""
    made = {
        "reading": of_reading(),
        "chats": random_choices(12, 96),
        "states": of_states(),
        "manifests": of_manifests(),
        "priors": of_priors(),
        "bindings": random_choices(16, 40),
    }
    for name, seeds in made.items():
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if not path.name.startswith("fault-"):
                path.unlink()
        for seed, content in seeds.items():
            assert len(content) <= _LONGEST, (name, seed, len(content))
            (folder / seed).write_bytes(content)


if __name__ == "__main__":
    main()
