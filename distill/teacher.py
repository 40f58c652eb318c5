"""A live teacher in the loss: frozen leaves under `teacher/`, a forward pass, and the divergence from it.

The teacher's parameters ride in the same flat dict as the student's, so distillation is the one training step with
another loss function and the selection `STUDENT`.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from limbeck.distill.loss import chunked_divergence
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.params import Params
from limbeck.model.transformer import head_kernel, hidden
from limbeck.train.loss import Batch, LossFn, Metrics
from limbeck.train.select import Selection

STUDENT = Selection((r"(?!teacher/).*",))


def with_teacher(student: Mapping[str, jax.Array], teacher: Mapping[str, jax.Array]) -> Params:
    """Both models in one dict, the teacher's paths under `teacher/`."""
    return {**student, **{f"teacher/{path}": leaf for path, leaf in teacher.items()}}


def without_teacher(params: Mapping[str, jax.Array]) -> Params:
    """The student alone."""
    return {path: leaf for path, leaf in params.items() if not path.startswith("teacher/")}


def distillation_loss(
    student: ModelConfig,
    teacher: ModelConfig,
    objective: str = "forward_kl",
    *,
    temperature: float = 1.0,
    hard_weight: float = 0.0,
) -> LossFn:
    """hard_weight * cross-entropy + (1 - hard_weight) * the named divergence from the teacher (see `loss.py`).

    Metrics: `loss`, `cross_entropy`, `divergence`, `weight`. Raises UserError for different vocabularies.
    """
    if student.vocab_size != teacher.vocab_size:
        raise UserError(
            f"the student's vocab_size={student.vocab_size} is not the teacher's {teacher.vocab_size}: "
            "distributions over tokens are compared, so give both the same tokenizer"
        )
    if student.logit_softcap or teacher.logit_softcap:
        raise UserError("logit_softcap: distillation compares plain logits; use models without it")

    def loss_fn(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        arrays = {name: jnp.asarray(array) for name, array in batch.items()}
        teacher_params = {
            path.removeprefix("teacher/"): leaf for path, leaf in params.items() if path.startswith("teacher/")
        }

        def flat_hidden(config: ModelConfig, model: Params) -> jax.Array:
            hidden_BTD, _ = hidden(
                config,
                model,
                arrays["tokens_BT"],
                positions_BT=arrays["positions_BT"],
                segments_BT=arrays["segments_BT"],
            )
            return hidden_BTD.reshape(-1, config.width)

        weights_N = arrays["weights_BT"].reshape(-1)
        loss, metrics = chunked_divergence(
            objective,
            flat_hidden(student, params),
            head_kernel(params),
            flat_hidden(teacher, teacher_params),
            head_kernel(teacher_params),
            weights_N,
            arrays["targets_BT"].reshape(-1),
            temperature=temperature,
            hard_weight=hard_weight,
        )
        return loss, {"loss": loss, "weight": weights_N.sum(), **metrics}

    return loss_fn
