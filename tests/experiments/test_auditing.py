"""An audit: each model measured, related ones compared, cards told; it goes on where it was killed; data, too."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from limbeck.evaluation.canaries import make_canaries, save_canaries
from limbeck.evaluation.report import load_report
from limbeck.experiments import audit_probes
from limbeck.experiments.cli import main
from limbeck.experiments.origins import lineage_at, related
from limbeck.inference.engine import Engine
from limbeck.model.config import ModelConfig
from limbeck.model.pretrained import save_pretrained
from limbeck.model.pretrained.lineage import Origin, descended
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.transformer import init

TOKENIZER = byte_tokenizer()
CONFIG = ModelConfig(
    vocab_size=TOKENIZER.vocab_size, width=8, depth=1, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=8, max_len=512
)
KINDS = {"age": ("old man", "young man"), "gender": ("girl", "boy"), "wealth": ("poor man", "rich man")}
PAIRS = [
    {"sent_more": f"The {a} was {late}.", "sent_less": f"The {b} was {late}.", "bias_type": kind}
    for kind, (a, b) in KINDS.items()
    for late in ("late", "tired")
]
QUICK = ("--generations", "0", "--limit", "6")


def saved(folder, seed, made, parents=()):
    params = init(CONFIG, jax.random.key(seed))
    lineage = descended(Origin(folder.name, made, 1000, method="full"), parents)
    save_pretrained(folder, CONFIG, params, TOKENIZER, lineage=lineage)
    return lineage_at(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A chain base -> tuned -> distilled, the distilled one's control, and a model of another house."""
    folder = tmp_path_factory.mktemp("models")
    base = saved(folder / "base", 0, "pretrained")
    tuned = saved(folder / "tuned", 1, "tuned", [("base", base)])
    start = saved(folder / "start", 2, "pruned", [("base", tuned)])
    saved(folder / "distilled", 3, "distilled", [("base", start), ("teacher", tuned)])
    saved(folder / "alone", 4, "tuned", [("base", start)])
    save_pretrained(folder / "stranger", CONFIG, init(CONFIG, jax.random.key(5)), TOKENIZER)
    return folder


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in PAIRS), encoding="utf-8")
    return path


def audit(*words):
    return main(["audit", *map(str, words)])


def test_related_models_are_compared_and_strangers_are_not(models):
    names = ("base", "tuned", "distilled", "alone", "stranger")
    lineages = {name: lineage_at(models / name) for name in names}
    assert set(related(lineages)) == {
        ("base", "tuned"),
        ("tuned", "distilled"),
        ("tuned", "alone"),  # through the start that both were cut to
        ("alone", "distilled"),
    }
    assert related({name: lineages[name] for name in ("base", "distilled")}) == [("base", "distilled")]
    assert related({name: lineages[name] for name in ("stranger", "base")}) == []


def test_an_audit_measures_compares_and_tells(models, pairs, tmp_path, capsys):
    names = ("base", "tuned", "distilled", "alone", "stranger")
    run = tmp_path / "run"
    assert audit(*(models / name for name in names), "--pairs", pairs, "--workdir", run, *QUICK) == 0
    report = load_report(run)
    assert {row["model"] for row in report["bias"]} == set(names)
    sets = {row["set"] for row in report["bias"]}
    assert {"Built-in sentences", "Built-in questions"} < sets and any("pairs.jsonl" in each for each in sets)
    edges = {(each["before"], each["after"]) for each in report["bias_differences"]}
    assert edges == {("base", "tuned"), ("tuned", "distilled"), ("tuned", "alone"), ("alone", "distilled")}
    value = {
        row["model"]: row["value"]
        for row in report["bias"]
        if row["probe"] == "pairs_difference" and not row["group"] and "pairs.jsonl" in row["set"]
    }
    for each in report["bias_differences"]:
        if each["probe"] == "pairs_difference" and not each["group"] and "pairs.jsonl" in each["set"]:
            assert each["value"] == pytest.approx(value[each["after"]] - value[each["before"]])
    card = (models / "distilled" / "README.md").read_text(encoding="utf-8")
    assert "pairs\\_difference" in card or "pairs_difference" in card
    assert "What changed" in card and "stranger" not in card
    assert not (models / "stranger" / "README.md").exists()
    said = capsys.readouterr().out
    assert "stranger: no card" in said and "pairs_difference" in said


