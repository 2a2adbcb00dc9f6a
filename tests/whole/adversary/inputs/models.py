"""Hostile models: configurations, weights, tokenizers and chat templates."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from whole.adversary.inputs.payloads import CANARY, EVERY, Hostile, evils, select

_CODE = f"open({CANARY!r}, 'w').close()\nclass Model: pass\nclass Config: pass\n"
_MAPPED = {
    "AutoConfig": "evil.Config",
    "AutoModelForCausalLM": "evil.Model",
    "AutoTokenizer": ["evil.Model", "evil.Model"],
    "AutoModel": "elsewhere--evil.Model",
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "code of its own": {"auto_map": _MAPPED, "model_type": "evil"},
    "code beside a known type": {"auto_map": _MAPPED},
    "code that it trusts": {"auto_map": _MAPPED, "trust_remote_code": True, "model_type": "evil"},
    "code of another repository": {"auto_map": {"AutoConfig": "a/b--evil.Config"}, "model_type": "evil"},
    "attention from a hub": {"attn_implementation": "evil/kernels", "_attn_implementation": "evil/kernels"},
    "attention from a folder": {"_attn_implementation_internal": "./evil:Model", "use_kernels": True},
    "the architecture of a function": {"architectures": ["pipeline"]},
    "the architecture of a module": {"architectures": ["utils"]},
    "an architecture of controls": {"architectures": [EVERY], "model_type": EVERY},
    "an architecture of numbers": {"architectures": [5, None, {}]},
    "a dtype of a function": {"torch_dtype": "load", "dtype": "hub"},
    "a dtype of controls": {"torch_dtype": EVERY, "dtype": EVERY},
    "an activation of a path": {"hidden_act": "os.system"},
    "an activation of controls": {"hidden_act": EVERY},
    "quantisation of another kind": {"quantization_config": {"quant_method": "evil", "modules_to_not_convert": [EVERY]}},
    "quantisation of code": {"quantization_config": {"quant_method": "torchao", "quant_type": {"default": {"_type": "os.system", "_data": "touch canary"}}}},
    "quantisation by gptq": {"quantization_config": {"quant_method": "gptq", "bits": 4, "dataset": "evil/data"}},
    "weights elsewhere": {"transformers_weights": "../../canary", "_name_or_path": "evil/evil"},
    "an adapter elsewhere": {"base_model_name_or_path": "evil", "_adapter_model_path": "evil"},
    "a type of itself": {"model_type": "encoder-decoder", "encoder": {"model_type": "encoder-decoder"}},
    "a million layers": {"num_hidden_layers": 1_000_000},
    "10**18 layers": {"num_hidden_layers": 10**18},
    "a vocabulary of 10**12": {"vocab_size": 10**12},
    "a vocabulary of 2**31": {"vocab_size": 2**31},
    "a hidden size of 10**9": {"hidden_size": 10**9},
    "10**12 positions": {"max_position_embeddings": 10**12},
    "negative sizes": {"hidden_size": -64, "num_attention_heads": -4},
    "no heads": {"num_attention_heads": 0, "num_key_value_heads": 0},
    "sizes as texts": {"hidden_size": "64", "num_hidden_layers": "two"},
    "sizes as lists": {"hidden_size": [64], "vocab_size": {"a": 1}},
    "a rotary base of NaN": {"rope_theta": float("nan"), "rms_norm_eps": float("inf")},
    "rotary positions of controls": {"rope_scaling": {"rope_type": EVERY, "factor": 1e400}},
    "rotary positions without end": {"rope_scaling": {"rope_type": "yarn", "factor": 1e300, "original_max_position_embeddings": 10**15}},
    "tokens of controls": {"bos_token_id": EVERY, "eos_token_id": [10**18], "pad_token_id": -5},
    "a generation of code": {"custom_generate": "evil", "generation_config": {"custom_generate": "evil"}},
    "attributes of Python": {"__class__": "evil", "__init__": 1, "__dict__": {}, "__module__": EVERY},
    "methods as values": {"to_dict": 1, "get_text_config": "x", "save_pretrained": None},
    "labels without end": {"num_labels": 10**9},
    "many labels": {"id2label": {str(at): EVERY for at in range(100_000)}},
    "a deep value": {"x": json.loads("[" * 900 + "]" * 900)},
    "layers of controls": {"layer_types": [EVERY] * 2},
    "tensor parallelism": {"base_model_tp_plan": {"layers.*.self_attn.q_proj": EVERY}, "tp_plan": "auto"},
}  # fmt: skip
_TOKENIZER_CONFIGS: dict[str, dict[str, Any]] = {
    "code of its own": {
        "auto_map": {"AutoTokenizer": ["evil.Model", "evil.Model"]},
        "tokenizer_class": "Evil",
    },
    "a class of a path": {"tokenizer_class": "../../evil"},
    "a class of a function": {"tokenizer_class": "pipeline"},
    "a class of controls": {"tokenizer_class": EVERY},
    "files elsewhere": {"tokenizer_file": "/etc/passwd", "vocab_file": "../../run/manifest.json"},
    "a length of a text": {"model_max_length": "x"},
    "tokens of attributes": {"extra_special_tokens": {"__class__": "x", "encode": "y", "get_vocab": "z"}},
    "added tokens without end": {
        "added_tokens_decoder": {str(10**9): {"content": "x"}, "-1": {"content": "y"}}
    },
    "added tokens of controls": {
        "added_tokens_decoder": {"5": {"content": EVERY, "special": True}},
        "eos_token": EVERY,
    },
    "inputs of controls": {"model_input_names": [EVERY, "__class__"]},
    "a template of numbers": {"chat_template": 5},
    "templates of controls": {"chat_template": [{"name": EVERY, "template": "x"}]},
    "a side of controls": {"padding_side": EVERY, "truncation_side": EVERY},
    "tokens of numbers": {"bos_token": 5, "eos_token": [], "pad_token": {"content": 5}},
}
_REPLACED = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 3000}
_TOKENIZERS: dict[str, dict[str, Any]] = {
    "texts that grow": {"normalizer": _REPLACED},
    "texts that grow without end": {"normalizer": {"type": "Sequence", "normalizers": [_REPLACED] * 5}},
    "a slow pattern": {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a|aa|[a-z]|.)+$b"}, "behavior": "Isolated", "invert": False}},
    "a slow pattern that replaces": {"normalizer": {"type": "Replace", "pattern": {"Regex": "((a|.)*)*$b"}, "content": ""}},
    "a pattern that is too deep": {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(" * 20_000 + ")" * 20_000}, "behavior": "Isolated", "invert": False}},
    "a pattern of a large count": {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "((a{1000}){1000}){1000}"}, "behavior": "Isolated", "invert": False}},
    "an empty pattern": {"pre_tokenizer": {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False}},
    "padding without end": {"padding": {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}},
    "padding to a multiple": {"padding": {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": 10**9, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}},
    "truncation to nothing": {"truncation": {"max_length": 0, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}},
    "a stride that is too long": {"truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 9, "direction": "Right"}},
    "an unknown model": {"model": {"type": "Evil", "vocab": {}}},
    "no vocabulary": {"model": {"type": "BPE", "vocab": {}, "merges": []}},
    "merges of strangers": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["b", "c"]]}},
    "large ids": {"model": {"type": "WordLevel", "vocab": {"a": 4_000_000_000, "x": 0}, "unk_token": "x"}},
    "ids beyond 32 bits": {"model": {"type": "WordLevel", "vocab": {"a": 2**40, "x": -1}, "unk_token": "x"}},
    "scores that are none": {"model": {"type": "Unigram", "vocab": [["a", -1e400], ["b", 1e308]], "unk_id": 0}},
    "an unknown token elsewhere": {"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 10**6}},
    "a large vocabulary": {"model": {"type": "WordLevel", "vocab": "many", "unk_token": "w0"}},
    "a long token": {"added_tokens": [{"id": 0, "content": "x" * 500_000, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}]},
    "an empty added token": {"added_tokens": [{"id": 0, "content": "", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}]},
    "a post-processor of nothing": {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": EVERY, "type_id": 0}}], "pair": [], "special_tokens": {}}},
    "characters that are no map": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}},
    "a version of controls": {"version": EVERY},
    "words that are cut": {"model": {"type": "WordPiece", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 10**9}},
}  # fmt: skip
_ESCAPES = (
    "cycler.__init__.__globals__.os.system('touch canary')", "lipsum.__globals__['os'].system('touch canary')",
    "joiner.__init__.__globals__.os.popen('touch canary').read()", "namespace.__init__.__globals__['os']",
    "''.__class__.__mro__[1].__subclasses__()", "''|attr('__class__')", "()|attr('\\x5f\\x5fclass\\x5f\\x5f')",
    "messages.__class__.__base__.__subclasses__()", "self.__init__.__globals__", "self._TemplateReference__context",
    "raise_exception.__globals__", "raise_exception.__closure__[0].cell_contents", "strftime_now.__globals__",
    "'{0.__class__.__init__.__globals__}'.format(messages)", "'{x.__class__}'.format_map({'x': messages})",
    "messages|map(attribute='__class__')|list", "messages|map('attr', '__class__')|list",
    "messages|groupby('__class__')|list", "messages|sort(attribute='__class__')", "messages|sum(attribute='__len__')",
    "messages.append(1)", "messages.clear()", "messages[0].update({'role': 'x'})", "messages[0].pop('role')",
    "config.items()", "dict.__base__.__subclasses__()", "[].__reduce_ex__(2)", "messages['__class__']",
    "messages.append.__self__", "(messages|map('upper')).gi_frame.f_globals", "'x'.join.__call__",
    "cycler.next.__func__.__code__", "tojson.__globals__", "range.__class__", "messages|pprint|attr('format')",
    "(dict|attr('mro'))()", "joiner|string|xmlattr", "messages.__getattribute__('append')", "caller.__wrapped__",
    "raise_exception('" + "\\x1b[2J\\x9b31m\\u202e" + "')", "strftime_now('" + "%Y" * 9 + "\\x1b[2J')",
)  # fmt: skip
_BOMBS = (
    "{% for a in range(10**9) %}{% endfor %}", "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4,
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{{ 'a' * 10**10 }}", "{{ [0] * 10**10 }}", "{{ 'x'.ljust(10**10) }}", "{{ 'a'|center(10**10) }}",
    "{{ '%10000000000d' % 1 }}", "{{ '{:>10000000000}'.format(1) }}", "{{ 10**10**8 }}", "{{ 9**9**9**9 }}",
    "{{ range(99999)|list|tojson(indent=9**9) }}", "{{ ('a' * 10**6)|indent(10**6) }}", "{{ 'a'|replace('', 'a' * 10**9) }}",
    "{% set n = namespace(x='a' * 1024) %}{% for a in range(99999) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x=[]) %}{% for a in range(99999) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "{{ lipsum(n=10**8) }}", "{{ 'a'|wordwrap(0) }}", "{{ (1 << 10**10) }}", "{{ ('a' * 10**8)|urlize }}",
    "{{ range(10**10)|list }}", "{{ range(10**10)|random }}", "{{ (range(10**6)|batch(1)|list)|length }}",
    "{{ ('a' * 10**7).split('') }}", "{{ ('a ' * 10**8).title() }}", "{{ 'a'.zfill(10**10) }}", "{{ '\\t'.expandtabs(10**10) }}",
    "{{ (10**5000)|string }}", "{{ ('ab' * 10**5)|unique|join('x' * 10**5) }}", "{% include '/etc/passwd' %}", "{% import 'os' as os %}",
    "{% extends 'x' %}", "{{ " + "(" * 5000 + ")" * 5000 + " }}", "{% if x %}" * 3000, "{{ " + "-" * 50_000 + "1 }}", "{{ " + "'x' ~ " * 30_000 + "'' }}",
    "{% while true %}{% endwhile %}", "{% generation %}{% generation %}", "{% break %}", "{% do messages %}", "\x1b[2J{{ x.y.z }}", "{% \x9b31m\u202e %}",
)  # fmt: skip
_PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def _model(folder: Path) -> Path:
    shutil.copytree("model", folder / "model")
    (folder / "model" / "evil.py").write_text(_CODE)
    return folder / "model"


def _edited(file: str, changes: dict[str, Any]) -> Callable[[Path], list[str]]:
    """Return what writes a model with changes in one of its JSON files."""

    def make(folder: Path) -> list[str]:
        path = _model(folder) / file
        content = {**json.loads(path.read_text()), **changes}
        if changes.get("model", {}).get("vocab") == "many":
            content["model"] = {**changes["model"], "vocab": {f"w{at}": at for at in range(1_500_000)}}
        path.write_text(json.dumps(content))
        return select(model=path.parent)

    return make


def _replaced(file: str, content: bytes) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        model = _model(folder)
        (model / file).write_bytes(content)
        return select(model=model)

    return make


def configs() -> Iterator[Hostile]:
    """Yield models with hostile configurations."""
    for name, changes in _CONFIGS.items():
        yield Hostile(f"a model with {name}", _edited("config.json", changes))
    for name, changes in _TOKENIZER_CONFIGS.items():
        yield Hostile(f"a tokenizer with {name}", _edited("tokenizer_config.json", changes))
    for file in ("config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json"):
        for name, content in {
            "deep nesting": b"[" * 200_000, "nothing": b"", "a list": b"[]", "null": b"null", "NaN": b'{"a": NaN, "vocab_size": 1e999}',
            "bytes": b"\xff\xfe\x00" * 99, "controls": json.dumps({EVERY: EVERY}).encode(), "5 MB": b'{"a": "' + b"x" * 5_000_000 + b'"}',
        }.items():  # fmt: skip
            yield Hostile(f"{name} as {file}", _replaced(file, content))


def tokenizers() -> Iterator[Hostile]:
    """Yield models with hostile tokenizers."""
    for name, changes in _TOKENIZERS.items():
        yield Hostile(f"a tokenizer with {name}", _edited("tokenizer.json", changes))
    yield Hostile("a tokenizer in a pickle", _replaced("tokenizer.model", pickle.dumps(b"x")))
    deep: dict[str, Any] = {"type": "Sequence", "normalizers": []}
    for _ in range(100):
        deep = {"type": "Sequence", "normalizers": [deep]}
    yield Hostile("a tokenizer of deep normalizers", _edited("tokenizer.json", {"normalizer": deep}))


def templates() -> Iterator[Hostile]:
    """Yield hostile chat templates."""

    def templated(template: str) -> Callable[[Path], list[str]]:
        def make(folder: Path) -> list[str]:
            path = folder / "template.jinja"
            path.write_text(template)
            return select("pool.jsonl", "--chat-template", path)

        return make

    for escape in _ESCAPES:
        yield Hostile(f"a template with {escape}", templated(f"{{{{ {escape} }}}}{_PLAIN}"))
    for bomb in _BOMBS:
        yield Hostile(f"a template with {bomb:.60}", templated(bomb + _PLAIN))
    yield Hostile(
        "a template of the model",
        _replaced("chat_template.jinja", f"{{{{ {_ESCAPES[0]} }}}}{_PLAIN}".encode()),
    )
    yield Hostile("a template of 5 MB", templated("x" * 5_000_000 + _PLAIN))
    yield Hostile("a template of controls", templated(EVERY + _PLAIN))


def _tensors(header: object, *, length: int | None = None, data: bytes = bytes(64)) -> bytes:
    """Return a safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@cache
