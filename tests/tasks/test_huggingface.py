"""What `datasets` leaves on disk, read without it: the same rows, class names for numbers, and nothing outside."""

import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limbeck.model.errors import UserError
from limbeck.tasks.huggingface import class_names, readme_classes
from limbeck.tasks.sources import load_task
from limbeck.tasks.task import Task
from limbeck.tasks.texts import read_chats, read_texts

MOODS = {"kind": "multi_label", "input": "text", "output": "moods"}
FEATURES = {
    "text": {"dtype": "string", "_type": "Value"},
    "label": {"names": ["bad", "good", "ugly"], "_type": "ClassLabel"},
    "moods": {"feature": {"names": ["joy", "anger"], "_type": "ClassLabel"}, "_type": "List"},
}
ROWS = [{"text": f"نقد {i}", "label": i % 2, "moods": [0, 1][: i % 3]} for i in range(60)]


def save(folder: Path, shards: list[list[dict]], features: object = FEATURES, **state: object) -> Path:
    """The files that save_to_disk writes for one split."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{i:05}-of-{len(shards):05}.arrow" for i in range(len(shards))]
    for name, rows in zip(names, shards, strict=True):
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=7)
    listed = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": None, **state}
    (folder / "state.json").write_text(json.dumps(listed))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


def save_splits(folder: Path, **splits: list[list[dict]]) -> Path:
    folder.mkdir(exist_ok=True)
    for split, shards in splits.items():
        save(folder / split, shards)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return folder


def refused(path: Path, *parts: str, **options) -> None:
    with pytest.raises(UserError) as error:
        load_task(path, **options)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def answers(task: Task) -> dict[str, str]:
    return {record["text"]: task.answer(record) for split in task.splits.values() for record in split}


NAMES = {row["text"]: ("bad", "good")[row["label"]] for row in ROWS}


def test_a_saved_data_set_of_several_shards(tmp_path: Path) -> None:
    folder = save(tmp_path / "reviews", [ROWS[:25], ROWS[25:26], ROWS[26:]])
    task = load_task(folder)
    assert task.name == "reviews"
    assert (task.kind, task.options) == ("classification", ("bad", "good", "ugly"))
    assert answers(task) == NAMES
    assert sorted(int(record["id"].split("/")[1]) for split in task.splits.values() for record in split) == list(
        range(1, 61)
    )
    record = next(r for split in task.splits.values() for r in split if r["text"] == "نقد 30")
    assert task.place(record) == f"{folder / 'data-00002-of-00003.arrow'}, row 5"


def test_saved_splits(tmp_path: Path) -> None:
    folder = save_splits(tmp_path / "d", train=[ROWS[:50]], test=[ROWS[50:]], unsupervised=[ROWS])
    task = load_task(folder)
    assert {split: len(records) for split, records in task.splits.items()} == {"train": 50, "test": 10}
    assert task.place(task.splits["test"][0]) == f"{folder / 'test' / 'data-00000-of-00001.arrow'}, row 1"
    said = {"splits": {"train": "test", "test": "train"}}
    assert len(load_task(folder, description=said).splits["train"]) == 10
    refused(folder, "no split 'trian'", "did you mean 'train'", description={"splits": {"train": "trian"}})
    assert [text.text for text in read_texts(folder, split="test").documents] == [row["text"] for row in ROWS[50:]]


def test_lists_of_classes_are_labels_by_name(tmp_path: Path) -> None:
    task = load_task(save(tmp_path / "d", [ROWS]), description=MOODS)
    assert task.options == ("joy", "anger")
    expected = [[], ["joy"], ["joy", "anger"]]
    assert {task.labels(r) == tuple(expected[int(r["text"].split()[1]) % 3]) for r in task.splits["train"]} == {True}


def test_an_unlabelled_row_is_named(tmp_path: Path) -> None:
    folder = save_splits(tmp_path / "d", train=[ROWS], test=[[{**ROWS[0], "label": -1}, *ROWS[:3]]])
    place = f"{folder / 'test' / 'data-00000-of-00001.arrow'}, row 1"
    refused(folder, place, "'label' is -1, which names no class", '"splits"')
    assert len(load_task(folder, on_bad_row="skip").skipped) == 1


@pytest.mark.parametrize("name", ["../outside.arrow", "/etc/passwd", "..", ".", "", "gone.arrow", None, 3, {}])
def test_a_listed_file_stays_in_its_folder(tmp_path: Path, name: object) -> None:
    save(tmp_path, [ROWS])
    (tmp_path / "data-00000-of-00001.arrow").rename(tmp_path / "outside.arrow")
    folder = save(tmp_path / "d", [ROWS], _data_files=[{"filename": name}])
    refused(folder, str(folder), "which lists it" if name != {} else "{}")


@pytest.mark.parametrize("split", ["../secret", "/etc", "gone", None])
def test_a_listed_split_stays_in_its_folder(tmp_path: Path, split: object) -> None:
    save(tmp_path / "secret", [ROWS])
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "dataset_dict.json").write_text(json.dumps({"splits": [split]}))
    refused(tmp_path / "d", repr(split), "which lists it")


def test_a_selection_that_is_kept_apart_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "d", [ROWS], _indices_data_files=[{"filename": "indices.arrow"}])
    refused(folder, str(folder / "state.json"), "indices.arrow", "flatten_indices()")
    load_task(save(tmp_path / "e", [ROWS], _indices_data_files=[]))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"_data_files": []}', '{"_data_files": {"a": 1}}', "[" * 99999])
def test_a_torn_state_is_named(tmp_path: Path, content: str) -> None:
    folder = save(tmp_path / "d", [ROWS])
    (folder / "state.json").write_text(content)
    refused(folder, str(folder / "state.json"))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_torn_arrow_file_is_rows_or_one_line(tmp_path: Path, data: st.DataObject) -> None:
    folder = save(tmp_path / "d", [ROWS])
    file = folder / "data-00000-of-00001.arrow"
    whole = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 8))):
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(whole)
    try:
        load_task(folder, on_bad_row="skip")
    except UserError as error:
        assert len(str(error).splitlines()) == 1


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "d", [ROWS])
    texts = [row["text"].encode() for row in ROWS]
    table = pa.Table.from_pylist(ROWS).set_column(
        0, "text", pa.array([*texts[:9], b"\xff", *texts[10:]]).view("string")
    )
    with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as s:
        s.write_table(table)
    refused(folder, "data-00000-of-00001.arrow, row 10 is not UTF-8")
    task = load_task(folder, on_bad_row="skip")
    assert len(answers(task)) == 59 and len(task.skipped) == 1


# A repository of Parquet files


def repository(folder: Path, metadata: bool = True) -> Path:
    table = pa.Table.from_pylist(ROWS)
    if metadata:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": FEATURES}})})
    (folder / "data").mkdir(parents=True)
    for shard in range(2):
        part = table.slice(shard * 30, 30)
        pq.write_table(part, folder / "data" / f"train-{shard:05}-of-00002.parquet")
    pq.write_table(table.slice(0, 9), folder / "data" / "test-00000-of-00001.parquet")
    return folder


HEADER = """\
dataset_info:
  features:
  - name: text
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': bad
          '1': 'good'
          '2': "ugly"
  - name: moods
    sequence:
      class_label:
        names:
          0: joy
          1: 'it''s "anger"'
  splits:
  - name: train
    num_bytes: 1
