"""Which layers are matched, and what is refused before anything runs."""

import dataclasses
import subprocess
import sys

import pytest

from limbeck.distill.match_config import MatchConfig, planned
from limbeck.experiments.config import override
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError

TEACHER = ModelConfig(vocab_size=31, width=24, depth=6, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24, max_len=16)
STUDENT = dataclasses.replace(TEACHER, width=16, depth=2, num_heads=3, num_kv_heads=1)


def deep(depth):
    return dataclasses.replace(TEACHER, depth=depth)


@pytest.mark.parametrize(
    "mine, others, hidden, attention",
    [
        (2, 6, ((0, 0), (1, 3), (2, 6)), ((1, 3), (2, 6))),
        (3, 4, ((0, 0), (1, 1), (2, 3), (3, 4)), ((1, 1), (2, 3), (3, 4))),
        (3, 3, ((0, 0), (1, 1), (2, 2), (3, 3)), ((1, 1), (2, 2), (3, 3))),
        (5, 1, ((0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (5, 1)), ((1, 1), (2, 1), (3, 1), (4, 1), (5, 1))),
    ],
)
def test_a_uniform_map_pairs_equal_shares_of_the_depth(mine, others, hidden, attention):
    plan = planned(MatchConfig(hidden=1.0, attention=1.0, relations=1.0), deep(mine), deep(others))
    assert plan == (hidden, attention, ((mine, others),), False)


def test_what_weighs_nothing_is_neither_planned_nor_checked():
    far = MatchConfig(hidden_layers=((9, 9),), attention_heads="each", relation_heads=7)
    assert planned(far, STUDENT, TEACHER) == ((), (), (), False)
    last = MatchConfig(hidden=1.0, hidden_layers="last", relations=1.0, relation_layers=(1, 5))
    assert planned(last, STUDENT, TEACHER) == (((2, 6),), (), ((1, 5),), True)
    assert not planned(last, deep(2), TEACHER).projected
    assert planned(dataclasses.replace(last, projected=True), deep(2), TEACHER).projected


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"hidden": -1.0}, r"hidden=-1\.0: a weight is at least 0"),
        ({"relations": float("nan")}, r"relations=nan: a weight"),
        ({"hidden_distance": "cosin"}, r"unknown hidden_distance 'cosin': one of mse, cosine; did you mean 'cosine'\?"),
        ({"attention_heads": "al"}, r"unknown attention_heads 'al'"),
        ({"hidden_layers": "unifrom"}, r"unknown hidden_layers 'unifrom'.*did you mean 'uniform'\?"),
        ({"attention_layers": ()}, r"attention_layers=\(\): pairs"),
        ({"attention_layers": ((1, 2, 3),)}, r"attention_layers=\(\(1, 2, 3\),\): pairs"),
        ({"relation_layers": "lst"}, r"unknown relation_layers 'lst': one of last; did you mean 'last'\?"),
        ({"relation_layers": (1,)}, r"relation_layers=\(1,\): one pair"),
        ({"relation_heads": 0}, r"relation_heads=0: must be at least 1"),
        ({"related": ()}, r"related=\(\): name some of q, k, v"),
        ({"related": ("q", "o")}, r"unknown related 'o': one of q, k, v"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, words):
    with pytest.raises(UserError, match=words):
        MatchConfig(**settings)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"hidden": 1.0, "hidden_layers": ((0, 0), (3, 1))}, r"\(3, 1\) asks for the student's layer 3; it has 0 to 2"),
        ({"hidden": 1.0, "hidden_layers": ((2, 7),)}, r"hidden_layers: \(2, 7\).*teacher's layer 7; it has 0 to 6"),
        ({"attention": 1.0, "attention_layers": ((0, 1),)}, r"attention_layers: .*student's layer 0; it has 1 to 2"),
        ({"relations": 1.0, "relation_layers": (1, -1)}, r"relation_layers: .*teacher's layer -1; it has 1 to 6"),
        ({"attention": 1.0, "attention_heads": "each"}, r"the student has 3 heads and the teacher 4"),
        ({"relations": 1.0, "relation_heads": 3}, r"relation_heads=3 does not divide.*one of 1, 2, 4, 8"),
    ],
)
def test_what_two_models_cannot_do_is_refused(settings, words):
    with pytest.raises(UserError, match=words):
        planned(MatchConfig(**settings), STUDENT, TEACHER)


def test_relation_heads_need_to_divide_only_what_is_related():
    config = MatchConfig(relations=1.0, relation_heads=16, related=("q",))
    wide = dataclasses.replace(STUDENT, num_heads=2)
    assert planned(config, wide, TEACHER).relations == ((2, 6),)
    with pytest.raises(UserError, match="relation_heads=16"):
        planned(dataclasses.replace(config, related=("q", "v")), wide, TEACHER)


def test_every_field_can_be_set_on_the_command_line():
    words = (
        "--hidden 1 --hidden-distance cosine --hidden-layers 0 0 2 4 --projected True --attention-layers last "
        "--relation-layers 1 2 --related q v"
    )
    config = override(MatchConfig(), words.split())
    assert config == MatchConfig(
        hidden=1.0, hidden_distance="cosine", hidden_layers=((0, 0), (2, 4)), projected=True, attention_layers="last",
        relation_layers=(1, 2), related=("q", "v"),
    )  # fmt: skip


def test_it_is_read_without_jax():
    code = "import sys, limbeck.distill.match_config; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
