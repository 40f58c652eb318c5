"""On the same weights our adapter gives what lm-eval's own `hf` adapter gives: nats within 1e-3, texts, metrics."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_llama import instance, saved

from limbeck.inference.engine import Engine
from limbeck.model.pretrained import load_pretrained, save_pretrained
from limbeck.model.tokenizer import Tokenizer, load_tokenizer, train_bpe

pytestmark = [pytest.mark.bench, pytest.mark.filterwarnings("ignore")]  # what the other adapter warns of is not ours
WORDS = "plum: drupe\npear: pome\nlemon: hesperidium\nگلابی: سیب‌گونه\nthe quick brown fox jumps over the lazy dog. "


@pytest.fixture(scope="module", autouse=True)
def other_libraries() -> None:
    for name, extra in (("lm_eval", "eval"), ("torch", "bench"), ("transformers", "bench")):
        pytest.importorskip(name, reason=f"the [{extra}] extra")
    torch, transformers = map(pytest.importorskip, ("torch", "transformers"))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)


def save(folder: Path, tokenizer: Tokenizer, seed: int) -> Path:
    """A small Llama with the weights of a seed; as spread out as they are, its greedy choices are no near ties."""
    return saved(folder, tokenizer, seed, spread=2, num_heads=4, num_kv_heads=2, mlp_dim=48, max_len=64)


def both(folder: Path, batch_size: int) -> tuple[Any, Any]:
    """(ours, theirs) of one folder."""
    from limbeck.evaluation.lm_eval_adapter import LimbeckLM

    model = load_pretrained(folder)
    assert model.tokenizer is not None
    ours = LimbeckLM(Engine(model.config, model.params, model.tokenizer, 4))
    theirs: Any = pytest.importorskip("lm_eval.models.huggingface").HFLM
    return ours, theirs(pretrained=str(folder), device="cpu", dtype="float32", batch_size=batch_size)


def instances(kind: str, cases: list[tuple[Any, ...]]) -> list[Any]:
    return [instance(kind, *copy.deepcopy(case)) for case in cases]


def assert_alike(ours: Any, theirs: Any, kind: str, cases: list[tuple[Any, ...]]) -> list[Any]:
    """The same answers to the same requests; ours."""
    found = getattr(ours, kind)(instances(kind, cases))
    expected = getattr(theirs, kind)(instances(kind, cases))
    if kind == "loglikelihood":
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
        np.testing.assert_allclose([nats for nats, _ in found], [nats for nats, _ in expected], rtol=0, atol=1e-3)
    elif kind == "loglikelihood_rolling":
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    else:
        assert found == expected
    return found


@pytest.fixture(scope="module", params=["with BOS", "without BOS"])
def folder(request, tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("model")
    if request.param == "with BOS":
        return save(home / "model", train_bpe([WORDS] * 3, 320), 0)
    made = json.loads((Path(__file__).parent / "fixtures" / "lm_eval_pairs.json").read_text(encoding="utf-8"))
    for name, content in made["tokenizers"]["gpt2"].items():
        (home / name).write_text(json.dumps(content), encoding="utf-8")
    return save(home / "model", load_tokenizer(home), 1)


def test_log_likelihoods(folder: Path):
    ours, theirs = both(folder, batch_size=3)
    contexts = ["", "a", "plum: drupe\npear: pome\nlemon:", "ab ", "گلابی", "a <eos> b", "c ab" * 5, "b a c " * 40]
    ends = [" hesperidium", " a", " b c", "\nab", " سیب‌گونه", " the quick brown fox", " a" * 20]
    assert_alike(ours, theirs, "loglikelihood", [(context, end) for context in contexts for end in ends])
    assert ours.cut >= len(ends)


def test_what_is_greedy(folder: Path):
    """One token of all after each context, and with it a few of the texts that a token makes."""
    ours, theirs = both(folder, batch_size=16)
    texts = sorted({ours.engine.tokenizer.decode([index]) for index in range(ours.engine.tokenizer.vocab_size)})
    texts = [text for text in texts if text.isprintable() and text.strip() and "\ufffd" not in text]
    pairs = [(context, text) for context in ("c.", "b c.", "a.b.", ".", "c.c.c.") for text in texts]
    assert any(greedy for _, greedy in assert_alike(ours, theirs, "loglikelihood", pairs))


def test_whole_texts(folder: Path):
    ours, theirs = both(folder, batch_size=2)
    texts = ["", "a", "plum: drupe", "a b c ab " * 40, "گلابی سیب‌گونه " * 9, "<eos>", "c" * 64, "c" * 63, "c" * 65]
    assert_alike(ours, theirs, "loglikelihood_rolling", [(text,) for text in texts])


def test_generations(folder: Path):
    """One at a time: in a batch the other adapter writes on behind a stop until all have stopped."""
    ours, theirs = both(folder, batch_size=1)
    prompts = ["a", "plum: drupe\npear:", "گلابی", "b a c " * 40, "ab ", "c\n", ".", "the quick brown"]
    settings: list[dict[str, Any]] = [
        {"until": [], "max_gen_toks": 24},
        {"until": ["\n", "a"], "max_gen_toks": 24, "do_sample": False, "temperature": 0.0},
        {"until": "b", "max_new_tokens": 30},
        {"until": ["bc", "c", " "], "max_gen_toks": 10},
        {"until": ["<eos>", "<|endoftext|>"], "max_gen_toks": 40},
    ]
    cases = [(prompt, own) for own in settings for prompt in prompts]
    texts = assert_alike(ours, theirs, "generate_until", cases)
    assert len(set(texts)) > len(prompts) and min(map(len, texts)) < 5 < max(map(len, texts))


CHAT = (
    "{% for m in messages %}<bos>{{ m['role'] }}: {{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant:{% endif %}"
)
COMMON = """
dataset_path: json
dataset_kwargs: {data_files: {train: train.jsonl, test: test.jsonl}}
training_split: train
test_split: test
doc_to_text: "{{question}}:"
num_fewshot: 2
metadata: {version: 1.0}
"""
TASKS = {
    "choose": """
