"""One contender of `offline.py`: a way to answer many requests at once. Not meant to be run by hand.

A process of its own. What it is told first is who it is (`contender`, `dtype`), where the model is (`folder`), which
ids end an answer (`stops`) and with how many `threads`. A turn is a way (`way`), how many rows at once (`batch`), and
either token ids to continue greedily (`prefix`, `queries`, `new_tokens`), or texts after which labels are scored
(`contexts`, `labels`). It answers with the seconds and with what it wrote or found. Nothing of a turn is kept for the
next one; the texts are others in each round.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from contest import Json, answer_requests
from offline_model import convert, limbeck_model, measure, prepare

Turn = Callable[[Json], Any]  # gives the tokens of each answer, or the log-likelihoods of each context's labels
Ids = list[int]

_PAGE = 256  # tokens, as it is by default


def limbeck(request: Json) -> Turn:
    """The engine: in float32, or with int8 kernels."""
    from limbeck.evaluation.lm_eval_tokens import pair
    from limbeck.inference.engine import Engine
    from limbeck.inference.requests import GenerateRequest, Sampling, ScoreRequest

    config, params, tokenizer = limbeck_model(request)
    engines: dict[int, Engine] = {}

    def turn(order: Json) -> Any:
        size = order["batch"]
        engine = engines.setdefault(size, Engine(config, params, tokenizer, size, weights_digest="of no account"))
        if "contexts" in order:
            asked = []
            for context in order["contexts"]:
                pairs = [pair(tokenizer, context, label) for label in order["labels"]]
                asked.append(ScoreRequest(pairs[0].context, tuple(each.continuation for each in pairs)))
            return [found.logprobs for found in _in_order(engine.answers(asked))]
        sampling, start = Sampling(order["new_tokens"]), tuple(order["prefix"])
        asked = [GenerateRequest(start + tuple(query), sampling) for query in order["queries"]]
        return [written.tokens for written in _in_order(engine.answers(asked))]

    return turn


def _in_order(answers: Iterator[tuple[int, Any]]) -> list[Any]:
    return [answer for _, answer in sorted(answers, key=lambda each: each[0])]


def transformers(request: Json) -> Turn:
    """`generate` in batches: as they come, sorted by length, or sorted behind keys and values that are there already.

    In int8 its dense layers are PyTorch's dynamically quantised ones.
    """
    import torch

    model = _torch_model(request)
    pad = request["stops"][0]

    def rows(queries: Sequence[Ids], start: Ids) -> tuple[Any, Any]:
        """(ids, mask): the start, filling, the query."""
        longest = max(map(len, queries))
        ids = [start + [pad] * (longest - len(query)) + query for query in queries]
        mask = [[1] * len(start) + [0] * (longest - len(query)) + [1] * len(query) for query in queries]
        return torch.tensor(ids), torch.tensor(mask)

    def kept(prefix: Ids) -> Any:
        from transformers import DynamicCache

        cache = DynamicCache(config=model.config)
        model(input_ids=torch.tensor([prefix]), past_key_values=cache, logits_to_keep=1)
        return cache

    def turn(order: Json) -> list[Ids]:
        import copy

        prefix, queries, reused = order["prefix"], order["queries"], order["way"] == "prefix reused"
        places = list(range(len(queries)))
        if order["way"] != "plain":
            places.sort(key=lambda place: -len(queries[place]))
        written: dict[int, Ids] = {}
        with torch.inference_mode():
            cache = kept(prefix) if reused else None
            for low in range(0, len(places), order["batch"]):
                own = places[low : low + order["batch"]]
                texts = [queries[place] if reused else prefix + queries[place] for place in own]
                ids, mask = rows(texts, prefix if reused else [])
                more = {}
                if cache is not None:
                    more["past_key_values"] = copy.deepcopy(cache)
                    more["past_key_values"].batch_repeat_interleave(len(own))
                out = model.generate(
                    ids, attention_mask=mask, do_sample=False, max_new_tokens=order["new_tokens"],
                    eos_token_id=request["stops"], pad_token_id=pad, **more,
                )  # fmt: skip
                written |= zip(own, (_until(row, request) for row in out[:, ids.shape[1] :].tolist()), strict=True)
        return [written[place] for place in range(len(queries))]

    return turn


def _torch_model(request: Json) -> Any:
    import torch
    import transformers

    torch.set_num_threads(request["threads"])
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(request["folder"], dtype=torch.float32).eval()
    if request["dtype"] == "int8":
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    return model


def _until(tokens: Ids, request: Json) -> Ids:
    """Up to the first token that ends an answer, with it."""
    stops = set(request["stops"])
    return tokens[: next((place + 1 for place, token in enumerate(tokens) if token in stops), len(tokens))]


def continuous(request: Json) -> Turn:
    """transformers' continuous batching, `generate_batch`; it finds shared beginnings itself.

    Its cache has the pages that so many rows need. By default it takes what memory there is, and on a CPU all of it is
    read in every step: ten times slower.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model = _torch_model(request)

    def turn(order: Json) -> list[Ids]:
        settings = GenerationConfig(
            do_sample=False, max_new_tokens=order["new_tokens"], eos_token_id=request["stops"],
            pad_token_id=request["stops"][0],
        )  # fmt: skip
        asked = [order["prefix"] + query for query in order["queries"]]
        pages = 1 + (max(map(len, asked)) + order["new_tokens"]) // _PAGE
        cache = ContinuousBatchingConfig(
            page_size=_PAGE, num_blocks=pages * order["batch"], max_requests_per_batch=order["batch"]
        )
        found = model.generate_batch(asked, generation_config=settings, continuous_batching_config=cache)
        by_prompt = {tuple(each.prompt_ids): each for each in found.values()}
        faults = [each.error for each in found.values() if each.error]
        if faults or len(found) < len(asked):
            raise RuntimeError(faults[0] if faults else f"{len(asked) - len(found)} requests have no answer")
        return [_until(by_prompt[tuple(prompt)].generated_tokens, request) for prompt in asked]

    return turn


