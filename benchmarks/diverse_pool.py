"""Write a diverse pool, with a few short samples from each of hundreds of sources, and a target of eight subtasks.

    python benchmarks/diverse_pool.py FOLDER

The samples are read from the wheel ``evals``, like the demo's (`clusterucb.demo.sources`). The pool uses every set that
was written or computed for the wheel (MIT) and has enough samples. It leaves out the sets for which the wheel's licence
lists other terms, and sets that repeat a third party's exam, benchmark, book or corpus.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import msgspec

from clusterucb.demo.pool import Row, rows_of
from clusterucb.demo.sources import ROOT, WHEEL, DemoSource
from clusterucb.demo.wheels import fetch
from clusterucb.progress import Screen

# Folders of sets that have other terms or repeat the work of third parties.
LEFT_OUT = {
    *("already_said_that", "ballots", "sandbagging", "schelling_point", "steganography", "text_compression"),
    *(
        "theory_of_mind",
        "aba_mrpc_true_false",
        "aime_evaluation",
        "arc",
        "crepe",
        "euler_problems",
        "medmcqa",
    ),
    *("quartz", "rucola", "russe", "cissp-study-questions", "fcc_amateur_extra", "hindi_upsc", "swedish_sat"),
    *("japanese-itpassport-exam01", "japanese-national-medical-exam01", "japanese-national-medical-exam02"),
    *(
        "japanese_driving_license",
        "marxist_philosophy_exam",
        "ukraine_eit",
        "ukraine_gec",
        "iqbal-poetry-translation",
    ),
    *(
        "icelandic-sentences-gec",
        "find-thirukkural",
        "greek_nt_manuscripts",
        "hebrew_bible",
        "hebrew_talmud_suka",
    ),
    *(
        "chinese_ancient_masterpieces_dynasty",
        "chinese_ancient_poetry",
        "chinese_chu_ci",
        "chinese_famous_novel",
    ),
    *("chinese_modern_poem_identification", "chinese_poem", "chinese_shi_jing", "chinese_song_ci"),
    *(
        "chinese_tang_poetries",
        "manga-translation",
        "nepali-song-singer",
        "russian-verse",
        "utah_real_estate",
    ),
    *("south-african-bands", "naughty_strings", "test_comp_sci", "product-matching", "prompt-injection"),
}
SUBTASKS = (
    "born_first",
    "crontab",
    "dutch-rhymes",
    "event_categories",
    "find-letter",
    "logic-statements",
    "number_pattern",
    "swap-words",
)
N_TARGET = 8
N_POOL = 12  # of each source


def main(folder: Path) -> None:
    pool, target, sources = [], [], 0
    with ZipFile(fetch(WHEEL, Screen())) as archive:
        for file in _files(archive):
            name = file.removesuffix(".jsonl").removesuffix("/samples")
            try:
                rows = rows_of(archive, DemoSource(name, file))
            except (KeyError, IndexError, TypeError, AttributeError, msgspec.DecodeError):
                continue  # the file does not hold questions with one answer each
            held_out = N_TARGET if name.partition("/")[0] in SUBTASKS else 0
            if len(rows) < held_out + N_POOL // 2:
                continue
            sources += 1
            target += [{**row, "subtask": name.partition("/")[0]} for row in rows[:held_out]]
            pool += rows[held_out : held_out + N_POOL]
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("pool.jsonl", pool), ("target.jsonl", target)):
        (folder / name).write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    print(f"{len(pool)} samples of {sources} sources, {len(target)} target samples in {folder}")


def _files(archive: ZipFile) -> Iterator[str]:
    """Yield the files of the sets that the pool may use, in alphabetical order."""
    for path in sorted(archive.namelist()):
        folder, _, name = path.removeprefix(ROOT).partition("/")
        taken = folder not in LEFT_OUT and not folder.endswith("-exams-qa") and "few" not in name.lower()
        if path.startswith(ROOT) and name.endswith(".jsonl") and taken:
            yield f"{folder}/{name}"


def rows_by_subtask() -> dict[str, list[Row]]:
    """Return all rows of each subtask's sources in order: the target's, then the pool's, then others."""
    found: dict[str, list[Row]] = {}
    with ZipFile(fetch(WHEEL, Screen())) as archive:
        for file in _files(archive):
            name = file.removesuffix(".jsonl").removesuffix("/samples")
            if (subtask := name.partition("/")[0]) in SUBTASKS:
                found.setdefault(subtask, []).extend(rows_of(archive, DemoSource(name, file)))
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
