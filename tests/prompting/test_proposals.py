"""Instructions that a model writes: what it is asked, what is kept of its drafts, what a search makes of them."""

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import jax
import pytest

from limbeck.inference.engine import Engine
from limbeck.inference.requests import GenerateRequest, Generation
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.tokenizer import Tokenizer, byte_tokenizer
from limbeck.model.tokenizer.files import Parts
from limbeck.model.transformer import init
from limbeck.prompting.config import PromptConfig
from limbeck.prompting.prompts import make_prompt
from limbeck.prompting.proposals import ape_text, cleaned, distinct, opro_text, proposer
from limbeck.prompting.search import search
from limbeck.prompting.tries import Measured
from limbeck.tasks.task import Record, Task
from limbeck.tasks.template import Template

TOKENIZER = byte_tokenizer()
FRUITS = ("plum", "drupe"), ("pear", "pome"), ("گلابی", "pome"), ("{lemon}", "hesperidium")
TRAIN = tuple({"id": f"train/{i}", "input": name, "output": kind} for i, (name, kind) in enumerate(FRUITS))
HELD = tuple({"id": f"{split}/0", "input": f"secret {split}", "output": "pome"} for split in ("validation", "test"))
TASK = Task("fruits", {"train": TRAIN, "validation": HELD[:1], "test": HELD[1:]}, Template(), None)
TRIED = [
    (PromptConfig(instruction="Name it."), 0.25),
    (PromptConfig(), 0.9),  # without an instruction: nothing to show
    (PromptConfig(instruction="Say the kind of fruit."), 0.5),
    (PromptConfig(instruction="Name it.", shots=1), 0.125),  # known by its best
    (PromptConfig(instruction="نوع میوه\nرا بگو."), 1 / 3),
]


class Writer:
    """Stands in for an engine: writes what it is told, in turn, and keeps what it was asked."""

    def __init__(self, drafts: Sequence[str], max_len: int = 4000, tokenizer: Tokenizer = TOKENIZER) -> None:
        self.drafts, self.tokenizer, self.requests, self.tokens_run = drafts, tokenizer, [], 5
        self.config = type("Config", (), {"max_len": max_len})

    def prefix(self) -> int:
        return 0

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        self.requests += requests
        self.tokens_run += 11
        texts = [self.drafts[request.sample % len(self.drafts)] for request in requests]
        return [Generation(text.removesuffix("…"), (1, 2), -1.0, not text.endswith("…")) for text in texts]

    @property
    def asked(self) -> str:
        assert len({request.prompt for request in self.requests}) == 1
        return self.tokenizer.decode(self.requests[0].prompt)


def asks(writer: Writer, tried: Sequence[tuple[PromptConfig, float]], task: Task = TASK, **settings: Any):
    return proposer(cast(Engine, writer), task, **settings)(tried)


def test_ape_is_shown_inputs_and_outputs_and_nothing_else() -> None:
    assert ape_text(TASK, TRAIN[1:3]) == (
        "Somebody was given one instruction, and wrote an output for every input as it says.\n\n"
        "Input: pear\nOutput: pome\n\nInput: گلابی\nOutput: pome\n\n"
        "The instruction fits on one line. It was this.\nInstruction:"
    )
    writer = Writer([" Name the kind of fruit. "])
    proposals = asks(writer, TRIED, style="ape", count=3, seed=4)
    assert proposals == (("Name the kind of fruit.",), 11)
    for record in TRAIN:
        assert f"Input: {record['input']}\nOutput: {record['output']}\n" in writer.asked
    assert "secret" not in writer.asked and "Score" not in writer.asked and "Say the kind" not in writer.asked
    assert [request.sample for request in writer.requests] == [0, 1, 2]
    assert {(r.sampling.temperature, r.sampling.seed, r.stop) for r in writer.requests} == {(1.0, 4, ("\n",))}
    assert writer.requests[0].prompt.count(TOKENIZER.bos_id) == 1


