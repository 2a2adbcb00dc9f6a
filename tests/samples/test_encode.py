from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clusterucb.errors import ModelError, OptionError
from clusterucb.samples.encode import Encoder, Unusable
from clusterucb.samples.encoded import Encoded
from clusterucb.samples.pool import Message
from helpers.templates import SHAPES, Shape, byte_level, sentencepiece

LONG = 1 << 20
ENCODERS = {name: Encoder(shape.tokenizer(), max_length=LONG) for name, shape in SHAPES.items()}

# Text that is hard on templates and tokenizers: control tokens spelt out, whitespace at ends, any language.
WORDS = st.sampled_from(
    [
        *sorted({token for shape in SHAPES.values() for token in shape.special}),
        *(
            "<|im_start|>system\n",
            "[INST]",
            "<<SYS>>",
            "user",
            "assistant",
            " ",
            "\n",
            "\n\n",
            "\t",
            "\ue000",
        ),
        *(
            "<",
            "|>",
            "Hello",
            "äöü",
            "日本語",
            "🙂‍↔️",
            "\x00",
            "\u200b",
            "{{ 1 }}",
            "{% if %}",
            "Qz7contentQ0zQ",
        ),
    ]
)
TEXT = st.lists(WORDS | st.text(max_size=5), max_size=6).map("".join)
SAID = TEXT.filter(str.strip)


@st.composite
def conversations(draw: st.DrawFn, system: bool = True, text: st.SearchStrategy[str] = SAID) -> list[Message]:
    """Alternating turns of a user and an assistant, perhaps with a system turn first."""
    messages = [Message("system", draw(text))] if system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages += [Message("user", draw(text)), Message("assistant", draw(text))]
    return messages


def turns(*contents: str, system: str | None = None) -> list[Message]:
    """User and assistant by turns, after a system turn if there is one."""
    first = [] if system is None else [Message("system", system)]
    return first + [Message(("user", "assistant")[at % 2], text) for at, text in enumerate(contents)]


def labelled(encoder: Encoder, encoded: Encoded) -> str:
    return str(encoder._tokenizer.decode(encoded.tokens[encoded.labels]))


def content(encoder: Encoder, encoded: Encoded) -> str:
    return str(encoder._tokenizer.decode(encoded.tokens[encoded.content]))


def reference(shape: Shape, messages: list[Message]) -> tuple[list[int], list[bool], list[bool]]:
    """Encode by an independent and slow way, for tokenizers of one token a byte.

    Each content in turn is put between two characters that occur nowhere else, trimmed in whatever way
    leaves the rest of the rendered text as it is. Then everything is spelt byte by byte.
    """
    tokenizer = shape.tokenizer()
    conversation = [{"role": m.role, "content": m.content} for m in messages]
    rendered = tokenizer.apply_chat_template(conversation, tokenize=False)
    owner: list[int | None] = [None] * len(rendered)
    for at, m in enumerate(messages):
        for trimmed in (m.content, m.content.strip(), m.content.rstrip(), m.content.lstrip("\n")):
            marked = [*conversation]
            marked[at] = {"role": m.role, "content": f"\uf8f0{trimmed}\uf8f1"}
            before, rest = tokenizer.apply_chat_template(marked, tokenize=False).split("\uf8f0")
            inside, after = rest.split("\uf8f1")
            if before + inside + after == rendered:
                owner[len(before) : len(before) + len(inside)] = [at] * len(inside)
                break
        else:
            raise AssertionError("the template changed a content")

    tokens: list[int] = []
    labels: list[bool] = []
    contents: list[bool] = []

    def add(ids: list[int], label: bool, is_content: bool) -> None:
        tokens.extend(ids)
        labels.extend([label] * len(ids))
        contents.extend([is_content] * len(ids))

    position, answered = 0, False  # answered: an answer has been written and its end of turn has not
    while position < len(rendered):
        at = owner[position]
        control = [t for t in (*shape.special, *shape.text) if rendered.startswith(t, position)]
        if at is None and control:
            add(tokenizer.convert_tokens_to_ids(control[:1]), answered and control[0] == shape.end, False)
            position += len(control[0])
            answered = False
        else:
            ids = [byte_token(tokenizer, byte) for byte in rendered[position].encode()]
            is_answer = at is not None and messages[at].role == "assistant"
            add(ids, is_answer, at is not None)
            answered = is_answer or (answered and at is None)
            position += 1
    return tokens, [False, *labels[1:]], contents


