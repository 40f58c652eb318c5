"""What cannot be computed is refused when it is said, in one line with the reason."""

import subprocess
import sys
from typing import Any

import pytest

from limbeck.distill.config import DistilConfig
from limbeck.model.errors import UserError


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"objective": "reverse"}, "did you mean 'reverse_kl'"),
        ({"beta": 1.5}, "beta 1.5"),
        ({"skew": 1.0}, "skew 1.0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature_end": float("inf")}, "temperature_end=inf"),
        ({"hard_weight": -0.1}, "hard_weight=-0.1"),
        ({"hard_weight_end": 2.0}, "hard_weight_end=2.0"),
        ({"teacher_weights": (1.0, 0.0)}, "teacher_weights"),
        ({"teacher_base": "int9"}, "did you mean 'int8'"),
        ({"cache": "top"}, "did you mean 'topk'"),
    ],
)
def test_values(settings, said):
    with pytest.raises(UserError, match=said) as caught:
        DistilConfig(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cache", ["topk", "topk_tail", "sampled"])
def test_objectives_that_need_the_whole_distribution_are_refused_on_a_cache(cache):
    refused: list[dict[str, Any]] = [
        {"objective": "reverse_kl"},
        {"objective": "generalized_jsd", "beta": 0.5},
        {"objective": "generalized_jsd", "beta": 1.0},
        {"objective": "skewed_reverse_kl"},
        {"objective": "total_variation"},
    ]
    for settings in refused:
        with pytest.raises(UserError, match="only some of the teacher's distribution"):
            DistilConfig(**settings, cache=cache)
    DistilConfig("teacher_cross_entropy", cache=cache)
    DistilConfig("generalized_jsd", beta=0.0, cache=cache)


def test_what_a_cache_says_nothing_of_is_refused():
    with pytest.raises(UserError, match="biased"):
        DistilConfig("skewed_forward_kl", cache="sampled")
    DistilConfig("skewed_forward_kl", cache="topk", temperature=2.0, temperature_end=1.0)
    with pytest.raises(UserError, match="outside the k"):
        DistilConfig(cache="topk_tail", temperature=2.0)
    with pytest.raises(UserError, match="drawn at temperature 1"):
        DistilConfig(cache="sampled", temperature_end=2.0)


def test_it_is_read_without_jax():
    program = "import sys, limbeck.distill.config; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
