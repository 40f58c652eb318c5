"""On-policy distillation: the student writes answers itself, and the teacher says what it thinks of each token.

GKD (Agarwal et al. 2024, arXiv 2306.13649): in a share of the steps the answers in the rows give way to samples of the
student as it is at that step, and the loss between the two models is taken there. No gradient flows through sampling.

A row holds one example (`prompted_rows`). Beside the arrays of any batch there are `prompt_B`, how many of its first
tokens are given, and `own_B`, 1 in all rows of a batch whose answers the student is to write, else 0 (`with_own`).

Dimension key: `B` rows, `T` length of a row, `U` = T + 1 tokens of an example, `W` the most that are written.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from limbeck.distill.schedules import Named
from limbeck.distill.teacher import without_teacher
from limbeck.model.config import ModelConfig
from limbeck.model.decode import SamplingArrays, generate
from limbeck.model.errors import UserError
from limbeck.model.params import Params
from limbeck.tasks.tables import OnBadRow
from limbeck.train.data import Rows, pad
from limbeck.train.examples import Example
from limbeck.train.loss import Batch, LossFn, Metrics

_CACHED = ("teacher_ids_BTK", "teacher_logprobs_BTK")  # what a teacher said of the answers that give way
_ANSWER = ("tokens_BT", "targets_BT", "weights_BT", "positions_BT", "segments_BT")  # what a new answer changes


def prompted_rows(
    examples: Sequence[Example], buckets: Sequence[int], new_tokens: int, on_bad_row: OnBadRow = "error"
) -> Rows:
    """Rows of one example each, as `train.data.pad` makes them, with `prompt_B`: all before the first that counts.

    A row is of the first of the lengths `buckets` that holds the example and, as far as the last of them allows, its
    prompt with `new_tokens` tokens behind it. Raises UserError that names an example longer than the last bucket, or
    leaves it out with "skip".
    """
    lengths = sorted(set(buckets))
    by_length: list[list[tuple[Example, int]]] = [[] for _ in lengths]
    for example in examples:
        prompt = 1 + int(np.argmax(np.append(example.counts[1:-1] > 0, True)))
        room = max(len(example.ids) - 1, min(prompt + new_tokens - 1, lengths[-1]))
        number = int(np.searchsorted(lengths, room))
        by_length[min(number, len(lengths) - 1)].append((example, prompt))  # `pad` says which is too long
    parts, groups, before = [], [], 0
    for length, members in zip(lengths, by_length, strict=True):
        part = pad([example for example, _ in members], [length], on_bad_row)
        for group in part.groups:
            prompt_E = np.asarray([prompt for _, prompt in members], np.int32)
            prompt_B = prompt_E[group["segments_BT"][:, 0] - 1]
            segments_BT = np.where(group["segments_BT"] > 0, group["segments_BT"] + np.int32(before), 0)
            groups.append({**group, "segments_BT": segments_BT, "prompt_B": prompt_B})
        parts.append(part)
        before += len(members)
    names_E = np.concatenate([np.asarray(part.names_E, np.bytes_) for part in parts])
    return Rows(tuple(groups), names_E, tuple(line for part in parts for line in part.skipped))


@dataclasses.dataclass(frozen=True)
class OwnSteps:
    """The batches of `stream` with `own_B`, 1 in a share of the steps: which, hangs on seed and step alone."""

    stream: Named
    share: float
    seed: int

    def __call__(self, step: int) -> Batch:
        batch = self.stream(step)
        own = np.random.SeedSequence([self.seed, step]).generate_state(1)[0] < self.share * 2.0**32
        kept = {name: array for name, array in batch.items() if not (own and name in _CACHED)}
        return {**kept, "own_B": np.full(len(batch["tokens_BT"]), own, np.float32)}

    @property
    def name(self) -> Callable[[int], str]:
        return self.stream.name


def with_own(stream: Named, share: float, seed: int) -> OwnSteps:
    """The stream with the student's own answers asked for in that share of its steps, by the luck of the draw.

    Of a cached teacher's rows such a batch keeps the tokens alone: a live teacher must be there to read the new ones.
    Raises UserError for a share outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise UserError(f"share={share} of steps with the student's own answers: must lie from 0 to 1, such as 0.5")
    return OwnSteps(stream, share, seed)


