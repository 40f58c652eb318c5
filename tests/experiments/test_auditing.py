"""An audit: each model measured, related ones compared, cards told; it goes on where it was killed; data, too."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from limbeck.evaluation.canaries import make_canaries, save_canaries
from limbeck.evaluation.report import load_report
from limbeck.experiments import audit_probes
from limbeck.experiments.answering import with_validation
from limbeck.experiments.audit_config import AuditConfig
from limbeck.experiments.cli import main
from limbeck.experiments.data_auditing import data_tables
from limbeck.experiments.origins import lineage_at, related
from limbeck.inference.engine import Engine
from limbeck.model.config import ModelConfig
from limbeck.model.pretrained import save_pretrained
from limbeck.model.pretrained.lineage import Origin, data_of, descended
from limbeck.model.tokenizer import byte_tokenizer, train_bpe
from limbeck.model.transformer import init
from limbeck.tasks.sources import load_task

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


def sections(folder):
    return json.loads((folder / "card.json").read_text(encoding="utf-8"))["sections"]


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
    bias = sections(models / "distilled")["bias"]
    changed = {row[0] for each in bias if each["title"].startswith("What changed") for row in each["rows"]}
    assert changed and changed <= {"tuned → distilled", "alone → distilled"}
    assert {tuple(each["header"][4:]) for each in bias if "What changed" not in each["title"]} == {("distilled",)}
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


def test_models_whose_names_are_alike_are_not_taken_for_each_other(tmp_path):
    folders = [tmp_path / name for name in ("v1.1", "v1-1", "V1-1")]
    for seed, folder in enumerate(folders):
        saved(folder, seed, "pretrained")
    assert audit(*folders, "--workdir", tmp_path / "run", *QUICK) == 0
    found = [row["value"] for row in load_report(tmp_path / "run")["bias"] if row["probe"] == "she_difference"]
    assert len(set(found)) == 3


def test_what_changed_since_is_asked_anew(pairs, tmp_path):
    """The same command after the model, or a file of items, has become another."""

    def difference(of):
        words = (tmp_path / "m", "--pairs", pairs, "--workdir", tmp_path / "run", "--generations", "0")
        assert audit(*words) == 0
        rows = load_report(tmp_path / "run")["bias"]
        return next(row["value"] for row in rows if row["probe"] == "pairs_difference" and of in row["set"])

    saved(tmp_path / "m", 0, "pretrained")
    first = difference("pairs.jsonl")
    saved(tmp_path / "m", 1, "pretrained")
    second = difference("pairs.jsonl")
    lines = [json.dumps({**each, "sent_more": each["sent_more"] + " Again."}) for each in PAIRS]
    pairs.write_text("\n".join(lines), encoding="utf-8")
    assert len({first, second, difference("pairs.jsonl")}) == 3


def test_a_limit_draws_from_the_whole_file(models, tmp_path):
    assert audit(models / "base", "--workdir", tmp_path / "run", "--generations", "0", "--limit", "40") == 0
    rows = load_report(tmp_path / "run")["bias"]
    kinds = {row["group"].split(",")[0] for row in rows if row["probe"] == "questions_accuracy"}
    assert len(kinds - {"ambiguous", "disambiguated"}) > 3


def test_models_of_other_tokens_are_not_compared_by_the_token(models, pairs, tmp_path, capsys):
    tokenizer = train_bpe([each["sent_more"] for each in PAIRS] * 4, 300)
    config = dataclasses.replace(CONFIG, vocab_size=300)
    origin = Origin("other", "tuned", 1)
    lineage = descended(origin, [("base", lineage_at(models / "base"))])
    save_pretrained(tmp_path / "other", config, init(config, jax.random.key(9)), tokenizer, lineage=lineage)
    words = ("--pairs", pairs, "--workdir", tmp_path / "run", "--generations", "0")
    assert audit(models / "base", tmp_path / "other", *words) == 0
    compared = {each["probe"] for each in load_report(tmp_path / "run")["bias_differences"]}
    assert "pairs_difference" in compared
    assert not [probe for probe in compared if probe == "perplexity" or probe.endswith("per_token")]


def test_a_control_is_the_same_student_and_no_other_model():
    text, other = data_of("text", ["a"]), data_of("other", ["b"])
    teacher = (Origin("teacher", "tuned", 10, "t"),)
    student = descended(Origin("s", "distilled", 5, "s", data=(text, other)), [("teacher", teacher)])
    others = {
        "alone": Origin("a", "pretrained", 5, "a", data=(text,)),
        "larger": Origin("b", "pretrained", 6, "b", data=(text,)),
        "elsewhere": Origin("c", "pretrained", 5, "c", data=(data_of("third", ["c"]),)),
        "found": Origin("d", "found", 5, "d", data=(text,)),
        "unknown": Origin("e", "pretrained", 5, "e"),
    }
    lineages = {"student": student, **{name: (origin,) for name, origin in others.items()}}
    lineages["taught"] = descended(Origin("f", "distilled", 5, "f", data=(text,)), [("teacher", teacher)])
    assert related(lineages) == [("alone", "student"), ("alone", "taught")]


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
    assert sections(models / "base")["data"] == []  # which has not read it


def test_a_card_tells_of_the_data_that_the_model_has_read(tmp_path):
    rows = [{"id": str(n), "input": f"she has {n} pears", "output": "ab"[n % 2]} for n in range(40)]
    path = tmp_path / "task.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = load_task(path)
    (tmp_path / "text.txt").write_text("She read.\n<|endoftext|>\nHe wrote.", encoding="utf-8")
    read = {
        "all": data_of("task", task.splits["train"]),
        "most": data_of("task", with_validation(task, 0.2).splits["train"]),
        "text": data_of("text", ["She read.", "He wrote."]),
        "other": data_of("task", rows),
    }
    for name, data in read.items():
        origin = Origin(name, "tuned", 1, data=(data,), config={"held_out": 0.2})
        save_pretrained(tmp_path / name, CONFIG, init(CONFIG, jax.random.key(0)), TOKENIZER, lineage=(origin,))
    (tmp_path / "held.txt").write_text("They slept.", encoding="utf-8")
    config = AuditConfig(task=str(path), training=str(tmp_path / "text.txt"), held_out=str(tmp_path / "held.txt"))
    found = data_tables(config)
    who = {name: [each.read_by(lineage_at(tmp_path / name)) for each in found] for name in read}
    assert who == {"all": [True, False], "most": [True, False], "text": [False, True], "other": [False, False]}


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
    told = sections(models / "alone")
    assert any("extracted" in row[0] for row in told["memorisation"][0]["rows"])
    assert not any("extracted" in row[0] for each in told["bias"] for row in each["rows"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name the models to audit"),
        (("{models}/base", "{models}/nowhere"), "name the models to audit"),
        (("{models}/base", "{models}/base"), "name each once"),
        (("{models}/base", "--pairs", "{models}/none.jsonl"), "none.jsonl"),
        (("{models}/base", "--training", "{models}/t.txt"), "name held_out too"),
        (("{models}/base", "--shots", "-1"), "shots=-1: at least 0"),
        (("{models}/base", "--swaps", "x.tsv"), "name a task, too"),
        (("{models}/base", "--training", "a.txt", "--held-out", "a.txt"), "what was trained on is no control"),
        (("{models}/base", "--held-out", "x.txt"), "name training, too"),
        (("{models}/base", "--frames", "x.txt"), "name a table of them, too"),
        (("{models}/base", "--task", "world", "--split", "foo"), "split='foo': task 'world' has"),
        (("{models}/base", "--task", "world", "--description", "{{bad"), "description"),
        (("{models}/config.json", "--pairs", "x"), "is asked of models"),
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


def test_data_that_changed_is_audited_anew(tmp_path):
    path = tmp_path / "data.jsonl"

    def extra(copies):
        rows = [{"text": f"text number {i % copies}", "label": "ab"[i % 2]} for i in range(30)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        assert audit(path, "--workdir", tmp_path / "run") == 0
        tables = {each["title"]: each for each in load_report(tmp_path / "run")["tables"]}
        return tables["Duplicates"]["rows"][0][3]

    assert extra(10) != extra(30) == "0"


def test_a_task_with_a_bad_row_is_no_text(tmp_path, capsys):
    rows = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(30)] + [{"text": "no label"}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert audit(tmp_path / "data.jsonl", "--workdir", tmp_path / "run") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "row 31" in line
    assert audit(tmp_path / "data.jsonl", "--held-out", "x.txt", "--workdir", tmp_path / "run2") == 2
    assert "held_out and limit go with text" in capsys.readouterr().err


def test_what_is_found_in_text_is_told_by_file_and_row(tmp_path):
    rows = [{"text": "nothing"}, {"text": "mail me: jane@mail.example.org"}]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert audit(tmp_path / "text.jsonl", "--workdir", tmp_path / "run") == 0
    tables = {each["title"]: each for each in load_report(tmp_path / "run")["tables"]}
    assert "text.jsonl, row 2 j…@…" in tables["Personal data by its form"]["rows"][0][3]
