"""`limbeck evaluate` gives lm-eval's tasks, its own and a user's, the answers of our models."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_llama import instance, saved

from limbeck.experiments.cli import build_parser, main
from limbeck.inference.engine import Engine
from limbeck.model.errors import UserError
from limbeck.model.pretrained import load_pretrained
from limbeck.model.tokenizer import train_bpe

pytest.importorskip("lm_eval", reason="lm-eval comes with the [eval] extra")
from limbeck.evaluation.lm_eval_adapter import LimbeckLM  # noqa: E402
from limbeck.evaluation.lm_eval_run import load_tasks  # noqa: E402

registry, tasks_of_theirs = (pytest.importorskip(f"lm_eval.{name}") for name in ("api.registry", "tasks"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small Llama whose vocabulary has words, as other programs load it."""
    tokenizer = train_bpe(
        ["plum: drupe\npear: pome\nlemon: hesperidium\nگلابی: سیب‌گونه\nyes no red green blue"] * 3, 340
    )
    return saved(tmp_path_factory.mktemp("model"), tokenizer, seed=1, spread=3, max_len=96)


def test_lm_eval_knows_us_by_name_beside_its_own(folder: Path):
    assert {"hf", "vllm", "limbeck"} <= set(registry.model_registry.keys())
    arguments = f"pretrained={folder},dtype=bfloat16"
    model = registry.get_model("limbeck").create_from_arg_string(arguments, {"batch_size": 3})
    assert isinstance(model, LimbeckLM)
    assert (model.engine.dtype, model.engine.batch_size) == ("bfloat16", 3)
    for size in ("auto", "auto:4"):  # what lm-eval's command says too
        assert LimbeckLM.create_from_arg_obj({"pretrained": str(folder), "batch_size": size}).engine.batch_size == 64
    for size in ("big", "0", -2):
        with pytest.raises(UserError, match=f"batch_size={size}: give a whole number from 1 on, or auto"):
            LimbeckLM.create_from_arg_obj({"pretrained": str(folder), "batch_size": size})
    with pytest.raises(UserError, match="unknown model argument 'peft'"):
        LimbeckLM.create_from_arg_string(f"pretrained={folder},peft=x")


