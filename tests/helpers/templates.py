"""Chat templates shaped like those of known models, and tiny tokenizers to use them with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe useful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}"
)

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}"
    "{% set preface = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set turns = messages %}{% set preface = '' %}{% endif %}"
    "{% for m in turns %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + ((preface if loop.first else '') + m['content']).strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)

GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    "{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}"
)

ZEPHYR = "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}\n{{ eos_token }}\n{% endfor %}"

PHI_3 = "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}<|endoftext|>"

NO_END = "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}\n{% endfor %}"

# Takes the thinking out of every answer but the last, where it writes it anew, and empty if there is none.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}"
    "{% set parts = m['content'].split('</think>') %}"
    "{% if loop.last %}<think>\n"
    "{{ parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 else '' }}"
    "\n</think>\n\n{% endif %}"
    "{{ parts[-1].lstrip('\n') }}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
)

# Never shows any thinking.
THOUGHTLESS = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>"
    "{{ m['content'].split('</think>')[-1] if m['role'] == 'assistant' else m['content'] }}"
    "{{ eos_token if m['role'] == 'assistant' }}{% endfor %}"
)

# With tools, calls and results as Mistral's third version writes them. There is no prompt for an answer.
MISTRAL = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}"
    "{% set preface = messages[0]['content'] + '\n\n' %}"
    "{% else %}{% set turns = messages %}{% set preface = '' %}{% endif %}"
    "{% for m in turns %}"
    "{% if m['role'] == 'user' %}"
    "{% if loop.first and tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "[INST] {{ (preface if loop.first else '') + m['content'] }}[/INST]"
    "{% elif m['role'] == 'tool' %}"
    "[TOOL_RESULTS] {{ {'content': m['content'], 'call_id': m['tool_call_id']} | tojson }}[/TOOL_RESULTS]"
    "{% elif m['tool_calls'] is defined %}[TOOL_CALLS] ["
    "{% for call in m['tool_calls'] %}"
    "{% if call['id'] | length != 9 %}{{ raise_exception('ids of calls have nine letters and digits') }}{% endif %}"
    "{{ {'name': call['function']['name'], 'arguments': call['function']['arguments'], 'id': call['id']} | tojson }}"
    "{{ ', ' if not loop.last }}{% endfor %}]{{ eos_token }}"
    "{% else %} {{ m['content'] | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Shape:
    """A template and the tokens it needs.

    Attributes:
        source: the template.
        special: its control tokens.
        end: the end-of-turn token; "" if it writes none.
        bos, eos: its BOS and EOS tokens.
        system: whether it takes a system turn.
        text: added tokens that are not special.
    """

    source: str | None
    special: tuple[str, ...]
    end: str
    bos: str | None = None
    eos: str | None = None
    system: bool = True
    text: tuple[str, ...] = ()

    def tokenizer(self, **options: Any) -> PreTrainedTokenizerFast:
        """Return a tokenizer whose every token is a byte, or one of the template's."""
        return byte_level(self, **options)


SHAPES = {
    "chatml": Shape(CHATML, ("<|im_start|>", "<|im_end|>"), "<|im_end|>", eos="<|im_end|>"),
    "llama-3": Shape(
        LLAMA_3,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
    ),
    "llama-2": Shape(LLAMA_2, ("<s>", "</s>"), "</s>", bos="<s>", eos="</s>"),
    "gemma": Shape(
        GEMMA,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        bos="<bos>",
        eos="<eos>",
        system=False,
    ),
    "mistral": Shape(
        MISTRAL,
        (
            "<s>",
            "</s>",
            *(f"[{end}{name}]" for name in ("INST", "AVAILABLE_TOOLS", "TOOL_RESULTS") for end in ("", "/")),
            "[TOOL_CALLS]",
        ),
        "</s>",
        bos="<s>",
        eos="</s>",
    ),
    "zephyr": Shape(ZEPHYR, ("<s>", "</s>"), "</s>", bos="<s>", eos="</s>"),
    "phi-3": Shape(
        PHI_3,
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
        "<|end|>",
        eos="<|endoftext|>",
    ),
    "no-end": Shape(NO_END, ("<|user|>", "<|assistant|>", "<|system|>"), ""),
    "thinking": Shape(
        THINKING,
        ("<|im_start|>", "<|im_end|>"),
        "<|im_end|>",
        eos="<|im_end|>",
        text=("<think>", "</think>"),
    ),
    "thoughtless": Shape(THOUGHTLESS, ("<s>", "</s>"), "</s>", bos="<s>", eos="</s>"),
}


def byte_level(
    shape: Shape, *, corpus: tuple[str, ...] = (), trim_offsets: bool = False, strips: bool = False
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with the shape's template and control tokens.

    Args:
        shape: what it is for.
        corpus: text to learn merges from; without any, every token is a byte.
        trim_offsets: whether offsets leave out whitespace.
        strips: whether control tokens take in the whitespace around them.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    trainer = trainers.BpeTrainer(
        vocab_size=256 + 200 * bool(corpus),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    backend.add_special_tokens([AddedToken(t, lstrip=strips, rstrip=strips) for t in shape.special])
    backend.add_tokens(list(shape.text))
    return _wrapped(backend, shape)


def sentencepiece(shape: Shape) -> PreTrainedTokenizerFast:
    """Return a tokenizer like Llama 2's: a BPE over characters with a space put before the text, and BOS."""
    letters = [chr(code) for code in range(33, 127)]
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters]
    merges = [("▁", letter) for letter in "ABCDHT"] + [("h", "e"), ("l", "l"), ("t", "h")]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, *("".join(m) for m in merges)])}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", *shape.special)])
    if shape.bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{shape.bos} $A", special_tokens=[(shape.bos, backend.token_to_id(shape.bos))]
        )
    return _wrapped(backend, shape, unk_token="<unk>")


def _wrapped(backend: Tokenizer, shape: Shape, **tokens: str) -> PreTrainedTokenizerFast:
    tokens |= {"bos_token": shape.bos} if shape.bos else {}
    tokens |= {"eos_token": shape.eos} if shape.eos else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)
    tokenizer.chat_template = shape.source
    return tokenizer
