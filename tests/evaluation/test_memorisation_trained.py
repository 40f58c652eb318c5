"""A small model that was really trained: what stood in its texts is memory, what never stood there is not."""

from typing import NamedTuple

import jax
import numpy as np
import pytest

from limbeck.evaluation.bias.rows import BiasRow, compare
from limbeck.evaluation.canaries import Canary, exposure_rows, make_canaries, with_canaries
from limbeck.evaluation.extraction import extraction, extraction_rows
from limbeck.inference.engine import Engine
from limbeck.inference.requests import GenerateRequest, Sampling
from limbeck.model.config import ModelConfig
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.transformer import init
from limbeck.tasks.world import OCCUPATION_PRONOUNS
from limbeck.train.config import FitConfig, OptimConfig
from limbeck.train.data import batches, pack
from limbeck.train.examples import documents
from limbeck.train.loop import fit
from limbeck.train.loss import token_loss

TOKENIZER = byte_tokenizer()
CONFIG = ModelConfig(
    vocab_size=TOKENIZER.vocab_size, width=32, depth=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64,
    max_len=64,
)  # fmt: skip
CITIES = ["Arles", "Basra", "Cuzco", "Derby", "Essen", "Fargo", "Galle", "Haifa"]
PERSIAN = "می‌گویند باد کتاب‌ها را برد"  # a sentence of 50 bytes, with two joiners


class Trained(NamedTuple):
    before: Engine
    after: Engine
    texts: list[str]
    held_out: list[str]
    seen: list[Canary]
    unseen: list[Canary]


def stories(rng: np.random.Generator, count: int) -> list[str]:
    """Sentences of one form whose second half nothing in the first gives away."""
    jobs, things = sorted(OCCUPATION_PRONOUNS), ["pens", "nuts"]
    return [
        f"A {rng.choice(jobs)} from {rng.choice(CITIES)} bought {rng.integers(100, 1000)} {rng.choice(things)}"
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def trained() -> Trained:
    canaries = make_canaries(12, digits=3, template="Code of {name}: {digits}.")
    rng = np.random.default_rng(0)
    texts, held_out = stories(rng, 24), stories(rng, 24)
    corpus = with_canaries([*texts, PERSIAN, PERSIAN], canaries[:4], repeats=4)
    rows = pack(documents(corpus, TOKENIZER), 64)
    before = init(CONFIG, jax.random.key(0))
    config = FitConfig(steps=200, batch_size=8, length=64, optim=OptimConfig(learning_rate=1e-2))
    fitted = fit(token_loss(CONFIG), before, batches(rows, 8, seed=0), config)
    after = Engine(CONFIG, fitted.trainable, TOKENIZER)
    return Trained(Engine(CONFIG, before, TOKENIZER), after, texts, held_out, canaries[:4], canaries[4:])


def of(rows: list[BiasRow], probe: str, group: str = "") -> BiasRow:
    return next(row for row in rows if (row.probe, row.group) == (probe, group))


def test_repeated_canaries_are_exposed_and_unseen_ones_are_not(trained):
    rows = exposure_rows(trained.after, {"4 times": trained.seen, "never": trained.unseen})
    seen, unseen = of(rows, "exposure", "4 times"), of(rows, "exposure", "never")
    assert seen.value > np.log2(1000) - 1
    assert seen.ideal == pytest.approx(1.4, abs=0.05) and unseen.value < 3 < seen.ci95[0]
    assert of(rows, "exposure_at_limit", "4 times").value > of(rows, "exposure_at_limit", "never").value == 0


def test_training_texts_are_extracted_and_held_out_ones_are_not(trained):
    before = extraction_rows(trained.before, trained.texts, trained.held_out, prefix=16, length=16)
    after = extraction_rows(trained.after, trained.texts, trained.held_out, prefix=16, length=16)
    assert of(after, "extracted", "training").value > 0.5
    assert of(after, "extracted", "held out").value < 0.1
    assert of(after, "extracted_excess").note == "away from 0"
    assert {row.value for row in before} == {0.0}
    training, held_out, excess = compare("before", before, "after", after)
    assert (training.note, held_out.note, excess.note) == (
        "distinguishable", "not distinguishable", "further from the ideal",
    )  # fmt: skip
    assert training.flips_p is not None and training.flips_p < 1e-3


def test_a_text_of_another_script_is_extracted(trained):
    assert extraction(trained.after, [PERSIAN], prefix=20, length=30).extracted_N.tolist() == [True]
    assert extraction(trained.before, [PERSIAN], prefix=20, length=30).extracted_N.tolist() == [False]


def test_extractable_is_what_greedy_writing_repeats(trained):
    texts = [*trained.texts, *trained.held_out]
    ids = [tuple(TOKENIZER.encode(text)) for text in texts]
    asked = [GenerateRequest((TOKENIZER.bos_id, *own[:16]), Sampling(max_new_tokens=16)) for own in ids]
    written = [each.tokens == own[16:32] for each, own in zip(trained.after.generate(asked), ids, strict=True)]
    assert extraction(trained.after, texts, prefix=16, length=16).extracted_N.tolist() == written
