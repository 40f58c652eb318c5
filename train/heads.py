"""A head that answers in labels, or in a number, in the place of the vocabulary's."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.params import Params


def add_head(
    config: ModelConfig, params: Mapping[str, jax.Array], labels: Sequence[str], key: jax.Array
) -> tuple[ModelConfig, Params]:
    """The model with an output for each label, or one for a regression, in the place of the vocabulary's head.

    The new leaf `score/kernel` [D, C] begins small (0.02), so that the first answers are near to undecided. Raises
    UserError for no labels, or one that stands twice.
    """
    if not labels or len(set(labels)) < len(labels):
        raise UserError(f"labels {list(labels)}: a head needs one or more, each listed once")
    trunk = {path: leaf for path, leaf in params.items() if not path.startswith(("head/", "score/"))}
    trunk["score/kernel"] = 0.02 * jax.random.normal(key, (config.width, len(labels)))
    return dataclasses.replace(config, labels=tuple(labels)), trunk
