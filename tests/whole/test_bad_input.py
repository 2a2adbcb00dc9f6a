"""What people bring, from the command line: one clear line for each mistake, no traceback, nothing half-written."""

from __future__ import annotations

import gzip
import json
import random
import re
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clusterucb.cli import main as cli
from helpers.bad_lines import BAD_LINES
from helpers.tiny import read_rows, rows, write_job, write_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_job(tmp_path_factory.mktemp("job"))


@pytest.fixture
def select(folder, tmp_path, capsys):
    """Run ``clusterucb select`` with some options in place of the usual ones; return its code, output and errors."""

    def run(pool: object = folder / "pool.jsonl", *more: str, **changes: object) -> tuple[int, str, str]:
        usual = {
            "target": folder / "dev.jsonl",
            "model": folder / "model",
            "out": tmp_path / "run",
            "warmup_steps": 2,
        }
        options = {**usual, **changes}
        named = [
            part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))
        ]
        code = cli.run(["select", *map(str, pool if isinstance(pool, list) else [pool]), *named, *more])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


def errors(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("error: ")]


# Files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.touch(), "has no lines; expected at least one"),
        (lambda path: path.mkdir(), "is a folder without data files; expected files ending in .jsonl"),
        (lambda path: None, "No such file or directory; expected JSONL"),
        (lambda path: path.write_bytes(b"\x00\x01\x02" * 99), "is a binary file; expected JSONL"),
        (
            lambda path: path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 99)[:-9]),
            "the file is incomplete: download it again",
        ),
        (
            lambda path: path.write_bytes(b'{"a": 1}\n{"b": 2}\n'),
            "has no usable sample in 2 lines (2 no conversation); the first is ",
        ),
        (
            lambda path: path.write_text(json.dumps({"prompt": "q", "completion": " \n"})),
            "no sample of the pool can be",
        ),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    ],
    ids=["empty", "folder", "missing", "binary", "broken-gzip", "all-bad", "blank-answers", "loop"],
)
def test_a_pool_that_cannot_be_used_is_one_line_and_leaves_nothing(select, tmp_path, make, message) -> None:
    pool = tmp_path / "pool"
    make(pool)
    code, out, err = select(pool)
    assert (code, out) == (2, "")
    (line,) = errors(err)
    assert str(pool) in line or "the pool" in line
    assert message in line
    assert not (tmp_path / "run").exists()


def test_every_bad_line_is_listed_and_counted(select, tmp_path) -> None:
    lines = [json.dumps(row).encode() for row in rows(20)]
    bad = [line for line, _ in BAD_LINES]
    pool = tmp_path / "pool.jsonl"
    pool.write_bytes(b"\n".join([*lines[:10], *bad, *lines[10:], lines[0]]) + b'\n{"prompt": "cut o')
    code, out, _ = select(pool)
    assert code == 0
    rejected = read_rows(tmp_path / "run" / "rejected.jsonl")
    assert [line["line"] for line in rejected] == [*range(11, 11 + len(bad)), 21 + len(bad), 22 + len(bad)]
    for line, (raw, reason) in zip(rejected, BAD_LINES, strict=False):
        assert reason in line["reason"]
        assert line["text"] == raw.decode("utf-8", "replace")[:200]
    assert rejected[-2]["reason"] == f"duplicate of {pool}:1"
    assert rejected[-1]["reason"] == "not JSON: the line is incomplete"
    told = re.search(r"(\d+) lines were rejected: (.*); listed in .*rejected.jsonl", out)
    assert told
    assert (
        int(told[1]) == len(rejected) == sum(int(count) for count in re.findall(r"(\d+) [a-zA-Z]", told[2]))
    )
    assert "1 duplicate" in told[2]


def test_strict_stops_at_the_first(select, tmp_path) -> None:
    pool = tmp_path / "pool.jsonl"
    pool.write_text(json.dumps(rows(1)[0]) + "\n{\n[\n")
    code, _, err = select(pool, "--strict")
    assert code == 2
    assert errors(err) == [
        f"error: {pool}:2: not JSON: the line is incomplete; correct the line, or leave out --strict to skip it"
    ]
    assert not (tmp_path / "run").exists()


def test_strict_counts_what_cannot_be_encoded(select, tmp_path) -> None:
    pool = tmp_path / "pool.jsonl"
    write_rows(pool, [*rows(5), {"prompt": "q", "completion": "  "}])
    code, _, err = select(pool, "--strict")
    assert code == 2
    assert f"{pool}:6: empty answer; correct the line" in err