def test_what_is_told_is_what_the_probe_measures(models, pairs, tmp_path):
    """The report's number is that of the sentences' log-likelihoods, worked out here."""
    run = tmp_path / "run"
    assert audit(models / "base", "--pairs", pairs, "--workdir", run, "--generations", "0") == 0
    engine = Engine(CONFIG, init(CONFIG, jax.random.key(0)), TOKENIZER)
    texts = [(TOKENIZER.bos_id, *TOKENIZER.encode(pair[side])) for pair in PAIRS for side in ("sent_more", "sent_less")]
    more_N, less_N = np.reshape(engine.rolling(texts), (-1, 2)).T
    row = next(
        row
        for row in load_report(run)["bias"]
        if row["probe"] == "pairs_difference" and not row["group"] and "pairs.jsonl" in row["set"]
    )
    assert row["value"] == pytest.approx(float(np.mean(more_N - less_N)), abs=1e-4) and row["n"] == len(PAIRS)


def test_a_set_that_a_model_has_no_room_for_is_said_to_be_unmeasured(tmp_path):
    short = dataclasses.replace(CONFIG, max_len=64)
    params = init(short, jax.random.key(0))
    save_pretrained(tmp_path / "m", short, params, TOKENIZER, lineage=(Origin("m", "pretrained", 1),))
    assert audit(tmp_path / "m", "--workdir", tmp_path / "run", "--generations", "0") == 0
    report = load_report(tmp_path / "run")
    assert {row["set"] for row in report["bias"]} == {"Built-in sentences"}
    assert any("Built-in questions: not measured: the model refuses" in line for line in report["skipped"])


def test_a_killed_audit_goes_on_with_the_answers_that_it_has(models, pairs, tmp_path, monkeypatch):
    words = (models / "base", "--pairs", pairs, "--workdir", tmp_path / "run", *QUICK)
    asked, answers = [], Engine.answers

    def counted(self, requests, only=None):
        asked.extend(range(len(requests)) if only is None else only)
        return answers(self, requests, only)

    def killed(model, asked_of):
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "answers", counted)
    with monkeypatch.context() as patch:
        patch.setattr(audit_probes.questions, "question_rows", killed)
        assert audit(*words) == 130
    first = len(asked)
    assert first > 0
    assert audit(*words) == 0
    again = len(asked)
    assert audit(*words) == 0 and len(asked) == again  # nothing is asked anew
    fresh = (models / "base", "--pairs", pairs, "--workdir", tmp_path / "fresh", *QUICK)
    assert audit(*fresh) == 0 and len(asked) - again == again
    one, other = ({**load_report(tmp_path / name), "command": ""} for name in ("run", "fresh"))
    assert one == other


def test_a_tasks_own_records_swapped_and_by_group(models, tmp_path):
    rows = [
        {"text": f"{who} was {word}", "label": label, "dialect": f"d{n % 2}"}
        for n, (who, word, label) in enumerate(
            (who, word, label)
            for who in ("He", "She", "My father", "The queen", "It")
            for word, label in (("glad", "good"), ("sad", "bad"), ("kind", "good"), ("rude", "bad"))
        )
    ]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    described = json.dumps({"input": "text", "output": "label", "group": "dialect", "options": ["good", "bad"]})
    run = tmp_path / "run"
    words = ("--task", tmp_path / "task.jsonl", "--description", described, "--split", "train", "--generations", "0")
    assert audit(models / "base", *words, "--workdir", run) == 0
    probes = {(row["probe"], row["group"]) for row in load_report(run)["bias"]}
    assert ("swap_flips", "") in probes and ("swap_shift", "") in probes
    assert any(name == "group_accuracy" for name, _ in probes)
    told = json.loads((models / "base" / "card.json").read_text(encoding="utf-8"))["sections"]
    assert "Labels" in [each["title"] for each in told["data"]]  # the task's own audit, where a card tells of data


