"""The adapters under test: a base model among the fixtures of the families, and a config of PEFT's."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from limbeck.model.params import Params
from limbeck.model.pretrained import Pretrained, load_pretrained
from limbeck.model.transformer import apply, classify

BASES = Path(__file__).parents[2] / "model" / "families" / "fixtures"
FIXTURES = Path(__file__).parent / "fixtures"


@dataclasses.dataclass(frozen=True)
class Case:
    """`kind` is one of PEFT's config classes; `same` says that what is saved again loads as the same leaves."""

    base: str
    kind: str
    config: dict[str, Any]
    same: bool = True

    @property
    def classifies(self) -> bool:
        return self.base.endswith("_classify")


def _lora(base: str, *targets: str, **config: Any) -> Case:
    return Case(base, "LoraConfig", {"r": 4, "lora_alpha": 6, "target_modules": list(targets), **config})


def _causal(base: str, kind: str, **config: Any) -> Case:
    return Case(base, kind, {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3, **config})


def _vera(base: str, *targets: str, same: bool = True, **config: Any) -> Case:
    return Case(base, "VeraConfig", {"r": 5, "target_modules": list(targets), **config}, same)


def _ia3(base: str, *targets: str, feedforward: str, **config: Any) -> Case:
    modules = {"target_modules": [*targets, feedforward], "feedforward_modules": [feedforward]}
    return Case(base, "IA3Config", modules | config)


CASES = {
    "llama_lora": _lora("llama3", "q_proj", "v_proj", "down_proj"),
    "llama_all_linear": Case("llama2", "LoraConfig", {"r": 3, "target_modules": "all-linear", "use_rslora": True}),
    "llama_dora": _lora("llama3", "k_proj", "up_proj", use_dora=True),
    "llama_patterns": _lora(
        "llama3",
        "q_proj",
        "v_proj",
        rank_pattern={"v_proj": 2, "layers.1.self_attn.q_proj": 5},
        alpha_pattern={"^model.layers.0.self_attn.q_proj": 16, r"model\.layers\.[12]\.self_attn\.v_proj": 1.5},
    ),
    "llama_some_layers": _lora("llama3", "q_proj", "v_proj", layers_to_transform=[0, 2], layers_pattern="layers"),
    "llama_saved_modules": _lora("llama2", "q_proj", modules_to_save=["norm", "lm_head", "embed_tokens"]),
    "llama_saved_tied_embedding": _lora("llama3", "q_proj", modules_to_save=["embed_tokens"]),
    "llama_saved_tied_both": _lora("llama3", "q_proj", modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    "llama_saved_tied_head": _lora("llama3", "q_proj", modules_to_save=["lm_head", "layers.1.mlp.up_proj"]),
    "llama_embedding": _lora("llama3", "q_proj", "embed_tokens"),
    "llama_ia3": _ia3("llama3", "k_proj", "v_proj", feedforward="down_proj"),
    "llama_vera": _vera("llama3", "q_proj", "v_proj", "down_proj"),
    "llama_vera_drawn": _vera("llama3", "k_proj", "up_proj", save_projection=False, projection_prng_key=7),
    "llama_prompt": _causal("llama3", "PromptTuningConfig"),
    "llama_p_tuning": _causal("llama3", "PromptEncoderConfig", encoder_hidden_size=8),
    "llama_prefix": _causal("llama3", "PrefixTuningConfig"),
    "llama_prefix_projected": _causal("llama3", "PrefixTuningConfig", prefix_projection=True, encoder_hidden_size=8),
    "llama_classify": _lora("llama_classify", "q_proj", task_type="SEQ_CLS"),
    "gpt2_lora": _lora("gpt2", "c_attn"),
    "gpt2_all_biases": _lora("gpt2", "c_attn", "c_proj", "c_fc", bias="all"),
    "gpt2_own_biases": _lora("gpt2", "c_attn", "mlp.c_fc", bias="lora_only", lora_bias=True),
    "gpt2_dora": _lora("gpt2", "c_attn", "c_proj", use_dora=True, use_rslora=True),
    "gpt2_saved_modules": _lora("gpt2", "c_attn", modules_to_save=["ln_f", "wpe", "h.1.mlp.c_fc"]),
    "gpt2_embedding": _lora("gpt2", "c_attn", "wte"),
    "gpt2_ia3": _ia3("gpt2", "c_attn", feedforward="mlp.c_proj"),
    "gpt2_vera": _vera("gpt2", "c_attn", "c_fc", same=False),
    "gpt2_vera_plain": _vera("gpt2", "c_proj", "c_fc", bias="vera_only"),
    "gpt2_prompt": _causal("gpt2", "PromptTuningConfig"),
    "gpt2_prefix": _causal("gpt2", "PrefixTuningConfig"),
    "gpt2_classify": _ia3("gpt2_classify", "c_attn", feedforward="mlp.c_proj", task_type="SEQ_CLS"),
    "gpt2_classify_prefix": Case(
        "gpt2_classify", "PrefixTuningConfig", {"task_type": "SEQ_CLS", "num_virtual_tokens": 3}
    ),
    "phi3_lora": _lora("phi3", "qkv_proj", "gate_up_proj"),
    "phi3_ia3": _ia3("phi3", "qkv_proj", feedforward="gate_up_proj"),
    "neox_dora": _lora("gpt_neox", "query_key_value", "dense", use_dora=True, bias="lora_only"),
    "neox_vera": _vera("gpt_neox", "query_key_value", "dense", same=False, modules_to_save=["lm_head"]),
}


def base_model(case: Case) -> Pretrained:
    return load_pretrained(BASES / case.base)


def outputs(model: Pretrained, params: Params, tokens_BT: np.ndarray) -> np.ndarray:
    """Logits at every position, or a classifier's scores."""
    tokens = jnp.asarray(tokens_BT)
    if model.config.labels:
        return np.asarray(classify(model.config, params, tokens, jnp.full(len(tokens_BT), tokens_BT.shape[1])))
    return np.asarray(apply(model.config, params, tokens).logits_BTV)
