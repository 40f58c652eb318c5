"""Tiny models, tasks and rows of which predictions are made, in files."""

import json
from pathlib import Path

import jax

from limbeck.inference.store import PredictionStore
from limbeck.model.config import ModelConfig
from limbeck.model.pretrained import save_pretrained
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.transformer import init
from limbeck.train.adapters import add_lora
from limbeck.train.heads import add_head
from limbeck.train.peft_format import save_adapter

CONFIG = ModelConfig(
    vocab_size=259, width=16, depth=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32, max_len=128
)
FAST = ["--batch-size", "8"]


def make_models(folder: Path) -> dict[str, str]:
    """Tiny models with random parameters, over bytes: "plain", "other", and with a "head" for labels or a "number"."""
    params = init(CONFIG, jax.random.key(0))
    made = {"plain": (CONFIG, params), "other": (CONFIG, init(CONFIG, jax.random.key(1)))}
    made["head"] = add_head(CONFIG, params, ("no", "yes"), jax.random.key(1))
    made["number"] = add_head(CONFIG, params, ("output",), jax.random.key(1))
    for name, (config, own) in made.items():
        save_pretrained(folder / name, config, own, byte_tokenizer())
    lora = add_lora(params, jax.random.key(2), rank=2)
    lora = {path: leaf + (path.endswith("lora_b") and 0.5) for path, leaf in lora.items()} | params
    save_adapter(folder / "adapter", CONFIG, params, lora)
    return {name: str(folder / name) for name in (*made, "adapter")}


def write_rows(path: Path, rows: list) -> str:
    path.parent.mkdir(exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return str(path)


def make_task(folder: Path, kind: str = "classification") -> str:
    """A task of ten solved records and five to answer, in a folder."""
    answers = {"classification": ["no", "yes"], "generation": [f"answer {i}" for i in range(9)], "regression": [1, 2.5]}
    chosen = answers[kind]
    for split, count in (("train", 10), ("test", 5)):
        rows = [{"input": f"{split} سؤال {i}", "output": chosen[i % len(chosen)]} for i in range(count)]
        write_rows(folder / f"{split}.jsonl", rows)
    (folder / "task.json").write_text(json.dumps({"input": "input", "output": "output", "kind": kind}))
    return str(folder)


def read(path: Path | str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def keys(path: Path | str) -> set[str]:
    with PredictionStore(path, read_only=True) as store:
        return {key for key, _, _ in store.rows()}
