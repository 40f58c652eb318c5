"""A record as a prompt: one BOS, no white space at its end, the tokens of the whole text, whole examples or none."""

import dataclasses
import json

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limbeck.model.errors import UserError
from limbeck.model.tokenizer import Tokenizer, byte_tokenizer, load_tokenizer, train_bpe
from limbeck.model.tokenizer.files import Parts
from limbeck.prompting.config import PromptConfig
from limbeck.prompting.prompts import Prompt, answer_text, blank, make_prompt, premise, scored
from limbeck.tasks.task import Record, Task
from limbeck.tasks.template import Template

BYTES = byte_tokenizer()
TEXTS = ["plum: drupe", "pear: pome", "lemon: hesperidium", "آلو: شفت", "گلابی: میوهٔ دانه‌دار", "user assistant"] * 9
OPTIONS = ("drupe", "pome", "hesperidium")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITH_BOS = "{{ bos_token }}" + CHATML
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + WITH_BOS


def fruits(*pairs: tuple[str, str]) -> tuple[Record, ...]:
    return tuple({"id": key, "input": key, "output": value} for key, value in pairs)


TRAIN = fruits(("plum", "drupe"), ("pear", "pome"), ("cherry", "drupe"))
LEMON = fruits(("lemon", "hesperidium"))[0]


PLAIN = Template()


def task_of(options=None, template=PLAIN, train=TRAIN, test=(LEMON,), **fields) -> Task:
    return Task("fruits", {"train": tuple(train), "test": tuple(test)}, template, options, **fields)


OPEN, CLOSED = task_of(), task_of(OPTIONS)


def made(task=CLOSED, config=PromptConfig(), record=LEMON, examples=TRAIN[:2], tokenizer=BYTES, room=9999, new=8):
    return make_prompt(task, tokenizer, config, record, examples, room, new)


def without_bos(tokenizer: Tokenizer) -> Tokenizer:
    state = json.loads(tokenizer._fast.to_str())
    state["post_processor"] = None
    fast = tokenizers.Tokenizer.from_str(json.dumps(state))
    fast.encode_special_tokens = True
    return Tokenizer(Parts(fast, dict(tokenizer.tokens), tokenizer.bos_id, tokenizer.stop_ids, None))


def talking(template: str = CHATML, tokenizer: Tokenizer = BYTES) -> Tokenizer:
    fast = tokenizers.Tokenizer.from_str(tokenizer._fast.to_str())
    fast.encode_special_tokens = True
    fast.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return Tokenizer(Parts(fast, dict(tokenizer.tokens), tokenizer.bos_id, tokenizer.stop_ids, template))


def llama2c(tmp_path) -> Tokenizer:
    """In the manner of SentencePiece: a space before any text, a BOS."""
    import struct

    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % i for i in range(256)), b" ", *map(bytes, zip(b"abc"))]
    scored = [(piece, 0.0) for piece in pieces] + [(b" p", -1.0), (b": ", -9.0)]
    data = struct.pack("<i", 8) + b"".join(struct.pack("<fi", score, len(p)) + p for p, score in scored)
    (tmp_path / "tok.bin").write_bytes(data)
    return load_tokenizer(tmp_path / "tok.bin")


TOKENIZERS = {
    "bytes": BYTES,
    "bpe": train_bpe(TEXTS, 330),
    "line prefix": train_bpe(TEXTS, 330, line_prefix=True),
    "no bos": without_bos(train_bpe(TEXTS, 330)),
}


def spelled(tokenizer: Tokenizer, ids) -> str:
    return tokenizer._fast.decode(list(ids), skip_special_tokens=False)


def test_the_reference_example():
    prompt = made()
    assert prompt.text == "plum: drupe\npear: pome\nlemon:"
    assert prompt.ids == (BYTES.bos_id, *BYTES.encode(prompt.text))
    assert prompt.option_texts == (" drupe\n", " pome\n", " hesperidium\n")
    assert [BYTES.decode(ids) for ids in prompt.options] == list(prompt.option_texts)
    assert (prompt.stop, prompt.shown, prompt.dropped) == ((), ("plum", "pear"), 0)
    written = made(OPEN)
    assert written == prompt._replace(options=(), option_texts=(), stop=("\n",))
    assert answer_text(OPEN, PromptConfig(), LEMON) == " hesperidium\n"


WORDS = st.text(st.sampled_from("ab :\n <>0\u00a0\u200cگلابیé🙂"), max_size=12)
CONFIGS = [
    PromptConfig(),
    PromptConfig(instruction="What is it?\n", separator="\n\n"),
    PromptConfig(query="{input}", target=" is {output}"),
    PromptConfig(query="{input}", target="={output}", verbalisers=(("drupe", ""), ("pome", "0"))),
    PromptConfig(form="multiple_choice"),
    PromptConfig(form="cloze", query="{output} is said of {input}."),
    PromptConfig(form="cloze", query="A {input} is a {output}, a kind of fruit."),
]