output_type: multiple_choice
doc_to_choice: [drupe, pome, hesperidium]
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc_mutual_info}, {metric: brier_score}]
""",
    "write": """
output_type: generate_until
doc_to_target: "{{kind}}"
generation_kwargs: {until: ["\\n", e], max_gen_toks: 12}
metric_list: [{metric: exact_match}, {metric: chrf}]
""",
    "read": 'output_type: loglikelihood_rolling\ndoc_to_target: "{{question}}: {{kind}}"\n',
    "complete": 'output_type: loglikelihood\ndoc_to_target: "{{kind}}"\n',
}


@pytest.mark.parametrize("chat", [False, True])
def test_metrics_of_tasks(tmp_path: Path, monkeypatch, chat: bool):
    """`evaluate` of ours against lm-eval's own with its own adapter, with the same examples in the prompts."""
    from limbeck.evaluation.lm_eval_run import evaluate, load_tasks

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    monkeypatch.chdir(tmp_path)
    tokenizer = train_bpe([WORDS] * 3, 320)
    tokenizer.chat_template = CHAT
    folder = str(save(tmp_path / "model", tokenizer, 2))
    fruits = ["plum", "pear", "lemon", "گلابی", "lime", "cherry", "quince", "orange", "apple", "sloe"]
    kinds = ["drupe", "pome", "hesperidium"]
    answers = [0, 1, 2, 1, 2, 0, 1, 2, 1, 0]
    records = [
        {"question": fruit, "answer": answer, "kind": kinds[answer]}
        for fruit, answer in zip(fruits, answers, strict=True)
    ]
    for split, own in (("train", records[:4]), ("test", records[4:] * 3)):
        Path(f"{split}.jsonl").write_text("\n".join(json.dumps(record) for record in own), encoding="utf-8")
    for name, words in TASKS.items():
        Path(f"{name}.yaml").write_text(f"task: {name}\n{COMMON}{words}", encoding="utf-8")

    model = load_pretrained(folder)
    assert model.tokenizer is not None
    engine = Engine(model.config, model.params, model.tokenizer, 8)
    ours = evaluate(engine, load_tasks(list(TASKS), str(tmp_path), 1), limit=15, chat=chat)
    manager: Any = pytest.importorskip("lm_eval.tasks").TaskManager
    theirs = pytest.importorskip("lm_eval.evaluator").simple_evaluate(
        model="hf",
        model_args={"pretrained": folder, "dtype": "float32"},
        tasks=list(TASKS),
        num_fewshot=1,
        batch_size=1,
        device="cpu",
        limit=15,
        bootstrap_iters=1000,
        apply_chat_template=chat,
        task_manager=manager(include_path=str(tmp_path), include_defaults=False),
    )
    assert list(ours["tasks"]) == list(theirs["results"]) == list(TASKS)
    for name, task in ours["tasks"].items():
        assert task["metrics"] and task["records"] == 15 and task["shots"] == theirs["n-shot"][name] == 1
        for one in task["metrics"]:
            expected = theirs["results"][name][f"{one['metric']},{one['filter']}"]
            assert one["value"] == pytest.approx(expected, rel=1e-3 if "perplexity" in one["metric"] else 1e-6)
            spread = theirs["results"][name][f"{one['metric']}_stderr,{one['filter']}"]
            assert one["stderr"] == (None if spread == "N/A" else pytest.approx(spread, rel=1e-3))


@pytest.mark.shared
def test_a_pretrained_model_on_stories(shared_data: Path, tmp_path: Path):
    """Karpathy's stories260K, which came without a tokenizer that transformers reads: as our folder of it."""
    model = load_pretrained(shared_data / "stories260k" / "stories260K.bin")
    save_pretrained(tmp_path, model.config, model.params, model.tokenizer)
    ours, theirs = both(tmp_path, batch_size=1)
    lines = (shared_data / "tinystories" / "validation.jsonl").read_text(encoding="utf-8").splitlines()[:8]
    stories = [json.loads(line)["text"].replace("\n\n", "\n").strip() for line in lines]
    nats = assert_alike(ours, theirs, "loglikelihood_rolling", [*((story,) for story in stories), (stories[0] * 4,)])
    assert -nats[0] < 2 * len(ours.engine.tokenizer.encode(stories[0]))  # it knows stories
    ends = [" little girl", " dog named Max.", " day", " گلابی"]
    pairs = [(story[:200].rsplit(" ", 1)[0], f" {story[200:].split(' ', 2)[1]}") for story in stories]
    pairs += [("Once upon a time, there was a", end) for end in ends] + [("".join(stories), " The end.")]
    assert any(greedy for _, greedy in assert_alike(ours, theirs, "loglikelihood", pairs)) and ours.cut == 1
    until = {"until": ["\n", ". She"], "max_gen_toks": 60}
    assert_alike(ours, theirs, "generate_until", [(story[:80], until) for story in stories])
