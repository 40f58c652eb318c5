"""Losses between models of different vocabularies, at the places where both have read the same text (`rows/paired.py`).

p is the teacher's distribution over its tokens and q the student's over its own, both softmax(logits / temperature).

`uld`: both are sorted, the shorter is filled up with zeros, and the loss is sum |p - q|: the Universal Logit
Distillation of Boizard et al. 2024 (arXiv 2402.12030), an optimal transport between sets in which all tokens are
equally far apart. It asks for a distribution as sharp as the teacher's, not for the same words.

`bytes`: KL(p || q) of the next byte. A token's probability counts for its first byte; that of all tokens that write
nothing, such as the one that ends a text, for a 257th event. Where both texts end at the same byte, these are
distributions over the same events, so it is a divergence, and 0 for equal models. Two things make it less than the
models' whole knowledge of the next byte: of a token only the first byte is compared, and a model is asked after its
own segmentation of the text so far, the one way to write it of many (tokenization bias, Phan et al. 2024, arXiv
2410.09303): what its tokenizer would have made one token with the last comes out too rare.

Dimension key: that of `chunked.py`, `T` the length of the student's rows and `S` of the teacher's, `U` the teacher's
vocabulary, `Y` the 257 events.
"""

from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from limbeck.distill.checks import check_heads
from limbeck.distill.chunked import Source, chunked_loss
from limbeck.distill.loss import Scalar, log_softmax
from limbeck.distill.rows.token_bytes import NO_BYTE
from limbeck.distill.teacher import without_teacher
from limbeck.model.chosen import filled_outside
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError, one_of
from limbeck.model.layers import softcap
from limbeck.model.params import Params
from limbeck.model.transformer import head_kernel, hidden
from limbeck.train.loss import Batch, LossFn, Metrics

Across = Literal["uld", "bytes"]


