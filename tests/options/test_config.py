"""Options in a file mean what they mean on the command line, and a run's own file repeats the run."""

from __future__ import annotations

import json
import os
import re
import string
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import clusterucb as cu
from clusterucb import plugins
from clusterucb.cli import main as cli
from clusterucb.cli.plugins import key_values
from clusterucb.errors import OptionError, RunError
from clusterucb.features.column import Column
from clusterucb.features.concatenation import Concatenation
from clusterucb.jobs.stages.config_yaml import resolved
from clusterucb.options import config_file as config
from clusterucb.options.search import Settings
from helpers.tiny import write_job

JOBS = ("select", "sketch", "compare")
COMMAND_LINE = {"config", "debug", "overwrite", "quiet", "json"}  # what a resolved configuration leaves out
RESULTS = ("selected.jsonl", "scores.jsonl", "rejected.jsonl")
REQUIRED = "pool: pool.jsonl\ntarget: dev.jsonl\nmodel: model\nout: out\n"


def named(job):
    return config.by_key(cli.app[job].assemble_argument_collection())


def parse(*tokens):
    """Return what a job would be called with."""
    _, bound, _ = cli.app.parse_args(
        [str(token) for token in tokens], exit_on_error=False, print_error=False, verbose=False
    )
    bound.apply_defaults()
    return {key: value for key, value in bound.arguments.items() if key != "job"}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return write_job(tmp_path_factory.mktemp("job"))


