"""The student of an experiment: how it is said, and what it starts from."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limbeck.distill.students import start as student_module
from limbeck.distill.students.config import StudentConfig
from limbeck.distill.students.importance import importance
from limbeck.distill.students.prune import from_layers
from limbeck.distill.students.shape import proposed
from limbeck.distill.students.start import student_of, student_shape
from limbeck.experiments.config import override
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.params import count
from limbeck.model.transformer import apply, init, shapes

TEACHER = ModelConfig(29, 16, 4, 4, 2, 4, 20, 16)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def params():
    return init(TEACHER, jax.random.key(1))


@pytest.fixture(scope="module")
def batches():
    return [{"tokens_BT": jax.random.randint(jax.random.key(step), (2, 8), 0, 29)} for step in range(2)]


@pytest.mark.parametrize(
    "student, shape",
    [
        (StudentConfig(params=0.5), proposed(TEACHER, 0.5)),
        (StudentConfig(width=9, depth=3, mlp_dim=40), dataclasses.replace(TEACHER, width=9, depth=3, mlp_dim=40)),
        (StudentConfig(), TEACHER),
        (StudentConfig(start="layers", layers=(0, 2)), dataclasses.replace(TEACHER, depth=2)),
        (StudentConfig(start="layers", depth=3), dataclasses.replace(TEACHER, depth=3)),
        (StudentConfig(start="layers", params=0.7), dataclasses.replace(TEACHER, depth=2)),
        (StudentConfig(start="pruned", params=0.5), proposed(TEACHER, 0.5)),
        (StudentConfig(start="pruned", params=0.4, cuts=2), proposed(TEACHER, 0.4)),
        (StudentConfig(start="pruned", num_heads=2), dataclasses.replace(TEACHER, num_heads=2)),
    ],
)
def test_a_student_starts_in_the_shape_that_was_said_and_runs(student, shape, params, batches):
    assert student_shape(student, TEACHER) == shape
    config, own = student_of(student, TEACHER, params, KEY, batches)
    assert config == shape
    assert {path: leaf.shape for path, leaf in own.items()} == {
        path: leaf.shape for path, leaf in shapes(shape).items()
    }
    if student.params:
        assert count(own) <= student.params * count(params)
    logits_BTV = jax.jit(apply, static_argnums=0)(config, own, batches[0]["tokens_BT"]).logits_BTV
    assert logits_BTV.shape == (2, 8, 29) and jnp.isfinite(logits_BTV).all()


def test_what_it_starts_from_is_what_was_said(params, batches):
    _, random = student_of(StudentConfig(), TEACHER, params, KEY)
    jax.tree.map(np.testing.assert_array_equal, random, init(TEACHER, KEY))
    for student, layers in (
        (StudentConfig(start="layers", layers=(0, 2)), (0, 2)),
        (StudentConfig(start="layers", depth=2), (0, 3)),
        (StudentConfig(start="layers", depth=2, pick="last"), (2, 3)),
    ):
        _, chosen = student_of(student, TEACHER, params, KEY)
        jax.tree.map(np.testing.assert_array_equal, chosen, from_layers(TEACHER, params, layers)[1])
    _, pruned = student_of(StudentConfig(start="pruned", mlp_dim=10), TEACHER, params, KEY, batches)
    rows = np.asarray(params["blocks/mlp/down/kernel"][0]).tolist()
    assert all(row in rows for row in np.asarray(pruned["blocks/mlp/down/kernel"][0]).tolist())


def test_each_cut_is_measured(params, batches, monkeypatch):
    measured = []

    def measure(config, params, batches):
        measured.append(config.mlp_dim)
        return importance(config, params, batches)

    monkeypatch.setattr(student_module, "importance", measure)
    student_of(StudentConfig(start="pruned", mlp_dim=10, cuts=2), TEACHER, params, KEY, batches)
    assert measured == [20, 15]


def test_pruning_needs_text(params):
    with pytest.raises(UserError, match="no tokens to measure it on; give at least one batch"):
        student_of(StudentConfig(start="pruned", params=0.5), TEACHER, params, KEY)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"params": 0.0}, "params=0.0: a share of the teacher's, above 0 and at most 1, such as 0.25"),
        ({"params": 25}, "params=25: a share"),
        ({"params": 0.5, "depth": 2}, "params=0.5 proposes a shape, and depth=2 is one: say only one"),
        ({"start": "prunned"}, "start='prunned': one of random, layers, pruned, or .*; did you mean 'pruned'"),
        ({"start": "layers"}, "start='layers' in all of the teacher's sizes is the teacher: give params"),
        ({"start": "pruned"}, "start='pruned' in all of the teacher's sizes is the teacher"),
        ({"start": "layers", "width": 8, "depth": 1}, "width=8: with start=.* differs from its teacher in depth alone"),
        ({"start": "layers", "layers": (1,), "depth": 1}, r"layers=\(1,\) are the student's whole size"),
        ({"layers": (1,)}, r"layers=\(1,\) are of start=\"layers\", but start='random'"),
        ({"cuts": 2}, "cuts=2 are of start=\"pruned\", but start='random'"),
        ({"cuts": 0}, "cuts=0: must be at least 1"),
        ({"start": "pruned", "head_dim": 2}, "head_dim=2: pruning takes whole heads"),
        ({"start": "some/folder", "width": 8}, "start='some/folder' is a model with a size of its own"),
        ({"pick": "middle"}, "unknown pick 'middle': one of first, last, spread"),
    ],
)
def test_what_contradicts_itself_is_one_line(fields, message):
    with pytest.raises(UserError, match=message) as error:
        StudentConfig(**fields).check_smaller()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "student, message",
    [
        (StudentConfig(start="layers", layers=(1, 7)), r"layers=\(1, 7\): name one or more of the teacher's, 0 to 3"),
        (StudentConfig(start="layers", depth=9), "depth=9: the teacher has 4 layers to choose from"),
        (StudentConfig(num_heads=3), "num_heads=3 is not a multiple of num_kv_heads=2"),
        (StudentConfig(depth=0), "depth=0: must be a whole number from 1"),
        (StudentConfig(start="layers", depth=0), "depth=0: the teacher has 4 layers"),
    ],
)
def test_a_shape_that_the_teacher_does_not_have_is_refused_before_anything_is_made(student, message):
    with pytest.raises(UserError, match=message):
        student_shape(student, TEACHER)


def test_a_folder_is_named_and_left_to_the_caller(params):
    assert StudentConfig(start="models/small").folder == "models/small"
    assert StudentConfig(start="pruned", params=0.5).folder == ""
    with pytest.raises(ValueError, match="loaded by the caller"):
        student_of(StudentConfig(start="models/small"), TEACHER, params, KEY)


@dataclasses.dataclass(frozen=True)
class Experiment:
    student: StudentConfig = StudentConfig()


@pytest.mark.parametrize(
    "words, student",
    [
        ("--student.params 0.25", StudentConfig(params=0.25)),
        ("--student.start pruned --student.params 0.5 --student.cuts 3", StudentConfig(0.5, start="pruned", cuts=3)),
        ("--student.start layers --student.layers 0 2 4", StudentConfig(start="layers", layers=(0, 2, 4))),
        (
            "--student.depth 2 --student.pick last --student.start layers",
            StudentConfig(depth=2, start="layers", pick="last"),
        ),
    ],
)
def test_it_is_said_on_the_command_line(words, student):
    assert override(Experiment(), words.split()).student == student


def test_saying_it_does_not_import_jax():
    code = "import sys, limbeck.distill.students.config; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
