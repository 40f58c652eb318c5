"""Two sides of one content: what is aligned has been read by both, and nothing of an example is lost in the rows."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
import tokenizers
from hypothesis import example as with_example
from hypothesis import given, settings
from hypothesis import strategies as st
from paired_texts import paired_texts
from tokenizers import normalizers

from limbeck.distill.rows.paired import Pair, pack_pairs, prompt_distillation, two_tokenizers_on_task
from limbeck.distill.teacher import distillation_loss, with_teacher
from limbeck.inference.engine import Engine
from limbeck.inference.requests import ScoreRequest
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.tokenizer import Tokenizer, byte_tokenizer, load_tokenizer, train_bpe
from limbeck.model.tokenizer.files import Parts
from limbeck.model.transformer import apply, init
from limbeck.prompting.demonstrations import choose
from limbeck.tasks.task import Record, Task
from limbeck.tasks.template import Template
from limbeck.train.data import Rows, batches, pack
from limbeck.train.examples import Example, completions

TEXTS = [
    "The lemon is a hesperidium, the plum a drupe.",
    "گلابی میوه است و می‌روید",
    "👩‍👩‍👧 and e\u0301 and \u0928\u093f",
    "one\n\n two\r\n  three ",
    "   leading",
    "",
]
BYTES, SMALL, LARGE = byte_tokenizer(), train_bpe(TEXTS * 4, 290), train_bpe(TEXTS * 4, 380)
PREFIXED = train_bpe(TEXTS * 4, 330, line_prefix=True)
KNOWN = st.text(alphabet="the lmon\nگلا\u0301👩\u200d", max_size=20)  # of letters that the vocabularies put together
STREAM = st.one_of(st.sampled_from(TEXTS), KNOWN, st.text(max_size=8))


def examples_of(rows: Rows) -> dict[int, dict[str, np.ndarray]]:
    """By its number, what the rows hold of each example: the places counted from its own beginning on each side."""
    found = {}
    for group in rows.groups:
        arrays = [group[name] for name in ("tokens_BT", "targets_BT", "weights_BT", "positions_BT", "teacher_at_BT")]
        for row, segments_T in enumerate(group["segments_BT"]):
            for number in set(segments_T.tolist()) - {0}:
                own, theirs = segments_T == number, group["teacher_segments_BS"][row] == number
                tokens, targets, weights, positions, at = (array[row][own] for array in arrays)
                first = int(np.argmax(theirs))
                assert (np.flatnonzero(own) - np.argmax(own) == positions).all()
                assert (np.flatnonzero(theirs) - first == group["teacher_positions_BS"][row][theirs]).all()
                assert number - 1 not in found
                found[number - 1] = {
                    "ids": np.append(tokens, targets[-1]),
                    "targets": targets,
                    "counts": weights,
                    "teacher": group["teacher_tokens_BS"][row][theirs],
                    "at": np.where(at < 0, -1, at - first),
                }
    return found


def aligned(text: str, student: Tokenizer, teacher: Tokenizer) -> dict[str, np.ndarray]:
    return examples_of(paired_texts([text], student, teacher, length=400, teacher_length=400))[0]


def lone_bytes(tokenizer: Tokenizer, text: str) -> list[int]:
    """The text as an id for each byte: byte-level vocabularies begin with the same 256, SentencePiece spells them."""
    spelled = [tokenizer._fast.token_to_id(f"<0x{byte:02X}>") for byte in text.encode()]
    return BYTES.encode(text) if None in spelled else [index for index in spelled if index is not None]


def ending(tokenizer: Tokenizer, ids: list[int], text: str) -> int:
    """At which byte of the text the ids end: from there on lone bytes make it whole, decoded by the library."""
    lone = lone_bytes(tokenizer, text)
    whole = [at for at in range(len(lone) + 1) if tokenizer.decode([*ids, *lone[at:]]) == text]
    assert len(whole) == 1
    return whole[0]


@pytest.mark.parametrize("pair", [(SMALL, LARGE), (LARGE, SMALL), (BYTES, LARGE), (LARGE, BYTES)])
@settings(deadline=None, max_examples=30)
@given(text=STREAM)
def test_aligned_are_just_the_places_at_which_both_have_read_the_same_bytes(pair, text):
    student, teacher = pair
    found = aligned(text, student, teacher)
    ids, teacher_ids = found["ids"].tolist(), [*found["teacher"].tolist(), teacher.eos_id]
    assert ids == [student.bos_id, *student.encode(text), student.eos_id]
    assert teacher_ids == [teacher.bos_id, *teacher.encode(text), teacher.eos_id]
    ends = {ending(teacher, teacher_ids[1 : place + 1], text): place for place in range(len(teacher_ids) - 1)}
    expected = [ends.get(ending(student, ids[1 : place + 1], text), -1) for place in range(len(ids) - 1)]
    assert found["at"].tolist() == expected
    assert expected[0] == 0 and expected[-1] == len(teacher_ids) - 2  # the first and the last are always common


@settings(deadline=None, max_examples=50)
@given(text=STREAM)
@with_example("گل\n \nx")
def test_equal_tokenizers_read_alike_everywhere(text):
    for tokenizer in (BYTES, LARGE, PREFIXED):
        found = aligned(text, tokenizer, tokenizer)
        assert found["at"].tolist() == list(range(len(found["ids"]) - 1))
        assert found["teacher"].tolist() == found["ids"][:-1].tolist()


def test_a_space_that_only_one_tokenizer_adds_is_passed_over():
    text = "lemon\nlemon"
    found = aligned(text, BYTES, PREFIXED)
    teacher = [PREFIXED.decode([index]) for index in found["teacher"]]
    read = {0: None, 6: None, 11: len(teacher) - 1}  # neither at the beginning nor after the line: a space comes next
    for place, expected in read.items():
        assert found["at"][place] == (-1 if expected is None else expected), place
    assert (found["at"] >= 0).sum() > 1


@pytest.mark.shared
@pytest.mark.parametrize("text", [text for text in TEXTS if text[:1] != " "])
def test_a_byte_level_student_of_llama2_c_s_tokenizer(shared_data, text):
    teacher = load_tokenizer(shared_data / "stories260k" / "tok512.bin")
    for student in (BYTES, LARGE):
        found = aligned(text, student, teacher)
        ids, teacher_ids = found["ids"].tolist(), found["teacher"].tolist()
        at_byte = {ending(teacher, teacher_ids[: place + 1], text): place for place in range(len(teacher_ids))}
        for place, at in enumerate(found["at"].tolist()):
            end = ending(student, ids[: place + 1], text)
            alone = at_byte.get(end) == 0 and bool(text)  # nothing but BOS read: the added space comes next
            assert at == (-1 if alone else at_byte.get(end, -1)), place
        assert (found["at"] >= 0).sum() >= 1


@pytest.mark.shared
def test_leading_spaces_beside_one_that_is_added(shared_data):
    teacher = load_tokenizer(shared_data / "stories260k" / "tok512.bin")
    found = aligned("  a", BYTES, teacher)
    assert [teacher._fast.id_to_token(index) for index in found["teacher"]] == ["<s>", "▁", "▁", "▁a"]
    assert found["at"].tolist() == [1, 2, -1, 3]


def test_a_text_that_does_not_come_back_is_named_or_left_out():
    normalising = normaliser()
    with pytest.raises(UserError, match=r"^b\.txt, row 7: the teacher's tokenizer does not give it back: .*skip"):
        paired_texts(
            ["ok", "\ufb01g"], BYTES, normalising, length=9, teacher_length=9, places=["a.txt, row 1", "b.txt, row 7"]
        )
    rows = paired_texts(
        ["\ufb01g", "ok", "much too long"], normalising, BYTES, length=9, teacher_length=9, on_bad_row="skip"
    )
    assert rows.names_E.tolist() == [b"text 2", b"text 3"]
    assert [line.split(":")[0] for line in rows.skipped] == ["text 1", "text 3"] and "student" in rows.skipped[0]
    assert BYTES.decode(examples_of(rows)[0]["ids"]) == "ok"


def normaliser() -> Tokenizer:
    fast = tokenizers.Tokenizer.from_str(BYTES._fast.to_str())
    fast.normalizer = normalizers.NFKC()
    return Tokenizer(Parts(fast, dict(BYTES.tokens), BYTES.bos_id, BYTES.stop_ids, None))


@st.composite
def pair_lists(draw):
    pairs = []
    for number in range(draw(st.integers(1, 12))):
        size, teacher_size = draw(st.integers(1, 10)), draw(st.integers(1, 14))
        ids = np.arange(100 * number, 100 * number + size + 1, dtype=np.int32)
        teacher_ids = np.arange(5000 + 100 * number, 5000 + 100 * number + teacher_size + 1, dtype=np.int32)
        at = draw(st.lists(st.integers(-1, teacher_size - 1), min_size=size, max_size=size))
        counts = np.asarray([False, *draw(st.lists(st.booleans(), min_size=size, max_size=size))])
        pairs.append(Pair(Example(ids, counts, f"pair {number}"), teacher_ids, np.asarray(at, np.int32)))
    return pairs


@settings(deadline=None, max_examples=100)
@given(pair_lists(), st.integers(10, 30), st.integers(14, 40))
def test_every_pair_is_whole_in_one_row_on_both_sides(pairs, length, teacher_length):
    rows = pack_pairs(pairs, length, teacher_length)
    (group,) = rows.groups
    assert group["tokens_BT"].shape[1] == length and group["teacher_tokens_BS"].shape[1] == teacher_length
    assert len({len(array) for array in group.values()}) == 1
    found = examples_of(rows)
    assert len(found) == len(pairs) == len(rows.names_E)
    for number, pair in enumerate(pairs):
        got = found[number]
        assert got["ids"].tolist() == pair.student.ids.tolist()
        assert got["targets"].tolist() == pair.student.ids[1:].tolist()
        assert got["counts"].tolist() == pair.student.counts[1:].tolist()
        assert got["teacher"].tolist() == pair.teacher_ids[:-1].tolist()
        assert got["at"].tolist() == pair.at_T.tolist()
    assert (group["teacher_at_BT"][group["segments_BT"] == 0] == -1).all()
    assert not group["weights_BT"][group["segments_BT"] == 0].any()


def test_alike_examples_fill_their_rows():
    ids, teacher_ids = np.arange(6, dtype=np.int32), np.arange(11, dtype=np.int32)
    pairs = [Pair(Example(ids, ids > 0, str(i)), teacher_ids, np.zeros(5, np.int32)) for i in range(24)]
    rows = pack_pairs(pairs, 32, 60)  # six of the student's would fit, and six of the teacher's
    assert len(rows.groups[0]["tokens_BT"]) == 4


@pytest.mark.parametrize(("length", "teacher_length"), [(4, 40), (40, 9)])
def test_a_pair_that_is_too_long_on_either_side_is_named_or_left_out(length, teacher_length):
    ids, teacher_ids = np.arange(6, dtype=np.int32), np.arange(11, dtype=np.int32)
    long = Pair(Example(ids, ids > 0, "the long one"), teacher_ids, np.zeros(5, np.int32))
    short = Pair(Example(ids[:2], ids[:2] > 0, "the short one"), teacher_ids[:2], np.zeros(1, np.int32))
    message = f"the long one: 5 tokens and 10 for the teacher, where a row holds {length} and {teacher_length}"
    with pytest.raises(UserError, match=rf"^{message} \(and 1 more\): raise .*shots"):
        pack_pairs([short, long, long], length, teacher_length)
    rows = pack_pairs([long, short], length, teacher_length, "skip", ["before"])
    assert rows.skipped == ("before", message)
    assert list(examples_of(rows)) == [1] and rows.names_E.tolist() == [b"the long one", b"the short one"]
    assert pack_pairs([long], length, teacher_length, "skip").groups == ()


def test_batches_carry_both_sides():
    rows = paired_texts(TEXTS, SMALL, LARGE, length=80, teacher_length=60)
    stream = batches([(rows, 1.0), (rows, 1.0)], 4, seed=0)
    batch = stream(0)
    assert batch["teacher_tokens_BS"].shape == (4, 60) and batch["teacher_at_BT"].shape == (4, 80)
    assert stream.name(int(batch["segments_BT"].max()) - 1).startswith("text")


CLASSES = ("berry", "drupe", "pome")


def fruit(identity: str, name: str, number: int) -> Record:
    return {"id": identity, "input": name, "output": CLASSES[number % 3]}


TRAIN = tuple(fruit(f"train/{i}", f"fruit {i}", i) for i in range(12))
TASK = Task("fruits", {"train": TRAIN, "test": (fruit("test/0", "میوه", 1),)}, Template(), CLASSES)
distilled = partial(prompt_distillation, length=24, teacher_length=200)


def test_the_teacher_reads_the_prompt_and_the_student_the_query():
    rows = distilled(TASK, TRAIN, BYTES, shots=3, seed=5, instruction="Name the kind.")
    assert rows.groups[0]["teacher_tokens_BS"].shape[1] > rows.groups[0]["tokens_BT"].shape[1]
    found = examples_of(rows)
    assert len(found) == len(TRAIN)
    for number, record in enumerate(TRAIN):
        got = found[number]
        alone = completions(TASK, [record], BYTES)[0]
        assert got["ids"].tolist() == alone.ids.tolist() and got["counts"].tolist() == alone.counts[1:].tolist()
        lines = (BYTES.decode(got["teacher"]) + "\n").split("\n")  # what ends the answer is only a target
        assert lines[0] == "Name the kind."
        shown, own = lines[1:-2], lines[-2]
        assert own == f"{record['input']}: {record['output']}"
        assert shown == [f"{r['input']}: {r['output']}" for r in choose(TASK, record, 3, 5)] and len(shown) == 3
        assert own not in shown and got["teacher"][0] == BYTES.bos_id and BYTES.bos_id not in got["teacher"][1:]


def test_the_answer_s_tokens_are_aligned_one_to_one():
    for shots in (0, 2):
        rows = distilled(TASK, TRAIN, LARGE, shots=shots, seed=0)
        for number, got in examples_of(rows).items():
            answer = LARGE.encode(TASK.target(TRAIN[number]) + "\n")
            assert (got["at"] >= 0).tolist() == (got["counts"] > 0).tolist()
            assert (got["at"] >= 0).sum() == len(answer)
            teacher_targets = np.append(got["teacher"], answer[-1])[1:]
            learned = got["at"] >= 0
            assert teacher_targets[got["at"][learned]].tolist() == got["targets"][learned].tolist() == answer
            if shots == 0:
                assert got["at"][learned].tolist() == np.flatnonzero(learned).tolist()


def test_a_template_s_own_instruction_is_read_by_both_unless_another_is_given():
    task = dataclasses.replace(TASK, template=Template(instruction="Own."))
    for instruction, taught in (("", "Own.\n"), ("Given.", "Given.\n")):
        rows = distilled(task, TRAIN[:1], BYTES, shots=1, seed=0, instruction=instruction)
        got = examples_of(rows)[0]
        assert BYTES.decode(got["teacher"]).startswith(taught)
        assert BYTES.decode(got["ids"]) == "Own.\nfruit 0: berry\n"


def test_prompts_that_are_too_long_are_named_or_left_out():
    with pytest.raises(UserError, match=r"record 'train/11': 15 tokens and 61 for the teacher, where .* 24 and 60"):
        prompt_distillation(TASK, TRAIN, BYTES, shots=3, seed=0, length=24, teacher_length=60)
    records = [TRAIN[0], {**TRAIN[1], "input": "a very long name of a fruit"}]
    rows = distilled(TASK, records, BYTES, shots=1, seed=0, on_bad_row="skip")
    assert list(examples_of(rows)) == [0] and rows.skipped[0].startswith("task 'fruits', record 'train/1': 35 tokens")


def test_more_shots_than_there_are_is_the_user_s_mistake():
    with pytest.raises(UserError, match="12 shots for record 'train/0'"):
        distilled(TASK, TRAIN, BYTES, shots=12, seed=0)


def test_the_teacher_s_log_probabilities_are_those_of_scoring_the_few_shot_prompt():
    config = ModelConfig(BYTES.vocab_size, 16, 1, 2, 1, 8, 24, max_len=128)
    params = {path: 4 * leaf for path, leaf in init(config, jax.random.key(0)).items()}
    records = TRAIN[:4]
    rows = prompt_distillation(TASK, records, BYTES, shots=2, seed=1, length=64, teacher_length=128)
    (group,) = rows.groups
    assert (group["teacher_segments_BS"].max(1) != group["teacher_segments_BS"][:, 0]).any()  # several side by side
    out = jax.jit(lambda p, *x: apply(config, p, x[0], positions_BT=x[1], segments_BT=x[2]).logits_BTV)(
        params, *(group[f"teacher_{name}_BS"] for name in ("tokens", "positions", "segments"))
    )
    log_p_BSV = np.asarray(jax.nn.log_softmax(out))
    requests = [
        ScoreRequest(
            tuple(BYTES.prompt(TASK.prompt(record, choose(TASK, record, 2, 1)))),
            (tuple(BYTES.encode(TASK.target(record) + "\n")),),
        )
        for record in records
    ]
    for number, scored in enumerate(Engine(config, params, BYTES, 4).score(requests)):
        row, place = np.nonzero((group["segments_BT"] == number + 1) & (group["teacher_at_BT"] >= 0))
        total = log_p_BSV[row, group["teacher_at_BT"][row, place], group["targets_BT"][row, place]].sum()
        assert total == pytest.approx(scored.logprobs[0], abs=1e-4)


def test_without_a_prompt_it_is_plain_distillation():
    config = ModelConfig(BYTES.vocab_size, 16, 1, 2, 1, 8, 24, max_len=64)
    params = with_teacher(init(config, jax.random.key(0)), init(config, jax.random.key(1)))
    loss_fn = distillation_loss(config, config)
    plain = pack(completions(TASK, TRAIN, BYTES), 48)
    both = prompt_distillation(TASK, TRAIN, BYTES, shots=0, seed=0, length=48, teacher_length=64)
    losses = [jax.jit(loss_fn)(params, rows.groups[0], jax.random.key(0))[1] for rows in (plain, both)]
    for name in ("divergence", "cross_entropy", "weight"):
        assert float(losses[0][name]) == pytest.approx(float(losses[1][name]), rel=1e-5), name


def test_records_of_a_task_in_paired_texts():
    rows = two_tokenizers_on_task(TASK, TRAIN, SMALL, BYTES, length=48, teacher_length=48)
    for number, got in examples_of(rows).items():
        student, teacher = (completions(TASK, [TRAIN[number]], tokenizer)[0] for tokenizer in (SMALL, BYTES))
        assert got["ids"].tolist() == student.ids.tolist() and got["teacher"].tolist() == teacher.ids[:-1].tolist()
        learned = got["at"] >= 0
        assert learned.tolist() == student.counts[1:].tolist()  # a byte-level teacher ends wherever the student does
        for place in np.flatnonzero(learned):
            assert SMALL.decode(got["ids"][: place + 1]) == BYTES.decode(got["teacher"][: got["at"][place] + 1])


@pytest.mark.shared
def test_answers_aligned_where_the_teacher_adds_a_space_to_a_text(shared_data):
    teacher = load_tokenizer(shared_data / "stories260k" / "tok512.bin")
    rows = two_tokenizers_on_task(TASK, TRAIN[:1], BYTES, teacher, length=48, teacher_length=48)
    got = examples_of(rows)[0]
    spelled = [teacher._fast.id_to_token(index) or "" for index in got["teacher"]]
    colon = spelled.index(":")  # then the answer, behind its own space alone: one is added where the text begins
    assert spelled[colon + 1].startswith("▁") and spelled[colon + 1] != "▁"
    first = int(np.argmax(got["counts"]))
    assert got["at"][first] == colon  # both are asked for the space
