"""Packing and padding lose nothing, and a batch depends on seed and step alone."""

import itertools
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.model.errors import UserError
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.train.data import Rows, batches, pack, pad, place
from limbeck.train.examples import Example, Labelled, documents, example

NAMES = {"tokens_BT", "targets_BT", "weights_BT", "positions_BT", "segments_BT"}


def unpack(rows: Rows) -> dict[int, dict[str, list]]:
    """What the rows hold of each example, by its number."""
    found: dict[int, dict[str, list]] = {}
    for group in rows.groups:
        for row, segments in enumerate(group["segments_BT"]):
            for segment in np.unique(segments[segments > 0]):
                at = np.flatnonzero(segments == segment)
                assert (np.diff(at) == 1).all() and segment - 1 not in found
                assert group["positions_BT"][row, at].tolist() == list(range(len(at)))
                found[int(segment) - 1] = {name: array[row, at].tolist() for name, array in group.items()}
        padding = group["segments_BT"] == 0
        assert not any(array[padding].any() for array in group.values())
    return found


def example_rows(count: int, longest: int, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    return [
        Example(rng.integers(1, 99, n).astype(np.int32), rng.random(n) < 0.6, f"ردیف {i}")
        for i, n in enumerate(rng.integers(2, longest + 1, count))
    ]


some_examples = st.lists(
    st.lists(st.tuples(st.integers(0, 500), st.booleans()), min_size=2, max_size=13), min_size=1, max_size=30
).map(
    lambda many: [
        Example(np.array([i for i, _ in one], np.int32), np.array([c for _, c in one]), f"row {n}")
        for n, one in enumerate(many)
    ]
)


@given(some_examples, st.booleans())
@settings(deadline=None)
def test_packed_and_padded_rows_hold_every_example_once(examples, packed):
    rows = pack(examples, 12) if packed else pad(examples, (12, 3, 7))
    for group in rows.groups:
        assert group.keys() == NAMES
        assert {name: array.dtype for name, array in group.items()} == {
            name: np.float32 if name == "weights_BT" else np.int32 for name in NAMES
        }
    found = unpack(rows)
    assert sorted(found) == list(range(len(examples)))
    for number, (ids, counts, name) in enumerate(examples):
        assert found[number]["tokens_BT"] == ids[:-1].tolist()
        assert found[number]["targets_BT"] == ids[1:].tolist()
        assert found[number]["weights_BT"] == counts[1:].tolist()
        assert rows.names_E[number].decode() == name
    if not packed:
        for group in rows.groups:
            size = (group["segments_BT"] > 0).sum(1)
            shorter = [length for length in (0, 3, 7, 12) if length < group["tokens_BT"].shape[1]][-1]
            assert (size > shorter).all() and (group["segments_BT"] == group["segments_BT"][:, :1])[size > 12].all()


heads = st.one_of(
    st.tuples(st.integers(1, 5), st.just(0)), st.tuples(st.just(0), st.just(1)), st.tuples(st.just(0), st.just(3))
)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), heads, st.booleans())
@settings(deadline=None)
def test_a_head_answers_at_the_last_token(sizes, head, packed):
    options, width = head
    rng = np.random.default_rng(0)
    examples = [
        Labelled(
            rng.integers(1, 99, n).astype(np.int32),
            int(rng.integers(options)) if options else 0,
            rng.random(width).astype(np.float32),
            "",
        )
        for n in sizes
    ]
    rows = pack(examples, 9) if packed else pad(examples, (4, 9))
    assert all(group.keys() == NAMES | ({"values_BTC"} if width else set()) for group in rows.groups)
    found = unpack(rows)
    for number, made in enumerate(examples):
        before = [0] * (len(made.ids) - 1)
        assert found[number]["tokens_BT"] == made.ids.tolist()
        assert found[number]["weights_BT"] == [*before, 1.0]
        assert found[number]["targets_BT"] == [*before, made.option]
        if width:
            assert found[number]["values_BTC"] == [*([0] * width for _ in before), made.values.tolist()]


