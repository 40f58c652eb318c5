"""Which entries of a leaf are to train: criteria that give the flat indices of the k highest scores.

Every target leaf gives the same share of its entries, and every layer of a stack the same number: k is at least 1.
(One list over all leaves would give layers of different sizes.) What comes out, by path, is what
`model.chosen.choose` takes: int32, ascending, [L, k] inside the blocks and [k] elsewhere. Between equal scores the
lower index is taken, so the same scores give the same entries everywhere.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from limbeck.model.chosen import layout, piece
from limbeck.model.errors import UserError, one_of
from limbeck.model.hosts import on_host
from limbeck.model.params import Params, block_path, cut, first_match, layer_names, merge
from limbeck.model.progress import progress
from limbeck.train.loss import Batch, LossFn

Indices = dict[str, np.ndarray]
Scores = dict[str, jax.Array]
Score = Literal["gradient", "movement"]

_GROUP_BYTES = 1 << 30  # of float32 scores at a time; the gradients that they are made of take as much again


def fisher_entries(
    loss_fn: LossFn, params: Mapping[str, jax.Array], batches: Sequence[Batch], *, targets: str, share: float
) -> Indices:
    """The entries with the largest empirical Fisher information (FISH mask, Sung et al. 2021, arXiv 2111.09839, eq. 4).

    It is the sum over rows of the squared gradient of the row's log-likelihood, the labels being those of the data; a
    row is one example, unless several are packed into it. A row runs alone, so the memory is that of one gradient and
    one score for each entry of as many leaves as fit `_GROUP_BYTES`; other leaves take another pass over the batches.
    Raises UserError as `targeted` does, without batches, and for scores that are no numbers.
    """

    def add(total: Scores, own: Params, rest: Params, batch: Batch) -> Scores:
        def row(total: Scores, numbers: Any) -> tuple[Scores, None]:
            gradient = _gradient(loss_fn, own, rest, jax.tree.map(lambda x: x[None], numbers))
            return {path: total[path] + jnp.square(gradient[path]) for path in total}, None

        return jax.lax.scan(row, total, jax.tree.map(jnp.asarray, dict(batch)))[0]

    scored = _scored("Fisher information", add, params, batches, targets, share)
    return {path: _each_layer(path, score, k) for path, _, score, k in scored}


def gradient_entries(
    loss_fn: LossFn,
    params: Mapping[str, jax.Array],
    batches: Sequence[Batch],
    *,
    targets: str,
    share: float,
    score: Score = "gradient",
) -> Indices:
    """The entries that the gradient g over all rows of the batches speaks for most.

    `gradient`: |g|, what the first steps move. `movement`: -w g, the entries that move away from zero (Sanh et al.
    2020, arXiv 2005.07683, eq. 3, here at the weights as they are). Memory, passes and errors as in `fisher_entries`.
    """
    one_of("score", score, get_args(Score))

    def add(total: Scores, own: Params, rest: Params, batch: Batch) -> Scores:
        gradient = _gradient(loss_fn, own, rest, batch)
        return {path: total[path] + gradient[path] for path in total}

    def scores(weights: jax.Array, gradient: jax.Array) -> jax.Array:
        return jnp.abs(gradient) if score == "gradient" else -weights * gradient

    summed = _scored("gradients", add, params, batches, targets, share)
    return {path: _each_layer(path, scores(weights, gradient), k) for path, weights, gradient, k in summed}


def magnitude_entries(params: Mapping[str, jax.Array], *, targets: str, share: float) -> Indices:
    """The entries of the largest |w| (SHiRA-WM, Bhardwaj et al. 2024, arXiv 2406.13175).

    Raises UserError as `targeted` does.
    """
    found: Indices = {}
    for path, k in targeted(params, targets, share).items():
        found[path] = _each_layer(path, jnp.abs(_piece(params, path)), k)
    return found


def random_entries(params: Mapping[str, jax.Array], *, targets: str, share: float, seed: int = 0) -> Indices:
    """Entries drawn alike (SHiRA-Rand, Bhardwaj et al. 2024, arXiv 2406.13175).

    A layer's draw depends on the seed, its path and its size alone: not on the other targets, nor on how the stack is
    cut. Raises UserError as `targeted` does.
    """
    found: Indices = {}
    for path, k in targeted(params, targets, share).items():
        leaf = _piece(params, path)
        stacked = block_path(path) is not None
        entries = layout(path, leaf.shape, stacked=stacked)[1]
        layers = []
        for name in layer_names(path, leaf):
            words = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
            rng = np.random.default_rng(int.from_bytes(words, "little"))
            layers.append(np.sort(rng.choice(entries, k, replace=False, shuffle=False)).astype(np.int32))
        found[path] = np.stack(layers) if stacked else layers[0]
    return found


def targeted(params: Mapping[str, jax.Array], targets: str, share: float) -> dict[str, int]:
    """How many entries of each target leaf are to be chosen, in a layer; a leaf is cut where only some layers match.

    Raises UserError for a share that is none, a pattern that matches nothing, a leaf that is not of floats, and one
    of more entries than an int32 counts.
    """
    if not 0 < share <= 1:
        raise UserError(f"share={share}: the share of a leaf's entries lies above 0 and at most at 1, such as 0.005")
    found: dict[str, int] = {}
    for path, hits in first_match([targets], params).items():
        leaf, parsed = params[path], block_path(path)
        if any(hit is not None for hit in hits) and not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise UserError(f"target {path!r} is {leaf.dtype}: entries are chosen of leaves of floats")
        first = parsed[0][0] if parsed and parsed[0] else 0
        edges = [0, *(i for i in range(1, len(hits)) if (hits[i] is None) != (hits[i - 1] is None)), len(hits)]
        for low, high in zip(edges, edges[1:], strict=False):
            if hits[low] is not None:
                name = f"blocks/{first + low}:{first + high}/{parsed[1]}" if parsed and len(edges) > 2 else path
                entries = layout(name, leaf.shape, stacked=parsed is not None)[1]
                found[name] = max(1, round(share * entries))
    return found


def _scored(
    name: str,
    add: Callable[[Scores, Params, Params, Batch], Scores],
    params: Mapping[str, jax.Array],
    batches: Sequence[Batch],
    targets: str,
    share: float,
) -> Iterator[tuple[str, jax.Array, jax.Array, int]]:
    """(path, weights, what `add` made of zeros over all batches, k) of every target; as many at a time as may be."""
    counts = targeted(params, targets, share)
    if not batches:
        raise UserError(f"{name}: no batches to take gradients of: give at least one")
    groups: list[list[str]] = []
    room = 0
    for path in counts:
        need = 4 * _piece(params, path).size
        if not groups or need > room:
            groups.append([])
            room = _GROUP_BYTES
        groups[-1].append(path)
        room -= need
    step = jax.jit(add, donate_argnums=0)
    with progress(name, len(groups) * len(batches)) as advance:
        for group in groups:
            # In float32, as training keeps them: a gradient that was rounded would be rounded again by its square.
            own = {path: _piece(params, path).astype(jnp.float32) for path in group}
            rest = _without(params, own)
            total = {path: jnp.zeros(leaf.shape) for path, leaf in own.items()}
            for batch in batches:
                total = step(total, own, rest, batch)
                advance()
            for path in group:
                yield path, own[path], total.pop(path), counts[path]


def _gradient(loss_fn: LossFn, own: Params, rest: Params, batch: Batch) -> Params:
    """The gradient of the batch's loss, summed over what it is the mean of."""
    key = jax.random.key(0)
    gradient, metrics = jax.grad(lambda own: loss_fn(merge(own, rest), batch, key), has_aux=True)(own)
    return {path: metrics["weight"] * leaf for path, leaf in gradient.items()}


