"""The distilling loss over meshes of eight simulated devices: what it is on one, and what is sent in its loop."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from limbeck.distill.across import across
from limbeck.distill.chunked import chunked_loss
from limbeck.distill.config import DistilConfig
from limbeck.distill.loss import divergence
from limbeck.distill.sources import Teacher, cached, live
from limbeck.model.compiled import cost
from limbeck.model.sharding import ROWS, over

D, D_TEACHER, V, K, CHUNK = 8, 16, 64, 4, 40
MESHES = (("data=8",), ("data=2", "fsdp=2", "tensor=2"), ("fsdp=4", "tensor=2"), ("tensor=8",))


def value_and_gradient(kind, temperature, student_ND, student_DV, rows, heads):
    targets_N, weights_N, ids_NK, logprobs_NK, *hidden = rows
    taught_N = jnp.arange(len(weights_N)) % 5 != 1
    of_tokens = divergence(DistilConfig("generalized_jsd" if kind == "live" else "forward_kl"))
    if kind == "live":
        teachers = [Teacher(h, w, 5.0, share) for h, w, share in zip(hidden, heads, (0.3, 0.7), strict=True)]
        source = live(of_tokens, teachers, taught_N, V, temperature)
    elif kind == "bytes":
        events = (np.arange(V) % 257, np.arange(V)[::-1] % 257)
        source = across("bytes", hidden[0], heads[0], taught_N, V, temperature, events)
    else:
        source = cached(of_tokens, kind, ids_NK, logprobs_NK, V, temperature)

    def loss(student_ND, student_DV):
        settings = {"temperature": temperature, "hard_weight": 0.3, "chunk": CHUNK}
        return chunked_loss(source, student_ND, student_DV, targets_N, weights_N, **settings)

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(student_ND, student_DV)


def inputs(count):
    keys = jax.random.split(jax.random.key(1), 8)
    shapes = [(count, D), (D, V), (count, D_TEACHER), (D_TEACHER, V), (count, D), (D, V)]
    student_ND, student_DV, *theirs = (jax.random.normal(k, s) for k, s in zip(keys[:6], shapes, strict=True))
    targets_N, weights_N = jax.random.randint(keys[6], (count,), 0, V), (jnp.arange(count) % 3).astype(jnp.float32)
    ids_NK = jax.vmap(lambda key: jax.random.permutation(key, V)[:K])(jax.random.split(keys[7], count))
    logprobs_NK = jax.nn.log_softmax(jax.random.normal(keys[7], (count, K))) - 0.3
    return student_ND, student_DV, [targets_N, weights_N, ids_NK, logprobs_NK, theirs[0], theirs[2]], theirs[1::2]


def placed(arrays):
    """Rows over ROWS where these divide them, heads by their rule."""
    mesh = jax.sharding.get_mesh()
    of_rows = NamedSharding(mesh, P(ROWS if len(arrays[0]) % 8 == 0 else None))
    head = NamedSharding(mesh, P("fsdp", "tensor"))
    return jax.device_put(arrays, (of_rows, head, [of_rows] * len(arrays[2]), [head] * len(arrays[3])))


@pytest.mark.parametrize("mesh", MESHES, ids=" ".join)
@pytest.mark.parametrize(("kind", "count"), [("live", 96), ("topk", 101)])
def test_a_mesh_computes_what_one_device_does(mesh, kind, count):
    arrays, f = inputs(count), jax.jit(partial(value_and_gradient, kind, 1.0))
    right = f(*arrays)
    with over(mesh):
        found = f(*placed(arrays))
    for a, b in zip(jax.tree.leaves(jax.device_get(found)), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("mesh", "kind"),
    [(("data=2", "fsdp=4"), kind) for kind in ("live", "topk", "topk_tail", "bytes")]
    + [(("fsdp=4", "tensor=2"), kind) for kind in ("live", "topk", "topk_tail")],
)
def test_in_the_loop_nothing_is_sent_between_rows_and_nothing_large_over_the_vocabulary(mesh, kind):
    arrays = inputs(96)
    with over(mesh):
        tensor = jax.sharding.get_mesh().shape["tensor"]
        text = jax.jit(partial(value_and_gradient, kind, 2.0)).lower(*placed(arrays)).compile().as_text()
    assert text is not None
    told = cost(text)
    assert not told.unknown_loops
    inside = [each for each in told.collectives if each.count > 1]
    of_chunk = 4 * (CHUNK * tensor // 8) * D  # bytes of the gradient of a chunk's hidden states
    assert {each.group_size for each in inside} == ({tensor} - {1}), inside
    assert all(each.bytes <= 2 * of_chunk for each in inside), inside  # the logits would be four times as many


def test_a_live_teachers_head_is_fetched_before_the_loop():
    """Said to the compiler, for that of TPUs fetches it anew for each chunk if nothing is (that of CPUs does not)."""
    arrays = inputs(96)
    with over(["fsdp=4", "tensor=2"]):
        text = jax.jit(partial(value_and_gradient, "live", 2.0)).lower(*placed(arrays)).as_text()
    before, _ = text.split("stablehlo.while", 1)
    assert before.count(f'[{{}}, {{"tensor"}}]> : tensor<{D_TEACHER}x{V}xf32>') == 1
