"""The student: its shape, and the parameters that it starts from."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from limbeck.distill.students.config import StudentConfig
from limbeck.distill.students.importance import importance
from limbeck.distill.students.prune import from_layers, picked, pruned_in_cuts
from limbeck.distill.students.shape import between, deepest, of_layers, proposed, reshaped
from limbeck.model.config import ModelConfig
from limbeck.model.params import Params
from limbeck.model.transformer import init


def student_shape(student: StudentConfig, teacher: ModelConfig) -> ModelConfig:
    """The student's shape, with nothing allocated; of one that is pruned by depth, other layers may come to stay.

    Raises UserError for a shape that cannot be built, and a share of parameters that cannot be had.
    """
    if student.start == "layers":
        return of_layers(teacher, _layers(student, teacher))
    return proposed(teacher, student.params) if student.params is not None else reshaped(teacher, **student.sizes())


def student_of(
    student: StudentConfig,
    teacher: ModelConfig,
    params: Mapping[str, jax.Array],
    key: jax.Array,
    batches: Sequence[Mapping[str, Any]] = (),
) -> tuple[ModelConfig, Params]:
    """(config, params) of the student as it starts: at random, or out of the teacher's plain parameters.

    `batches` of text are what importance is measured on, for one that is pruned. A student from a folder is loaded,
    and not made here. Raises UserError for one that would be its teacher, and as `student_shape`, `from_layers`,
    `importance` and `pruned` do.
    """
    student.check_smaller()
    if student.start == "layers":
        return from_layers(teacher, params, _layers(student, teacher))
    shape = student_shape(student, teacher)
    if student.start == "random":
        return shape, init(shape, key)
    if student.start == "pruned":
        cuts = between(teacher, shape, student.cuts)
        return pruned_in_cuts(teacher, params, cuts, lambda config, left: importance(config, left, batches))
    raise ValueError(f"a student in a folder is loaded by the caller: {student.start}")


def _layers(student: StudentConfig, teacher: ModelConfig) -> tuple[int, ...]:
    if student.layers:
        return student.layers
    depth = student.sizes().get("depth") if student.params is None else deepest(teacher, student.params)
    return picked(student.pick, teacher.depth if depth is None else depth, teacher.depth)
