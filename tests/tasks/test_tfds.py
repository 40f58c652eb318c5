"""TFDS names: prepared and read without TensorFlow, by one process at a time, and every fault in one line."""

import json
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from limbeck.model.errors import UserError
from limbeck.model.files import locked
from limbeck.tasks.sources import load_task
from limbeck.tasks.texts import read_texts


def refused(path: Path | str, *parts: str) -> None:
    """Loading it is a UserError of one line with each of `parts` in it."""
    with pytest.raises(UserError) as error:
        load_task(path)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.fixture(scope="module")
def tiny_reviews() -> None:
    """A data set `tiny_reviews`, labelled in train and test, unlabelled in `blind`."""
    import tensorflow_datasets as tfds

    class TinyReviews(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "text": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=["good", "bad", "ugly"]),
                "stars": tfds.features.Scalar(np.float32),
                "moods": tfds.features.Sequence(tfds.features.ClassLabel(names=["joy", "anger"])),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in ("train", "test", "blind")}

        def _generate_examples(self, split):
            for i in range(60 if split == "train" else 5):
                label = -1 if split == "blind" else i % 2
                yield i, {"text": f"نقد {i}", "label": label, "stars": 0.5, "moods": ["anger", "joy"][: i % 3]}


@pytest.fixture
def tfds_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_reviews: None) -> Path:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path


def test_a_tfds_name(tfds_folder: Path) -> None:
    task = load_task("tfds:tiny_reviews")
    assert {split: len(records) for split, records in task.splits.items()} == {"train": 60, "test": 5}
    assert task.name == "tfds:tiny_reviews"
    assert task.options == ("good", "bad", "ugly")  # as the data set orders them, also those that no row has
    assert {(task.query(record), task.answer(record)) for record in task.splits["test"]} == {
        (f"نقد {i}\nlabel:", ("good", "bad")[i % 2]) for i in range(5)
    }
    assert load_task("tfds:tiny_reviews:1.0.0").splits == task.splits
    assert "tensorflow" not in sys.modules
    files = [file.name for file in (tfds_folder / "tfds" / "tiny_reviews" / "1.0.0").iterdir()]
    assert any("array_record" in name for name in files)


def test_a_tfds_name_described_from_python(tfds_folder: Path) -> None:
    said = {"kind": "multi_label", "input": "text", "output": "moods"}
    task = load_task("tfds:tiny_reviews", description=said)
    assert task.options == ("joy", "anger")
    expected = [(), ("anger",), ("joy", "anger")]
    for record in task.splits["train"]:
        assert task.labels(record) == expected[int(record["text"].split()[1]) % 3]
    assert task.place(task.splits["test"][2]) == "tfds:tiny_reviews test, row 3"
    stars = load_task("tfds:tiny_reviews", description={"kind": "regression", "input": "text", "output": "stars"})
    assert {stars.number(record) for record in stars.splits["test"]} == {0.5}
    blind = load_task("tfds:tiny_reviews", description={**said, "splits": {"train": "train", "test": "blind"}})
    assert len(blind.splits["test"]) == 5  # a class that is not asked for need not be one


def test_text_of_a_tfds_name(tfds_folder: Path) -> None:
    found = read_texts("tfds:tiny_reviews", split="test")
    assert sorted(document.text for document in found.documents) == [f"نقد {i}" for i in range(5)]
    with pytest.raises(UserError, match="'validation': one of train, test"):
        read_texts("tfds:tiny_reviews", split="validation")


def test_a_description_of_a_tfds_name(tfds_folder: Path) -> None:
    description = tfds_folder / "task.json"
    splits = {"train": "test", "validation": "train"}
    description.write_text(json.dumps(dict(tfds="tiny_reviews", input="text", output="stars", splits=splits)))
    task = load_task(description)
    assert {split: len(records) for split, records in task.splits.items()} == {
        "train": 4,
        "validation": 60,
        "test": 1,
    }
    assert {record["stars"] for record in task.splits["train"]} == {"0.5"}
    description.write_text(json.dumps(dict(tfds="tiny_reviews", splits={"train": "train", "test": "blind"})))
    refused(description, "tfds:tiny_reviews blind, row 1", "'label' is -1", '"splits" in a task.json')
    description.write_text(json.dumps(dict(tfds="tiny_reviews", splits={"train": "trian"})))
    refused(description, "'trian'", "did you mean 'train'")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("tiny_revues", ["unknown TFDS name 'tiny_revues'", "list_builders", "did you mean 'tiny_reviews'"]),
        ("", ["unknown TFDS name ''"]),
        ("huggingface:squad", ["unknown TFDS name 'huggingface'"]),
        ("../../etc", ["unknown TFDS name '..'"]),
        ("tiny_reviews/large", ["tfds:tiny_reviews/large", "large not found"]),
        ("tiny_reviews:9.9.9", ["cannot be loaded at version 9.9.9"]),
        ("tiny_reviews/data_dir=x", ["unknown TFDS name"]),
        ("tiny_reviews/a/b/c", ["tfds:tiny_reviews/a/b/c is not to be had"]),
    ],
)
def test_a_tfds_name_is_checked(tfds_folder: Path, name: str, parts: list[str]) -> None:
    refused(f"tfds:{name}", *parts)


@pytest.mark.parametrize(
    ("fault", "parts"),
    [
        (ConnectionError("no route to host"), ["cannot be downloaded", "no route to host", "a network"]),
        (OSError(28, "No space left on device"), ["No space left on device", "room"]),
        (ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow"), ["without tensorflow"]),
    ],
)
def test_a_data_set_that_cannot_be_prepared(
    tfds_folder: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception, parts: list[str]
) -> None:
    import tensorflow_datasets as tfds

    def fail(self):
        raise fault

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    refused("tfds:tiny_reviews", "tfds:tiny_reviews", *parts)


def test_one_at_a_time_prepares(tfds_folder: Path) -> None:
    done = threading.Event()

    def prepare() -> None:
        load_task("tfds:tiny_reviews")
        done.set()

    other = threading.Thread(target=prepare)
    with locked(tfds_folder / "tfds" / ".tiny_reviews.lock", wait=True):
        other.start()
        assert not done.wait(0.5)
    assert done.wait(60)
    other.join()