@pytest.fixture
def written(tmp_path):
    """Return a function that writes a configuration and returns its path."""

    def write(content, name="options.yaml"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return write


TEXTS = st.text(string.ascii_letters + string.digits + "%.-_/ :#{}[]&*!|>'\"@`,~é=", min_size=1, max_size=12)
TEXTS = TEXTS.filter(lambda text: not text.startswith("~/"))  # a shell unfolds it, before a program sees it
VALUES = {
    "budget": st.sampled_from(["20%", "7", "100%", "0.5%"]),
    "select": st.sampled_from(["5%", "3"]),
    "cold_start": st.sampled_from(["0", "0.25", "1", ".5", "1e-3"]),
    "batch_size": st.integers(1, 99).map(str),
    "seed": st.sampled_from(["0", "12", "0123", "9223372036854775807"]),
    "warmup_lr": st.sampled_from(["1e-4", "2.5e-05", "1", "1E-3", "0.1"]),
    "max_length": st.integers(2, 4096).map(str),
    "dtype": st.sampled_from(["auto", "float32"]),
    "revision": TEXTS
    | st.sampled_from(["0123456", "1e5", "no", "null", "~", "1:30", "2024-01-01", "0x1F", "1_000"]),
    "lora_targets": TEXTS,
    "adapter": TEXTS,
    "store": TEXTS,
    "clusterer": TEXTS,
    "trust_remote_code": st.sampled_from(["true", "false"]),
}


def spelt_out(values):
    return [f"--{key.replace('_', '-')}={value}" for key, value in values.items()]


def as_yaml(key, value):
    plain = re.fullmatch(r"[\w%.:+-]+", value) and value != "null" and not value.startswith(("-", ":", "%"))
    return f"{key}: {value if plain and not value.endswith(':') else json.dumps(value)}\n"


@settings(max_examples=30)
@given(st.data())
def test_every_value_means_what_it_means_on_the_command_line_which_goes_first(tmp_path_factory, data):
    in_file = data.draw(st.fixed_dictionaries({"model": TEXTS, "out": TEXTS}, optional=VALUES))
    given_there = data.draw(st.fixed_dictionaries({}, optional={**VALUES, "model": TEXTS, "out": TEXTS}))
    pool = data.draw(st.lists(TEXTS, min_size=1, max_size=3))
    spelt = {key.replace("_", data.draw(st.sampled_from("_-"))): value for key, value in in_file.items()}
    folder = tmp_path_factory.mktemp("property")
    if data.draw(st.booleans()):
        path = folder / "options.json"
        path.write_text(json.dumps({"pool": pool, "target": pool[0], **spelt}))
    else:
        path = folder / "options.yaml"
        lines = (as_yaml(key, value) for key, value in {"target": pool[0], **spelt}.items())
        path.write_text(f"pool: {json.dumps(pool)}\n{''.join(lines)}")
    merged = spelt_out({"target": pool[0], **in_file, **given_there})
    by_file = parse("select", *spelt_out(given_there), "--config", path)
    assert by_file == parse("select", *merged, "--", *pool)


@pytest.mark.parametrize(
    ("text", "option", "expected"),
    [
        ("budget: 20%", "budget", "20%"),
        ("budget: 20", "budget", "20"),
        ("warmup_lr: 1e-4", "warmup_lr", 1e-4),
        ("warmup-lr: .5", "warmup_lr", 0.5),
        ("revision: 0123456", "revision", "0123456"),
        ("revision: no", "revision", "no"),
        ("revision: 'null'", "revision", "null"),
        ("revision: null", "revision", None),
        ("revision: 2024-01-01", "revision", "2024-01-01"),
        ("revision: 12:30:45", "revision", "12:30:45"),
        ("revision:", "revision", None),
        ("trust_remote_code: yes", "trust_remote_code", True),
        ("trust-remote-code: Off", "trust_remote_code", False),
        ("adapter: ~/lora", "adapter", Path.home() / "lora"),
        ("lora_targets: [q_proj, v_proj]", "lora_targets", "q_proj,v_proj"),
        ("lora_targets: q_proj,v_proj", "lora_targets", "q_proj,v_proj"),
        ("seed: 007", "seed", 7),
    ],
)
def test_a_value_arrives_as_it_is_written(written, text, option, expected):
    arguments = parse("select", "--config", written(REQUIRED + text))
    settings = {**vars(arguments["search"]), **vars(arguments["gradients"])}
    assert settings[option] == expected
    assert type(settings[option]) is type(expected)


def test_weights_of_subtasks_are_a_mapping_or_text(written):
    for weights in ("{food: 2, words: 0.5}", "food=2,words=0.5"):
        arguments = parse("select", "--config", written(f"{REQUIRED}subtask_weights: {weights}"))
        assert arguments["search"].subtask_weights == {"food": 2.0, "words": 0.5}


def test_columns_are_a_mapping_or_text(written):
    expected = {"prompt": "question", "completion": "answer"}
    for columns in ("{prompt: question, completion: answer}", "prompt=question,completion=answer"):
        arguments = parse("select", "--config", written(f"{REQUIRED}columns: {columns}"))
        assert arguments["gradients"].columns == expected
    arguments = parse(
        "select", "--columns", "prompt=q", "--config", written(f"{REQUIRED}columns: {{text: body}}")
    )
    assert arguments["gradients"].columns == {"prompt": "q"}


def test_lists_of_the_command_line_replace_those_of_the_file(written):
    path = written(REQUIRED.replace("pool.jsonl", "[a.jsonl, b.jsonl]"))
    assert parse("select", "--config", path)["pool"] == [Path("a.jsonl"), Path("b.jsonl")]
    arguments = parse("select", "c.jsonl", "--target", "d", "e", "--config", path)
    assert arguments["pool"] == [Path("c.jsonl")]
    assert arguments["target"] == [Path("d"), Path("e")]


def test_a_pattern_with_brackets_is_no_list(written):
    path = written(REQUIRED.replace("pool.jsonl", "'[ab].jsonl'").replace("dev.jsonl", "['[c', '[\"d\"]']"))
    expected = [Path("[ab].jsonl")], [Path("[c"), Path('["d"]')]
    assert expected == tuple(parse("select", "--config", path)[key] for key in ("pool", "target"))
    by_hand = parse("select", "[ab].jsonl", "--target", "[c", '["d"]', "--model", "m", "--out", "o")
    assert expected == (by_hand["pool"], by_hand["target"])


def test_a_flag_of_the_file_can_be_switched_off(written):
    path = written(REQUIRED + "trust_remote_code: true\nstrict: true")
    arguments = parse("select", "--trust-remote-code=false", "--config", path)
    assert (arguments["gradients"].trust_remote_code, arguments["gradients"].strict) == (False, True)


NESTED = """
policy: {name: ucb, beta: 2}
clusterer: {name: kmeans, n_clusters: null}
features: {name: hidden, depth: .5}
"""


@pytest.mark.parametrize(
    ("more", "policy", "pairs"),
    [
        ([], "ucb", ("beta=2",)),
        (["--policy", "ucb"], "ucb", ("beta=2",)),
        (["-p", "beta=3"], "ucb", ("beta=3",)),
        (["--policy", "thompson"], "thompson", ()),
        (["--policy", "threshold-hard", "-p", "q=0.1"], "threshold-hard", ("q=0.1",)),
    ],
)
def test_options_in_the_file_stay_with_their_strategy(written, more, policy, pairs):
    found = parse("select", *more, "--config", written(REQUIRED + NESTED))["strategies"]
    assert (found.policy, found.policy_option) == (policy, pairs)
    assert (found.clusterer, found.clusterer_option) == ("kmeans", ("n_clusters=none",))
    assert (found.features, found.feature_option) == ("hidden", ("depth=.5",))


@pytest.mark.parametrize(
    "spelling",
    [
        "policy: {name: ucb, beta: 2}",
        "policy: ucb\npolicy_option: beta=2",
        "policy-option: [beta=2]",
        "policy_option: {beta: 2}",
    ],
)
def test_a_strategy_is_nested_or_spelt_as_on_the_command_line(written, spelling):
    path = written(REQUIRED + spelling)
    assert parse("select", "--config", path)["strategies"].policy_option == ("beta=2",)
    assert parse("select", "--policy", "random", "--config", path)["strategies"].policy_option == ()
    assert parse("select", "-p", "gamma=1", "--config", path)["strategies"].policy_option == (
        "gamma=1",
        "beta=2",
    )


def test_a_comparison_takes_lists(written):
    lists = "strategies: [random, 'ucb@kmeans[n_clusters=3,beta=1]']\nbudgets: [10%, 8]\nseeds: 2"
    replays = parse("compare", "--config", written(REQUIRED + lists))["replays"]
    assert replays.strategies == "random,ucb@kmeans[n_clusters=3,beta=1]"
    assert (replays.budgets, replays.seeds) == ("10%,8", 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bugdet: 20%", "FILE: select has no option 'bugdet'. Did you mean 'budget'?"),
        ("--budget: 20%", "FILE: select has no option '--budget'. Did you mean 'budget'?"),
        ("budgets: [5%]", "FILE: 'budgets' is an option of compare, not of select; remove it from the file"),
        ("polcy: {name: ucb}", "FILE: select has no option 'polcy'. Did you mean 'policy'?"),
        ("config: other.yaml", "FILE: 'config' is allowed only on the command line"),
        ("overwrite: true", "FILE: 'overwrite' is allowed only on the command line"),
        ("debug: true", "FILE: 'debug' is allowed only on the command line"),
        ("seed: many", "FILE: seed is 'many'; expected a whole number"),
        ("seed: 1.0", "FILE: seed is '1.0'; expected a whole number"),
        ("seed: |\n  1\n", r"FILE: seed is '1\n'; expected a whole number"),
        ("seed:", "FILE: seed is empty; expected a whole number"),
        ("max-per-source: none", "FILE: max_per_source is 'none'; expected a whole number"),
        ("cold_start: 20%", "FILE: cold_start is '20%'; expected a number"),
        ("warmup_lr: .inf", "FILE: warmup_lr is '.inf'; expected a number"),
        ("strict: 1", "FILE: strict is '1'; expected true or false"),
        ("budget: [5%, 10%]", "FILE: budget is a list; expected a string"),
        ("store: {a: b}", "FILE: store is a mapping; expected a string"),
        ("pool: {a: b}", "FILE: pool is a mapping; expected a string, or a list of them"),
        ("pool: [[a]]", "FILE: pool is a list; expected a string, or a list of them"),
        ("pool: []", "FILE: pool is an empty list; expected at least one string"),
        ("lora_targets: [[a]]", "FILE: lora_targets is a list; expected a list of strings"),
        (REQUIRED + "columns: question", "columns of FILE: 'question' is not of the form prompt=question"),
        ("columns: {prompt: [a]}", "FILE: columns: prompt is a list; expected a string"),
        ("subtask_weights: {food: much}", "FILE: subtask_weights: food is 'much'; expected a number"),
        ("policy: {beta: 1}", "FILE: policy is a mapping without a name; expected `policy: {name:"),
        ("policy: [ucb]", "FILE: policy is a list; expected a string"),
        ("policy: {name: ucb, options: {beta: 1}}", "beside the name: `policy: {name: ucb, OPTION: 1}`"),
        ("features: [hidden, lexical]", "FILE: features is a list; expected names joined with +: hidden+lexical"),
        ("model: m", "POOL... is missing; expected it on the command line or in FILE."),
        ("pool: p\nmodel: m", "--target is missing; expected it on the command line or in FILE."),
        (REQUIRED + "budget: 0.2", "FILE: budget is '0.2'; expected a percentage of the pool such as 20%"),
        (REQUIRED + "batch-size: 0", "FILE: batch_size is 0; expected a whole number of at least 1"),
        (REQUIRED + "dtype: float", "FILE: dtype is 'float'; expected one of auto, float32"),
        ("policy: {name: ucb, beta: 1}\npolicy_option: beta=2", "FILE gives the option 'beta' of policy twice"),
        ("policy_option: [beta=1, beta=2]", "FILE: policy_option gives 'beta' twice"),
        ("policy_option: beta", "FILE: policy_option is 'beta'; expected key=value, or a mapping"),
        ("feature_option: depth=1", "FILE: feature_option is given without features"),
        ("seed: 1\nseed: 2", "FILE, line 2: 'seed' is given twice"),
        ("batch-size: 1\nbatch_size: 1", "FILE gives 'batch_size' twice"),
        ("policy: {name: ucb, name: ucb}", "FILE, line 1: 'name' is given twice"),
        ("- seed", "FILE is a list; expected a mapping of options"),
        ("seed", "FILE is 'seed'; expected a mapping of options"),
        ("seed: 1: 2", "FILE, line 1 is not valid YAML: mapping values are not allowed here"),
        ("\tseed: 1", r"FILE, line 1 is not valid YAML: found character '\t' that cannot start any token"),
        ("seed: 1\n---\nseed: 2", "FILE, line 2: a second YAML document begins; expected one"),
        ("? [a, b]\n: c", "FILE, line 1: a key is a list; expected a string"),
        ("seed: !!int 1", "FILE, line 1: 'tag:yaml.org,2002:int' is a tag, which is not supported"),
        ("seed: &one 1", "FILE, line 1: 'one' is an anchor or alias; expected the value"),
        ('model: "a\\0b"', r"FILE: 'a\x00b' has characters that a command line cannot hold"),
        ('model: "\\uD800"', r"FILE: '\ud800' has characters that a command line cannot hold"),
        ('policy_option: {beta: "\\0"}', r"FILE: '\x00' has characters that a command line cannot hold"),
        ("model: \x07", "FILE is not valid YAML: unacceptable character #x0007"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_one_line_that_names_it(written, capsys, text, message):
    path = written(text)
    assert cli.run(["select", "--config", str(path)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message.replace("FILE", str(path)) in err


def test_a_misspelt_option_is_not_missed_in_the_file(written, capsys):
    arguments = [
        "select",
        "p",
        "--target",
        "t",
        "--modle",
        "m",
        "--out",
        "o",
        "--config",
        str(written("budget: 5%")),
    ]
    assert cli.run(arguments) == 2
    assert capsys.readouterr().err.endswith("Did you mean --model instead of --modle?\n")


def test_a_mistake_of_the_command_line_does_not_name_the_file(written, capsys):
    path = written(REQUIRED + "dtype: float32\nbudget: 20%")
    for more in (["--dtype", "x"], ["--dtype=x"], ["--seed=-1"]):
        assert cli.run(["select", f"--config={path}", *more]) == 2
        assert str(path) not in capsys.readouterr().err


@dataclass
class Listing(cu.Policy):
    """Has hyper-parameters of several values."""

    steps: list[int]
    shares: tuple[float, ...] = ()
    named: dict[str, int] | None = None

    def ask(self, n, available, rng):
        return rng.permutation(np.flatnonzero(available))[:n]


def test_lists_and_mappings_of_a_strategy_arrive_and_are_written_again(written, monkeypatch):
    installed = plugins.load()
    listing = plugins.Strategy("policy", "listing", Listing, "test")
    known = plugins.Strategies({**installed.table, ("policy", "listing"): listing}, ())
    monkeypatch.setattr(plugins, "load", lambda: known)
    nested = "policy: {name: listing, steps: [1, 2], shares: [0.5, 1], named: {a: 3}}"
    content = REQUIRED + nested
    for _ in range(2):
        given = parse("select", "--config", written(content))["strategies"]
        made = known.make("policy", given.policy, key_values("-p", given.policy_option))
        assert made == Listing([1, 2], (0.5, 1.0), {"a": 3})
        content = REQUIRED + resolved(Settings(), policy=made).decode()
    with pytest.raises(
        OptionError, match=r"policy listing: steps is '\[\"x\"\]'; expected a list \(list\[int\]\)"
    ):
        known.make("policy", "listing", {"steps": '["x"]'})


def test_a_file_that_cannot_be_used_is_one_line(tmp_path, capsys):
    (tmp_path / "latin.yaml").write_bytes("model: é".encode("latin-1"))
    (tmp_path / "large.yaml").write_bytes(b"#" * (1 << 18) + b"\n")
    (tmp_path / "folder.yaml").mkdir()
    for name, message in {
        "none.yaml": "none.yaml cannot be read: No such file or directory",
        "folder.yaml": "folder.yaml cannot be read: Is a directory",
        "options.toml": "expected a file name ending in .yaml, .yml, .json",
        "latin.yaml": "latin.yaml is not UTF-8 (byte 7); save it as UTF-8",
        "large.yaml": "large.yaml is larger than 256 KiB",
    }.items():
        assert cli.run(["select", "--config", str(tmp_path / name)]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"seed": 1, "seed": 2}', "'seed' is given twice"),
        ('{"seed": 1.5}', "seed is '1.5'; expected a whole number"),
        ('{"strict": "maybe"}', "strict is 'maybe'; expected true or false"),
        ("{", "is not valid JSON: Expecting property name"),
        ("[]", "is a list; expected a mapping of options"),
        ("[" * 200_000, "lists and mappings are nested more than 8 deep"),
        ("[" * 20 + "]" * 20, "lists and mappings are nested more than 8 deep"),
    ],
)
def test_json_is_read_as_strictly(written, text, message):
    with pytest.raises(OptionError, match=message):
        parse("select", "--config", written(text, "options.json"))


def test_no_tag_runs_code(written, tmp_path):
    done = tmp_path / "done"
    for tag in ("python/object/apply:os.system", "python/name:os.system", "python/object/new:os.system"):
        with pytest.raises(OptionError, match="is a tag"):
            parse("select", "--config", written(f"{REQUIRED}seed: !!{tag} ['touch {done}']"))
    assert not done.exists()


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "{? ", "? "])
def test_depth_is_bounded(written, opening):
    depth = (1 << 18) // len(opening) - 10
    with pytest.raises(OptionError, match="lists and mappings are nested more than 8 deep"):
        config.read(written(opening * depth))


def test_aliases_that_would_unfold_without_end_are_refused(written):
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60))]
    for text in ("\n".join(lines), "a: &a [*a]", "<<: *a"):
        with pytest.raises(OptionError, match="is an anchor or alias"):
            config.read(written(text))


