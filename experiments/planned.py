"""What an experiment would run, by its shapes alone: the training step of a config, or a step of writing.

Nothing is allocated: models are what `jax.eval_shape` makes of them, so one of 70 B parameters takes a moment on any
machine. What lies where is said by the same rules as in a run, and what is lowered is the same step.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from limbeck.distill.features import add_matchers, matching
from limbeck.distill.rows.teacher_cache import IDS, LOGPROBS
from limbeck.distill.students.config import StudentConfig
from limbeck.distill.students.start import student_shape
from limbeck.distill.teacher import distillation_loss, student_only, with_teacher
from limbeck.experiments.answering import labels_of, loss_of, setting
from limbeck.experiments.distillation_config import DistillationConfig, TeachingConfig, TextDistillationConfig
from limbeck.experiments.prediction_config import PredictionConfig
from limbeck.experiments.pretraining_config import PretrainingConfig
from limbeck.experiments.program import Program, Shapes, laid, lying
from limbeck.experiments.tuning_config import TuningConfig
from limbeck.model.cache import AS_CACHED, empty_cache
from limbeck.model.config import ModelConfig, Remat
from limbeck.model.decode import decode_step
from limbeck.model.errors import UserError
from limbeck.model.flops import attention_flops, forward_flops, step_flops
from limbeck.model.pretrained import shapes_at
from limbeck.model.quantize import quantize
from limbeck.model.sharding import ROWS
from limbeck.model.sizes import SIZES, UNROLLED, sized
from limbeck.model.transformer import shapes
from limbeck.tasks.task import Kind
from limbeck.train.heads import add_head
from limbeck.train.loss import LossFn, token_loss
from limbeck.train.methods import Ground, prepare
from limbeck.train.optim import make_optimizer
from limbeck.train.select import apply_selection
from limbeck.train.step import make_step, state_shapes

_LONGEST = 4096  # places of a row of answers, where none are said


def planned(config: Any, remat: Remat | None = None, length: int | None = None) -> Program:
    """The program of an experiment's config; `remat` takes the place of the config's.

    `length` is how many places a row of answers has, of a prediction job. Raises UserError for an experiment of several
    trainings, and for a tuning that looks at numbers.
    """
    match config:
        case PredictionConfig():
            return _writing(config, length)
        case PretrainingConfig():
            model, leaves = _model(config.model, config.vocab_size, config.max_len)
            model = dataclasses.replace(model, dtype=config.dtype, remat=remat or config.remat)
            return _step(config, model, leaves, lambda own: token_loss(own, z_loss=config.z_loss))
        case TuningConfig():
            at = setting(config, Path())
            model, leaves = _with_head(*_model(config.model, config.vocab_size, config.max_len), labels_of(at))
            model = dataclasses.replace(model, remat=remat or config.remat)
            values = len(model.labels) if at.head and at.task.kind in ("multi_label", "regression") else 0
            return _step(config, model, leaves, lambda own: loss_of(at, own), values=values)
        case TextDistillationConfig():
            return _taught(config.pretraining, config.teaching, remat, "generation", ())
        case DistillationConfig():
            at = setting(config.tuning, Path())
            kind: Kind = at.task.kind if at.head else "generation"
            return _taught(config.tuning, config.teaching, remat, kind, labels_of(at))
    raise UserError(
        f"a plan is of one training or of a prediction job, which {type(config).__name__} is not: name a pretraining, "
        "a tuning or a distillation"
    )


def _model(name: str, vocab_size: int, max_len: int) -> tuple[ModelConfig, Shapes]:
    """The shapes of a size, or of a folder, of which config.json is enough."""
    if name in SIZES:
        config = sized(name, vocab_size, max_len)
        return config, dict(shapes(config))
    config, leaves = shapes_at(name)
    return dataclasses.replace(config, scan=config.depth > UNROLLED), leaves


def _with_head(model: ModelConfig, leaves: Shapes, labels: tuple[str, ...]) -> tuple[ModelConfig, Shapes]:
    if not labels or model.labels == labels:
        return model, leaves
    made = jax.eval_shape(lambda params, key: add_head(model, params, labels, key)[1], leaves, _key())
    return dataclasses.replace(model, labels=labels), made


class _Beside(NamedTuple):
    """What a teacher brings: its leaves under their paths, whose they are, the batch's arrays, FLOPs of a step."""

    leaves: Shapes
    models: Mapping[str, ModelConfig]
    arrays: Mapping[str, tuple[tuple[int, ...], Any]]
    flops: float
    matchers: Callable[[Any, jax.Array], Any] = lambda params, key: params