"""


def test_a_repository_with_names_in_its_files(tmp_path: Path) -> None:
    task = load_task(repository(tmp_path / "r"))
    assert task.options == ("bad", "good", "ugly")
    assert answers(task) == NAMES
    assert len(task.splits["train"]) == 60


def test_a_repository_with_names_in_its_readme(tmp_path: Path) -> None:
    folder = repository(tmp_path / "r", metadata=False)
    assert load_task(folder).options == ("0", "1")
    (folder / "README.md").write_text(f"---\nlicense: mit\n{HEADER}---\n# Reviews\n- name: other\n")
    assert readme_classes(folder) == {"label": ("bad", "good", "ugly"), "moods": ("joy", 'it\'s "anger"')}
    assert answers(load_task(folder)) == NAMES


@pytest.mark.parametrize(
    "text",
    [
        "no header at all",
        "---\nno end: of it",
        f"# below\n---\n{HEADER}---\n",
        f"---\n{HEADER}{HEADER.replace('bad', 'worse').replace('joy', 'glee')}---\n",  # two configurations differ
        "---\n  - name: label\n      names:\n          '1': bad\n          '0': good\n---\n",
        "---\n      names:\n          '0': nobody's\n---\n",
    ],
)
def test_a_readme_that_does_not_say(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    assert readme_classes(tmp_path) == {}


@given(st.text("-:' \"\n0123ab") | st.lists(st.sampled_from(HEADER.splitlines())).map("\n".join))
def test_any_readme_is_read(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "README.md").write_text(f"---\n{text}\n---\n")
        for names in readme_classes(Path(folder)).values():
            assert names


@pytest.mark.parametrize("features", [None, [], {"a": None}, {"a": []}, {"a": {"names": [1]}}, {"a": {"names": None}}])
def test_features_without_classes(features: object) -> None:
    assert class_names(features) == {}


def test_older_lists_of_classes() -> None:
    label = {"names": ["a", "b"], "_type": "ClassLabel"}
    assert class_names({"x": [label], "y": {"feature": label, "_type": "Sequence"}}) == dict.fromkeys("xy", ("a", "b"))


# The library itself


@pytest.mark.bench
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("num_shards", [1, 3])
def test_the_library_writes_what_is_read_here(tmp_path: Path, num_shards: int) -> None:
    datasets = pytest.importorskip("datasets")
    label, moods = datasets.ClassLabel(names=["bad", "good"]), datasets.ClassLabel(names=["joy", "anger"])
    message = {"role": datasets.Value("string"), "content": datasets.Value("string")}
    features = datasets.Features(
        text=datasets.Value("string"),
        label=label,
        moods=datasets.Sequence(moods),
        score=datasets.Value("float32"),
        messages=[message],
    )
    rows = [
        {**row, "score": row["label"] / 3, "messages": [{"role": "assistant", "content": row["text"]}]} for row in ROWS
    ]
    whole = datasets.Dataset.from_list(rows, features=features)
    picked = whole.shuffle(seed=0).select(range(20))
    splits = datasets.DatasetDict(train=whole, test=picked)
    splits.save_to_disk(tmp_path / "dict", num_shards=dict(train=num_shards, test=1))
    picked.save_to_disk(tmp_path / "one", num_shards=num_shards)
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for i in range(num_shards):
        name = f"train-{i:05}-of-{num_shards:05}.parquet"
        whole.shard(num_shards, i, contiguous=True).to_parquet(tmp_path / "hub" / "data" / name)
    picked.to_parquet(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet")

    again = datasets.load_from_disk(str(tmp_path / "dict"))
    for folder in ("dict", "hub"):
        task = load_task(tmp_path / folder)
        for split in ("train", "test"):
            expected = [(row["text"], label.int2str(row["label"])) for row in again[split]]
            assert [(record["text"], task.answer(record)) for record in task.splits[split]] == expected
        tagged = load_task(tmp_path / folder, description=MOODS)
        assert tagged.options == ("joy", "anger")
        for record, row in zip(tagged.splits["test"], again["test"], strict=True):
            assert tagged.labels(record) == tuple(moods.int2str(row["moods"]))
        scored = load_task(tmp_path / folder, description={"kind": "regression", "input": "text", "output": "score"})
        numbers = [scored.number(record) for record in scored.splits["test"]]
        assert numbers == pytest.approx(again["test"]["score"], rel=1e-7)
        chats = read_chats(tmp_path / folder).chats
        assert [chat.messages for chat in chats] == list(again["train"]["messages"])
    one = load_task(tmp_path / "one", description={"kind": "generation", "output": "label", "input": "text"})
    assert answers(one) == {row["text"]: label.int2str(row["label"]) for row in again["test"]}
    assert [text.text for text in read_texts(tmp_path / "one").documents] == list(again["test"]["text"])
