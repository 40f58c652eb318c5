"""Shapes for a budget: their parameters counted, their proportions, and what they may not be."""

import dataclasses
import functools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.distill.students.shape import axes, between, deepest, of_layers, proposed, reshaped, sizes
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.pretrained.config_json import read_config, write_config
from limbeck.model.rope import Rope
from limbeck.model.transformer import shapes

GPT2 = ModelConfig(
    50257, 768, 12, 12, 12, 64, 3072, 1024, norm="layer", norm_eps=1e-5, positions="learned", gated_mlp=False,
    activation="gelu_tanh", attention_bias=True, output_bias=True, mlp_bias=True,
)  # fmt: skip
GEMMA3 = ModelConfig(
    262_144, 640, 18, 4, 1, 256, 2048, 32_768, norm_plus_one=True, norm_placement="both", qk_norm="head",
    embedding_scale=640**0.5, window=512, global_layers=(5, 11, 17), rope=Rope(1e6), local_rope=Rope(),
    activation="gelu_tanh",
)  # fmt: skip
LLAMA2 = ModelConfig(32_000, 4096, 32, 32, 32, 128, 11_008, 4096, norm_eps=1e-5, tied_embedding=False)
TEACHERS = {
    "stories 260 k": ModelConfig(512, 64, 5, 8, 4, 8, 172, 512),
    "a world, mostly embedding": ModelConfig(5120, 128, 4, 4, 4, 32, 256, 256, attention_bias=True, mlp_bias=True),
    "gpt2": GPT2,
    "gemma3 270 m, mostly embedding": GEMMA3,
    "qwen3 0.6 b": ModelConfig(151_936, 1024, 28, 16, 8, 128, 3072, 40_960, qk_norm="head"),
    "llama2 7 b": LLAMA2,
    "llama3 8 b": ModelConfig(128_256, 4096, 32, 32, 8, 128, 14_336, 8192, tied_embedding=False),
    "classifier": ModelConfig(512, 64, 5, 8, 1, 8, 173, 512, labels=("a", "b"), positions="none"),
    "olmo": ModelConfig(512, 64, 6, 4, 4, 16, 172, 512, norm_placement="post", qk_norm="projection"),
}
TINY = ModelConfig(53, 16, 6, 4, 2, 8, 24, 32, window=4, global_layers=(2, 5), unrotated_layers=(1,))
teachers = pytest.mark.parametrize("name", TEACHERS)


@functools.cache
def total(config: ModelConfig) -> int:
    return sum(math.prod(leaf.shape) for leaf in shapes(config).values())


def traits(config: ModelConfig) -> dict:
    """What must not change with the size."""
    free = {"width", "depth", "num_heads", "num_kv_heads", "mlp_dim", "window", "global_layers", "unrotated_layers"}
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in free | {"embedding_scale"}}


@teachers
def test_every_axis_is_what_it_is_called(name):
    config = TEACHERS[name]
    size = sizes(config)
    for path, leaf in shapes(config).items():
        assert leaf.shape == tuple(size[letter] for letter in axes(config, path)), path


@teachers
@pytest.mark.parametrize("share", [0.9, 0.5, 0.25, 0.0625])
def test_a_proposed_student_fills_its_budget_and_is_its_teacher_in_small(name, share):
    teacher = TEACHERS[name]
    student = proposed(teacher, share)
    whole = total(teacher)
    assert 0.97 * share * whole < total(student) <= share * whole
    assert traits(student) == traits(teacher)
    # It can be cut out of the teacher.
    for field in ("width", "depth", "num_heads", "num_kv_heads", "mlp_dim"):
        assert 1 <= getattr(student, field) <= getattr(teacher, field)
    assert student.num_heads // student.num_kv_heads <= teacher.num_heads // teacher.num_kv_heads
    # In proportion, as far as whole heads and layers and a big embedding let it be.
    ratio = student.width / teacher.width
    assert abs(student.depth - teacher.depth * ratio**0.5) <= 1
    assert abs(student.num_heads - teacher.num_heads * ratio) <= teacher.num_heads // teacher.num_kv_heads
    step = 2 ** max(0, student.width.bit_length() - 5)
    assert student.width % min(step, teacher.head_dim) == 0


@teachers
def test_the_whole_share_is_the_teacher_s_own_shape(name):
    assert proposed(TEACHERS[name], 1.0) == TEACHERS[name]


@pytest.mark.parametrize(
    "sizes, share", [((500, 133, 4, 4, 2, 64, 13), 0.386), ((60_000, 177, 7, 8, 4, 64, 399), 0.857)]
)
def test_a_shape_out_of_proportion_is_better_than_a_budget_that_is_left_over(sizes, share):
    """Few big heads and a small MLP: most widths can only be had with less than is allowed."""
    teacher = ModelConfig(*sizes, max_len=64)
    assert total(proposed(teacher, share)) > 15 / 16 * share * total(teacher)