RECORDS = [
    {"question": "plum", "answer": 0, "kind": "drupe"},
    {"question": "pear", "answer": 1, "kind": "pome"},
    {"question": "گلابی", "answer": 1, "kind": "pome"},
    {"question": "lemon", "answer": 2, "kind": "hesperidium"},
    {"question": "apple", "answer": 1, "kind": "pome"},
]
COMMON = """
dataset_path: json
dataset_kwargs:
  data_files:
    train: records.jsonl
    test: records.jsonl
training_split: train
test_split: test
doc_to_text: "{{question}}:"
"""
TASKS = {
    "choose": 'output_type: multiple_choice\ndoc_to_choice: [drupe, pome, hesperidium]\ndoc_to_target: "{{answer}}"\n',
    "choose_zero": "include: choose.yaml\nnum_fewshot: 0\n",
    "write": """
num_fewshot: 0
output_type: generate_until
doc_to_target: "{{kind}}"
generation_kwargs: {until: ["\\n", e], max_gen_toks: 12}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
""",
    "read": 'output_type: loglikelihood_rolling\ndoc_to_target: "{{question}}: {{kind}}"\n',
    "complete": 'num_fewshot: 0\noutput_type: loglikelihood\ndoc_to_target: "{{kind}}"\n',
    "lost": "output_type: loglikelihood_rolling\ndoc_to_target: x\ndataset_kwargs: {data_files: nowhere.jsonl}\n",
    "misspelt": 'output_type: loglikelihood_rolling\ndoc_to_target: "{{qestion}}"\n',
    "short": "output_type: loglikelihood_rolling\ndoc_to_target: \"{{['a', 'b'][answer]}}\"\n",
    "unsafe": 'output_type: loglikelihood_rolling\ndoc_to_target: "{{question}}"\nunsafe_code: true\n',
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """A folder with task files, records beside them, and a group."""
    home = tmp_path_factory.mktemp("tasks")
    for name, words in TASKS.items():
        start = f"task: {name}\n" + ("" if "include" in words else COMMON)
        own = start.split("dataset_kwargs")[0] + "test_split: train\n" if "dataset_kwargs" in words else start
        (home / f"{name}.yaml").write_text(own + words + "metadata: {version: 2.0}\n", encoding="utf-8")
    group = "group: both\ntask: [choose, choose_zero]\naggregate_metric_list: [{metric: acc}]\n"
    (home / "both.yaml").write_text(group + "metadata: {version: 1.0}\n")
    lines = [json.dumps(record, ensure_ascii=False) for record in RECORDS]
    (home / "records.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return home


OFFLINE = """
import importlib.util, socket, sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = name.partition(".")[0] in ("torch", "transformers", "accelerate", "peft")
        return None if absent else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
assert importlib.util.find_spec("torch") is None

def refuse(*_):
    raise AssertionError("the network is asked")

socket.socket.connect = socket.getaddrinfo = refuse
from limbeck.experiments.cli import build_parser, main
status = main(sys.argv[1:])
from lm_eval.api.registry import model_registry
assert {"hf", "limbeck"} <= set(model_registry.keys())
sys.exit(status)
"""


def test_own_tasks_run_without_a_network_and_without_torch(folder: Path, tasks: Path, tmp_path: Path):
    """In a process of its own; what it measures is worked out again from the engine's answers."""
    out = tmp_path / "scores.json"
    words = ["choose", "choose_zero", "write,read", "complete"]
    command = ["evaluate", str(folder), "--tasks", *words, "--include-path", str(tasks), "--out", str(out)]
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", OFFLINE, *command, "--num-fewshot", "2"],
        cwd=tasks,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text(encoding="utf-8"))
    loaded = load_pretrained(folder)
    assert loaded.tokenizer is not None
    engine = Engine(loaded.config, loaded.params, loaded.tokenizer, 8)
    assert results["model_digest"] == engine.weights_digest and results["tokenizer_digest"] == loaded.tokenizer.digest
    assert results["lm_eval"] and results["cut"] == 0 and results["limit"] is None
    found = {name: {m["metric"]: m for m in task["metrics"]} for name, task in results["tasks"].items()}
    assert list(found) == ["choose", "choose_zero", "write", "read", "complete"]
    assert {name: task["shots"] for name, task in results["tasks"].items()} == {
        **dict.fromkeys(("choose", "read"), 2),
        **dict.fromkeys(("choose_zero", "write", "complete"), 0),  # as their own files say
    }
    assert {task["version"] for task in results["tasks"].values()} == {2.0}
    assert {task["records"] for task in results["tasks"].values()} == {len(RECORDS)}

    model = LimbeckLM(engine)
    kinds = ("drupe", "pome", "hesperidium")
    pairs = [instance("loglikelihood", f"{r['question']}:", f" {kind}") for r in RECORDS for kind in kinds]
    scores = np.asarray([score for score, _ in model.loglikelihood(pairs)]).reshape(-1, 3)
    right = (scores.argmax(1) == [record["answer"] for record in RECORDS]).mean()
    assert found["choose_zero"]["acc"]["value"] == pytest.approx(right)
    assert set(found["choose_zero"]) == {"acc", "acc_norm"}
    assert found["choose_zero"]["acc"]["higher_is_better"] is True
    texts = [f"{record['question']}: {record['kind']}" for record in RECORDS]
    nats = -sum(model.loglikelihood_rolling([instance("loglikelihood_rolling", text) for text in texts]))
    measured = found["read"]["byte_perplexity"]
    assert measured["value"] == pytest.approx(np.exp(nats / sum(len(text.encode()) for text in texts)), rel=1e-4)
    assert measured["higher_is_better"] is False
    assert 0 <= found["write"]["exact_match"]["value"] <= 1 and found["complete"]["perplexity"]["value"] > 1
    assert found["complete"]["perplexity"]["stderr"] > 0  # by bootstrap, in this one process
    for shown in ("choose_zero", "exact_match", "byte_perplexity", f"{measured['value']:.4f}"):
        assert shown in done.stdout
    assert "bootstrapping" in done.stderr and "bootstrapping" not in done.stdout and "fork" not in done.stderr


@pytest.fixture
def few(monkeypatch, tasks: Path, tmp_path: Path) -> Path:
    """The folder of tasks as the current one, and nothing of lm-eval's 14,000, which take seconds to look through."""
    every = tasks_of_theirs.TaskManager

    def own(include_path: str | None = None, include_defaults: bool = True) -> Any:
        return every(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(tasks_of_theirs, "TaskManager", own)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.chdir(tasks)
    return tasks


def test_names_groups_and_patterns(few: Path):
    assert set(load_tasks(["choose*", "write"], str(few))["tasks"]) == {"choose", "choose_zero", "write"}
    group = load_tasks(["both"], str(few), num_fewshot=3)
    assert {name: task.get_config("num_fewshot") for name, task in group["tasks"].items()} == {
        "choose": 3,
        "choose_zero": 0,
    }
    assert set(group["groups"]) == {"both"}
    assert set(load_tasks(["read.yaml"])["tasks"]) == {"read"}


def test_the_help_s_examples_and_its_task_file_are_right(few: Path, tmp_path: Path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    text = capsys.readouterr().out
    examples = [line.split("    ")[0].strip() for line in text.splitlines() if line.startswith("  limbeck ")]
    assert len(examples) == 3
    for example in examples:
        assert build_parser().parse_args(shlex.split(example)[1:]).command == "evaluate"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_tasks").mkdir()
    (tmp_path / "my_tasks" / "my_task.yaml").write_text(text[text.index("  task: my_task") :].split("\n\n")[0])
    (tmp_path / "my_records.jsonl").write_text('{"question": "a?", "answer": 1}\n')
    task = load_tasks(["my_task"], "my_tasks")["tasks"]["my_task"]
    assert task.doc_to_text({"question": "a?", "answer": 1}) == "a?\nAnswer:"
    assert task.doc_to_target({"question": "a?", "answer": 1}) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "chose"], "unknown task 'chose'; did you mean 'choose'?"),
        (["--tasks", "lost"], "lost: cannot be loaded: FileNotFoundError: "),
        (["--tasks", "unsafe"], "task 'unsafe' runs code that the model writes"),
        (["--tasks", "misspelt"], "misspelt: cannot be loaded: UndefinedError: 'qestion' is undefined"),
        (["--tasks", "short"], "a task's template does not fit its records: list object has no element 2"),
        (["--tasks", "read", "--chat"], "no chat template"),
        (["--tasks", "read", "--limit", "0"], "--limit 0"),
        (["--tasks", "read", "--num-fewshot", "-1"], "--num-fewshot -1"),
        (["--tasks", "read", "--out", "nowhere/a.json"], "no folder nowhere for a.json"),
        (["--tasks", "read", "--include-path", "nowhere"], "no folder nowhere"),
    ],
)
def test_mistakes_are_one_line(few: Path, folder: Path, capsys, words: list[str], said: str):
    where = [] if "--include-path" in words else ["--include-path", str(few)]
    assert main(["evaluate", str(folder), *words, *where]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("limbeck: ") and said in error
