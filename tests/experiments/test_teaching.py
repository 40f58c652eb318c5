"""What it takes to make the model that a student starts from."""

from functools import partial

import jax
import numpy as np
import pytest

from limbeck.distill.students import start as students
from limbeck.distill.students.config import StudentConfig
from limbeck.experiments.start import Start, first_rows
from limbeck.experiments.teaching import start_flops, student_folder
from limbeck.model.config import ModelConfig
from limbeck.model.flops import forward_flops
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.transformer import init
from limbeck.train.config import FitConfig
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


def test_one_that_is_not_measured_costs_nothing():
    for student in (StudentConfig(start="layers", depth=1), StudentConfig(width=16), StudentConfig(start="a/folder")):
        assert start_flops(student, CONFIG, FitConfig()) == 0