def test_a_known_student_of_a_known_teacher():
    """Sheared LLaMA's 1.3 B of LLaMA-2 7 B has width 2048, 24 layers, 16 heads and an MLP of 5504."""
    student = proposed(LLAMA2, 1_345_423_360 / total(LLAMA2))
    found = (student.width, student.depth, student.num_heads, student.mlp_dim)
    assert found == pytest.approx((2048, 24, 16, 5504), rel=0.07)


@teachers
def test_less_than_the_smallest_names_a_share_that_can_be_had(name):
    teacher = TEACHERS[name]
    with pytest.raises(UserError, match=r"cannot be had, the smallest has [\d,]+ .* ask for (\S+) or more") as error:
        proposed(teacher, 1e-6)
    least = float(str(error.value).split("ask for ")[1].split()[0])
    student = proposed(teacher, least)
    assert total(student) <= least * total(teacher)
    with pytest.raises(UserError, match="cannot be had"):
        proposed(teacher, 0.98 * least)


def test_an_embedding_over_the_budget_is_refused():
    """A twentieth of a model that is all but embedding, and would have to be narrower than 8."""
    teacher = ModelConfig(60_000, 16, 2, 2, 2, 8, 32, 64)
    with pytest.raises(UserError, match=r"\(the embeddings of 60,000 tokens are among them\): ask for 0.498"):
        proposed(teacher, 0.05)


@pytest.mark.parametrize("share", [0, -0.5, 1.5, math.nan])
def test_a_share_is_a_share(share):
    with pytest.raises(UserError, match="above 0 and at most 1, such as 0.25"):
        proposed(TINY, share)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(8, 300), st.integers(1, 12), st.sampled_from([1, 2, 3, 6]), st.sampled_from([1, 2, 4]),
    st.sampled_from([2, 8, 20]), st.integers(4, 700), st.integers(10, 3000), st.floats(0.02, 1),
)  # fmt: skip
def test_any_teacher_has_a_student_or_says_why_not(width, depth, kv_heads, queries, head_dim, mlp_dim, vocab, share):
    teacher = ModelConfig(vocab, width, depth, kv_heads * queries, kv_heads, head_dim, mlp_dim, 64)
    try:
        student = proposed(teacher, share)
    except UserError as error:
        assert "cannot be had" in str(error)
    else:
        assert 1 <= total(student) <= share * total(teacher)
        assert traits(student) == traits(teacher) and student.mlp_dim <= mlp_dim


def test_families_that_cannot_say_the_size_of_a_head_still_can_say_the_student():
    student = proposed(GPT2, 0.3)
    assert student.num_heads * student.head_dim == student.width
    assert write_config(student)["model_type"] == "gpt2"
    assert read_config(write_config(student)) == student


def test_the_layers_keep_their_period_and_a_scaled_embedding_its_root():
    student = proposed(GEMMA3, 0.5)
    assert student.embedding_scale == student.width**0.5
    assert student.global_layers == tuple(layer for layer in (5, 11, 17) if layer < student.depth)
    written = write_config(dataclasses.replace(student, family="gemma3_text"))
    assert written["model_type"] == "gemma3_text"
    assert reshaped(TINY, depth=2).global_layers == (1,)  # one of them sees everything, as some of the teacher's do
    assert reshaped(TINY, depth=2).unrotated_layers == (1,)
    assert reshaped(TINY, depth=8).global_layers == (2, 5)
    assert reshaped(TINY, width=9).embedding_scale == 1.0


def test_layers_take_their_kinds_with_them():
    some = of_layers(TINY, [1, 2, 4])
    assert (some.depth, some.window, some.global_layers, some.unrotated_layers) == (3, 4, (1,), (0,))
    alone = of_layers(TINY, [2, 5])
    assert (alone.window, alone.global_layers, alone.unrotated_layers) == (None, (), ())
    assert alone.layer_windows() == (32, 32)


@pytest.mark.parametrize("share", [0.95, 0.6, 0.4])
def test_the_deepest_student_of_whole_layers_fits(share):
    depth = deepest(TINY, share)
    assert total(reshaped(TINY, depth=depth)) <= share * total(TINY) < total(reshaped(TINY, depth=depth + 1))


def test_not_even_one_layer():
    with pytest.raises(UserError, match=r"params=0.1: one of the teacher's layers and its embeddings already are 0.2"):
        deepest(TINY, 0.1)
    assert deepest(TINY, 1.0) == 6


@pytest.mark.parametrize("cuts", [1, 2, 5])
def test_cuts_go_down_in_equal_steps(cuts):
    teacher = TEACHERS["llama3 8 b"]
    to = proposed(teacher, 0.2)
    steps = [teacher, *between(teacher, to, cuts)]
    assert len(steps) == cuts + 1 and steps[-1] == to
    for field in ("width", "depth", "num_heads", "num_kv_heads", "mlp_dim"):
        numbers = [getattr(step, field) for step in steps]
        assert numbers == sorted(numbers, reverse=True)
    widths = [step.width for step in steps]
    assert max(widths[i] - widths[i + 1] for i in range(cuts)) <= (teacher.width - to.width) / cuts + 1