def test_a_pool_of_one_row_is_a_pool(select, tmp_path) -> None:
    pool = write_rows(tmp_path / "pool.jsonl", rows(1))
    code, out, _ = select(pool)
    assert code == 0
    assert "Selected 1 of 1 sample after scoring 1 in 1 cluster" in out
    assert read_rows(tmp_path / "run" / "selected.jsonl") == rows(1)


def test_a_target_that_is_part_of_the_pool_is_warned_of(select, folder, tmp_path) -> None:
    target = write_rows(tmp_path / "dev.jsonl", rows(40)[:5])
    code, _, err = select(target=target)
    assert code == 0
    assert "warning: samples in both the pool and the target: 5, the first is" in err


def test_a_row_that_begins_with_an_answer_is_left_to_the_template(select, tmp_path) -> None:
    first = {"messages": [{"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "Bye"}]}
    pool = write_rows(tmp_path / "pool.jsonl", [first, *rows(9)])
    code, _, _ = select(pool, budget="100%", select="10")
    assert code == 0
    assert read_rows(tmp_path / "run" / "rejected.jsonl") == []
    assert first in read_rows(tmp_path / "run" / "selected.jsonl")


def test_a_long_prompt_is_cut_and_the_answer_stays(select, tmp_path) -> None:
    pool = write_rows(tmp_path / "pool.jsonl", [{"prompt": "why " * 500, "completion": "because"}, *rows(9)])
    code, _, _ = select(pool, max_length=16, budget="100%", select="10")
    assert code == 0
    assert read_rows(tmp_path / "run" / "rejected.jsonl") == []


def test_what_was_found_in_each_file_is_said(select, tmp_path) -> None:
    csv = tmp_path / "more.csv"
    csv.write_text("question,answer\nWhat?,This.\nWho?,Me.\n")
    chat = tmp_path / "chat.json"
    chat.write_text(
        json.dumps([{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, {}])
    )
    code, _, err = select([csv, chat], columns="prompt=question,completion=answer", budget="100%", select="3")
    assert code == 0
    assert f"{csv}: rows: 2 of prompt-completion" in err
    assert f"{chat}: rows: 1 of conversations, 1 rejected" in err
    assert {"question": "Who?", "answer": "Me."} in read_rows(tmp_path / "run" / "selected.jsonl")


def test_a_column_that_no_row_has_is_an_error(select) -> None:
    code, _, err = select(columns="source=topik")
    assert code == 2
    assert (
        "--columns names topik, which no row has; the columns of the first row are id, prompt, completion, so"
        in err
    )


# Folders --------------------------------------------------------------------------------------------------


def test_a_read_only_pool_will_do_and_a_read_only_folder_will_not(select, folder, tmp_path) -> None:
    pool = write_rows(tmp_path / "pool.jsonl", rows(20))
    pool.chmod(0o444)
    assert select(pool)[0] == 0
    file = tmp_path / "file"
    file.touch()
    code, _, err = select(out=file / "run")
    assert code == 2
    assert "cannot write to" in err
    assert "choose another --out" in err


FULL = """
import resource, sys
from clusterucb.cli import main as cli
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.exit(cli.run(sys.argv[2:]))
"""


@pytest.mark.parametrize("limit", [0, 2_000, 30_000, 200_000, 1_000_000])
def test_a_full_disk_says_how_to_go_on_and_the_same_command_does(
    folder, tmp_path, programs, limit: int
) -> None:
    command = ["select", str(folder / "pool.jsonl"), "--target", str(folder / "dev.jsonl"), "--model"]
    command += [str(folder / "model"), "--out", str(tmp_path / "run"), "--warmup-steps", "2"]
    done = subprocess.run(
        [programs / "code", FULL, str(limit), *command], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        pytest.fail("the limit stopped nothing: the test checks nothing") if limit < 200_000 else None
        return
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = errors(done.stderr)
    assert re.search("free (some )?space|choose another --out", line), line
    left = (
        [path for path in (tmp_path / "run").rglob("*") if path.suffix == ".partial"]
        if (tmp_path / "run").exists()
        else []
    )
    assert left == []
    assert cli.run([*command, "--quiet"]) == 0
    assert cli.run([*command[:-3], str(tmp_path / "whole"), *command[-2:], "--quiet"]) == 0
    for name in ("selected.jsonl", "scores.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# Options --------------------------------------------------------------------------------------------------

WRONG = {
    "--budget": ("0.2", "percentage"),
    "--select": ("many", "percentage"),
    "--cold-start": ("2", "a share between 0 and 1"),
    "--batch-size": ("0", "a whole number of at least 1"),
    "--scorer": ("exakt", "one of auto, exact, sketch. Did you mean 'exact'?"),
    "--rule": ("maximum", "one of round-robin, paper, mean, standardized"),
    "--prior": ("nowhere", "holds neither scores of a selection nor a gradient store"),
    "--until": ("0.9", "expected a recall such as recall=0.9 or recall=90%"),
    "--hold-out": ("7", "expected a percentage below 100%, such as 50%"),
    "--max-per-source": ("-1", "a whole number of at least 1"),
    "--subtask-weights": ("food", "'food' is not of the form food=2,words=0.5"),
    "--format": (
        "alpacca",
        "one of messages, conversations, prompt-completion, alpaca, chosen, calls, pair, text. Did you mean",
    ),
    "--columns": ("question", "prompt=question,completion=answer"),
    "--preconditioner": ("adamw", "one of adam_less, adam, second_moment, sgd"),
    "--lora-rank": ("1.5", "whole number"),
    "--lora-alpha": ("nan", "a number above 0"),
    "--lora-targets": ("nothing_proj", "this model's linear layers are"),
    "--warmup-steps": ("x", "whole number"),
    "--warmup-lr": ("0", "a number above 0"),
    "--sketch-dim": ("1000", "power of two"),
    "--max-length": ("1", "at least 2 tokens"),
    "--batch-tokens": ("0", "a whole number of at least 1"),
    "--device": ("gpu", "Try cpu or auto"),
    "--dtype": ("fp32", "one of auto, float32, bfloat16, float16"),
    "--seed": ("-1", "a whole number of at least 0"),
    "--features": ("embeddings", "Did you mean 'embedding'?"),
    "--clusterer": ("k-means", "Did you mean 'kmeans'?"),
    "--policy": ("ucb3", "Did you mean 'ucb'?"),
    "--target-format": ("alpacca", "Did you mean 'alpaca'?"),
    "--target-columns": ("question", "prompt=question,completion=answer"),
    "--roles": ("Advisor", "Advisor=assistant,Client=user"),
    "--learn": ("first", "one of all, last"),
    "--ids": ("line", "one of content, column, file"),
    "--tokenizer": ("/nowhere", "the tokenizer '/nowhere'"),
    "--chat-template": ("/nowhere", "cannot read the chat template /nowhere"),
    "--special-tokens": ("<nope>", "which is no token of its own in the tokenizer"),
    "--adapter": ("/nowhere", "expected the folder of a trained PEFT adapter"),
    "--checkpoint": ("/nowhere", "expected the folder of a trained PEFT adapter"),
    "--checkpoint-weights": ("1", "is given without --checkpoint"),
    "--parameters": (
        "nope",
        "expected --optimizer with the state of the model's training, or --preconditioner sgd",
    ),
    "--quantize": ("2bit", "one of 4bit, 8bit"),
    "--autocast": ("bf16", "one of bfloat16, float16"),
    "--store": ("/nowhere", "is not a gradient store"),
    "--workers": ("none", "expected a number of workers, all, or the address of a Ray cluster"),
    "--export": ("llamafactoy", "Did you mean 'llamafactory'?"),
    "--every": ("week", "a number of optimiser steps, epoch or auto"),
    "--config": ("/nowhere.yaml", "No such file"),
}


@pytest.mark.parametrize("option", WRONG)
def test_every_wrong_value_says_what_is_allowed(select, tmp_path, option: str) -> None:
    value, allowed = WRONG[option]
    code, out, err = select(**{option.removeprefix("--").replace("-", "_"): value})
    assert (code, out) == (2, "")
    (line,) = errors(err)
    assert allowed in line
    assert not (tmp_path / "run" / "selected.jsonl").exists()


def test_every_option_with_a_value_has_been_tried() -> None:
    import dataclasses

    from clusterucb.options.kinds import option_name
    from clusterucb.options.search import SelectSettings

    plain = {option_name(one.name) for one in dataclasses.fields(SelectSettings) if "bool" not in one.type}
    assert plain - set(WRONG) == {
        "--optimizer",
        "--revision",
    }  # the first needs --adapter, the second any text


NAMES = (
    "--adapter",
    "--optimizer",
    "--checkpoint",
    "--store",
    "--prior",
    "--tokenizer",
    "--chat-template",
    "--config",
)
LONG = {"a name": "x" * 300, "a path": "x/" * 3000, "a text": "x" * 100_000, "a pattern": "x" * 300 + "*"}


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("option", [*NAMES, "--out", "--model", "--target", "--features", "--columns"])
def test_a_name_that_is_too_long_is_one_short_line(select, folder, option: str, name: str) -> None:
    more = {"adapter": folder / "model"} if option == "--optimizer" else {}
    code, out, err = select(**more, **{option.removeprefix("--").replace("-", "_"): LONG[name]})
    assert (code, out) == (2, "")
    (line,) = errors(err)
    assert len(line) < 5000


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize(
    "command",
    [
        ["try"],
        ["report"],
        ["stores"],
        ["doctor", "--pool"],
        ["doctor", "--model"],
        ["doctor", "--model", "no/such", "--pool"],
        ["try", "run", "--judge"],
        ["stores", "run", "--merge"],
        ["sketch"],
    ],
    ids=" ".join,
)
def test_a_name_that_is_too_long_is_one_short_line_for_every_command(
    capsys, command: list[str], name: str
) -> None:
    more = ["--model", "no/such", "--out", "no"] if command == ["sketch"] else []
    assert cli.run([*command, LONG[name], *more]) == 2
    (line,) = errors(capsys.readouterr().err)
    assert len(line) < 5000


def test_a_name_that_is_too_long_is_named_with_its_length(select) -> None:
    code, _, err = select(prior="x" * 300)
    assert code == 2
    assert errors(err) == [
        f"error: the path '{'x' * 80}...' is too long (300 bytes in a name, 300 in all); expected at most 255 bytes in "
        "each name and 4,095 in all. If it is a text and no path, see the option's help"
    ]


@pytest.mark.parametrize("option", [*NAMES, "--out", "--model", "--target"])
def test_a_nul_in_a_name_is_an_error(select, folder, option: str) -> None:
    more = {"adapter": folder / "model"} if option == "--optimizer" else {}
    code, out, err = select(**more, **{option.removeprefix("--").replace("-", "_"): "a\0b"})
    assert (code, out) == (2, "")
    assert len(errors(err)) == 1


# Fuzzing --------------------------------------------------------------------------------------------------


def mutated(content: bytes, seed: int) -> bytes:
    """Return a file with some of what goes wrong with files: bytes changed, cut, doubled, moved, made long."""
    choose, damaged = random.Random(seed), bytearray(content)
    for _ in range(choose.randint(1, 6)):
        at, size = choose.randrange(len(damaged) + 1), choose.choice([1, 2, 10, 300])
        kind = choose.randrange(7)
        if kind == 0:
            damaged[at : at + size] = choose.randbytes(size)
        elif kind == 1:
            del damaged[at : at + size]
        elif kind == 2:
            damaged[at:at] = damaged[max(at - size, 0) : at]
        elif kind == 3:
            damaged[at:at] = choose.choice(
                [b"\\ud800", b"\0", b"NaN", b"\xff", b"\r", b"\n", b"[" * 5000, b'"', b"{}"]
            )
        elif kind == 4:
            damaged = damaged[:at]
        elif kind == 5:
            damaged.extend(damaged[at : at + size])
        else:
            damaged[at:at] = b"1" * choose.choice([20, 5000])
        if not damaged:
            damaged.extend(b"\n")
    return bytes(damaged)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), kept=st.integers(0, 20))
def test_no_damaged_pool_or_target_ends_in_a_traceback(
    folder, tmp_path, capsys, seed: int, kept: int
) -> None:
    made = [json.dumps(row).encode() + b"\n" for row in rows(20, seed=seed % 7)]
    chat = [
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": "x"}]}
        for row in rows(4)
    ]
    content = b"".join([*made[:kept], *(json.dumps(row).encode() + b"\n" for row in chat)])
    for name in ("pool.jsonl", "dev.jsonl"):
        (tmp_path / name).write_bytes(mutated(content, seed + len(name)))
    command = ["select", str(tmp_path / "pool.jsonl"), "--target", str(tmp_path / "dev.jsonl"), "--quiet"]
    command += ["--model", "no/such/model/at/all", "--out", str(tmp_path / "run")]
    assert cli.run(command) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert len(errors(err)) == 1