def across_loss(
    student: ModelConfig,
    teacher: ModelConfig,
    kind: Across,
    *,
    temperature: float = 1.0,
    hard_weight: float = 0.0,
    first_bytes: tuple[np.ndarray, np.ndarray] | None = None,
) -> LossFn:
    """hard_weight * cross-entropy to the student's targets + (1 - hard_weight) * the divergence `kind`, on paired rows.

    The teacher's leaves are under `teacher/`. `first_bytes`, which "bytes" needs, are `token_bytes.first_byte_V` of the
    student's and of the teacher's tokenizer; the ids of a padded vocabulary beyond them count as writing nothing. Both
    terms are divided by the weights of all targets, so that portions of a batch add up to the batch: a place at which
    the teacher says nothing adds nothing to the divergence, and counts in the cross-entropy. `temperature_B` and
    `hard_weight_B` of a batch take the place of the numbers given here.

    Metrics: `loss`, `weight`, `cross_entropy`, `divergence` (with its temperature^2), and `aligned`, the share of the
    weights at which the teacher says something: divergence / aligned is the mean there. Raises UserError for an unknown
    kind, a head of labels, and first bytes that are missing or of another vocabulary.
    """
    one_of("divergence across vocabularies", kind, get_args(Across))
    check_heads(student, [teacher], "generation")
    events = _events(student, teacher, first_bytes) if kind == "bytes" else ()

    def loss_fn(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        arrays = {name: jnp.asarray(array) for name, array in batch.items()}
        soften = arrays["temperature_B"][0] if "temperature_B" in arrays else temperature
        own = filled_outside(without_teacher(params))
        theirs = {path.removeprefix("teacher/"): leaf for path, leaf in params.items() if path.startswith("teacher/")}
        hidden_BTD, _ = hidden(
            student,
            own,
            arrays["tokens_BT"],
            positions_BT=arrays["positions_BT"],
            segments_BT=arrays["segments_BT"],
        )
        teacher_BSD, _ = hidden(
            teacher,
            theirs,
            arrays["teacher_tokens_BS"],
            positions_BT=arrays["teacher_positions_BS"],
            segments_BT=arrays["teacher_segments_BS"],
        )
        at_BT = arrays["teacher_at_BT"]
        teacher_BTD = jnp.take_along_axis(teacher_BSD, jnp.maximum(at_BT, 0)[..., None], axis=1)
        source = across(
            kind,
            teacher_BTD.reshape(-1, teacher.width),
            head_kernel(theirs),
            at_BT.reshape(-1) >= 0,
            student.vocab_size,
            soften,
            events,
            teacher.logit_softcap,
        )
        weights_N = arrays["weights_BT"].reshape(-1)
        loss, metrics = chunked_loss(
            source,
            hidden_BTD.reshape(-1, student.width),
            head_kernel(own),
            arrays["targets_BT"].reshape(-1),
            weights_N,
            temperature=soften,
            hard_weight=arrays["hard_weight_B"][0] if "hard_weight_B" in arrays else hard_weight,
            cap=student.logit_softcap,
        )
        weight = weights_N.sum()
        aligned = jnp.where(source.taught_N, weights_N, 0.0).sum() / jnp.where(weight == 0, 1.0, weight)
        return loss, {"loss": loss, "weight": weight, **metrics, "aligned": aligned}

    return loss_fn


def across(
    kind: Across,
    teacher_hidden_ND: jax.Array,
    teacher_head_DU: jax.Array,
    taught_N: jax.Array,
    vocab_size: int,
    temperature: Scalar,
    events: tuple[np.ndarray, ...] = (),
    cap: float | None = None,
) -> Source:
    """A teacher of another vocabulary, from its last hidden states at the student's places.

    `vocab_size` is the student's; `events` are the first bytes of the student's tokens and of the teacher's, for
    "bytes"; `cap` is on the teacher's logits.
    """
    # The barrier keeps XLA from working the tables out while it compiles and storing them in the program.
    tables = tuple(jax.nn.one_hot(jax.lax.optimization_barrier(jnp.asarray(ids)), NO_BYTE + 1) for ids in events)
    return Source(
        partial(_from_teacher, {"uld": _uld, "bytes": _byte_kl}[kind], cap),
        teacher_hidden_ND,
        (teacher_head_DU, temperature, tables),
        taught_N,
        vocab_size,
        teacher_head_DU.shape[1],
    )


def _from_teacher(between, cap, log_q_CV, hidden_CD, constants):
    head_DU, temperature, tables = constants
    logits_CU = jnp.dot(hidden_CD, head_DU.astype(hidden_CD.dtype), preferred_element_type=jnp.float32)
    log_p_CU = log_softmax(softcap(logits_CU, cap), temperature)
    return between(jnp.exp(log_q_CV), jnp.exp(log_p_CU), *tables)


def _uld(q_CV: jax.Array, p_CU: jax.Array) -> jax.Array:
    width = max(q_CV.shape[1], p_CU.shape[1])
    q_CW, p_CW = (jnp.pad(jnp.sort(x, axis=-1), ((0, 0), (width - x.shape[1], 0))) for x in (q_CV, p_CU))
    return jnp.abs(p_CW - q_CW).sum(-1)


def _byte_kl(q_CV: jax.Array, p_CU: jax.Array, own_VY: jax.Array, teacher_UY: jax.Array) -> jax.Array:
    # An event that the student cannot write, or so rarely that float32 has no number for it, costs 87 nats.
    least = jnp.finfo(jnp.float32).tiny
    q_CY = jnp.maximum(jnp.dot(q_CV, own_VY, precision="highest"), least)
    p_CY = jnp.maximum(jnp.dot(p_CU, teacher_UY, precision="highest"), least)
    return jnp.sum(p_CY * (jnp.log(p_CY) - jnp.log(q_CY)), -1)


def _events(
    student: ModelConfig, teacher: ModelConfig, first_bytes: tuple[np.ndarray, np.ndarray] | None
) -> tuple[np.ndarray, ...]:
    """The first bytes, one for every id that each model has."""
    if first_bytes is None:
        raise UserError("bytes across vocabularies: give first_bytes, first_byte_V of both tokenizers")
    events = []
    for whose, config, first_V in zip(("student", "teacher"), (student, teacher), first_bytes, strict=True):
        if len(first_V) > config.vocab_size:
            raise UserError(
                f"the {whose}'s tokenizer has {len(first_V)} ids, its model vocab_size={config.vocab_size}: "
                "give each model its own tokenizer"
            )
        beyond = (0, config.vocab_size - len(first_V))
        events.append(np.pad(np.asarray(first_V, np.int32), beyond, constant_values=NO_BYTE))
    return tuple(events)
