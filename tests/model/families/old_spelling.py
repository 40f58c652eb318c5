"""How checkpoints from before transformers 5 spell their config.json."""

from typing import Any


def published(config: dict[str, Any]) -> dict[str, Any]:
    """The same config in the old spelling, without what such checkpoints leave to the family's default."""
    old = {key: value for key, value in config.items() if key not in ("layer_types", "no_rope_layers", "use_cache")}
    old |= {"torch_dtype": old.pop("dtype"), "transformers_version": "4.40.0"}
    tied = config["model_type"] in ("gemma3_text", "smollm3")
    if old.get("tie_word_embeddings", tied) == tied:
        old.pop("tie_word_embeddings", None)
    if old.get("head_dim") == old["hidden_size"] // old["num_attention_heads"]:
        del old["head_dim"]
    rope = old.pop("rope_parameters")
    if config["model_type"] == "gemma3_text":
        rope, local = rope["full_attention"], rope["sliding_attention"]
        old |= {"rope_local_base_freq": local["rope_theta"], "sliding_window_pattern": 3}
    if config["model_type"] == "gpt_neox":
        return old | {"rotary_emb_base": int(rope["rope_theta"]), "rotary_pct": rope["partial_rotary_factor"]}
    kind = rope.pop("rope_type")
    key = "rope_type" if kind == "llama3" or config["model_type"] == "gemma3_text" else "type"
    old["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        old["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    if "original_max_position_embeddings" in old:
        rope.pop("original_max_position_embeddings", None)
    return old | {"rope_scaling": None if kind == "default" else {key: kind, **rope}}