@pytest.mark.parametrize("name", [*TOKENIZERS, "sentencepiece"])
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(query=WORDS, example=WORDS, config=st.sampled_from(CONFIGS))
def test_one_bos_no_white_space_at_the_end_and_the_tokens_of_the_whole(name, tmp_path, query, example, config):
    tokenizer = TOKENIZERS.get(name) or llama2c(tmp_path)
    record, shown = fruits((query + "<bos>", "pome"), (example, "drupe"))
    prompt = made(CLOSED, config, record, [shown], tokenizer)
    assert prompt.text == prompt.text.rstrip()
    assert prompt.ids[: len(tokenizer.start)] == tokenizer.start
    bos = prompt.ids.count(tokenizer.bos_id)
    assert bos == (1 if tokenizer.start or prompt.ids == (tokenizer.bos_id,) else 0)
    own = len(tokenizer.start) or bos
    for ids, text in zip(prompt.options, prompt.option_texts, strict=True):
        assert [*prompt.ids[own:], *ids] == tokenizer.encode(prompt.text + text)
        assert ids and tokenizer.bos_id not in ids


def test_a_tokenizer_without_a_bos_gets_none_but_before_nothing():
    tokenizer = TOKENIZERS["no bos"]
    assert list(made(tokenizer=tokenizer).ids) == tokenizer.encode("plum: drupe\npear: pome\nlemon:")
    bare = made(CLOSED, PromptConfig(form="cloze", query="{output}: {input}"), examples=(), tokenizer=tokenizer)
    assert bare.ids == (tokenizer.bos_id,) and bare.text == ""


def test_the_words_of_the_config_stand_for_the_template_s():
    config = PromptConfig(
        instruction="Kinds of fruit.", query="Q: {input}", target="\nA: {output}", separator="\n\n",
        verbalisers=(("hesperidium", "citrus"),),
    )  # fmt: skip
    prompt = made(config=config)
    assert prompt.text == "Kinds of fruit.\n\nQ: plum\nA: drupe\n\nQ: pear\nA: pome\n\nQ: lemon"
    assert prompt.option_texts == ("\nA: drupe\n\n", "\nA: pome\n\n", "\nA: citrus\n\n")
    told = task_of(template=Template(instruction="Name its kind."))
    assert made(told).text.startswith("Name its kind.\nplum")
    assert made(told, PromptConfig(instruction="")).text.startswith("plum")


def test_verbalisers_stand_in_the_examples_too():
    prompt = made(config=PromptConfig(verbalisers=(("drupe", "آلو {output}"), ("pome", "0"))))
    assert prompt.text == "plum: آلو {output}\npear: 0\nlemon:"
    assert prompt.option_texts == (" آلو {output}\n", " 0\n", " hesperidium\n")


def test_a_multiple_choice_lists_the_options_and_asks_for_a_letter():
    prompt = made(config=PromptConfig(form="multiple_choice", verbalisers=(("pome", "like a {pear}"),)))
    options = "A. drupe\nB. like a {pear}\nC. hesperidium"
    assert prompt.text == (
        f"plum:\n{options}\nAnswer: A\npear:\n{options}\nAnswer: B\nlemon:\n{options}\nAnswer:"
    )
    assert prompt.option_texts == (" A\n", " B\n", " C\n")
    persian = PromptConfig(form="multiple_choice", query="{input} چیست؟\n{options}\nپاسخ:")
    assert made(config=persian, examples=()).text == "lemon چیست؟\nA. drupe\nB. pome\nC. hesperidium\nپاسخ:"


def test_a_cloze_has_its_answer_inside():
    config = PromptConfig(form="cloze", query="A {input} is a  {output}, {{so}} say {input}s.", separator="\n\n")
    prompt = made(config=config)
    assert prompt.text == (
        "A plum is a  drupe, {so} say plums.\n\nA pear is a  pome, {so} say pears.\n\nA lemon is a"
    )
    assert prompt.option_texts == tuple(f"  {option}, {{so}} say lemons.\n\n" for option in OPTIONS)
    assert made(config=PromptConfig(form="cloze", query="{input}: {output}")) == made()  # at the end: a completion
    first = made(config=PromptConfig(form="cloze", query="{output}: {input}"), examples=TRAIN[:1])
    assert first.text == "drupe: plum" and first.option_texts[1] == "\npome: lemon\n"


