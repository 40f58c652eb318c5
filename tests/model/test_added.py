"""What a dense module computes with added leaves, against the papers' formulas written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limbeck.model.added import ADDED, beside, column_norms, with_shared
from limbeck.model.quantize import kernel_of, quantize

KEYS = iter(jax.random.split(jax.random.key(0), 40))
N, D, F, R = 5, 6, 4, 2


def some(*shape: int) -> jax.Array:
    return jax.random.normal(next(KEYS), shape)


X_ND, KERNEL_DF, BIAS_F = some(N, D), some(D, F), some(F)
LORA = {"kernel": KERNEL_DF, "lora_a": some(D, R), "lora_b": some(R, F), "lora_scale": jnp.float32(0.7)}


def test_lora_its_bias_and_the_module_s_own():
    own_F = some(F)
    got = beside(X_ND, X_ND @ KERNEL_DF, LORA | {"bias": BIAS_F, "lora_bias": own_F})
    low = X_ND @ LORA["lora_a"] @ LORA["lora_b"] + own_F
    np.testing.assert_allclose(got, X_ND @ KERNEL_DF + BIAS_F + 0.7 * low, rtol=1e-5)


def test_dora_divides_by_a_norm_that_has_no_gradient():
    magnitude_F = jnp.abs(some(F))
    leaves = LORA | {"lora_magnitude": magnitude_F, "bias": BIAS_F}
    whole_DF = KERNEL_DF + 0.7 * LORA["lora_a"] @ LORA["lora_b"]
    norm_F = np.linalg.norm(whole_DF, axis=0)
    np.testing.assert_allclose(column_norms(KERNEL_DF, LORA), norm_F, rtol=1e-6)
    np.testing.assert_allclose(
        beside(X_ND, X_ND @ KERNEL_DF, leaves), X_ND @ (whole_DF * magnitude_F / norm_F) + BIAS_F, rtol=1e-5, atol=1e-6
    )
    weights_NF = some(N, F)

    def ours(b_RF):
        return (weights_NF * beside(X_ND, X_ND @ KERNEL_DF, leaves | {"lora_b": b_RF})).sum()

    def constant(b_RF):
        return (weights_NF * (X_ND @ (KERNEL_DF + 0.7 * LORA["lora_a"] @ b_RF)) * magnitude_F / norm_F).sum()

    np.testing.assert_allclose(jax.grad(ours)(LORA["lora_b"]), jax.grad(constant)(LORA["lora_b"]), rtol=1e-5, atol=1e-6)


def test_dora_over_codes_uses_the_kernel_that_they_stand_for():
    coded = quantize({"blocks/attn/q/kernel": KERNEL_DF[None]}, "int8")
    codes = {path.rpartition("/")[2]: leaf[0] for path, leaf in coded.items()}
    leaves = {name: leaf for name, leaf in LORA.items() if name != "kernel"} | {"lora_magnitude": jnp.abs(some(F))}
    plain = leaves | {"kernel": kernel_of(codes)}
    product_NF = X_ND @ plain["kernel"]
    np.testing.assert_allclose(beside(X_ND, product_NF, leaves | codes), beside(X_ND, product_NF, plain), rtol=1e-6)


def test_vera_cuts_the_shared_matrices_to_the_module_s_sizes():
    shared = {"vera/a": some(D + 3, R), "vera/p": some(R, F + 2)}
    leaves = {"attn/q/vera_d": some(R), "attn/q/vera_b": some(F), "attn/q/kernel": KERNEL_DF}
    found = with_shared(leaves, shared)
    module = {path.removeprefix("attn/q/"): leaf for path, leaf in found.items()}
    side = (X_ND @ shared["vera/a"][:D] * module["vera_d"]) @ shared["vera/p"][:, :F] * module["vera_b"]
    np.testing.assert_allclose(beside(X_ND, X_ND @ KERNEL_DF, module), X_ND @ KERNEL_DF + side, rtol=1e-5, atol=1e-6)


def test_ia3_multiplies_the_bias_too():
    factor_F = some(F)
    got = beside(X_ND, X_ND @ KERNEL_DF, {"bias": BIAS_F, "ia3_out": factor_F})
    np.testing.assert_allclose(got, (X_ND @ KERNEL_DF + BIAS_F) * factor_F, rtol=1e-6)


@pytest.mark.parametrize("path, known", [
    ("blocks/attn/q/lora_a", True), ("blocks/2:4/mlp/up/lora_scale", True), ("blocks/attn/q/ia3_out", True),
    ("blocks/mlp_adapter/down/bias", True), ("blocks/attn/prefix_k", True), ("vera/p", True),
    ("prompt/embedding", True),
    ("blocks/attn/q/kernel", False), ("blocks/attn/q/lora_c", False), ("../vera/a", False), ("blocks/x/lora_a", False),
])  # fmt: skip
def test_the_names_of_added_leaves(path, known):
    assert bool(ADDED.fullmatch(path)) == known
