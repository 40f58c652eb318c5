"""Writes fixtures/lm_eval_pairs.json: what lm-eval's own `hf` adapter gives its model to read and what it scores.

Needs lm-eval, torch and transformers: `python tests/evaluation/make_lm_eval_pairs.py`.
"""

import importlib.metadata
import json
import tempfile
from pathlib import Path
from typing import Any

import tokenizers
import torch  # type: ignore[reportMissingImports]
from lm_eval.api.instance import Instance  # type: ignore[reportMissingImports]
from lm_eval.api.model import CacheHook  # type: ignore[reportMissingImports]
from lm_eval.models.huggingface import HFLM  # type: ignore[reportMissingImports]
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer  # type: ignore[reportMissingImports]

MAX_LEN = 8
PAIRS = [
    ("a", " b"),
    ("a ", "b"),
    ("a  ", "b"),
    ("ab", " ab."),
    ("a\n", "b"),
    ("a\n\n ", "cab"),
    ("", "ab c"),
    ("", " ab"),
    (" \n", "a"),
    ("a b c a b c a b", " c"),
    ("a b c a b c a b", " c a b c"),
    ("a", " b a b a b a b"),
    ("bb", "b b"),
    ("<s> a", " b"),
    ("<s>a ", "b"),
    ("", "<s> ab"),
    ("a</s> b", " c"),
    ("a <|endoftext|>", " c"),
    ("گل", " ab"),
]
TEXTS = ["", "a", "ab c.", "a b c a b c a", "a b c a b c a b", "a b c a b c a b c a b c a b c a b. ab", "<s> a b"]


def pieces(*merges: tuple[str, str], alphabet: str, specials: list[str]) -> tokenizers.Tokenizer:
    """A byte-pair model of a few letters."""
    names = dict.fromkeys([*specials, *alphabet, *("".join(merge) for merge in merges)])
    vocab = {name: index for index, name in enumerate(names)}
    fast = tokenizers.Tokenizer(models.BPE(vocab, list(merges), unk_token=specials[0], fuse_unk=True))
    fast.add_special_tokens(specials)
    return fast


def tokenizer_files() -> dict[str, dict[str, Any]]:
    """One in SentencePiece's manner with a BOS before each text, one in GPT-2's with no more than an EOS."""
    named = ["<unk>", "<s>", "</s>"]
    llama = pieces(("▁", "a"), ("a", "b"), ("▁a", "b"), ("b", "b"), alphabet="▁abc.\n", specials=named)
    llama.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    llama.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    start = [("<s>", 1)]
    llama.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", start)
    gpt2 = pieces(("Ġ", "a"), ("a", "b"), ("Ġa", "b"), ("b", "b"), alphabet="Ġabc.Ċ", specials=["<|endoftext|>"])
    gpt2.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    gpt2.decoder = decoders.ByteLevel()
    tokens = {
        "llama": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        "gpt2": {"eos_token": "<|endoftext|>"},
    }
    return {
        name: {
            "tokenizer.json": json.loads(fast.to_str()),
            "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **tokens[name]},
        }
        for name, fast in (("llama", llama), ("gpt2", gpt2))
    }


Adapter: Any = HFLM


class Reader(Adapter):
    """The adapter without a model: it notes what the model would read."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.read = tokenizer, []
        self.backend, self.batch_size_per_gpu = "causal", 1
        self._max_length, self._device = MAX_LEN, torch.device("cpu")
        self.add_bos_token = self.custom_prefix_token_id = self.softmax_dtype = None
        self.enable_thinking = self.logits_cache = False
        self._rank, self._world_size, self.cache_hook = 0, 1, CacheHook(None)

    def _model_call(self, inps: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        self.read.append(inps[0].tolist())
        return torch.zeros(1, inps.shape[1], len(self.tokenizer))

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        for request in requests:
            Adapter._loglikelihood_tokens(self, [request], disable_tqdm=True)
            self.read[-1] = {"read": self.read[-1], "scored": request[2]}
        return [(0.0, False)] * len(requests)


def case(reader: Reader, kind: Any, *texts: str) -> list[dict[str, Any]]:
    reader.read = []
    getattr(reader, kind)([Instance(kind, {}, texts, 0)], disable_tqdm=True)
    return reader.read


def main() -> None:
    files = tokenizer_files()
    out: dict[str, Any] = {
        "made_by": "tests/evaluation/make_lm_eval_pairs.py",
        "lm_eval": importlib.metadata.version("lm_eval"),
        "max_len": MAX_LEN,
        "tokenizers": files,
        "pairs": [],
        "texts": [],
    }
    for name, own in files.items():
        with tempfile.TemporaryDirectory() as folder:
            for file, content in own.items():
                (Path(folder) / file).write_text(json.dumps(content))
            reader = Reader(AutoTokenizer.from_pretrained(folder))
        for context, continuation in PAIRS:
            try:
                [seen] = case(reader, "loglikelihood", context, continuation)
            except AssertionError:
                continue  # it refuses what has no token of its own, and what is too long
            out["pairs"].append({"tokenizer": name, "context": context, "continuation": continuation, **seen})
        for text in TEXTS:
            windows = case(reader, "loglikelihood_rolling", text)
            out["texts"].append({"tokenizer": name, "text": text, "windows": windows})
    lines = json.dumps(out, ensure_ascii=False, separators=(",", ":"))
    for key in ("tokenizers", "pairs", "texts", "tokenizer"):
        lines = lines.replace(f'{{"{key}"', f'\n{{"{key}"').replace(f',"{key}":', f',\n"{key}":')
    (Path(__file__).parent / "fixtures" / "lm_eval_pairs.json").write_text(lines + "\n")


if __name__ == "__main__":
    main()
