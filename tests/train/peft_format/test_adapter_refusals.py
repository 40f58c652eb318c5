"""What is no adapter of this base model, or is damaged, or is not to be trusted, is refused in one line."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from adapter_cases import BASES, CASES, FIXTURES, base_model
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from limbeck.model.errors import UserError
from limbeck.model.pretrained import Pretrained, load_pretrained
from limbeck.train.adapters import add_lora
from limbeck.train.peft_format import load_adapter, save_adapter

CONFIG, WEIGHTS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "manifest.json"


def copy(name: str, folder: Path) -> tuple[Pretrained, Path]:
    """(the base, a copy of a fixture to be spoilt)."""
    shutil.copytree(FIXTURES / name, folder, dirs_exist_ok=True)
    return base_model(CASES[name]), folder


def edit(folder: Path, **entries: Any) -> None:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(json.dumps(config | entries), encoding="utf-8")


def refused(model: Pretrained, folder: Path, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        load_adapter(folder, model.config, model.params)
    assert "\n" not in str(caught.value)


def ours(folder: Path) -> Pretrained:
    """The base of an adapter of our own in `folder`."""
    model = load_pretrained(BASES / "gpt2")
    save_adapter(folder, model.config, model.params, add_lora(model.params, jax.random.key(0), rank=2))
    return model


@pytest.mark.parametrize(
    ("name", "entries", "match"),
    [
        ("llama_lora", {"peft_type": "LOHA"}, "peft_type='LOHA'.*LORA, IA3, VERA"),
        ("llama_lora", {"peft_type": None}, "peft_type"),
        ("llama_lora", {"peft_type": ["LORA"]}, "peft_type"),
        ("llama_lora", {"task_type": "SEQ_2_SEQ_LM"}, "task_type='SEQ_2_SEQ_LM'.*CAUSAL_LM"),
        ("llama_lora", {"task_type": {}}, "task_type"),
        ("llama_lora", {"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens.*changes the computation"),
        ("llama_lora", {"megatron_config": {"a": 1}}, "megatron_config"),
        ("llama_lora", {"loftq_config": {"loftq_bits": 4}}, "loftq_config"),
        ("llama_lora", {"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ("llama_lora", {"trainable_token_indices": [3]}, "trainable_token_indices"),
        ("llama_lora", {"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ("llama_lora", {"bias": "vera_only"}, "bias='vera_only'.*none, all, lora_only"),
        ("llama_lora", {"r": 8}, r"down_proj.lora_A.weight has shape \(4, 32\).*need \(8, 32\)"),
        ("llama_lora", {"r": 0}, "r=0"),
        ("llama_lora", {"r": True}, "r=True"),
        ("llama_lora", {"r": 10**30}, "r=1000"),
        ("llama_lora", {"r": "4"}, "r='4'"),
        ("llama_lora", {"lora_alpha": float("nan")}, "lora_alpha=nan"),
        ("llama_lora", {"lora_alpha": "6"}, "lora_alpha='6'"),
        ("llama_lora", {"lora_alpha": 10**400}, "lora_alpha"),
        ("llama_lora", {"use_rslora": "yes"}, "use_rslora='yes'"),
        ("llama_lora", {"use_dora": True}, "no lora_magnitude_vector"),
        ("llama_lora", {"lora_bias": True}, "no lora_B.bias"),
        ("llama_dora", {"use_dora": False}, "lora_magnitude_vector, which its config does not ask for"),
        ("llama_lora", {"rank_pattern": [1]}, "rank_pattern"),
        ("llama_lora", {"alpha_pattern": {"(": 1}}, "no regular expression"),
        ("llama_lora", {"alpha_pattern": {"(a+)+$": 1}}, "too involved"),
        ("llama_lora", {"alpha_pattern": {".*.*.*.*.*x": 1}}, "too involved"),
        ("llama_saved_tied_embedding", {"modules_to_save": "embed_tokens"}, "modules_to_save is not a list"),
        ("llama_embedding", {"use_dora": True}, "use_dora with an adapter of model.embed_tokens"),
        ("llama_vera", {"r": 6}, "vera_A has shape"),
        ("llama_vera_drawn", {"projection_prng_key": -1}, "projection_prng_key=-1"),
        ("llama_prompt", {"num_virtual_tokens": 4}, "prompt_embeddings has shape"),
        ("llama_prompt", {"num_transformer_submodules": 2}, "num_transformer_submodules=2"),
        ("llama_prompt", {"peft_type": "MULTITASK_PROMPT_TUNING"}, "PROMPT_TUNING, P_TUNING, PREFIX_TUNING"),
    ],
)
def test_an_option_that_is_not_supported(name: str, entries: dict[str, Any], match: str, tmp_path: Path) -> None:
    model, folder = copy(name, tmp_path)
    edit(folder, **entries)
    refused(model, folder, match)


def test_keys_that_do_not_change_the_computation_are_ignored(tmp_path: Path) -> None:
    model, folder = copy("llama_lora", tmp_path)
    wanted = load_adapter(folder, model.config, model.params)
    ran = tmp_path / "ran"
    code = {"base_model_class": f"os.system('touch {ran}')", "parent_library": "os"}
    edit(folder, auto_mapping=code, lora_dropout=0.5, revision="x", of_tomorrow={"a": [1]}, eva_config={"rho": 2})
    edit(folder, base_model_name_or_path="/etc/passwd", peft_version="99.0", fan_in_fan_out=True, task_type=None)
    got = load_adapter(folder, model.config, model.params)
    assert all(np.array_equal(got[path], wanted[path]) for path in wanted) and not ran.exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "base_model.model.../q_proj.lora_A.weight"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "/etc/passwd"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "../../blocks/attn/q/lora_a"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "blocks/attn/q/lora_a"),
        (
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            "base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight",
        ),
        (
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            "base_model.model.model.layers.0.self_attn.q_proj.lora_E",
        ),
    ],
)
def test_a_tensor_that_the_model_has_no_place_for(old: str, new: str, tmp_path: Path) -> None:
    model, folder = copy("llama_lora", tmp_path)
    tensors = load_file(folder / WEIGHTS)
    tensors[new] = tensors.pop(old)
    save_file(tensors, folder / WEIGHTS)
    refused(model, folder, "is no tensor of such an adapter of this model")


def test_a_tensor_that_is_missing_or_there_twice(tmp_path: Path) -> None:
    model, folder = copy("llama_lora", tmp_path)
    tensors = load_file(folder / WEIGHTS)
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    save_file({key: x for key, x in tensors.items() if key != name}, folder / WEIGHTS)
    refused(model, folder, "layers.1.mlp.down_proj has lora_A.weight but no lora_B.weight")
    save_file(tensors | {name.replace("model.model.model", "model.model"): tensors[name]}, folder / WEIGHTS)
    refused(model, folder, "is there twice")


def test_an_adapter_on_a_module_that_cannot_have_one(tmp_path: Path) -> None:
    model, folder = copy("llama_lora", tmp_path)
    tensors = load_file(folder / WEIGHTS)
    a = tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"]
    heads = {"lora_A.weight": a, "lora_B.weight": np.zeros((64, 4), np.float32)}
    save_file(tensors | {f"base_model.model.lm_head.{key}": x for key, x in heads.items()}, folder / WEIGHTS)
    refused(model, folder, "lm_head has an adapter")


def test_numbers_that_are_no_weights(tmp_path: Path) -> None:
    model, folder = copy("llama_lora", tmp_path)
    save_file({key: x.astype(np.int32) for key, x in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    refused(model, folder, "int32, weights are")


@pytest.mark.parametrize(
    ("name", "base", "match"),
    [
        ("llama_lora", "gpt2", "is no tensor of such an adapter"),
        ("llama_all_linear", "llama3", r"k_proj.lora_B.weight has shape \(24, 3\).*need \(12, 3\).*another base"),
        ("gpt2_own_biases", "llama3", "is no tensor"),
        ("llama_prefix", "llama2", "prompt_embeddings has shape"),
        ("llama_classify", "llama3", "answers in .* labels, the model has no head"),
        ("llama_saved_modules", "llama_classify", "lm_head.weight' is no tensor"),
    ],
)
def test_another_base_by_its_shapes(name: str, base: str, match: str) -> None:
    refused(load_pretrained(BASES / base), FIXTURES / name, match)


def test_another_base_of_the_same_shapes(tmp_path: Path) -> None:
    model = ours(tmp_path)
    other = {**model.params, "norm/scale": model.params["norm/scale"] + 1}
    refused(model._replace(params=other), tmp_path, "was made for a base model of digest")
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({key: x for key, x in manifest.items() if key != "base"}))
    assert "blocks/attn/q/lora_a" in load_adapter(tmp_path, model.config, other)


def test_a_second_adapter_is_not_put_on_top(tmp_path: Path) -> None:
    model = ours(tmp_path)
    refused(model._replace(params=load_adapter(tmp_path, model.config, model.params)), tmp_path, "an adapter already")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_file_that_has_changed_since_it_was_written(name: str, tmp_path: Path) -> None:
    model = ours(tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    data[-2] ^= 1
    (tmp_path / name).write_bytes(data)
    refused(model, tmp_path, f"{name} has changed")


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"files": {"../secret": "0"}}, "names '../secret'"),
        ({"files": {"/etc/passwd": "0"}}, "names '/etc/passwd'"),
        ({"files": []}, "no manifest"),
        ({"fused_ranks": {"transformer.h.0.attn.c_attn": [2, 2, 2]}}, "divides the 4 ranks"),
        ({"fused_ranks": {"transformer.h.0.attn.c_attn": [4, -2, 2]}}, "divides the 4 ranks"),
        ({"fused_ranks": {"transformer.h.0.attn.c_attn": "202"}}, "no list of numbers"),
    ],
)
def test_a_manifest_that_leads_astray(entries: dict[str, Any], match: str, tmp_path: Path) -> None:
    model = ours(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(manifest | entries))
    refused(model, tmp_path, match)


def test_ranks_that_are_not_divided_as_the_manifest_says(tmp_path: Path) -> None:
    model = load_pretrained(BASES / "gpt2")
    params = add_lora(model.params, jax.random.key(0), rank=2, start="orthogonal")
    params = {path: leaf + 1 if path.endswith("lora_b") else leaf for path, leaf in params.items()}
    save_adapter(tmp_path, model.config, model.params, params)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert manifest["fused_ranks"]["transformer.h.0.attn.c_attn"] == [2, 0, 2]
    for other in ([0, 2, 2], [2, 2, 0]):
        manifest["fused_ranks"]["transformer.h.0.attn.c_attn"] = other
        (tmp_path / MANIFEST).write_text(json.dumps(manifest))
        refused(model, tmp_path, "not divided as the manifest says")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, MANIFEST])
def test_a_link_out_of_the_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    model = ours(folder)
    shutil.move(folder / name, tmp_path / name)
    os.symlink(tmp_path / name, folder / name)
    refused(model, folder, "link that leads out of the folder")
    (folder / name).unlink()
    os.symlink(Path("..") / "nowhere", folder / name)
    refused(model, folder, "cannot read")


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    model, folder = copy("llama_lora", tmp_path)
    (folder / WEIGHTS).unlink()
    refused(model, folder, f"{WEIGHTS} is missing")
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"a": 1}))
    refused(model, folder, "is a pickle")


def test_a_folder_without_a_config_or_with_one_that_is_none(tmp_path: Path) -> None:
    model, folder = copy("llama_lora", tmp_path)
    for text, match in (
        ("[]", "JSON object"),
        ("{", "is not to be understood"),
        ('{"r": 4, "r": 8}', "'r' is there twice"),
        ("[" * 100_000, "is not to be understood"),
    ):
        (folder / CONFIG).write_text(text, encoding="utf-8")
        refused(model, folder, match)
    (folder / CONFIG).unlink()
    refused(model, folder, "no adapter at")
    refused(model, tmp_path / "nowhere", "no adapter at")


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["llama_patterns", "gpt2_vera", "llama_prefix", "llama_saved_tied_head", "gpt2_ia3"]),
    key=st.sampled_from(
        ["r", "lora_alpha", "rank_pattern", "alpha_pattern", "modules_to_save", "use_dora", "bias", "task_type"]
        + ["num_virtual_tokens", "save_projection", "projection_prng_key", "use_rslora", "lora_bias", "peft_type"]
    ),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    ),
)
def test_whatever_a_config_says_is_read_or_refused(
    name: str, key: str, value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model, folder = copy(name, tmp_path_factory.mktemp("spoilt"))
    edit(folder, **{key: value})
    try:
        load_adapter(folder, model.config, model.params)
    except UserError as error:
        assert "\n" not in str(error)


def test_a_weights_file_that_is_cut_or_spoilt(tmp_path: Path) -> None:
    model, folder = copy("llama_lora", tmp_path)
    whole = (folder / WEIGHTS).read_bytes()
    draw = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole[: draw.integers(len(whole))] if draw.random() < 0.3 else whole)
        for place in draw.integers(0, min(len(data), 3000), 2) if data else ():
            data[place] ^= 1 << draw.integers(8)
        (folder / WEIGHTS).write_bytes(data)
        try:
            load_adapter(folder, model.config, model.params)
        except UserError as error:
            assert "\n" not in str(error)