def test_what_is_too_long_is_named_or_left_out_and_said():
    lengths = {2: 3, 9: 9, 5: 5, 8: 8}
    examples = [example(range(n), 1, f"نظر.csv, row {row}") for row, n in lengths.items()]
    for make in (lambda bad: pack(examples, 4, bad), lambda bad: pad(examples, [2, 4], bad)):
        with pytest.raises(UserError, match=r"row 9: 8 tokens, where a row holds 4 \(and 1 more\)") as error:
            make("error")
        assert "\n" not in str(error.value)
        rows = make("skip")
        assert sorted(unpack(rows)) == [0, 2]
        assert rows.skipped == tuple(f"نظر.csv, row {n}: {n - 1} tokens, where a row holds 4" for n in (9, 8))
    with pytest.raises(UserError, match="on_bad_row 'skp'.*did you mean 'skip'"):
        pack(examples, 4, "skp")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="training split is empty, all 4 were left out: نظر.csv, row 2: 2 tokens"):
        batches(pack(examples, 1, "skip"), 4, 0)
    with pytest.raises(UserError, match="training split is empty$"):
        batches(pack([], 4), 4, 0)


def slow_best_fit(sizes: list[int], length: int) -> list[int]:
    """The room that is left in the row that each gets, by looking at all rows."""
    rooms, left = [], []
    for size in sizes:
        fitting = [row for row, room in enumerate(rooms) if room >= size]
        if not fitting:
            rooms.append(length)
            fitting = [len(rooms) - 1]
        row = min(fitting, key=lambda row: rooms[row])
        rooms[row] -= size
        left.append(rooms[row])
    return left


@given(st.lists(st.integers(1, 30), max_size=60), st.integers(30, 70))
def test_each_goes_where_it_leaves_least_room(sizes, length):
    rows, starts = place(sizes, length)
    assert [length - start - size for start, size in zip(starts, sizes, strict=True)] == slow_best_fit(sizes, length)
    taken = set()
    for row, start, size in zip(rows.tolist(), starts.tolist(), sizes, strict=True):
        tokens = {(row, at) for at in range(start, start + size)}
        assert not tokens & taken and start + size <= length
        taken |= tokens
    assert sorted(set(rows.tolist())) == list(range(len(set(rows.tolist()))))


def test_packing_is_quick_and_leaves_little_room():
    examples = example_rows(20_000, 20)
    start = time.perf_counter()
    rows = pack(examples, 24)
    assert time.perf_counter() - start < 2  # a tenth of a second on a machine that has nothing else to do
    assert (rows.groups[0]["segments_BT"] > 0).mean() > 0.98


def test_a_row_is_not_of_one_label_where_the_file_is_sorted_by_it():
    rows = pack([example([label] * 5, 1) for label in range(1, 21) for _ in range(40)], 40)
    labels = [len(set(row[row > 0].tolist())) for row in rows.groups[0]["tokens_BT"]]
    assert np.mean(labels) > 6  # of ten


def numbered(count: int, start: int = 0, length: int = 2) -> Rows:
    """Rows of one example each that hold its number, from `start` on."""
    return pad([example([start + i] * (length + 1), 1, f"{start + i}") for i in range(count)], [length])


def seen(stream, steps) -> list[list[int]]:
    return [stream(step)["tokens_BT"][:, 0].tolist() for step in steps]


def test_batches_are_a_function_of_seed_and_step_and_visit_every_row():
    rows = numbered(10)
    first = seen(batches(rows, 4, 0), range(5))
    assert sorted(sum(first, [])) == sorted([*range(10)] * 2)
    assert sorted(sum(first, [])[:10]) == list(range(10))  # each pass has each row once
    assert sum(first, [])[:10] != sum(first, [])[10:]
    assert seen(batches(rows, 4, 0), (4, 0)) == [first[4], first[0]]
    others = [sum(seen(batches(rows, 10, seed), range(3)), []) for seed in range(20)]
    passes = {tuple(order[i : i + 10]) for order in others for i in (0, 10, 20)}
    assert len(passes) == 60  # no seed's second pass is another's first


