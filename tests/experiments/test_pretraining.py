"""A foundation from text files, from its first line to the report; and what is held out of it."""

import dataclasses
import json

import numpy as np
import pytest

from limbeck.evaluation.report import load_report
from limbeck.experiments.cli import main
from limbeck.experiments.origins import lineage_at
from limbeck.experiments.pretraining_config import PretrainingConfig
from limbeck.experiments.text_sources import hold_out, read_sources, solved_texts
from limbeck.model.errors import UserError
from limbeck.model.pretrained import load_pretrained
from limbeck.tasks.sources import load_task
from limbeck.tasks.task import Task
from limbeck.tasks.template import Template
from limbeck.train.adapters import fold_lora
from limbeck.train.config import FitConfig
from limbeck.train.peft_format import load_adapter

WORDS = "the small lemon tree bears a sour fruit and a pear tree a sweet one\n"
PERSIAN = "درخت لیمو میوه‌ای ترش دارد\n"


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "one.txt").write_text(WORDS * 40 + PERSIAN * 20, encoding="utf-8")
    rows = [{"text": f"{WORDS.strip()} {i}"} for i in range(30)]
    (folder / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n", encoding="utf-8")
    return folder


def words(texts, folder):
    fit = ["--fit.steps", "6", "--fit.batch-size", "4", "--fit.length", "32", "--fit.log-every", "2"]
    more = ["--max-len", "64", "--vocab-size", "300", "--on-bad-row", "skip", "--held-out", "0.2"]
    paths = ["--root", str(texts), "--texts", "one.txt", "two.jsonl", "--prompts", "the", "درخت"]
    return ["run", "shakespeare", "--workdir", str(folder), *paths, *more, *fit, "--fit.evaluate-every", "3"]


def test_a_foundation_from_scratch(texts, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(words(texts, folder)) == 0
    said = capsys.readouterr()
    assert "tokens to train on" in said.err and "first step after" in said.err
    assert "> درخت" in said.out
    report = load_report(folder)
    assert report["metric"] == "bits_per_byte"
    assert {row["method"] for row in report["rows"]} >= {"pretrained", "xz"}
    assert [found["step"] for found in report["evaluations"]["pretrain"]] == [3, 6]
    assert any("two.jsonl" in line for line in report["skipped"])
    model = load_pretrained(folder / "model")
    assert model.config.max_len == 64 and model.tokenizer is not None
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == [2, 3, 4, 6] and rows[1]["texts"][1]["prompt"] == "درخت"
    assert list((folder / "tensorboard" / "pretrain").iterdir())
    # A second start finds everything done: only the report is written again.
    before = (folder / "report.json").read_bytes()
    assert main(words(texts, folder)) == 0
    assert (folder / "report.json").read_bytes() == before


def test_a_few_documents_lose_their_ends_and_many_lose_whole_ones():
    long = "".join(f"line {i}\n" for i in range(100))
    [kept], [out] = hold_out([long], 0.1)
    assert kept + out == long and kept.endswith("\n") and 0.08 < len(out) / len(long) < 0.12
    [kept], [out] = hold_out(["x" * 100], 0.1)
    assert (len(kept), len(out)) == (90, 10)
    many = [f"document {i}" for i in range(1000)]
    kept, out = hold_out(many, 0.1)
    assert sorted(kept + out) == sorted(many) and 60 < len(out) < 140
    assert hold_out(many[::-1], 0.1)[1] == out[::-1]  # by content, not by place


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dtype": "float64"}, "unknown dtype 'float64'"),
        ({"weights": (1.0, 2.0)}, "are 2, the texts, tasks, solved, ruled and chats 1"),
        ({"held_out": 1.0}, "held_out=1.0"),
        ({"texts": ()}, "texts is empty"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(PretrainingConfig(FitConfig(), ("a.txt",)), **change)


def test_a_foundation_goes_on_with_chats_and_adapters(texts, tmp_path, capsys):
    assert main([*words(texts, tmp_path / "base"), "--fit.steps", "1"]) == 0
    base = tmp_path / "base" / "model"
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings["chat_template"] = (
        "{% for message in messages %}<{{ message.role }}>{% if message.role == 'assistant' %}{% generation %}"
        "{{ message.content }}{{ eos_token }}{% endgeneration %}{% else %}{{ message.content }}{% endif %}{% endfor %}"
    )
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    (base / "manifest.json").unlink()  # it is our own change that would be seen
    chats = [
        [{"role": "user", "content": f"is fruit {i} sour?"}, {"role": "assistant", "content": "yes" * (1 + i % 3)}]
        for i in range(40)
    ]
    chats.append([{"role": "user", "content": "long " * 99}, chats[0][1]])
    lines = [json.dumps({"messages": chat}) for chat in chats]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines) + "\n")
    fit = ["--fit.steps", "4", "--fit.batch-size", "4", "--fit.length", "64", "--fit.evaluate-every", "2"]
    paths = ["--workdir", str(tmp_path / "run"), "--model", str(base), "--root", str(tmp_path)]
    paths += ["--method.rank", "2"]
    assert main(["run", "chat", *paths, *fit]) == 0
    report = load_report(tmp_path / "run")
    assert report["metric"] == "perplexity" and [row["method"] for row in report["rows"]] == ["pretrained"]
    assert ["chats.jsonl, row 41" in line for line in report["skipped"]] == [True]
    assert report["rows"][0]["params_trainable"] < 0.1 * report["rows"][0]["params_total"]
    tuned, before = (load_pretrained(folder).params for folder in (tmp_path / "run" / "model", base))
    assert tuned.keys() == before.keys()  # the adapters are folded in, and stand beside for themselves
    adapter = load_adapter(tmp_path / "run" / "adapter", load_pretrained(base).config, before)
    assert len([path for path in adapter if path.endswith("lora_b")]) == 7  # beside every dense kernel
    for path, leaf in fold_lora(adapter).items():
        np.testing.assert_allclose(leaf, tuned[path], atol=1e-6)
    capsys.readouterr()
    asked = ["is fruit 7 sour?", "--max-new-tokens", "6"]
    past = lineage_at(tmp_path / "run" / "model")
    assert lineage_at(tmp_path / "run" / "adapter") == past and past[0].made == "tuned"
    with_adapter = [str(base), "--adapter", str(tmp_path / "run" / "adapter")]
    assert main(["convert", with_adapter[0], str(tmp_path / "folded"), *with_adapter[1:]]) == 0
    folded = lineage_at(tmp_path / "folded")
    assert folded[-len(past) :] == past and folded[0].made in ("converted", "tuned")  # whose data and method are told
    capsys.readouterr()
    said = []
    for model in (with_adapter, [str(tmp_path / "folded")], [str(tmp_path / "run" / "model")]):
        assert main(["generate", model[0], *asked, *model[1:]]) == 0
        said.append(capsys.readouterr().out)
    assert len(set(said)) == 1


def test_solved_records_stand_in_rows_of_one_group():
    rows = [{"id": str(n), "input": f"میوه {n}", "output": str(n), "kind": "ab"[n % 2]} for n in range(41)]
    train, test = tuple(rows[:39]), tuple(rows[39:])
    task = Task("t", {"train": train, "test": test}, Template(), None, group_field="kind")
    texts = solved_texts(task, train, seed=3)
    shown = [line for text in texts for line in text.split("\n")]
    assert sorted(shown) == sorted(4 * [f"{row['input']}: {row['output']}" for row in train])
    for text in texts:
        numbers = [int(line.split(": ")[1]) for line in text.split("\n")]
        assert len(numbers) <= 8 and len({number % 2 for number in numbers}) == 1
    assert texts == solved_texts(task, train, seed=3) != solved_texts(task, train, seed=4)


def test_solved_records_that_are_held_out_stand_in_no_document_to_train_on(tmp_path):
    rows = [{"input": f"a{n}", "output": f"{n}!"} for n in range(200)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    config = PretrainingConfig(FitConfig(1), solved=(("t.jsonl", ""),), root=str(tmp_path), held_out=0.2)
    [source] = read_sources(config)
    parts = (source.training, source.held_out)
    training, held_out = ({line for text in part for line in str(text).split("\n")} for part in parts)
    assert len(training) > 100 and len(held_out) > 15 and not training & held_out
    test = {f"{record['input']}: {record['output']}" for record in load_task(tmp_path / "t.jsonl").splits["test"]}
    assert test and not (training | held_out) & test