@given(st.text() | st.text("abc:[]{}&*!|>-?#%@`'\"\\ \n\t,~", max_size=60) | st.binary(max_size=60))
def test_whatever_a_file_holds_it_is_options_or_one_of_our_errors(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("fuzz")
    for name in ("any.yaml", "any.json"):
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        try:
            found = config.read(path)
        except OptionError as error:
            found = str(error)
        assert isinstance(found, dict) or str(path) in found


def test_an_empty_file_gives_nothing_and_a_byte_order_mark_does_no_harm(written, tmp_path):
    assert config.read(written("")) == config.read(written("# nothing\n")) == {}
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfseed: 3\r\nmodel: m\r\n")
    assert config.read(tmp_path / "bom.yaml") == {"seed": "3", "model": "m"}


def test_what_a_job_shows_may_stand_in_the_file(written):
    path = written(REQUIRED + "quiet: true\njson: no")
    for more, expected in (([], (True, False)), (["--quiet=false", "--json"], (False, True))):
        _, bound, _ = cli.app.parse_args(["select", "--config", str(path), *more], exit_on_error=False)
        assert (bound.arguments["job"].quiet, bound.arguments["job"].json) == expected


def test_two_files_are_a_mistake(written, capsys):
    path = str(written(REQUIRED))
    assert cli.run(["select", "--config", path, "--config", path]) == 2
    assert "--config" in capsys.readouterr().err


def test_a_command_line_without_a_file_needs_no_yaml():
    import subprocess

    code = (
        "import sys; from clusterucb.cli import main as cli\n"
        "cli.run(['select', 'a']); cli.run(['--help'])\n"
        "assert not {'yaml', 'torch', 'numpy'} & sys.modules.keys(), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def small(folder, out):
    return {
        "pool": folder / "pool.jsonl",
        "target": folder / "dev.jsonl",
        "model": folder / "model",
        "out": out,
        "warmup_steps": 2,
        "batch_size": 4,
    }


def results(folder):
    return {name: (folder / name).read_bytes() for name in RESULTS}


def test_the_file_of_a_run_repeats_it_to_the_byte(job, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(job)
    first, second = tmp_path / "first", tmp_path / "second"
    command = [
        "select", "pool.jsonl", "--target", "dev.jsonl", "--model", "model", "--out", str(first), "--warmup-steps", "2",
        "--warmup-lr", "1e-3", "--budget", "30%", "--select", "4", "--batch-size", "3",
        "--features", "hidden", "-f", "depth=0.5", "-c", "n_clusters=4", "--policy", "threshold-hard", "-p", "q=0.5",
        "--seed", "7", "--rule", "standardized", "--subtask-weights", "dev=2", "--quiet",
    ]  # fmt: skip
    assert cli.run(command) == 0
    content = yaml.safe_load((first / "config.yaml").read_text())
    assert content["pool"] == [str(job / "pool.jsonl")]
    assert content["model"] == str(job / "model")
    assert content["out"] == str(first)
    assert content["policy"] == {"name": "threshold-hard", "q": 0.5}
    assert content["features"]["name"] == "hidden"
    assert content["features"]["depth"] == 0.5
    assert (content["budget"], content["select"], content["warmup_lr"]) == ("30%", "4", 0.001)
    monkeypatch.chdir(tmp_path)
    assert cli.run(["select", "--config", str(first / "config.yaml"), "--out", str(second)]) == 0
    assert results(second) == results(first)
    lines = [(folder / "config.yaml").read_text().replace(str(folder), "OUT") for folder in (first, second)]
    assert lines[0] == lines[1]
    before = results(first)
    assert cli.run(["select", "--config", str(first / "config.yaml"), "--quiet"]) == 0  # it is finished
    assert results(first) == before


def test_every_option_of_every_job_is_in_its_file(job, tmp_path):
    cu.sketch(
        pool=job / "pool.jsonl", model=job / "model", out=tmp_path / "sketch", warmup_steps=2, sketch_dim=256
    )
    arguments = {**small(job, tmp_path / "select"), "store": tmp_path / "sketch", "sketch_dim": 256}
    cu.select(**arguments)
    strategies = [cu.Contender("mine", cu.UCB(beta=2.0), batch_size=2), cu.Contender("random", cu.Random())]
    arguments = {
        **arguments,
        "out": tmp_path / "compare",
        "strategies": strategies,
        "budgets": ["20%", 10],
        "seeds": 1,
    }
    cu.compare(**arguments)
    for name in JOBS:
        content = yaml.safe_load((tmp_path / name / "config.yaml").read_text())
        keys = {key for key in named(name) if not key.endswith("_option") and key != "feature_depth"}
        assert content.keys() == keys - COMMAND_LINE
    assert content["strategies"][1] == "random"
    assert content["strategies"][0].startswith("ucb@kmeans@embedding[policy.beta=2.0,")
    for name, files in {"sketch": ["sketches-00000.safetensors"], "select": RESULTS, "compare": []}.items():
        path, again = tmp_path / name / "config.yaml", tmp_path / f"{name}-again"
        assert cli.run([name, "--config", str(path), "--out", str(again), "--quiet"]) == 0
        assert all((again / file).read_bytes() == (tmp_path / name / file).read_bytes() for file in files)
    found = [
        json.loads((tmp_path / name / "comparison.json").read_text()) for name in ("compare", "compare-again")
    ]
    recalls = [[[p["recall"] for p in one["points"]] for one in content["strategies"]] for content in found]
    assert recalls[0] == recalls[1]


class Mine(cu.Policy):
    def ask(self, n, available, rng):
        return rng.permutation(np.flatnonzero(available))[:n]


def test_python_writes_the_same_file_and_says_what_has_no_name(job, tmp_path, monkeypatch):
    cu.select(**small(job, tmp_path / "python"), policy=cu.UCB(beta=0.5), clusterer=cu.KMeans(n_clusters=3))
    monkeypatch.chdir(job)
    command = [
        "select",
        "pool.jsonl",
        "--target",
        "dev.jsonl",
        "--model",
        "model",
        "--out",
        str(tmp_path / "command"),
    ]
    command += ["--warmup-steps", "2", "--batch-size", "4", "-c", "n_clusters=3", "--quiet"]
    command += ["--policy", "ucb", "-p", "beta=0.5"]
    assert cli.run(command) == 0
    files = [tmp_path / name / "config.yaml" for name in ("python", "command")]
    texts = [path.read_text().replace(str(path.parent), "OUT") for path in files]
    assert texts[0] == texts[1]
    cu.select(**small(job, tmp_path / "mine"), policy=Mine())
    text = (tmp_path / "mine" / "config.yaml").read_text()
    assert "# policy: test_config.Mine() is not installed under a name" in text
    assert "policy" not in yaml.safe_load(text)


def test_what_cannot_be_written_is_a_comment_and_hub_ids_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    strange = os.fsdecode(b"p\xff: #\n.jsonl")
    options = {"pool": [{"prompt": "a"}], "target": ["a", strange], "model": "org/name", "out": Path("out")}
    content = resolved(Settings(), **options, budgets=["5%", 3], numbers=[float("inf")]).decode()
    assert "# pool: an object in memory, list\n" in content
    (tmp_path / "c.yaml").write_text(content)
    found = config.read(tmp_path / "c.yaml")
    assert found["target"] == [str(tmp_path / "a"), str(tmp_path / strange)]
    assert found["model"] == "org/name"
    assert found["out"] == str(tmp_path / "out")
    assert found["numbers"] == ["inf"]
    (tmp_path / "org/name").mkdir(parents=True)
    assert f"model: {tmp_path}/org/name\n" in resolved(Settings(), **options).decode()


def test_features_are_named_with_their_parts_and_their_files(written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cu.Embedding, "contents", lambda self: {"model": "a fingerprint"})
    sentences = cu.Embedding()
    sentences.model = "sentences"
    for features, name, pairs in (
        (sentences, "embedding", (f"model={tmp_path / 'sentences'}", "parts=true")),
        (Column("vector"), "column", ("name=vector",)),
        (
            Concatenation((sentences, Column("vector"))),
            "embedding+column",
            (f"embedding.model={tmp_path / 'sentences'}", "embedding.parts=true", "column.name=vector"),
        ),
    ):
        content = resolved(Settings(), pool="p", target="t", model="m", out="o", features=features)
        arguments = parse("select", "--config", written(content.decode()))
        given = arguments["strategies"]
        assert (given.features, given.feature_option) == (name, pairs)


def test_a_comparison_that_no_command_line_can_name_says_so(tmp_path):
    single = cu.Contender("one arm", cu.UCB(), clusterer=None)
    assert "# strategies: one arm cannot be written" in resolved(Settings(), strategies=[single]).decode()
    mine = cu.Contender("mine", Mine())
    assert (
        "# strategies: test_config.Mine() is not installed"
        in resolved(Settings(), strategies=[mine]).decode()
    )


def test_the_file_is_there_from_the_beginning_and_holds_no_result(job, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise KeyboardInterrupt

    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr("clusterucb.jobs.select.AdaptedModel", fail, raising=False)
        patched.setattr("clusterucb.gradients.session.AdaptedModel", fail)
        with pytest.raises(KeyboardInterrupt):
            cu.select(**small(job, out))
    assert yaml.safe_load((out / "config.yaml").read_text())["seed"] == 0
    cu.select(**small(job, out), seed=1)  # nothing was computed: other settings may follow
    assert yaml.safe_load((out / "config.yaml").read_text())["seed"] == 1
    with pytest.raises(RunError, match="--seed was 1, now 0"):
        cu.select(**small(job, out))
    assert yaml.safe_load((out / "config.yaml").read_text())["seed"] == 1
    cu.select(**small(job, out), seed=1, budget="30%")
    assert yaml.safe_load((out / "config.yaml").read_text())["budget"] == "30%"