def _piece(params: Mapping[str, jax.Array], path: str) -> jax.Array:
    found = piece(params, path)
    assert found is not None
    return found


def _without(params: Mapping[str, jax.Array], own: Mapping[str, jax.Array]) -> Params:
    """The other parameters: a leaf of which some layers are among `own` is cut there."""
    blocks = {path: parsed for path in own if (parsed := block_path(path))}
    names = {parsed[1] for parsed in blocks.values()}
    same = {path: leaf for path, leaf in params.items() if (p := block_path(path)) and p[1] in names}
    edges = {edge for parsed in blocks.values() if parsed[0] for edge in parsed[0]}
    others = {path: leaf for path, leaf in params.items() if path not in same}
    return {path: leaf for path, leaf in (others | cut(same, edges)).items() if path not in own}


def _each_layer(path: str, scores: jax.Array, k: int) -> np.ndarray:
    """The indices of each layer's k highest scores; raises UserError where some are no numbers."""
    stacked, scores = block_path(path) is not None, on_host(scores)
    layers = [_highest(path, np.asarray(each, np.float32).reshape(-1), k) for each in (scores if stacked else [scores])]
    return np.stack(layers) if stacked else layers[0]


def _highest(path: str, scores_E: np.ndarray, k: int) -> np.ndarray:
    if not np.isfinite(scores_E).all():
        raise UserError(
            f"{path}: some scores are no numbers: look at the model and the batches, or take another target"
        )
    least = np.partition(scores_E, -k)[-k]
    above = np.flatnonzero(scores_E > least)
    ties = np.flatnonzero(scores_E == least)[: k - len(above)]
    return np.sort(np.concatenate([above, ties])).astype(np.int32)