def test_an_empty_query_leaves_the_separator_to_the_answer():
    template = Template(query="{input}")
    record = fruits(("", "pome"))[0]
    prompt = made(task_of(OPTIONS, template), record=record, examples=TRAIN[:1])
    assert prompt.text == "plum drupe" and prompt.option_texts[1] == "\n pome\n"
    assert made(task_of(OPTIONS, template), record=record, examples=()).ids == (BYTES.bos_id,)


def test_labels_that_are_zero_and_nothing():
    train = fruits(("plum", "0"), ("pear", ""))
    prompt = made(task_of(("0", ""), train=train, test=fruits(("lemon", ""))), examples=train)
    assert prompt.text == "plum: 0\npear: \nlemon:" and prompt.option_texts == (" 0\n", " \n")


def test_persian():
    plum, pear = fruits(("آلو", "شَفت"), ("می‌خوش\u200c", "میوهٔ دانه‌دار"))
    for tokenizer in TOKENIZERS.values():
        prompt = made(task_of(train=[plum], test=[pear]), record=pear, examples=[plum], tokenizer=tokenizer)
        assert prompt.text == "آلو: شَفت\nمی‌خوش\u200c:" and tokenizer.decode(prompt.ids) == prompt.text


def test_reasons_stand_between_query_and_answer():
    config = PromptConfig(
        reasoning="Let's think step by step.", target=" {why} So it is a {output}.", extract=r"is a (\w+)\."
    )
    plum = {**TRAIN[0], "why": "It has one stone."}
    prompt = made(CLOSED, config, LEMON, [plum])
    assert prompt.text == (
        "plum: Let's think step by step. It has one stone. So it is a drupe.\nlemon: Let's think step by step."
    )
    assert prompt.options == () and prompt.stop == ("\n",)
    assert not scored(CLOSED, config) and scored(CLOSED, PromptConfig()) and not scored(OPEN, PromptConfig())


@pytest.mark.parametrize("template", [CHATML, WITH_BOS])
def test_a_conversation(template):
    tokenizer = talking(template)
    prompt = made(CLOSED, PromptConfig(chat=True, instruction="Fruit."), examples=TRAIN[:1], tokenizer=tokenizer)
    turns = (
        "<|im_start|>system\nFruit.<|im_end|>\n<|im_start|>user\nplum:<|im_end|>\n<|im_start|>assistant\ndrupe<|im_end|>\n"
        "<|im_start|>user\nlemon:<|im_end|>\n<|im_start|>assistant\n"
    )
    assert spelled(tokenizer, prompt.ids) == "<bos>" + turns and prompt.ids.count(tokenizer.bos_id) == 1
    assert prompt.text == ("<bos>" if template == WITH_BOS else "") + turns
    assert [spelled(tokenizer, ids) for ids in prompt.options] == [f"{option}<|im_end|>" for option in OPTIONS]
    assert prompt.option_texts == OPTIONS
    no_bos = talking(CHATML, TOKENIZERS["no bos"])
    assert no_bos.bos_id not in made(CLOSED, PromptConfig(chat=True), tokenizer=no_bos).ids


def test_a_conversation_that_is_written_goes_on_from_the_reasoning():
    tokenizer = talking()
    prompt = made(OPEN, PromptConfig(chat=True), tokenizer=tokenizer)
    assert prompt.options == () and prompt.stop == ()  # the turn's end is the answer's
    config = PromptConfig(chat=True, reasoning="Step by step:", extract="(.*)")
    prompt = made(OPEN, config, examples=TRAIN[:1], tokenizer=tokenizer)
    said = spelled(tokenizer, prompt.ids)
    assert said.endswith("<|im_start|>assistant\nStep by step:") and prompt.text == said.removeprefix("<bos>")
    assert "assistant\nStep by step: drupe<|im_end|>" in said


def test_a_prompt_that_is_too_long_loses_whole_examples():
    texts = ["plum: drupe\n", "pear: pome\n", "cherry: drupe\n"]
    longest = len(" hesperidium\n")
    for left in range(4):
        room = 1 + len("".join(texts[left:])) + len("lemon:") + longest
        prompt = made(examples=TRAIN, room=room)
        assert prompt.text == "".join(texts[left:]) + "lemon:"
        assert prompt.dropped == left and prompt.shown == tuple(r["id"] for r in TRAIN[left:])
        if left < 3:
            assert made(examples=TRAIN, room=room - 1).dropped == left + 1
    assert made(OPEN, examples=TRAIN, room=1 + 6 + 10, new=10).dropped == 3
    with pytest.raises(UserError, match="record 'lemon' has 7 tokens, its answer up to 13; the model has 19 pos"):
        made(examples=TRAIN, room=19)
    with pytest.raises(UserError, match=r"record 'lemon' with its 3 examples has 44 tokens.*fewer shots, overflow='dr"):
        made(config=PromptConfig(overflow="error"), examples=TRAIN, room=50)