def headers() -> dict[str, bytes]:
    """Return hostile safetensors files by name."""
    one = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    return {
        "a header of 2**63 bytes": _tensors({}, length=2**63),
        "a header of 100 MB": _tensors({}, length=10**8),
        "a header that is longer than the file": _tensors({}, length=5000),
        "a header of no JSON": _tensors(b"\xff" * 99),
        "a deep header": _tensors(b"[" * 1_000_000),
        "offsets beyond the end": _tensors({"a": {**one, "data_offsets": [0, 2**40]}}),
        "offsets beyond 64 bits": _tensors({"a": {**one, "data_offsets": [0, 2**70]}}),
        "offsets that overlap": _tensors({"a": one, "b": {**one, "data_offsets": [8, 24]}}),
        "offsets backwards": _tensors({"a": {**one, "data_offsets": [16, 0]}}),
        "offsets below 0": _tensors({"a": {**one, "data_offsets": [-16, 0]}}),
        "a shape that overflows": _tensors({"a": {**one, "shape": [2**62, 8]}}),
        "a shape of 10**15": _tensors({"a": {**one, "shape": [10**15]}}),
        "a shape below 0": _tensors({"a": {**one, "shape": [-4]}}),
        "a shape of a thousand": _tensors({"a": {**one, "shape": [1] * 1000}}),
        "no shape": _tensors({"a": {"dtype": "F32"}}),
        "a dtype of controls": _tensors({"a": {**one, "dtype": EVERY}}),
        "names of controls": _tensors({EVERY: one}, data=bytes(16)),
        "metadata of controls": _tensors({"__metadata__": {EVERY: EVERY}, "a": one}, data=bytes(16)),
        "metadata of another type": _tensors({"__metadata__": [1], "a": one}, data=bytes(16)),
        "a format of controls": _tensors({"__metadata__": {"format": EVERY}, "a": one}, data=bytes(16)),
        "many tensors": _tensors({f"t{at}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for at in range(50_000)}, data=b""),
        "nothing": b"",
        "eight bytes": b"\xff" * 8,
    }  # fmt: skip


def weights() -> Iterator[Hostile]:
    """Yield models with hostile weights."""
    for name, content in headers().items():
        yield Hostile(f"weights with {name}", _replaced("model.safetensors", content))
    for name, where in {
        "above": "../../run/adapter/adapter_model.safetensors", "in /etc": "/etc/passwd", "in a pickle": "evil.bin",
        "of controls": EVERY, "nowhere": "x.safetensors",
    }.items():  # fmt: skip
        yield Hostile(f"an index of weights {name}", _indexed(where))
    yield Hostile(
        "an index without end",
        _replaced(
            "model.safetensors.index.json",
            json.dumps({"weight_map": {f"{at}": "x" for at in range(300_000)}}).encode(),
        ),
    )
    for name in (
        "os.system",
        "exec",
        "eval",
        "open",
        "Popen",
        "Path.touch",
        "import",
        "runpy",
        "inner pickle",
    ):
        for save in (pickle.dump, torch.save):
            yield Hostile(
                f"weights that are a pickle with {name}, by {save.__module__}", _pickled(name, save)
            )


def _indexed(where: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        model = _model(folder)
        (model / "model.safetensors").unlink()
        (model / "evil.bin").write_bytes(pickle.dumps(evils()["exec"]))
        names = {"model.embed_tokens.weight": where}
        for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
            (model / index).write_text(json.dumps({"metadata": {"total_size": 10**18}, "weight_map": names}))
        return select(model=model)

    return make


def _pickled(name: str, save: Callable[..., None]) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        model = _model(folder)
        (model / "model.safetensors").unlink()
        with (model / "pytorch_model.bin").open("wb") as file:
            save({"model.embed_tokens.weight": evils()[name]}, file)
        return select(model=model)

    return make


def all_models() -> Iterator[Hostile]:
    """Yield every hostile model."""
    for family in (configs, tokenizers, templates, weights):
        yield from family()