def byte_token(tokenizer: object, byte: int) -> int:
    """The token of a byte: printable ones are spelt as themselves, the others from U+0100 on, in order."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [other for other in range(256) if other not in printable]
    return tokenizer.convert_tokens_to_ids(chr(byte if byte in printable else 256 + others.index(byte)))


# ---- labels


@pytest.mark.parametrize("name", SHAPES)
@given(data=st.data())
def test_tokens_labels_and_content_are_those_of_the_slow_reference(name: str, data: st.DataObject) -> None:
    messages = data.draw(conversations(system=SHAPES[name].system))
    encoded = ENCODERS[name](messages)
    tokens, labels, contents = reference(SHAPES[name], messages)
    assert encoded.tokens.tolist() == tokens
    assert encoded.labels.tolist() == labels
    assert encoded.content.tolist() == contents


UNUSABLE = st.sampled_from(
    [turns("no answer"), turns("a blank one", " "), [Message("text", "\n")], turns("<|im_end|>", "\ue000")]
)
WITHOUT_TURNS = TEXT.map(lambda text: [Message("text", text)])


@pytest.mark.parametrize("name", SHAPES)
@given(data=st.data())
def test_who_shares_a_batch_changes_nothing(name: str, data: st.DataObject) -> None:
    encoder = ENCODERS[name]
    many = data.draw(st.lists(conversations(system=False) | UNUSABLE | WITHOUT_TURNS, max_size=5))
    for messages, encoded in zip(many, encoder.batch(many), strict=True):
        if isinstance(encoded, Unusable):
            with pytest.raises(Unusable, match=f"^{re.escape(str(encoded))}$"):
                encoder(messages)
            continue
        alone = encoder(messages)
        for field in ("tokens", "labels", "content"):
            np.testing.assert_array_equal(getattr(encoded, field), getattr(alone, field))


@pytest.mark.parametrize("name", SHAPES)
def test_every_answer_and_its_end_of_turn_is_labelled_and_nothing_else(name: str) -> None:
    encoder, end = ENCODERS[name], SHAPES[name].end
    encoded = encoder(turns("Hi", "Hello.", "And\nyou?", "Fine,\n\nthanks."))
    assert labelled(encoder, encoded) == f"Hello.{end}Fine,\n\nthanks.{end}"
    assert content(encoder, encoded) == "HiHello.And\nyou?Fine,\n\nthanks."
    assert encoded.n_labels == encoded.labels.sum()
    assert len(encoded) == len(encoded.tokens)


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if shape.system])
def test_a_system_turn_is_content_and_not_labelled(name: str) -> None:
    encoder = ENCODERS[name]
    encoded = encoder(turns("Hi", "Hello.", system="Be brief."))
    assert labelled(encoder, encoded) == f"Hello.{SHAPES[name].end}"
    assert content(encoder, encoded) == "Be brief.HiHello."


def test_a_system_prompt_that_the_template_inserts_is_no_content() -> None:
    encoder = ENCODERS["chatml"]
    encoded = encoder(turns("Hi", "Hello."))
    assert "Be useful." in encoder._tokenizer.decode(encoded.tokens)
    assert content(encoder, encoded) == "HiHello."


@pytest.mark.parametrize("name", SHAPES)
def test_contents_that_look_like_the_template_are_not_confused_with_it(name: str) -> None:
    encoder, end = ENCODERS[name], SHAPES[name].end
    encoded = encoder(turns("user", "assistant", "assistant\n", "Be useful."))
    assert labelled(encoder, encoded) == f"assistant{end}Be useful.{end}"


@pytest.mark.parametrize("name", SHAPES)
def test_turns_after_the_last_answer_change_nothing(name: str) -> None:
    same = ENCODERS[name](turns("Hi", "Hello.")), ENCODERS[name](turns("Hi", "Hello.", "And you?"))
    np.testing.assert_array_equal(same[0].tokens, same[1].tokens)


def test_a_template_without_an_end_of_turn_labels_the_answer_alone() -> None:
    encoded = ENCODERS["no-end"](turns("Hi", "Hello.", "And you?", "Fine."))
    assert labelled(ENCODERS["no-end"], encoded) == "Hello.Fine."


def test_a_blank_answer_has_no_label_beside_one_that_says_something() -> None:
    for messages in (turns("Hi", " ", "Hello?", "Yes."), turns("Hello?", "Yes.", "Really?", "")):
        assert labelled(ENCODERS["chatml"], ENCODERS["chatml"](messages)) == "Yes.<|im_end|>"


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("answer", ["", " ", "\n\t "])
def test_an_empty_answer_is_unusable(name: str, answer: str) -> None:
    with pytest.raises(Unusable, match="empty answer"):
        ENCODERS[name](turns("Hi", answer))


def test_a_conversation_without_an_answer_is_unusable() -> None:
    with pytest.raises(Unusable, match="no assistant turn"):
        ENCODERS["chatml"](turns("Hi"))


# ---- templates that have their own mind


def test_what_a_template_refuses_is_unusable_with_its_words() -> None:
    with pytest.raises(
        Unusable, match="chat template: it refuses the conversation: no system turns"
    ) as refusal:
        ENCODERS["gemma"](turns("Hi", "Hello.", system="Be brief."))
    assert refusal.value.reason == str(refusal.value)
    with pytest.raises(Unusable, match="must alternate"):
        ENCODERS["llama-2"]([Message("user", "Hi"), *turns("Hi", "Hello.")])


def changed(name: str, old: str, new: str) -> Encoder:
    """An encoder with something replaced in the template of a shape."""
    tokenizer = SHAPES[name].tokenizer()
    assert old in tokenizer.chat_template
    tokenizer.chat_template = tokenizer.chat_template.replace(old, new)
    return Encoder(tokenizer, max_length=LONG)


def test_a_template_that_rewrites_contents_is_refused() -> None:
    encoder = changed("chatml", "m['content']", "m['content'] | replace('a', 'b')")
    assert labelled(encoder, encoder(turns("Hi", "Hello."))) == "Hello.<|im_end|>"
    with pytest.raises(Unusable, match=r"chat template: it rewrites turn 1 \(user\)"):
        encoder(turns("What?", "Hello."))


def test_a_template_that_leaves_a_turn_out_or_repeats_it_is_refused() -> None:
    silent = changed("chatml", "m['content']", "m['content'] if m['role'] != 'user'")
    with pytest.raises(Unusable, match=r"chat template: it writes turn 1 \(user\) 0 times"):
        silent(turns("Hi", "Hello."))
    echoing = changed("chatml", "m['content']", "m['content'] * 2")
    with pytest.raises(Unusable, match=r"chat template: it writes turn 1 \(user\) 2 times"):
        echoing(turns("Hi", "Hello."))


@pytest.mark.parametrize(
    ("where", "old"), [("begins", "{% for m in messages %}"), ("ends", "{% if add_generation_prompt %}")]
)
def test_a_template_whose_own_text_depends_on_contents_is_refused(where: str, old: str) -> None:
    encoder = changed("zephyr" if where == "begins" else "chatml", old, SAD + old)
    encoded = encoder(turns("Hi", "Hello."))
    assert content(encoder, encoded) == "HiHello."
    with pytest.raises(Unusable, match=f"{where} with text that depends on the content of the turns"):
        encoder(turns("I am sad.", "Oh."))


SAD = "{% if 'sad' in messages[0]['content'] %}:({% endif %}"


def test_a_turn_that_says_nothing_may_be_left_out_by_the_template() -> None:
    encoder = changed("chatml", "{% for m in messages %}", "{% for m in messages if m['content'] %}")
    encoded = encoder(turns("Hi", "Hello.", system=""))
    assert labelled(encoder, encoded) == "Hello.<|im_end|>"


def test_a_template_that_is_not_jinja_is_an_error_of_the_model() -> None:
    with pytest.raises(ModelError, match="not valid Jinja"):
        changed("chatml", "{% endfor %}", "")(turns("Hi", "Hello."))


def test_several_templates_without_a_default_are_an_error_of_the_model() -> None:
    tokenizer = SHAPES["chatml"].tokenizer()
    tokenizer.chat_template = {"rag": "x", "tools": "y"}
    with pytest.raises(ModelError, match="no default one"):
        Encoder(tokenizer, max_length=8)


@pytest.mark.parametrize("call", ["strftime_now('%d %b %Y')", 'strftime_now( "%d %b %Y" )'])
def test_the_date_that_a_template_writes_is_always_the_same(call: str) -> None:
    encoder = changed(
        "chatml", "Be useful.", "It is {% if strftime_now is defined %}{{ " + call + " }}{% endif %}."
    )
    encoded = encoder(turns("Hi", "Hello."))
    assert "system\nIt is 26 Jul 2024.<|im_end|>" in encoder._tokenizer.decode(encoded.tokens)
    assert labelled(encoder, encoded) == "Hello.<|im_end|>"


def test_a_date_in_a_format_that_is_not_written_out_is_the_same_too() -> None:
    encoder = changed("chatml", "Be useful.", "{% set day = '%d' %}It is {{ strftime_now(day) }}.")
    encoded = encoder(turns("Hi", "Hello."))
    assert "It is 2024-07-26." in encoder._tokenizer.decode(encoded.tokens)


# ---- thinking

THOUGHT = "<think>\nHm.\n</think>\n\n"


def test_thinking_that_the_template_keeps_is_labelled() -> None:
    encoder = ENCODERS["thinking"]
    encoded = encoder(turns("Hi", f"{THOUGHT}Hello.", "And you?", f"{THOUGHT}Fine."))
    assert labelled(encoder, encoded) == f"Hello.<|im_end|>{THOUGHT}Fine.<|im_end|>"
    assert encoder._tokenizer.convert_tokens_to_ids("<think>") in encoded.tokens[encoded.labels]


@pytest.mark.parametrize("reply", ["Fine.", "\nFine.", " Fine.\n"])
def test_what_follows_the_thinking_is_kept_as_the_template_writes_it(reply: str) -> None:
    answer = f"<think>Hm.</think>{reply}"
    encoded = ENCODERS["thoughtless"](turns("Hi", answer, "And you?", answer))
    assert labelled(ENCODERS["thoughtless"], encoded) == f"{reply}</s>{reply}</s>"
    encoded = ENCODERS["thinking"](turns("Hi", answer, "And you?", answer))
    reply = reply.lstrip("\n")
    assert labelled(ENCODERS["thinking"], encoded) == f"{reply}<|im_end|>{THOUGHT}{reply}<|im_end|>"


@pytest.mark.parametrize("answer", ["<think>Hm.</think>Fine.", "Hm.\n</think>\nFine.", f"\n{THOUGHT}\nFine."])
def test_thinking_that_the_template_writes_anew_is_labelled_as_written(answer: str) -> None:
    encoded = ENCODERS["thinking"](turns("Hi", answer))
    assert labelled(ENCODERS["thinking"], encoded) == f"{THOUGHT}Fine.<|im_end|>"


def test_thinking_that_the_template_adds_is_not_labelled() -> None:
    encoded = ENCODERS["thinking"](turns("Hi", "Fine."))
    assert labelled(ENCODERS["thinking"], encoded) == "Fine.<|im_end|>"


def test_thinking_that_the_template_takes_out_is_not_there() -> None:
    encoder = ENCODERS["thoughtless"]
    encoded = encoder(turns("Hi", f"{THOUGHT}Fine."))
    assert labelled(encoder, encoded) == "\n\nFine.</s>"
    assert "Hm." not in encoder._tokenizer.decode(encoded.tokens)
    with pytest.raises(
        Unusable, match="chat template: the template or the tokenizer removes the whole answer"
    ):
        encoder(turns("Hi", THOUGHT))


def test_thinking_is_text_like_any_other_for_a_template_that_does_not_know_it() -> None:
    encoded = ENCODERS["chatml"](turns("Hi", "<think>Hm.</think>Fine."))
    assert labelled(ENCODERS["chatml"], encoded) == "<think>Hm.</think>Fine.<|im_end|>"


# ---- tokenizers

CORPUS = ("Hello there. assistant user system\n\n Hello.\n\n  the end <|im_end|> " * 20,)


@pytest.mark.parametrize("trim_offsets", [False, True])
@given(messages=conversations(system=False))
def test_merges_and_trimmed_offsets_lose_no_label(trim_offsets: bool, messages: list[Message]) -> None:
    for name in ("chatml", "llama-3", "zephyr"):
        tokenizer = MERGING[name, trim_offsets]
        encoder = Encoder(tokenizer, max_length=LONG)
        encoded = encoder(messages)
        exact = ENCODERS[name](messages)
        assert tokenizer.decode(encoded.tokens) == ENCODERS[name]._tokenizer.decode(exact.tokens)
        # Whatever a merge takes in beyond the answers is whitespace around them.
        assert labelled(encoder, encoded).split() == labelled(ENCODERS[name], exact).split()


MERGING = {
    (name, trim): byte_level(SHAPES[name], corpus=CORPUS, trim_offsets=trim)
    for name in ("chatml", "llama-3", "zephyr")
    for trim in (False, True)
}


def test_a_token_of_header_and_content_together_is_labelled() -> None:
    shape = Shape(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}", ("</s>",), "</s>"
    )
    encoder = Encoder(byte_level(shape, corpus=CORPUS), max_length=LONG)
    encoded = encoder(turns("Hi", "Hello."))
    assert labelled(encoder, encoded) == " Hello.</s>"


@pytest.mark.parametrize(("name", "kept"), [("chatml", "  "), ("zephyr", "  "), ("phi-3", "")])
def test_whitespace_that_a_control_token_takes_in_does_not_make_it_content(name: str, kept: str) -> None:
    encoder, end = Encoder(SHAPES[name].tokenizer(strips=True), max_length=LONG), SHAPES[name].end
    encoded = encoder(turns(" Hi ", "  Hello.  "))
    assert labelled(encoder, encoded) == f"{kept}Hello.{end}"
    assert content(encoder, encoded) == f"{kept[1:]}Hi{kept}Hello."


@given(messages=conversations(text=st.text("HeTthDl .\nä🙂<s/>", min_size=1).filter(str.strip)))
def test_a_sentencepiece_tokenizer_gives_the_same_labels(messages: list[Message]) -> None:
    encoded = SENTENCEPIECE(messages)
    exact = ENCODERS["llama-2"](messages)
    # An answer's first token takes in the space in front of it; no other space is added or lost.
    tokenizer = SENTENCEPIECE._tokenizer
    assert tokenizer.decode(encoded.tokens) == ENCODERS["llama-2"]._tokenizer.decode(exact.tokens)
    said = [m.content.strip() for m in messages if m.role == "assistant"]
    for answer, text in zip(said, labelled(SENTENCEPIECE, encoded).split("</s>"), strict=False):
        assert text.removeprefix(" ") == answer or "</s>" in answer


SENTENCEPIECE = Encoder(sentencepiece(SHAPES["llama-2"]), max_length=LONG)


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class SlowTokenizer:
        is_fast = False

    with pytest.raises(
        ModelError, match=r"SlowTokenizer, which gives no positions .* expected a fast tokenizer"
    ):
        Encoder(SlowTokenizer(), max_length=8)


def test_a_control_token_of_one_character_that_a_content_holds_is_unusable() -> None:
    shape = Shape("{% for m in messages %}{{ m['content'] }}☆{% endfor %}", ("☆",), "☆")
    encoder = Encoder(shape.tokenizer(), max_length=LONG)
    assert labelled(encoder, encoder(turns("Hi", "Hello."))) == "Hello.☆"
    with pytest.raises(Unusable, match=r"cannot be encoded as text, near 'See ☆ 5"):
        encoder(turns("See ☆ 5.", "Hello."))


def test_the_end_of_turn_is_no_control_in_a_content_though_the_tokenizer_does_not_call_it_special() -> None:
    shape = Shape("{% for m in messages %}{{ m['content'] }}<end>{% endfor %}", (), "<end>", text=("<end>",))
    encoder = Encoder(shape.tokenizer(), max_length=LONG)
    encoded = encoder(turns("<end>", "The <end>."))
    assert labelled(encoder, encoded) == "The <end>.<end>"
    assert (encoded.tokens == encoder._tokenizer.convert_tokens_to_ids("<end>")).sum() == 2


# ---- no chat template

BARE = Shape(None, ("<s>", "</s>"), "</s>", bos="<s>", eos="</s>")


@pytest.mark.parametrize("name", SHAPES)
@given(text=TEXT.filter(lambda text: len(text.strip()) > 3))
def test_a_plain_text_is_predicted_but_for_its_beginning(name: str, text: str) -> None:
    tokenizer = SHAPES[name].tokenizer()
    encoded = ENCODERS[name]([Message("text", text)])
    expected = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    begins = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    assert encoded.labels.tolist() == [False] + [True] * (len(encoded) - 1)
    assert encoded.content.tolist() == [not begins] + [True] * (len(encoded) - 1)
    special = {
        str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    assert not set(encoded.tokens[int(begins) :].tolist()) & (
        set(special.values()) - {tokenizer.unk_token_id}
    )
    if not any(token in text for token in special):
        assert encoded.tokens[int(begins) :].tolist() == expected


def test_a_blank_or_tiny_text_is_unusable() -> None:
    for text, reason in (
        ("  \n", "empty answer: the text is blank"),
        ("a", "too short: the text is one token"),
    ):
        with pytest.raises(Unusable, match=reason):
            ENCODERS["chatml"]([Message("text", text)])


def test_a_long_text_keeps_its_beginning() -> None:
    encoded = Encoder(SHAPES["chatml"].tokenizer(), max_length=8)(
        [Message("text", "one two three four five six seven")]
    )
    whole = ENCODERS["chatml"]([Message("text", "one two three four five six seven")])
    assert encoded.tokens.tolist() == whole.tokens[:8].tolist()


@given(prompt=TEXT, answer=SAID)
@example(prompt="", answer="<")
def test_without_a_template_prompt_and_answer_stand_together_and_eos_ends_them(
    prompt: str, answer: str
) -> None:
    messages = [Message("user", prompt), Message("assistant", answer)]
    if len((prompt + answer).encode()) == 1:
        with pytest.raises(Unusable, match="too short: the text is one token"):
            PLAIN(messages)
        return
    encoded, tokenizer = PLAIN(messages), PLAIN._tokenizer
    assert tokenizer.decode(encoded.tokens) == f"{prompt}{answer}</s>"
    text = [byte_token(tokenizer, byte) for byte in f"{prompt}{answer}".encode()]
    assert encoded.tokens.tolist() == [*text, tokenizer.eos_token_id]
    predicted = [False] * len(prompt.encode()) + [True] * (len(answer.encode()) + 1)
    assert encoded.labels.tolist() == [False, *predicted[1:]]
    assert encoded.content.tolist() == [True] * (len(encoded) - 1) + [False]


PLAIN = Encoder(BARE.tokenizer(), max_length=LONG)


def test_without_a_template_bos_is_written_if_the_tokenizer_writes_it() -> None:
    tokenizer = sentencepiece(BARE)
    encoded = Encoder(tokenizer, max_length=LONG)(turns("Hi ", "Hello."))
    assert encoded.tokens[0] == tokenizer.bos_token_id
    assert encoded.tokens[1:-1].tolist() == tokenizer("Hi Hello.", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(encoded.tokens[encoded.labels]) == "Hello.</s>"


def test_without_a_template_an_answer_alone_is_predicted_but_for_its_first_token() -> None:
    encoded = PLAIN([Message("assistant", "Hello.")])
    assert labelled(PLAIN, encoded) == "ello.</s>"
    with pytest.raises(Unusable, match="too short: the text is one token"):
        PLAIN([Message("assistant", "H")])


@pytest.mark.parametrize(
    "messages", [turns("Hi", "Hello.", "And you?", "Fine."), turns("Hi", "Hi.", system="Hm.")]
)
def test_without_a_template_a_conversation_is_unusable(messages: list[Message]) -> None:
    with pytest.raises(
        Unusable, match="chat template: the tokenizer has none, and a conversation of several turns needs one"
    ):
        PLAIN(messages)


def test_without_a_template_an_empty_answer_is_unusable() -> None:
    with pytest.raises(Unusable, match="empty answer"):
        PLAIN(turns("Hi", " "))


def test_a_tokenizer_with_neither_template_nor_eos_is_refused() -> None:
    with pytest.raises(ModelError, match="neither a chat template nor an EOS token"):
        Encoder(Shape(None, (), "").tokenizer(), max_length=8)


# ---- truncation


@given(messages=conversations(), max_length=st.integers(2, 80), name=st.sampled_from(["chatml", "llama-2"]))
def test_truncation_keeps_the_answers(messages: list[Message], max_length: int, name: str) -> None:
    whole = ENCODERS[name](messages)
    cut = Encoder(ENCODERS[name]._tokenizer, max_length=max_length)(messages)
    assert len(cut) == min(max_length, len(whole))
    assert cut.n_labels > 0
    assert not cut.labels[0]
    # What is kept is a window, and a leading BOS.
    bos = ENCODERS[name]._tokenizer.bos_token_id
    kept = int(whole.tokens[0] == bos)
    assert cut.tokens[:kept].tolist() == whole.tokens[:kept].tolist()
    window = len(cut) - kept
    starts = [
        start
        for start in range(kept, len(whole) - window + 1)
        if all(
            np.array_equal(getattr(cut, field)[kept:], getattr(whole, field)[start : start + window])
            for field in ("tokens", "labels", "content")
        )
    ]
    assert starts
    first, last = np.flatnonzero(whole.labels)[[0, -1]]
    if last + 1 - first < max_length:  # all labels fit, with a token before them
        assert cut.n_labels == whole.n_labels
    else:
        before = int(np.flatnonzero(cut.labels)[0])
        assert before <= kept + max(max_length // 4, 1 - kept)
        assert cut.labels.tolist() == whole.labels[first - before : first - before + len(cut)].tolist()


def test_truncation_takes_what_follows_the_last_label_first() -> None:
    whole = ENCODERS["phi-3"](turns("Hi", "Hello."))  # a line break and a token follow the end of turn
    for cut_away in (1, 2):
        encoder = Encoder(ENCODERS["phi-3"]._tokenizer, max_length=len(whole) - cut_away)
        np.testing.assert_array_equal(encoder(turns("Hi", "Hello.")).tokens, whole.tokens[:-cut_away])


def test_a_window_that_is_too_small_is_refused() -> None:
    with pytest.raises(OptionError, match="max_length is 1; expected at least 2"):
        Encoder(SHAPES["chatml"].tokenizer(), max_length=1)


# ---- fingerprint


def test_the_fingerprint_is_that_of_the_tokens() -> None:
    def fingerprint(shape: Shape = SHAPES["chatml"], max_length: int = 8, **options: bool) -> str:
        return Encoder(shape.tokenizer(**options), max_length=max_length).fingerprint

    assert re.fullmatch("[0-9a-f]{64}", fingerprint())
    assert fingerprint() == fingerprint()
    others = [
        fingerprint(max_length=9),
        fingerprint(SHAPES["zephyr"]),
        fingerprint(Shape(SHAPES["chatml"].source, SHAPES["chatml"].special, "", eos="<|im_start|>")),
        fingerprint(strips=True),
        changed("chatml", "Be useful.", "Be helpful.").fingerprint,
    ]
    assert len({fingerprint(), *others}) == 6


def test_the_fingerprint_does_not_depend_on_what_the_tokenizer_did_before() -> None:
    tokenizer = SHAPES["chatml"].tokenizer(strips=True)
    encoder = Encoder(tokenizer, max_length=8)
    before = encoder.fingerprint
    tokenizer("some text", truncation=True, max_length=3)
    encoder(turns("Hi", "Hello."))
    assert encoder.fingerprint == before


@given(
    prompt=st.integers(0, 60_000),
    answers=st.lists(st.integers(1, 60_000), min_size=1, max_size=3),
    word=st.sampled_from(["word ", "x", "日本語 ", "\n", "<|im_end|>", "a b\t"]),
    max_length=st.sampled_from([2, 8, 64]),
    name=st.sampled_from(["chatml", "llama-3", "sentencepiece", "none", "text"]),
)
@settings(max_examples=60)
def test_of_a_long_text_only_a_part_is_tokenised_and_the_tokens_are_the_same(
    prompt: int, answers: list[int], word: str, max_length: int, name: str
) -> None:
    def filled(length: int) -> str:
        return (word * (length // len(word) + 1))[:length] + "."

    messages = [Message("user", filled(prompt)), Message("assistant", filled(answers[0]))]
    for length in answers[1:] if name != "none" else ():
        messages += [Message("user", "And?"), Message("assistant", filled(length))]
    if name == "text":
        messages = [Message("text", filled(prompt + answers[0]))]
    shape = (
        BARE
        if name == "none"
        else SHAPES["llama-2" if name == "sentencepiece" else name.replace("text", "chatml")]
    )
    make = sentencepiece if name == "sentencepiece" else byte_level
    encoder = Encoder(make(shape), max_length=max_length)
    found = encoder(messages)
    encoder._shortened = lambda text: text
    expected = encoder(messages)
    assert found.tokens.tolist() == expected.tokens.tolist()
    assert found.labels.tolist() == expected.labels.tolist()
    assert found.content.tolist() == expected.content.tolist()


def test_a_text_of_ten_million_characters_takes_no_more_tokens_than_its_part() -> None:
    encoder = Encoder(SHAPES["chatml"].tokenizer(), max_length=64)
    seen = []
    tokenised = encoder.tokenised
    encoder.tokenised = lambda texts: (seen.extend(len(text.text) for text in texts), tokenised(texts))[1]
    encoder([Message("user", "word " * 1_000_000), Message("assistant", "answer " * 1_000_000)])
    assert seen == [2 * 64 * 64]


def test_a_conversation_of_many_turns_is_encoded() -> None:
    """To look for the place of every turn in the whole text takes minutes."""
    messages = [Message("user", "x"), Message("assistant", "y")] * 30_000
    assert isinstance(ENCODERS["chatml"](messages), Encoded)