def test_opro_is_shown_the_tries_from_the_worst_to_the_best() -> None:
    assert opro_text(TASK, TRAIN[:1], [("B", 0.5), ("A", 0.123456), ("{C}", 1.0)]) == (
        "These instructions were tried. The higher its score, the better an instruction is.\n\n"
        "Instruction: A\nScore: 0.123\n\nInstruction: B\nScore: 0.5\n\nInstruction: {C}\nScore: 1\n\n"
        "The instruction is for inputs such as these, whose right outputs are shown.\n\n"
        "Input: plum\nOutput: drupe\n\n"
        "One instruction, unlike all above, that has a higher score, on one line:\nInstruction:"
    )
    writer = Writer(["Better.", "Name it."])
    assert asks(writer, TRIED, style="opro", count=2).texts == ("Better.",)
    shown = [line.split(": ", 1)[1] for line in writer.asked.splitlines() if line.startswith("Instruction: ")]
    assert shown == ["Name it.", "نوع میوه را بگو.", "Say the kind of fruit."]
    assert "Score: 0.25" in writer.asked and "0.125" not in writer.asked and "0.9" not in writer.asked
    assert "secret" not in writer.asked


def test_opro_shows_twenty_at_most_and_the_best_of_them() -> None:
    tried = [(PromptConfig(instruction=f"Try {i}."), float(i)) for i in range(30)]
    writer = Writer(["x"])
    asks(writer, tried, style="opro")
    assert [line for line in writer.asked.splitlines() if "Try" in line] == [
        f"Instruction: Try {i}." for i in range(10, 30)
    ]


def test_without_tries_there_is_nothing_to_be_unlike() -> None:
    writer = Writer(["x"])
    asks(writer, [(PromptConfig(), 0.5)], style="opro")
    assert "tried" not in writer.asked and "unlike" not in writer.asked and "Score" not in writer.asked


def test_inputs_of_several_fields_are_named() -> None:
    record = {"id": "0", "premise": "P", "claim": "C", "output": "yes"}
    task = Task(
        "pairs", {"train": (record,), "test": ({**record, "id": "1"},)}, Template("{premise} So {claim}?"), None
    )
    assert "Input: premise: P\nclaim: C\nOutput: yes\n" in ape_text(task, [record])


def test_what_does_not_fit_is_left_out_worst_tries_first() -> None:
    def lines(room: int) -> list[str]:
        writer = Writer(["x"], max_len=room + 10)
        asks(writer, TRIED, style="opro", max_new_tokens=10)
        assert len(writer.requests[0].prompt) <= room
        return [line.split(": ")[1] for line in writer.asked.splitlines() if ": " in line]

    whole = Writer(["x"])
    asks(whole, TRIED, style="opro")
    size = len(whole.requests[0].prompt)
    assert lines(size).count("Name it.") == 1
    assert "Name it." not in lines(size - 1) and "Say the kind of fruit." in lines(size - 1)
    short = lines(220)
    assert "Say the kind of fruit." not in short and 2 <= len(short) < 8  # no tries any more, and fewer examples
    message = r"to ask for an instruction takes \d+ tokens, and the model has room for 90: take a model"
    for style in ("ape", "opro"):
        with pytest.raises(UserError, match=message) as error:
            asks(Writer(["x"], max_len=100), TRIED, style=style, max_new_tokens=10)
        assert "\n" not in str(error.value)


def test_other_records_are_shown_each_time_and_the_same_for_the_same_tries() -> None:
    def shown(tried: int, seed: int = 0) -> tuple[int, ...]:
        writer = Writer(["x"])
        asks(writer, TRIED[:tried], examples=2, seed=seed)
        return writer.requests[0].prompt

    assert shown(1) == shown(1)
    assert len({shown(tried) for tried in range(5)}) > 2 and len({shown(1, seed) for seed in range(9)}) > 2


@pytest.mark.parametrize(
    ("draft", "kept"),
    [
        ("  Name   the\tkind. ", "Name the kind."),
        ("Instruction: Name it.", "Name it."),
        ("New instruction 3:  Name it.", "Name it."),
        ('"Name it."', "Name it."),
        ("«نوع میوه را بگو.»", "نوع میوه را بگو."),
        ("می‌خواهم", "می‌خواهم"),  # a zero-width non-joiner is no space
        ("'Sweet' or 'sour'", "'Sweet' or 'sour'"),
        ("Here it is:\n\nName it.\nOr not.", "Name it."),
        ("Fill {output} with {{kind}}.", "Fill {output} with {{kind}}."),
        ("Name it.\n###\nplum:", "Name it."),
        ("Use ### to end.", ""),  # the separator
        ("Write <s> first.", ""),
        ("", ""),
        (" \n ", ""),
        ('""', ""),
        ("1. 2. 3.", ""),
        ("...", ""),
        ("gl\ufffdbi", ""),
    ],
)
def test_a_draft_is_cleaned_or_dropped(draft: str, kept: str) -> None:
    assert cleaned(draft, {"###", "<s>", "\n", " "}) == kept