def test_what_needs_no_record():
    config = PromptConfig(instruction="Fruit.")
    told = premise(CLOSED, BYTES, config, LEMON, 99)
    assert told.text == ":" and told.option_texts == (" drupe\n", " pome\n", " hesperidium\n")
    cloze = premise(CLOSED, BYTES, PromptConfig(form="cloze", query="A {input} is a {output}, {input}."), LEMON, 99)
    assert cloze.text == "A  is a" and cloze.option_texts[0] == " drupe, lemon.\n"
    record = blank(CLOSED, config, "N/A", "none/0", LEMON)
    assert record == {"id": "none/0", "input": "N/A", "output": ""}
    grouped = task_of(
        OPTIONS,
        template=Template("{kind} {input}:", " {output} {more}"),
        train=[{**record, "kind": "fruit", "more": "!"} for record in TRAIN],
        test=[{**LEMON, "kind": "tree", "more": "?"}],
        group_field="kind",
    )
    record = blank(grouped, PromptConfig(), "", "none/1", grouped.splits["test"][0])
    assert record == {"id": "none/1", "input": "", "output": "", "more": "", "kind": "tree"}
    assert premise(grouped, BYTES, config, grouped.splits["test"][0], 99).text == "tree :"


@pytest.mark.parametrize(
    ("task", "config", "message"),
    [
        (CLOSED, {"query": "{inptu}:"}, "template field {inptu}: the record has id, input, output; did you mean"),
        (CLOSED, {"target": " {out}"}, "the answer {output} must stand in target=' {out}', and not in query"),
        (CLOSED, {"query": "{output}: {input}"}, "not in query='{output}: {input}': move it"),
        (CLOSED, {"query": "{input}: "}, "ends in white space"),
        (CLOSED, {"separator": ""}, "separator '' is empty"),
        (OPEN, {"form": "multiple_choice"}, "form='multiple_choice': task 'fruits' is a generation, without options"),
        (OPEN, {"form": "cloze", "query": "{input} {output}"}, "form='cloze': task 'fruits' is a generation, without"),
        (OPEN, {"verbalisers": (("pome", "x"),)}, "verbalisers: task 'fruits' is a generation, without options"),
        (CLOSED, {"verbalisers": (("pomme", "x"),)}, "no option 'pomme', but drupe, pome, hesperidium; did you"),
        (CLOSED, {"verbalisers": (("pome", "drupe"),)}, "would be ['drupe', 'drupe', 'hesperidium']: give each"),
        (CLOSED, {"form": "cloze", "query": "{input}:"}, "has the answer 0 times: write one {output}"),
        (CLOSED, {"form": "cloze", "query": "{output} {output}"}, "has the answer 2 times"),
        (CLOSED, {"chat": True}, "record 'lemon': this model's tokenizer has no chat template"),
        (
            task_of(tuple(str(i) for i in range(27)), train=fruits(("a", "1")), test=fruits(("b", "2"))),
            {"form": "multiple_choice"},
            "task 'fruits' has 27 options; 26 at most",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(task, config, message):
    with pytest.raises(UserError) as caught:
        made(task, PromptConfig(**config), examples=())
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_conversation_that_its_template_refuses():
    tokenizer = talking(NO_SYSTEM)
    assert made(CLOSED, PromptConfig(chat=True), tokenizer=tokenizer).options
    with pytest.raises(UserError, match="record 'lemon': the chat template failed: no system turn.*into query="):
        made(CLOSED, PromptConfig(chat=True, instruction="Fruit."), tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reasoning": "Think."}, "reasoning='Think.': say by extract="),
        ({"form": "cloze"}, "form='cloze' needs query="),
        ({"form": "cloze", "query": "{output}", "target": " {output}"}, "leave out target"),
        ({"samples": 3, "view": "pmi", "calibration": "batch"}, "view='pmi', calibration='batch': for options"),
        ({"extract": "(.)", "form": "cloze", "query": "{output}"}, "form='cloze': for options that are scored"),
        ({"max_new_tokens": 0}, "max_new_tokens=0: at least 1"),
    ],
)
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(UserError, match=message):
        PromptConfig(**settings)


def test_the_prompt_is_that_of_the_record_alone():
    """Whatever was asked before: words are remembered by what they are made of."""
    other = dataclasses.replace(CLOSED, options=OPTIONS[::-1])
    prompts: list[Prompt] = [made(task) for task in (CLOSED, other, CLOSED)]
    assert prompts[0] == prompts[2] and prompts[0].option_texts == prompts[1].option_texts[::-1]
    assert prompts[0].ids == prompts[1].ids