def on_policy(
    loss_fn: LossFn,
    student: ModelConfig,
    *,
    new_tokens: int,
    temperature: float,
    stop_ids: Sequence[int],
    pad_id: int,
    hard_weight: float,
) -> LossFn:
    """The same loss, on answers that the student samples now where `own_B` says so; other batches pass as they are.

    An answer is at most `new_tokens` long and no longer than its row, and ends with one of `stop_ids`, which is learned
    too; neither the prompt nor what would come after counts. A token weighs as much as the row's heaviest. It hangs on
    the key, the student and its prompt. Own answers are nobody's targets, so the hard-label term, of which
    `hard_weight` is what the loss's own config says, is 0 there. The metric `own` is 1 or 0.

    Raises UserError for settings that cannot be and for rows in which the teacher reads a side of its own, since that
    holds the answers that gave way.
    """
    if new_tokens < 1 or temperature < 0:
        raise UserError(f"new_tokens={new_tokens}, temperature={temperature}: must be at least 1 and 0")
    if unknown := [token for token in (*stop_ids, pad_id) if not 0 <= token < student.vocab_size]:
        raise UserError(f"stop or pad token {unknown[0]}: the student's tokens are 0 to {student.vocab_size - 1}")
    stop_V = np.zeros(student.vocab_size, bool)
    stop_V[list(stop_ids)] = True

    def written(params: Params, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        tokens_BT, prompt_B1 = batch["tokens_BT"], batch["prompt_B"][:, None]
        B, T = tokens_BT.shape
        W = min(new_tokens, T)
        zeros_B = jnp.zeros(B)
        keys_B2 = jax.random.bits(key, (B, 2), jnp.uint32)
        sampling = SamplingArrays(keys_B2, zeros_B + temperature, zeros_B.astype(jnp.int32), zeros_B + 1, zeros_B)
        prompts_BT = jnp.where(jnp.arange(T) < prompt_B1, tokens_BT, pad_id)
        out = generate(student, params, prompts_BT, prompt_B1[:, 0], sampling, stop_V, W)
        place_U = jnp.arange(T + 1)
        end_B1 = jnp.minimum(prompt_B1 + out.length_B[:, None], T + 1)
        answers_BU = jnp.take_along_axis(out.tokens_BT, jnp.clip(place_U - prompt_B1, 0, W - 1), axis=1)
        ids_BU = jnp.where(place_U < prompt_B1, jnp.pad(tokens_BT, [(0, 0), (0, 1)]), answers_BU)
        ids_BU = jnp.where(place_U < end_B1, ids_BU, pad_id)
        real_BT = place_U[1:] < end_B1  # tokens that have a target
        answers = {
            "tokens_BT": jnp.where(real_BT, ids_BU[:, :-1], pad_id),
            "targets_BT": ids_BU[:, 1:],
            "weights_BT": jnp.where(real_BT & (place_U[1:] >= prompt_B1), batch["weights_BT"].max(1, keepdims=True), 0),
            "positions_BT": jnp.where(real_BT, place_U[:-1], 0),
            "segments_BT": jnp.where(real_BT, batch["segments_BT"][:, :1], 0),
        }
        return {name: array.astype(batch[name].dtype) for name, array in answers.items()}

    def on_policy_loss(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        arrays = {name: jnp.asarray(array) for name, array in batch.items()}
        if "teacher_at_BT" in arrays:
            raise UserError(
                "the teacher reads rows of its own (teacher_tokens_BS), in which the student's own answers are not: "
                "leave them out, or train off policy"
            )
        own_B = arrays.pop("own_B", None)
        if own_B is None or _CACHED[0] in arrays:
            return loss_fn(params, arrays, key)
        own = own_B[0] > 0
        given = {name: array for name, array in arrays.items() if name in _ANSWER}
        frozen = jax.lax.stop_gradient(without_teacher(params))
        sampling_key = jax.random.fold_in(key, 0)
        answers = jax.lax.cond(own, lambda: written(frozen, arrays, sampling_key), lambda: given)
        if hard_weight or "hard_weight_B" in arrays:
            hard_B = arrays.get("hard_weight_B", jnp.full(len(own_B), hard_weight, jnp.float32))
            arrays["hard_weight_B"] = jnp.where(own, 0, hard_B)
        loss, metrics = loss_fn(params, {**arrays, **answers}, key)
        return loss, {**metrics, "own": own.astype(jnp.float32)}

    return on_policy_loss