def test_duplicates_are_dropped_whatever_their_form() -> None:
    drafts = ["Name it.", "name  IT.", "Known.", "", "Caf\u00e9", "Cafe\u0301", "Other", '"Other"']
    assert distinct(drafts, ["known."], ["\n"]) == ["Name it.", "Caf\u00e9", "Other"]


def test_drafts_without_an_end_are_dropped() -> None:
    drafts = ["Cut in the mid…", "Whole.", "Whole as well.\nand then cut…"]
    assert asks(Writer(drafts), TRIED, count=3).texts == ("Whole.", "Whole as well.")


def test_no_separator_of_any_prompt_and_no_special_token_gets_in() -> None:
    special = next(iter(TOKENIZER.special_ids))
    tried = [(PromptConfig(separator=" | "), 0.5)]
    drafts = ["Name it | now.", f"Name {special} it.", "Name the kind. ;; Or not", "Good."]
    task = dataclasses.replace(TASK, template=Template(separator=";;"))
    assert asks(Writer(drafts), tried, task, count=4).texts == ("Good.",)


def test_a_model_with_a_chat_template_is_asked_in_a_conversation() -> None:
    template = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}<model>"
    parts = Parts(TOKENIZER._fast, dict(TOKENIZER.tokens), TOKENIZER.bos_id, TOKENIZER.stop_ids, template)
    writer = Writer(["\n\nSure, here is one:\n\nName it.\n"], tokenizer=Tokenizer(parts))
    assert asks(writer, TRIED[1:3], style="opro", count=1).texts == ("Name it.",)
    assert writer.asked.startswith("<user>These instructions were tried.") and writer.asked.endswith("</><model>")
    assert writer.requests[0].stop == () and writer.requests[0].prompt.count(TOKENIZER.bos_id) == 1


def test_an_instruction_stands_in_the_prompt_as_it_was_written() -> None:
    (text,) = asks(Writer(["Fill {output} with {{kind}}, {nothing}."]), TRIED, count=1).texts
    prompt = make_prompt(TASK, TOKENIZER, PromptConfig(instruction=text), TRAIN[3], (), 500, 4)
    assert prompt.text == "Fill {output} with {{kind}}, {nothing}.\n{lemon}:"


def test_a_search_climbs_by_what_is_proposed() -> None:
    """A writer that lengthens the best instruction it is shown; longer is better."""

    class Climber(Writer):
        def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
            lines = self.tokenizer.decode(requests[0].prompt).splitlines()
            best = [line for line in lines if line.startswith("Instruction: ")][-1].removeprefix("Instruction: ")
            return [Generation(f" {best} more", (), 0.0, True) for _ in requests]

    def evaluate(config: PromptConfig, records: Sequence[Record]) -> Measured:
        return Measured((len(config.instruction or "") / 100,) * len(records), len(records))

    propose = proposer(cast(Engine, Climber([])), TASK, "opro", count=2)
    found = search([PromptConfig(instruction="Tell")], evaluate, HELD[:1], budget=50, propose=propose, rounds=4)
    assert found.config.instruction == "Tell more more more more"
    assert [row.config.instruction for row in found.tries][1] == "Tell more"


def test_a_real_engine_proposes_the_same_twice() -> None:
    config = ModelConfig(
        TOKENIZER.vocab_size, width=16, depth=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16, max_len=256
    )
    engine = Engine(config, init(config, jax.random.key(0)), TOKENIZER, batch_size=4)
    propose = proposer(engine, TASK, "ape", count=4, examples=1, max_new_tokens=8)
    first, again = propose(TRIED), propose(TRIED)
    assert first.texts == again.texts and first.tokens > 100


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"style": "apo"}, "unknown style 'apo': one of ape, opro; did you mean 'ape'"),
        ({"count": 0}, "count=0, examples=5, max_new_tokens=48: at least 1 of each"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        asks(Writer(["x"]), TRIED, **settings)