_ALONE = _Beside({}, {}, {}, 0.0)


def _step(
    config: PretrainingConfig | TuningConfig,
    model: ModelConfig,
    leaves: Shapes,
    loss_of_model: Callable[[ModelConfig], LossFn],
    beside: _Beside = _ALONE,
    values: int = 0,
) -> Program:
    """A training step of a model of these leaves."""
    fit, made = config.fit, {}

    def tuned(params: Any, key: jax.Array) -> Any:
        ground = Ground(model, params, config.method, config.seed)
        prepared = prepare(config.tuning, ground, fit.optim, also=("score/.*",) if model.labels else ())
        made.update(selection=prepared.selection, optim=prepared.optim)
        return beside.matchers(prepared.params, key)

    try:
        tunable = jax.eval_shape(tuned, leaves, _key())
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise UserError(
            f"tuning {config.tuning}: looks at the model's numbers, of which a plan has none; "
            "plan it as lora, whose leaves are about as many"
        ) from error
    selection = student_only(made["selection"])
    learned = (r"matcher/.*",) if any(path.startswith("matcher/") for path in tunable) else ()
    patterns = (*learned, *selection.patterns)
    selection = dataclasses.replace(selection, patterns=patterns)
    trainable, frozen = jax.eval_shape(lambda params: apply_selection(selection, params), {**tunable, **beside.leaves})
    optimizer, loss_fn = make_optimizer(made["optim"], fit.steps), loss_of_model(model)
    whole: dict[str, Any] = {name: ((fit.batch_size, fit.length), kind) for name, kind in _ARRAYS.items()}
    whole |= {"values_BTC": ((fit.batch_size, fit.length, values), jnp.float32)} if values else {}
    whole = {**whole, **beside.arrays}
    tokens = fit.batch_size * fit.length
    student = {path: leaf for path, leaf in frozen.items() if path not in beside.leaves}
    flops = step_flops(model, trainable, student, tokens, fit.length / 2) + beside.flops
    forward, backward = attention_flops(model, trainable, tokens, fit.length / 2)
    attention = forward * (2 if model.remat == "full" else 1) + backward
    attention += sum(attention_flops(each, (), tokens, fit.length / 2)[0] for each in beside.models.values())
    parts = fit.accumulate

    def state(mesh: Mesh | AbstractMesh) -> Any:
        return state_shapes(optimizer, laid(found, trainable, mesh))

    def lower(mesh: Mesh) -> jax.stages.Lowered:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            own = state(mesh)
            batch = {name: lying(shape, kind, (ROWS,), mesh) for name, (shape, kind) in whole.items()}
            step = make_step(loss_fn, optimizer, accumulate=parts, like=own)
            key = _key()
            key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=NamedSharding(mesh, PartitionSpec()))
            return step.lower(own, laid(found, frozen, mesh), batch, key)  # pyright: ignore[reportFunctionMemberAccess]

    how = f"{config.tuning}{', taught' if beside is not _ALONE else ''}"
    found = Program(
        f"a training step ({how}) of {fit.batch_size} rows of {fit.length} tokens",
        model, trainable, frozen, beside.models, fit.batch_size // parts, tokens, flops, state, lower, attention,
        fit.keep == "best",
    )  # fmt: skip
    return found


_ARRAYS = {
    "tokens_BT": jnp.int32,
    "targets_BT": jnp.int32,
    "weights_BT": jnp.float32,
    "positions_BT": jnp.int32,
    "segments_BT": jnp.int32,
}