def test_canaries_are_ranked_by_group(models, tmp_path):
    canaries = make_canaries(4, digits=2)
    save_canaries(tmp_path / "canaries.jsonl", {"16 times": canaries[:2], "never": canaries[2:]})
    words = ("--canaries", tmp_path / "canaries.jsonl", "--generations", "0", "--limit", "4")
    assert audit(models / "base", *words, "--workdir", tmp_path / "run") == 0
    rows = [row for row in load_report(tmp_path / "run")["bias"] if row["probe"] == "exposure"]
    assert [row["group"] for row in rows] == ["16 times", "never"] and all(row["n"] == 2 for row in rows)


def test_what_comes_out_again_is_told_under_memorisation(models, tmp_path):
    texts = {name: "\n<|endoftext|>\n".join(f"{name} {i} " + "abc " * 30 for i in range(4)) for name in ("in", "out")}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    words = ("--training", tmp_path / "in.txt", "--held-out", tmp_path / "out.txt", "--generations", "0")
    assert audit(models / "alone", *words, "--workdir", tmp_path / "run", "--limit", "4") == 0
    told = json.loads((models / "alone" / "card.json").read_text(encoding="utf-8"))["sections"]
    assert any("extracted" in row[0] for row in told["memorisation"][0]["rows"])
    assert not any("extracted" in row[0] for each in told["bias"] for row in each["rows"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name the models to audit"),
        (("{models}/base", "{models}/nowhere"), "name the models to audit"),
        (("{models}/base", "{models}/base"), "name each model once"),
        (("{models}/base", "--pairs", "{models}/none.jsonl"), "none.jsonl"),
        (("{models}/base", "--training", "{models}/t.txt"), "name held_out too"),
        (("{models}/base", "--shots", "-1"), "shots=-1: at least 0"),
        (("{models}/base", "--pears", "x"), "did you mean 'pairs'"),
        (("{models}/base", "--dtype", "float8"), "float8"),
    ],
)
def test_mistakes_are_one_line(models, words, said, tmp_path, capsys):
    assert audit(*(word.format(models=models) for word in words), "--workdir", tmp_path / "run") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line


def test_data_is_audited_by_the_same_command(tmp_path, capsys):
    rows = [{"text": f"text number {i} of this little set", "label": "ab"[i % 2]} for i in range(30)]
    rows += [{"text": "write to jane.doe@mail.example.org now please", "label": "a"}, dict(rows[0])]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert audit(path, "--workdir", tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert "jane.doe" not in said
    tables = {each["title"]: each for each in load_report(tmp_path / "run")["tables"]}
    assert any(row[0] == "email" and row[1] != "0" for row in tables["Personal data by its form"]["rows"])
    (tmp_path / "text.txt").write_text("One story.\n<|endoftext|>\nAnother story.", encoding="utf-8")
    assert audit(tmp_path / "text.txt", "--workdir", tmp_path / "text") == 0
    assert load_report(tmp_path / "text")["tables"]


def test_neither_data_nor_model_is_one_line(tmp_path, capsys):
    assert audit(tmp_path / "nothing.jsonl", "--workdir", tmp_path / "run") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "nothing.jsonl" in line


def test_the_lineage_is_shown_as_a_tree(models, capsys):
    assert main(["lineage", str(models / "distilled")]) == 0
    said = capsys.readouterr().out
    at = [said.index(word) for word in ("distilled", "base: start", "base: tuned", "base: base", "teacher: tuned")]
    assert at == sorted(at)
    assert main(["lineage", str(models / "stranger")]) == 0
    assert "found" in capsys.readouterr().out
    assert main(["lineage", str(models / "distilled"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["lineage"]
    assert [each["name"] for each in told] == ["distilled", "start", "tuned", "base"]
    assert main(["lineage", str(models / "nowhere")]) == 2
