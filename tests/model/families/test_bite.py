"""The parity tests bite: whatever is a little off in the config pushes the logits over their tolerance."""

import dataclasses
from pathlib import Path
from typing import Any

import comparison
import pytest

FIXTURES = Path(__file__).parent / "fixtures"

# (variant, field, its wrong value): a number that is off by one percent or by one, or a rule that was overlooked.
WRONG = [
    ("llama2", "rope.theta", 303.0),
    ("llama2", "norm_eps", 2e-3),
    ("llama3", "rope.theta", 101.0),
    ("llama3", "rope.factor", 8.08),
    ("llama3", "rope.low_frequency", 1.01),
    ("llama3", "rope.high_frequency", 4.04),
    ("llama3", "rope.original_max_len", 65),
    ("llama_linear", "rope.factor", 3.03),
    ("llama_yarn", "rope.factor", 4.04),
    ("llama_yarn", "rope.attention_factor", 1.0),
    ("llama_yarn_mscale", "rope.beta_fast", 2.02),
    ("llama_yarn_mscale", "rope.beta_slow", 0.505),
    ("llama_yarn_mscale", "rope.truncate", True),
    ("mistral", "window", 7),
    ("mistral", "window", 9),
    ("qwen2_window", "window", 9),
    ("qwen2_window", "global_layers", ()),
    ("qwen3", "qk_norm", "none"),
    ("gemma", "embedding_scale", 4.95),
    ("gemma", "norm_plus_one", False),
    ("gemma", "activation", "gelu"),
    ("gemma2", "attention_softcap", 2.02),
    ("gemma2", "logit_softcap", 3.03),
    ("gemma2", "attention_scale", 1.01 * 5**-0.5),
    ("gemma2", "attention_scale", None),
    ("gemma2", "norm_placement", "pre"),
    ("gemma2", "global_layers", (0, 2)),
    ("gemma2", "window", 9),
    ("gemma3", "rope.theta", 303.0),
    ("gemma3", "rope.factor", 4.04),
    ("gemma3", "local_rope.theta", 30.3),
    ("gemma3", "local_rope", None),
    ("gemma3", "window", 7),
    ("gemma3", "norm_eps", 2e-3),
    ("phi3", "rope.share", 0.4),
    ("phi3", "window", 9),
    ("phi3_longrope", "rope.long_factor", (2.222, 2.5)),
    ("phi3_longrope", "rope.original_max_len", 64),
    ("phi3_longrope", "rope.attention_factor", 1.0),
    ("gpt2", "activation", "gelu"),
    ("gpt2", "norm_eps", 2e-3),
    ("gpt_neox", "activation", "gelu_tanh"),
    ("gpt_neox", "rope.share", 0.5),
    ("gpt_neox", "parallel_residual", False),
    ("gpt_neox_serial", "parallel_residual", True),
    ("olmo2", "qk_norm", "none"),
    ("smollm3", "unrotated_layers", ()),
    ("smollm3", "unrotated_layers", (3,)),
]


def with_field(config: Any, field: str, value: Any) -> Any:
    """The config with one field, or one of a config inside it, set to another value."""
    name, _, inner = field.partition(".")
    changed = with_field(getattr(config, name), inner, value) if inner else value
    assert inner or getattr(config, name) != value, f"{name} has this value anyway"
    return dataclasses.replace(config, **{name: changed})


@pytest.mark.parametrize(("name", "field", "value"), WRONG)
def test_a_wrong_config_is_seen_in_the_logits(name: str, field: str, value: Any) -> None:
    case = comparison.load(FIXTURES / name)
    expected = case.expected
    batch = (expected["tokens_BT"], expected["mask_BT"])
    out_BTV, _ = comparison.forward(with_field(case.config, field, value), case.params, *batch)
    with pytest.raises(AssertionError, match="logits: off by"):
        comparison.assert_close(out_BTV, expected["logits_BTV"], expected["mask_BT"], "logits")