def test_the_order_is_the_one_that_runs_have_begun_with():
    assert seen(batches(numbered(10), 5, 0), range(2)) == ORDER, "a run would go on with other batches than it began"


ORDER = [[0, 4, 2, 3, 7], [9, 5, 8, 1, 6]]


@pytest.mark.parametrize("weights", [(0.75, 0.25), (1, 2, 5), (0.9, 0.1), (1 / 3, 2 / 3), (3.0, 300.0)])
def test_a_mixture_has_its_shares_at_every_moment_and_any_step_alone(weights):
    sources = [(numbered(7 + i, 1000 * i), weight) for i, weight in enumerate(weights)]
    stream = batches(sources, 8, 0)
    tokens = np.array(sum(seen(stream, range(200)), []))
    for i, weight in enumerate(weights):
        share = float(Fraction(weight) / sum(map(Fraction, weights)))
        had = np.cumsum(tokens // 1000 == i)
        error = np.abs(had - share * np.arange(1, len(tokens) + 1))
        assert error.max() < 2 + 0.01 * share * len(tokens)
        of_source = tokens[tokens // 1000 == i] - 1000 * i
        for start in range(0, len(of_source) - 7 - i, 7 + i):  # each source goes through its own passes
            assert sorted(of_source[start : start + 7 + i]) == list(range(7 + i))
    again = batches(sources, 8, 0)
    assert seen(again, (150, 3, 77)) == [tokens[8 * s : 8 * s + 8].tolist() for s in (150, 3, 77)]


def test_padded_rows_come_in_batches_of_one_length_in_proportion():
    rows = pad(example_rows(300, 33), [8, 16, 32])
    stream = batches(rows, 4, 0)
    lengths = [stream(step)["tokens_BT"].shape for step in range(400)]
    counts = {group["tokens_BT"].shape[1]: len(group["tokens_BT"]) for group in rows.groups}
    assert sum(counts.values()) == 300 and len(counts) == 3
    for length, count in counts.items():
        assert abs(lengths.count((4, length)) - 400 * count / 300) < 6
    for bucket in rows.groups:
        length = bucket["tokens_BT"].shape[1]
        steps = [step for step in range(400) if lengths[step] == (4, length)]
        segments = [number for step in steps for number in stream(step)["segments_BT"][:, 0].tolist()]
        assert sorted(segments[: counts[length]]) == sorted(bucket["segments_BT"][:, 0])


def test_every_segment_of_a_mixture_leads_back_to_its_example():
    of_text = pack(documents(["درخت", "a tree", "گل", "a flower"] * 5, byte_tokenizer()), 24)
    of_others = pack([example([7] * 5, 1, f"moods.csv, row {i}") for i in range(11)], 24)
    for sources in ([(of_text, 1.0), (of_others, 3.0)], [(of_others, 1.0), (of_text, 1.0)]):
        stream = batches(sources, 4, 0)
        names = set()
        for step, row in itertools.product(range(20), range(4)):
            batch = stream(step)
            for segment in np.unique(batch["segments_BT"][row]):
                tokens = batch["tokens_BT"][row, batch["segments_BT"][row] == segment]
                if segment == 0:
                    assert not tokens.any()
                    continue
                name = stream.name(int(segment) - 1)
                assert name.startswith("moods" if (tokens == 7).all() else "text")
                names.add(name)
        assert len(names) == 31
    with pytest.raises(IndexError):
        stream.name(31)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_is_positive(weight):
    with pytest.raises(UserError, match=f"weight {weight} of source 1"):
        batches([(numbered(3), 1.0), (numbered(3), weight)], 4, 0)