def _taught(
    config: PretrainingConfig | TuningConfig,
    teaching: TeachingConfig,
    remat: Remat | None,
    kind: Kind,
    labels: tuple[str, ...],
) -> Program:
    """A step of the first student. Raises UserError for what is not the student's own rows and one teacher or more."""
    if teaching.own or teaching.shots or teaching.instruction:
        raise UserError("own, shots and instruction change the rows, which a plan does not know: leave them out of it")
    teachers = [_model(name, config.vocab_size, config.max_len) for name in (config.model, *teaching.others)]
    teachers = [_with_head(*teacher, labels) for teacher in teachers]
    first, first_leaves = teachers[0]
    own: StudentConfig = next(iter(teaching.students().values()))
    if own.folder:
        student, leaves = _with_head(*_model(own.folder, config.vocab_size, config.max_len), labels)
    else:
        student = student_shape(own, first)
        kept = jnp.float32 if own.start == "random" else first_leaves["embed/embedding"].dtype
        leaves = {path: jax.ShapeDtypeStruct(leaf.shape, kept) for path, leaf in shapes(student).items()}
    how: dict[str, Any] = {"remat": remat or config.remat}
    how |= {"dtype": config.dtype} if isinstance(config, PretrainingConfig) else {}
    student = dataclasses.replace(student, **how)
    first = dataclasses.replace(first, **how)
    rows, length, distil = config.fit.batch_size, config.fit.length, teaching.distil
    matched = matching(teaching.match, student, first)

    def loss_of_model(own: ModelConfig) -> LossFn:
        live = None if distil.cache else [dataclasses.replace(each, **how) for each, _ in teachers]
        known = first.vocab_size if distil.cache else None
        return distillation_loss(own, live, distil, kind=kind, matching=matched, cached_vocab_size=known)

    def matchers(params: Any, key: jax.Array) -> Any:
        return add_matchers(teaching.match, student, first, params, key) if matched else params

    arrays: dict[str, Any] = {}
    beside: Shapes = {}
    if distil.cache:
        entries = min(teaching.kept, len(labels) or first.vocab_size)
        small = np.min_scalar_type(len(labels) or first.vocab_size)
        ids = small if small.itemsize < 4 else np.dtype(np.int32)
        arrays = {IDS: ((rows, length, entries), ids), LOGPROBS: ((rows, length, entries), jnp.float32)}
    else:
        beside = jax.eval_shape(lambda each: with_teacher({}, each, distil.teacher_base), [x for _, x in teachers])
    if distil.temperature_end is not None:
        arrays["temperature_B"] = ((rows,), jnp.float32)
    if distil.hard_weight_end is not None:
        arrays["hard_weight_B"] = ((rows,), jnp.float32)
    asked = [] if distil.cache else teachers
    flops = sum(forward_flops(each, own, rows * length, length / 2) for each, own in asked)
    prefixes = [f"teacher{'' if len(teachers) == 1 else index}/" for index in range(len(teachers))]
    models = {} if distil.cache else dict(zip(prefixes, (each for each, _ in teachers), strict=True))
    values = len(labels) if kind in ("multi_label", "regression") else 0
    return _step(config, student, leaves, loss_of_model, _Beside(beside, models, arrays, flops, matchers), values)


def _writing(config: PredictionConfig, length: int | None) -> Program:
    """One more token for each of a job's rows, all places of which are in use."""
    if not config.model:
        raise UserError("no model is said: give --model, a file or a folder, or the name of a size")
    model, leaves = _model(config.model, 128_256, length or _LONGEST)
    if config.dtype:
        kind = jnp.dtype(config.dtype)
        leaves = {path: jax.ShapeDtypeStruct(leaf.shape, kind) for path, leaf in leaves.items()}
    model = dataclasses.replace(model, dtype=config.dtype or model.dtype, scan=True)  # as an engine has it on a mesh
    if config.quantise:
        leaves = jax.eval_shape(lambda params: quantize(params, config.quantise), leaves)
    slots, rows = min(length or _LONGEST, model.max_len), config.batch_size
    cache = jax.eval_shape(lambda: empty_cache(model, rows, slots, config.coded_cache))

    def state(mesh: Mesh | AbstractMesh) -> Any:
        def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            axes = (None, *AS_CACHED[: leaf.ndim - 1]) if leaf.ndim > 1 else (ROWS,)
            return lying(leaf.shape, leaf.dtype, axes, mesh)

        return jax.tree.map(place, cache)

    def lower(mesh: Mesh) -> jax.stages.Lowered:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            own = state(mesh)
            where = jax.tree.map(lambda leaf: leaf.sharding, own)
            step = jax.jit(decode_step, static_argnums=0, donate_argnums=3, out_shardings=(None, where))
            return step.lower(model, laid(found, leaves, mesh), lying((rows,), jnp.int32, (ROWS,), mesh), own)

    flops = forward_flops(model, leaves, rows, slots)
    what = f"one token more for each of {rows} rows of {slots} places"
    found = Program(what, model, {}, leaves, {}, rows, rows, flops, state, lower)
    return found


def _key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))
