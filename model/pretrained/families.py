"""The published families, one declarative entry each: how their config.json and their tensors are called.

What a family leaves out of its config means what its publishers' code takes it to mean, which is written down here as
`omitted`. `config_json.py` reads and writes a config by its entry, `layout.py` the tensors.

Sources: the checkpoints' own config files and names, and the modelling code of Hugging Face transformers 5.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from limbeck.model.pretrained import layer_kinds
from limbeck.model.pretrained.layer_kinds import Kinds

Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Family:
    """How one family of checkpoints is called.

    `modules` maps our module to theirs (`attn/q` to `self_attn.q_proj`, inside a layer; `embed` outside); ours joined
    by `+` are fused in theirs along the output. `keys` maps a field of ModelConfig to a key of config.json, `fixed`
    holds the fields that the family never varies, and `kinds` reads and writes which layers have a window.
    """

    architecture: str  # for the next token; a classifier's ends in ForSequenceClassification
    prefix: str  # before every name but the head's
    layers: str  # before the names inside a layer; {} is its number
    modules: Mapping[str, str]
    keys: Mapping[str, str]
    omitted: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kinds: Kinds = layer_kinds.NONE
    input_first: bool = False  # dense kernels are stored [in, out], not [out, in]
    fused_by_head: bool = False  # a fused kernel holds q, k and v of the first head, then of the second ...
    rope_share: float = 1.0  # where the config does not say
    rope_theta: float = 10_000.0
    rope_keys: tuple[str, str] = ("rope_theta", "partial_rotary_factor")  # of the two above in config.json
    local_rope_theta: float | None = None  # of layers with a window, in a family that gives them one of their own
    rope_types: Mapping[str, str] = dataclasses.field(default_factory=dict)  # the family's own words for a scaling
    # Keys that change the computation, and the one value that can be computed.
    unsupported: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_ATTENTION = {f"attn/{x}": f"self_attn.{x}_proj" for x in "qkvo"}
_MLP = {f"mlp/{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")}
_PRE_NORMS = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
_QK_NORMS = {"attn/q_norm": "self_attn.q_norm", "attn/k_norm": "self_attn.k_norm"}
_ENDS = {"embed": "embed_tokens", "norm": "norm", "head": "lm_head", "score": "score"}
_LLAMA = {**_ENDS, **_ATTENTION, **_MLP, **_PRE_NORMS}
_GEMMA2_NORMS = {
    "attn_norm": "input_layernorm",
    "attn_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}

_KEYS = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp_dim": "intermediate_size",
    "max_len": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "activation": "hidden_act",
    "tied_embedding": "tie_word_embeddings",
}
_BIASES = {"attention_bias": "attention_bias", "output_bias": "attention_bias"}
_GEMMA_FIXED = {"norm_plus_one": True, "embedding_scale": lambda fields: fields["width"] ** 0.5}
_GEMMA_KEYS = {**_KEYS, **_BIASES, "activation": "hidden_activation"}
_SCORES = {"attention_scale": "query_pre_attn_scalar"}
_SOFTCAPS = {"attention_softcap": "attn_logit_softcapping", "logit_softcap": "final_logit_softcapping"}


def _without(keys: Mapping[str, str], *names: str) -> dict[str, str]:
    return {ours: theirs for ours, theirs in keys.items() if ours not in names}


def _llama(architecture: str, **more: Any) -> Family:
    """A family that is called as Llama is but for what is given."""
    given = {"modules": _LLAMA, "keys": _KEYS, **more}
    return Family(architecture, "model.", "layers.{}.", **given)


def _omitted(eps: float = 1e-6, kv_heads: int | None = None, tied: bool = False, **more: Any) -> Json:
    """What most families mean by a key that is not there; `head_dim` and the heads follow from others where None."""
    biases = {"attention_bias": False, "mlp_bias": False}
    return {
        "rms_norm_eps": eps,
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "num_key_value_heads": kv_heads,
        "head_dim": None,
        **biases,
        **more,
    }


def _gemma_omitted(**more: Any) -> Json:
    return _omitted(tied=True, head_dim=256, hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=256, **more)



FAMILIES: dict[str, Family] = {
    "llama": _llama(
        "LlamaForCausalLM",
        keys={**_KEYS, **_BIASES, "mlp_bias": "mlp_bias"},
        omitted=_omitted(max_position_embeddings=2048),
    ),
    "mistral": _llama(
        "MistralForCausalLM",
        omitted=_omitted(kv_heads=8, max_position_embeddings=131_072, sliding_window=4096),
        kinds=layer_kinds.ALL,
    ),
    "qwen2": _llama(
        "Qwen2ForCausalLM",
        omitted=_omitted(kv_heads=32, max_position_embeddings=32_768),
        fixed={"attention_bias": True},
        kinds=layer_kinds.FROM_A_LAYER_ON,
    ),
    "qwen3": _llama(
        "Qwen3ForCausalLM",
        modules={**_LLAMA, **_QK_NORMS},
        keys={**_KEYS, **_BIASES},
        omitted=_omitted(kv_heads=32, head_dim=128, max_position_embeddings=32_768),
        fixed={"qk_norm": "head"},
        kinds=layer_kinds.FROM_A_LAYER_ON,
    ),
    "gemma": _llama(
        "GemmaForCausalLM",
        # Published configs say "gelu" and mean its tanh form, as their publishers' code does.
        keys={**_GEMMA_KEYS, "activation": "hidden_act"},
        omitted=_gemma_omitted(kv_heads=16) | {"hidden_act": "gelu_pytorch_tanh", "max_position_embeddings": 8192},
        fixed={**_GEMMA_FIXED, "activation": "gelu_tanh"},
    ),
    "gemma2": _llama(
        "Gemma2ForCausalLM",
        modules={**_LLAMA, **_GEMMA2_NORMS},
        keys={**_GEMMA_KEYS, **_SCORES, **_SOFTCAPS},
        omitted=_gemma_omitted(kv_heads=4, attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
        | {"max_position_embeddings": 8192},
        fixed={**_GEMMA_FIXED, "norm_placement": "both"},
        kinds=layer_kinds.EVERY_OTHER,
    ),
    "gemma3_text": _llama(
        "Gemma3ForCausalLM",
        modules={**_LLAMA, **_GEMMA2_NORMS, **_QK_NORMS},
        keys={**_GEMMA_KEYS, **_SCORES, "logit_softcap": "final_logit_softcapping"},
        omitted=_gemma_omitted(kv_heads=4, final_logit_softcapping=None) | {"max_position_embeddings": 131_072},
        fixed={**_GEMMA_FIXED, "norm_placement": "both", "qk_norm": "head"},
        kinds=layer_kinds.ALL_BUT_EVERY_NTH,
        rope_theta=1e6,
        local_rope_theta=10_000.0,
        unsupported={"use_bidirectional_attention": False},
    ),
    "phi3": _llama(
        "Phi3ForCausalLM",
        modules={
            **_without(_LLAMA, "attn/q", "attn/k", "attn/v", "mlp/gate", "mlp/up"),
            "attn/q+attn/k+attn/v": "self_attn.qkv_proj",
            "mlp/gate+mlp/up": "mlp.gate_up_proj",
        },
        omitted=_omitted(
            eps=1e-5, max_position_embeddings=4096, original_max_position_embeddings=4096, sliding_window=None
        ),
        kinds=layer_kinds.ALL,
        rope_types={"su": "longrope", "yarn": "longrope"},
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        "transformer.",
        "h.{}.",
        modules={
            "embed": "wte",
            "positions": "wpe",
            "norm": "ln_f",
            "head": "lm_head",
            "score": "score",
            "attn_norm": "ln_1",
            "attn/q+attn/k+attn/v": "attn.c_attn",
            "attn/o": "attn.c_proj",
            "mlp_norm": "ln_2",
            "mlp/up": "mlp.c_fc",
            "mlp/down": "mlp.c_proj",
        },
        keys={
            "vocab_size": "vocab_size",
            "width": "n_embd",
            "depth": "n_layer",
            "num_heads": "n_head",
            "mlp_dim": "n_inner",
            "max_len": "n_positions",
            "norm_eps": "layer_norm_epsilon",
            "activation": "activation_function",
            "tied_embedding": "tie_word_embeddings",
        },
        omitted={
            "n_inner": None,
            "n_positions": 1024,
            "layer_norm_epsilon": 1e-5,
            "activation_function": "gelu_new",
            "tie_word_embeddings": True,
        },
        fixed={
            "norm": "layer",
            "positions": "learned",
            "gated_mlp": False,
            "attention_bias": True,
            "output_bias": True,
            "mlp_bias": True,
        },
        input_first=True,
        unsupported={
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
    ),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        "gpt_neox.",
        "layers.{}.",
        modules={
            "embed": "embed_in",
            "norm": "final_layer_norm",
            "head": "embed_out",
            "score": "score",
            "attn_norm": "input_layernorm",
            "mlp_norm": "post_attention_layernorm",
            "attn/q+attn/k+attn/v": "attention.query_key_value",
            "attn/o": "attention.dense",
            "mlp/up": "mlp.dense_h_to_4h",
            "mlp/down": "mlp.dense_4h_to_h",
        },
        keys={
            **_without(_KEYS, "num_kv_heads", "head_dim"),
            **_BIASES,
            "norm_eps": "layer_norm_eps",
            "parallel_residual": "use_parallel_residual",
        },
        omitted={
            "layer_norm_eps": 1e-5,
            "hidden_act": "gelu",
            "tie_word_embeddings": False,
            "attention_bias": True,
            "use_parallel_residual": True,
            "max_position_embeddings": 2048,
        },
        fixed={"norm": "layer", "gated_mlp": False, "mlp_bias": True},
        fused_by_head=True,
        rope_share=0.25,
        rope_keys=("rotary_emb_base", "rotary_pct"),
    ),
    "olmo2": _llama(
        "Olmo2ForCausalLM",
        modules={
            **_without(_LLAMA, "attn_norm", "mlp_norm"),
            **_QK_NORMS,
            "attn_post_norm": "post_attention_layernorm",
            "mlp_post_norm": "post_feedforward_layernorm",
        },
        keys={**_KEYS, **_BIASES},
        omitted=_omitted(eps=1e-5, max_position_embeddings=2048),
        fixed={"norm_placement": "post", "qk_norm": "projection"},
    ),
    "smollm3": _llama(
        "SmolLM3ForCausalLM",
        keys={**_KEYS, **_BIASES, "mlp_bias": "mlp_bias"},
        omitted=_omitted(kv_heads=4, tied=True, max_position_embeddings=32_768),
        kinds=layer_kinds.WHERE_UNROTATED,
        rope_theta=2e6,
    ),
}
