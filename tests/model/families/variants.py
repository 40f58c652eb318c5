"""The families and variants under test: an architecture of transformers and its configuration, for any small shape.

Nothing is left at a value under which a mistake is silent: no base of 10,000, no window longer than the batch, no
attention scale that the head dim would give anyway where the family has its own.
"""

import dataclasses
import random
from collections.abc import Callable
from typing import Any

Config = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes that a variant is made in; the committed fixtures use the defaults."""

    vocab: int = 64
    depth: int = 3
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 6
    mlp: int = 32
    length: int = 28
    window: int = 8

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


def random_shape(seed: int) -> Shape:
    """Sizes drawn from a seed."""
    draw = random.Random(seed)
    kv_heads = draw.choice([1, 2, 3])
    return Shape(
        vocab=draw.randrange(50, 100),
        depth=draw.randrange(3, 6),
        heads=kv_heads * draw.choice([1, 2, 3]),
        kv_heads=kv_heads,
        head_dim=draw.choice([4, 6, 8, 10, 16]),
        mlp=draw.randrange(20, 50),
        length=draw.randrange(20, 36),
        window=draw.randrange(4, 12),
    )


@dataclasses.dataclass(frozen=True)
class Variant:
    """One architecture in one configuration; `published` says that the spelling of published checkpoints is kept too.

    `original` is the length at which longrope changes its factors.
    """

    architecture: str
    config: Callable[[Shape], Config]
    published: bool = False
    original: int | None = None
    problem: str | None = None

    @property
    def family(self) -> str:
        return self.architecture.partition("For")[0].removesuffix("LMHeadModel")


def _rotated(s: Shape) -> Config:
    """Names and sizes that all families but GPT-2 share."""
    return {
        "vocab_size": s.vocab,
        "hidden_size": s.width,
        "num_hidden_layers": s.depth,
        "num_attention_heads": s.heads,
        "intermediate_size": s.mlp,
        "max_position_embeddings": 96,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _common(s: Shape) -> Config:
    """Those, and what all but GPT-NeoX share."""
    return {**_rotated(s), "num_key_value_heads": s.kv_heads, "rms_norm_eps": 1e-3}


def _rope(theta: float, kind: str = "default", **settings: Any) -> Config:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **settings}}


def _yarn(**settings: Any) -> Config:
    return _rope(100.0, "yarn", factor=4.0, original_max_position_embeddings=24, **settings)


def llama2(s: Shape) -> Config:
    return {**_common(s), **_rope(300.0), "num_key_value_heads": s.heads}


def llama3(s: Shape) -> Config:
    # With a base of 100 and 64 positions some frequencies stay, some are divided and some lie between.
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    return {**_common(s), **_rope(100.0, "llama3", **scaling), "tie_word_embeddings": True}


def llama_linear(s: Shape) -> Config:
    return {**_common(s), **_rope(300.0, "linear", factor=3.0)}


def llama_yarn(s: Shape) -> Config:
    return {**_common(s), **_yarn()}


def llama_yarn_mscale(s: Shape) -> Config:
    # The two betas are near enough to each other that the ramp starts after the first frequency.
    ramp = {"beta_fast": 2.0, "beta_slow": 0.5, "truncate": False}
    return {**_common(s), **_yarn(mscale=1.5, mscale_all_dim=0.5, **ramp)}


def llama_biases(s: Shape) -> Config:
    return {**_common(s), **_rope(300.0), "attention_bias": True, "mlp_bias": True, "head_dim": s.head_dim + 4}


def mistral(s: Shape) -> Config:
    return {**_common(s), **_rope(300.0), "sliding_window": s.window, "head_dim": s.head_dim + 2}


def qwen2(s: Shape) -> Config:
    return {**_common(s), **_rope(300.0), "tie_word_embeddings": True}


def qwen2_window(s: Shape) -> Config:
    window = {"use_sliding_window": True, "sliding_window": s.window, "max_window_layers": 1}
    return {**_common(s), **_rope(300.0), **window}


def qwen3(s: Shape) -> Config:
    return {**_common(s), **_rope(300.0), "head_dim": s.head_dim + 2}


def gemma(s: Shape) -> Config:
    return {**_common(s), **_rope(300.0), "head_dim": s.head_dim + 2}


def gemma2(s: Shape) -> Config:
    caps = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
    own = {"head_dim": s.head_dim + 2, "query_pre_attn_scalar": 5, "sliding_window": s.window}
    return {**_common(s), **_rope(300.0), **caps, **own}


def gemma3(s: Shape) -> Config:
    depth = max(s.depth, 4)
    return {
        **_common(s),
        "num_hidden_layers": depth,
        "head_dim": s.head_dim + 2,
        "query_pre_attn_scalar": 5,
        "sliding_window": s.window,
        "layer_types": ["sliding_attention" if (layer + 1) % 3 else "full_attention" for layer in range(depth)],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 300.0, "factor": 4.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
        },
    }


def _partial(s: Shape) -> tuple[int, Config]:
    """(rotated dims, their share): a share that is no whole number of dims is rounded down."""
    rotated = s.head_dim // 4 * 2 + (2 if s.head_dim % 4 else 0)
    return rotated, {"partial_rotary_factor": (rotated + 0.5) / s.head_dim}


def phi3(s: Shape) -> Config:
    return {**_common(s), **_rope(300.0, **_partial(s)[1]), "sliding_window": s.window}


def phi3_longrope(s: Shape) -> Config:
    rotated, share = _partial(s)
    short = [1.0 + 0.2 * i for i in range(rotated // 2)]
    scaling = {"short_factor": short, "long_factor": [1.5 * factor + 0.7 for factor in short]}
    lengths = {"original_max_position_embeddings": 40, "max_position_embeddings": 160}
    return {**_common(s), **_rope(100.0, "longrope", **scaling, **share), **lengths}


def gpt2(s: Shape) -> Config:
    return {
        "vocab_size": s.vocab,
        "n_embd": s.width,
        "n_layer": s.depth,
        "n_head": s.heads,
        "n_inner": s.mlp,
        "n_positions": 96,
        "layer_norm_epsilon": 1e-3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout"), 0.0)


def gpt_neox(s: Shape) -> Config:
    # A quarter of each head turns, so a head has a multiple of eight dims.
    width = s.heads * (8 if s.head_dim < 12 else 16)
    own = {"hidden_size": width, "layer_norm_eps": 1e-3}
    return {**_rotated(s), **_rope(50.0, partial_rotary_factor=0.25), **own}


def gpt_neox_serial(s: Shape) -> Config:
    return {**gpt_neox(s), "use_parallel_residual": False}


def olmo2(s: Shape) -> Config:
    return {**_common(s), **_rope(300.0)}


def smollm3(s: Shape) -> Config:
    return {**_common(s), **_rope(300.0), "num_hidden_layers": max(s.depth, 4), "no_rope_layer_interval": 3}


def _labels(config: Config) -> Config:
    names = ["negative", "neutral", "positive"]
    return {**config, "id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def llama_classify(s: Shape) -> Config:
    return _labels({**_common(s), **_rope(300.0)})


def gpt2_classify(s: Shape) -> Config:
    return _labels(gpt2(s))


def qwen2_regression(s: Shape) -> Config:
    return {**_common(s), **_rope(300.0), "num_labels": 1, "problem_type": "regression"}


VARIANTS = {
    "llama2": Variant("LlamaForCausalLM", llama2),
    "llama3": Variant("LlamaForCausalLM", llama3, published=True),
    "llama_linear": Variant("LlamaForCausalLM", llama_linear, published=True),
    "llama_yarn": Variant("LlamaForCausalLM", llama_yarn, published=True),
    "llama_yarn_mscale": Variant("LlamaForCausalLM", llama_yarn_mscale),
    "llama_biases": Variant("LlamaForCausalLM", llama_biases),
    "mistral": Variant("MistralForCausalLM", mistral),
    "qwen2": Variant("Qwen2ForCausalLM", qwen2, published=True),
    "qwen2_window": Variant("Qwen2ForCausalLM", qwen2_window),
    "qwen3": Variant("Qwen3ForCausalLM", qwen3),
    "gemma": Variant("GemmaForCausalLM", gemma),
    "gemma2": Variant("Gemma2ForCausalLM", gemma2),
    "gemma3": Variant("Gemma3ForCausalLM", gemma3, published=True),
    "phi3": Variant("Phi3ForCausalLM", phi3),
    "phi3_longrope": Variant("Phi3ForCausalLM", phi3_longrope, published=True, original=40),
    "gpt2": Variant("GPT2LMHeadModel", gpt2),
    "gpt_neox": Variant("GPTNeoXForCausalLM", gpt_neox, published=True),
    "gpt_neox_serial": Variant("GPTNeoXForCausalLM", gpt_neox_serial),
    "olmo2": Variant("Olmo2ForCausalLM", olmo2),
    "smollm3": Variant("SmolLM3ForCausalLM", smollm3, published=True),
    "llama_classify": Variant("LlamaForSequenceClassification", llama_classify, problem="classification"),
    "qwen2_regression": Variant("Qwen2ForSequenceClassification", qwen2_regression, problem="regression"),
    "gpt2_classify": Variant("GPT2ForSequenceClassification", gpt2_classify, problem="classification"),
}
