"""A student and a teacher for matching, the rows that they read, and attention's divergence as a loop in numpy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from limbeck.distill.features import Tokens, matching
from limbeck.distill.match_config import MatchConfig
from limbeck.model.config import ModelConfig
from limbeck.model.transformer import captured, init

B, T = 2, 7
TOKENS = Tokens(
    jnp.asarray([[0, 1, 2, 0, 1, 2, 3], [0, 1, 2, 3, 4, 0, 0]]), jnp.asarray([[1, 1, 1, 2, 2, 2, 2], [5] * 5 + [0] * 2])
)
REAL = np.asarray(TOKENS.segments_BT) > 0
TEACHER = ModelConfig(vocab_size=31, width=24, depth=3, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24, max_len=16)
STUDENT = dataclasses.replace(TEACHER, width=16, depth=2, num_heads=2, num_kv_heads=1, attention_scale=0.5)
ALL = MatchConfig(hidden=1.0, attention=2.0, relations=0.5, relation_heads=2)
IDS = jax.random.randint(jax.random.key(9), (B, T), 0, 31)
BATCH = {"tokens_BT": IDS, "positions_BT": TOKENS.positions_BT, "segments_BT": TOKENS.segments_BT}


def made(config, student=STUDENT, teacher=TEACHER):
    match = matching(config, student, teacher)
    assert match is not None
    return match


def noise(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def log_softmax(scores):
    shifted = scores - scores.max()
    return shifted - np.log(np.exp(shifted).sum())


def naive(student, teacher, tokens, window, heads):
    """The divergence of attention: a loop over queries and heads."""
    positions, segments = (np.asarray(array) for array in tokens)

    def rows(model, b, t, places):
        q, k = (np.asarray(array, np.float64) for array in model[:2])
        N, K, H = q.shape[2], k.shape[2], q.shape[3]
        scores = np.array([[q[b, t, n] @ k[b, s, n * K // N] for s in places] for n in range(N)])
        scores = scores * (H**-0.5 if model.scale is None else model.scale)
        scores = scores if model.cap is None else model.cap * np.tanh(scores / model.cap)
        logs = np.array([log_softmax(row) for row in scores])
        return np.log(np.exp(logs).mean(0, keepdims=True)) if heads == "mean" else logs

    d = np.zeros(segments.shape)
    for b, t in zip(*np.nonzero(segments), strict=True):
        places = [
            s for s in range(t + 1)
            if segments[b, s] == segments[b, t] and positions[b, t] - positions[b, s] < window
        ]  # fmt: skip
        q, p = rows(student, b, t, places), rows(teacher, b, t, places)
        d[b, t] = (np.exp(p) * (p - q)).sum(-1).mean()
    return d.sum() / (segments > 0).sum()


@functools.cache
def models():
    """(student's parameters, teacher's), with attention that is far from even."""
    both = []
    for seed, config in enumerate((STUDENT, TEACHER)):
        params = init(config, jax.random.key(seed))
        both.append({path: leaf * (3.0 if "/attn/" in path else 1.0) for path, leaf in params.items()})
    return both


@functools.cache
def seen(student=STUDENT, teacher=TEACHER):
    names = ("hidden", "k", "q", "v")
    run = jax.jit(functools.partial(captured, names=names), static_argnums=0)
    return [
        run(config, params, IDS, positions_BT=TOKENS.positions_BT, segments_BT=TOKENS.segments_BT)[1]
        for config, params in zip((student, teacher), models(), strict=True)
    ]
