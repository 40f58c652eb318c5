"""What of a student's inside is drawn towards its teacher's, and of which layers; read without jax."""

import dataclasses
import math
from typing import Literal, NamedTuple, get_args

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError, one_of

Distance = Literal["mse", "cosine"]
Heads = Literal["mean", "each"]
Named = Literal["uniform", "last"]
Pair = tuple[int, int]
Related = Literal["q", "k", "v"]


@dataclasses.dataclass(frozen=True)
class MatchConfig:
    """Terms that are added to the divergence, each times its weight; 0 leaves one out. `features.py` defines them.

    Layers are pairs (the student's, the teacher's): l is what comes out of the l-th block, or that block's attention,
    and 0, of hidden states alone, what enters the first. By name: "uniform" pairs every layer of the student with the
    teacher's at the same share of the depth (so 0 with 0 and last with last), "last" the last ones alone. A term is the
    mean over its pairs. Raises UserError for what makes no sense with any two models; `planned` for what makes none
    with two certain ones.
    """

    hidden: float = 0.0  # weight of the distance of hidden states
    hidden_distance: Distance = "mse"  # relative to the teacher's own length, or of directions alone
    hidden_layers: Named | tuple[Pair, ...] = "uniform"
    projected: bool = False  # a learned projection of the student's states even where the widths are equal
    attention: float = 0.0  # weight of the divergence of attention distributions
    attention_layers: Named | tuple[Pair, ...] = "uniform"
    attention_heads: Heads = "mean"  # the mean of all heads' distributions, or each head with the teacher's own
    relations: float = 0.0  # weight of the divergence of relations
    relation_layers: Literal["last"] | Pair = "last"  # one pair
    relation_heads: int = 4  # into how many all heads' vectors are split anew
    related: tuple[Related, ...] = ("q", "k", "v")

    def __post_init__(self) -> None:
        one_of("hidden_distance", self.hidden_distance, get_args(Distance))
        one_of("attention_heads", self.attention_heads, get_args(Heads))
        for name in ("hidden", "attention", "relations"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name}={getattr(self, name)}: a weight is at least 0, and 0 leaves it out")
        for name in ("hidden_layers", "attention_layers"):
            layers = getattr(self, name)
            if isinstance(layers, str):
                one_of(name, layers, get_args(Named))
            elif not layers or not all(map(_is_pair, layers)):
                raise UserError(f"{name}={layers}: pairs (student's layer, teacher's layer), such as ((1, 2), (2, 4))")
        if isinstance(self.relation_layers, str):
            one_of("relation_layers", self.relation_layers, ["last"])
        elif not _is_pair(self.relation_layers):
            raise UserError(f"relation_layers={self.relation_layers}: one pair of layers, such as (2, 4)")
        if self.relation_heads < 1:
            raise UserError(f"relation_heads={self.relation_heads}: must be at least 1")
        if not self.related:
            raise UserError(f"related={self.related}: name some of {', '.join(get_args(Related))}")
        for name in self.related:
            one_of("related", name, get_args(Related))


class Plan(NamedTuple):
    """The pairs of layers of every term, none where its weight is 0; whether the student's states are projected."""

    hidden: tuple[Pair, ...]
    attention: tuple[Pair, ...]
    relations: tuple[Pair, ...]
    projected: bool


def planned(config: MatchConfig, student: ModelConfig, teacher: ModelConfig) -> Plan:
    """Which layers of these two models are matched.

    Raises UserError for a layer that one of them has not, for heads that differ in number where each is compared with
    its own, and for relation heads that do not divide what they are cut from.
    """
    hidden = _pairs("hidden_layers", config.hidden_layers, student, teacher, 0) if config.hidden else ()
    attention = _pairs("attention_layers", config.attention_layers, student, teacher, 1) if config.attention else ()
    one = config.relation_layers if isinstance(config.relation_layers, str) else (config.relation_layers,)
    relations = _pairs("relation_layers", one, student, teacher, 1) if config.relations else ()
    if attention and config.attention_heads == "each" and student.num_heads != teacher.num_heads:
        raise UserError(
            f'attention_heads="each": the student has {student.num_heads} heads and the teacher {teacher.num_heads}; '
            'take "mean", or match relations, whose heads are their own'
        )
    if relations:
        sizes = [size for name in config.related for size in (_size(student, name), _size(teacher, name))]
        common = math.gcd(*sizes)
        if common % config.relation_heads:
            legal = ", ".join(str(heads) for heads in range(1, common + 1) if common % heads == 0)
            raise UserError(
                f"relation_heads={config.relation_heads} does not divide the {sizes} numbers of a token's "
                f"{', '.join(config.related)} (student's, teacher's): one of {legal}"
            )
    return Plan(hidden, attention, relations, bool(hidden) and (config.projected or student.width != teacher.width))


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(layer, int) for layer in value)


def _size(config: ModelConfig, name: str) -> int:
    return config.head_dim * (config.num_heads if name == "q" else config.num_kv_heads)


def _pairs(
    name: str, layers: str | tuple[Pair, ...], student: ModelConfig, teacher: ModelConfig, first: int
) -> tuple[Pair, ...]:
    mine, other = student.depth, teacher.depth
    if layers == "last":
        return ((mine, other),)
    if isinstance(layers, str):
        # Rounded to the nearest; a student deeper than its teacher never reaches for what has no attention.
        return tuple((layer, max(first, (2 * layer * other + mine) // (2 * mine))) for layer in range(first, mine + 1))
    for pair in layers:
        for layer, depth, whose in zip(pair, (mine, other), ("student", "teacher"), strict=True):
            if not first <= layer <= depth:
                raise UserError(f"{name}: {pair} asks for the {whose}'s layer {layer}; it has {first} to {depth}")
    return layers
