"""What it takes to make the model that a student starts from."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from limbeck.distill.config import DistilConfig
from limbeck.distill.students import start as students
from limbeck.distill.students.config import StudentConfig
from limbeck.experiments.distillation_config import TeachingConfig
from limbeck.experiments.start import Start, first_rows
from limbeck.experiments.teaching import start_flops, student_folder, taught_by
from limbeck.model.config import ModelConfig
from limbeck.model.flops import forward_flops
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.transformer import init
from limbeck.train.config import FitConfig
from limbeck.train.data import pack
from limbeck.train.examples import documents
from limbeck.train.select import Selection

TOKENIZER = byte_tokenizer()
CONFIG = ModelConfig(TOKENIZER.vocab_size, 32, 2, 4, 2, 8, 64, 32)
PRUNED = StudentConfig(start="pruned", width=16, num_heads=2, num_kv_heads=1, mlp_dim=24)


@pytest.mark.parametrize(("batch_size", "cuts"), [(4, 1), (3, 2)])
def test_a_pruned_student_costs_the_passes_by_which_it_is_measured(batch_size, cuts, tmp_path, monkeypatch):
    student = StudentConfig(**{**vars(PRUNED), "cuts": cuts})
    params, spent, importance = init(CONFIG, jax.random.key(0)), [], students.importance

    def counted(config, left, batches):
        spent.append(forward_flops(config, left, sum(batch["tokens_BT"].size for batch in batches), 16 / 2))
        return importance(config, left, batches)

    def stream(step: int) -> dict[str, np.ndarray]:
        tokens_BT = np.random.default_rng(step).integers(TOKENIZER.vocab_size, size=(batch_size, 16))
        return {"tokens_BT": tokens_BT.astype(np.int32)}

    monkeypatch.setattr(students, "importance", counted)
    teacher = Start(CONFIG, params, TOKENIZER, Selection())
    student_folder(student, teacher, partial(first_rows, stream, batch_size), tmp_path, seed=0)
    assert len(spent) == cuts
    assert start_flops(student, CONFIG, FitConfig(batch_size=batch_size, length=16)) == pytest.approx(sum(spent))


def test_a_student_with_more_ids_than_its_teacher_is_taught_alike_live_and_cached(tmp_path):
    """A vocabulary may be padded: what lies beyond the teacher's is in neither softmax, wherever the teacher is."""
    V = TOKENIZER.vocab_size
    wide = dataclasses.replace(CONFIG, vocab_size=V + 20)
    own, theirs = ({path: 4 * leaf for path, leaf in init(config, jax.random.key(config.vocab_size)).items()}
                   for config in (wide, CONFIG))  # fmt: skip
    student, teacher = Start(wide, own, TOKENIZER, Selection()), Start(CONFIG, theirs, TOKENIZER, Selection())
    rows = pack(documents(["a plum", "is a drupe", "گلابی"], TOKENIZER), 24)
    fit, found = FitConfig(steps=1, batch_size=1, length=24), {}
    for cache in (None, "topk", "topk_tail"):
        teaching = TeachingConfig(DistilConfig(cache=cache), kept=V, shares=(0.5,))
        start, stream, loss_fn, _ = taught_by([teacher], teaching, fit, tmp_path / "run", 0)(student, [(rows, 1.0)])
        found[cache] = float(jax.jit(loss_fn)(start.params, stream(0), jax.random.key(0))[0])
    assert found["topk"] == pytest.approx(found[None], rel=1e-5) and found[None] > 0.1
    assert found["topk_tail"] == pytest.approx(found[None], rel=1e-5)


def test_one_that_is_not_measured_costs_nothing():
    for student in (StudentConfig(start="layers", depth=1), StudentConfig(width=16), StudentConfig(start="a/folder")):
        assert start_flops(student, CONFIG, FitConfig()) == 0