def ctranslate2(request: Json) -> Turn:
    """CTranslate2's generator with the prefix as its static prompt; it sorts by length and cuts into batches itself."""
    import ctranslate2

    folder = request["converted"]
    generator = ctranslate2.Generator(folder, compute_type=request["dtype"], intra_threads=request["threads"])
    words = json.loads((Path(folder) / "vocabulary.json").read_text(encoding="utf-8"))

    def turn(order: Json) -> list[Ids]:
        def spelled(ids: Ids) -> list[str]:
            return [words[i] for i in ids]

        found = generator.generate_batch(
            [spelled(query) for query in order["queries"]],
            static_prompt=spelled(order["prefix"]), include_prompt_in_result=False,
            max_batch_size=order["batch"], max_length=order["new_tokens"],
            end_token=request["stops"], return_end_token=True,
        )  # fmt: skip
        return [_until(each.sequences_ids[0], request) for each in found]

    return turn


def lm_eval(request: Json) -> Turn:
    """lm-evaluation-harness's `hf` adapter."""
    import torch
    from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(request["threads"])
    adapter: Any = HFLM
    model = adapter(pretrained=request["folder"], device="cpu", dtype="float32", batch_size=1)

    def turn(order: Json) -> list[Sequence[float]]:
        model.batch_size_per_gpu = order["batch"]
        pairs = [(context, label) for context in order["contexts"] for label in order["labels"]]
        asked = [Instance("loglikelihood", {}, both, index) for index, both in enumerate(pairs)]
        nats = [each[0] for each in model.loglikelihood(asked, disable_tqdm=True)]
        count = len(order["labels"])
        return [nats[low : low + count] for low in range(0, len(nats), count)]

    return turn


def start(request: Json) -> tuple[Json, Callable[[Json], Json]]:
    """Builds the contender that a request names; from then on each request is a turn."""
    name = request["contender"]
    if name in ("prepare", "convert"):
        make = {"prepare": prepare, "convert": convert}[name]
        return make(request), make
    build, libraries = CONTENDERS[name]
    turn = build(request)

    def run(order: Json) -> Json:
        now = time.process_time if request["clock"] == "cpu" else time.perf_counter
        began = now()
        found = turn(order)
        return {"seconds": now() - began, "found": found}

    return {"versions": {library: version(library) for library in libraries}}, run


CONTENDERS: dict[str, tuple[Callable[[Json], Turn], tuple[str, ...]]] = {
    "limbeck": (limbeck, ("jax",)),
    "transformers": (transformers, ("transformers", "torch")),
    "continuous": (continuous, ("transformers", "torch")),
    "ctranslate2": (ctranslate2, ("ctranslate2",)),
    "lm-eval": (lm_eval, ("lm_eval", "transformers", "torch")),
    "measure": (measure, ("jax",)),
}


if __name__ == "__main__":
    answer_requests(start)
