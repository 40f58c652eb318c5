"""A model folder gives back what was put in, or says what is wrong with it. Families are in families/."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.files import sha256_file
from limbeck.model.params import cut, digest
from limbeck.model.pretrained import load_pretrained, save_pretrained
from limbeck.model.pretrained.config_json import read_config
from limbeck.model.pretrained.families import FAMILIES
from limbeck.model.pretrained.layout import sources
from limbeck.model.rope import Rope
from limbeck.model.tokenizer import train_bpe
from limbeck.model.transformer import init, shapes
from limbeck.train.adapters import add_lora

TOKENIZER = train_bpe(["plum: drupe", "گلابی"], 280)
# Layer norms with rotary positions are no published family's; RMS norms with them are Llama's.
NATIVE = ModelConfig(
    vocab_size=280,
    width=8,
    depth=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    mlp_dim=8,
    max_len=16,
    norm="layer",
    rope=Rope(scaling="longrope", original_max_len=8, short_factor=(1.0, 2.0), long_factor=(3.0, 4.0)),
    window=4,
    global_layers=(1,),
)
LLAMA = dataclasses.replace(NATIVE, norm="rms", rope=Rope(), window=None, global_layers=(), tied_embedding=False)
CONFIGS = {"native": NATIVE, "llama": LLAMA}
PARAMS = {name: init(config, jax.random.key(0)) for name, config in CONFIGS.items()}


@pytest.fixture(params=CONFIGS)
def kind(request):
    return request.param


@pytest.fixture
def folder(tmp_path, kind):
    save_pretrained(tmp_path / "m", CONFIGS[kind], cut(PARAMS[kind], [1]), TOKENIZER)
    return tmp_path / "m"


@pytest.fixture
def llama(tmp_path):
    save_pretrained(tmp_path / "m", LLAMA, PARAMS["llama"], TOKENIZER, max_shard_bytes=4000)
    return tmp_path / "m"


def rewrite(folder, name, change):
    """Changes a file of a folder without manifest, as published ones are."""
    (folder / "manifest.json").unlink(missing_ok=True)
    (folder / name).write_bytes(change((folder / name).read_bytes()))


def reconfigure(folder, **keys):
    rewrite(folder, "config.json", lambda data: json.dumps(json.loads(data) | keys).encode())


def retensor(folder, change):
    (folder / "manifest.json").unlink()
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= safetensors.numpy.load_file(path)
        path.unlink()
    (folder / "model.safetensors.index.json").unlink()
    safetensors.numpy.save_file(change(tensors), folder / "model.safetensors")


def test_a_folder_gives_back_what_was_put_in(folder, kind):
    model = load_pretrained(folder)
    assert model.config == CONFIGS[kind]
    assert model.config.family == ("llama" if kind == "llama" else "")
    assert model.params.keys() == PARAMS[kind].keys()
    for path, leaf in PARAMS[kind].items():
        np.testing.assert_array_equal(model.params[path], leaf)
    assert model.tokenizer is not None and model.tokenizer.digest == TOKENIZER.digest
    assert model.digest == digest(PARAMS[kind])


def test_the_manifest_vouches_for_the_parameters_as_stored_alone(folder):
    assert load_pretrained(folder, dtype="bfloat16").digest is None
    (folder / "manifest.json").unlink()
    assert load_pretrained(folder).digest is None


def test_dtype_casts_once(folder, kind):
    model = load_pretrained(folder, dtype="bfloat16")
    assert model.config.dtype == "bfloat16"
    for path, leaf in PARAMS[kind].items():
        np.testing.assert_array_equal(model.params[path], leaf.astype(jnp.bfloat16))
    with pytest.raises(UserError, match="unknown dtype 'float8'"):
        load_pretrained(folder, dtype="float8")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_stored_as_it_is(tmp_path, kind, dtype):
    params = {path: leaf.astype(dtype) for path, leaf in PARAMS[kind].items()}
    save_pretrained(tmp_path, dataclasses.replace(CONFIGS[kind], dtype=dtype), params)
    model = load_pretrained(tmp_path)
    assert model.config.dtype == dtype and digest(model.params) == digest(params)


def test_adapters_beside_kernels_come_back(tmp_path):
    params = add_lora(PARAMS["llama"], jax.random.key(1), rank=2)
    save_pretrained(tmp_path, LLAMA, params)
    assert digest(load_pretrained(tmp_path).params) == digest(params)


def test_a_leaf_goes_onto_its_sharding_and_no_more_of_it_is_read(llama, tmp_path):
    script = """
import sys, jax, numpy as np
from limbeck.model.pretrained import load_pretrained
from limbeck.model.pretrained.weight_files import StoredTensor
from limbeck.model.sharding import over
read = []
get = StoredTensor.__getitem__
def reading(self, index):
    read.append((self.name, get(self, index).shape))
    return get(self, index)
StoredTensor.__getitem__ = reading
with over(["tensor=2"]):
    model = load_pretrained(sys.argv[1])
q = model.params["blocks/attn/q/kernel"]
assert q.shape == (2, 8, 8) and {s.data.shape for s in q.addressable_shards} == {(2, 8, 4)}
assert all(shape == (4, 8) for name, shape in read if name.endswith("q_proj.weight")), read
plain = load_pretrained(sys.argv[1]).params
assert all(np.array_equal(plain[p], model.params[p]) for p in plain)
"""
    environment = {**__import__("os").environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    subprocess.run([sys.executable, "-c", script, str(llama)], check=True, env=environment)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_peak_memory_is_that_of_the_weights(tmp_path):
    """At most 1.2 times their bytes above a process that loaded a tiny model; file pages count."""
    big = dataclasses.replace(LLAMA, width=512, num_heads=8, num_kv_heads=8, head_dim=64, mlp_dim=2048, depth=16)
    script = """
import re, sys, jax
from limbeck.model.pretrained import load_pretrained
def peak():  # of this program alone; what getrusage says is inherited from the parent process
    return 1024 * int(re.search("VmHWM:[^0-9]*([0-9]+)", open("/proc/self/status").read())[1])
load_pretrained(sys.argv[1])
before = peak()
params = jax.block_until_ready(load_pretrained(sys.argv[2]).params)
print((peak() - before) / sum(x.nbytes for x in params.values()))
"""
    zeros = {path: jnp.ones(leaf.shape) for path, leaf in jax.eval_shape(lambda: init(big, jax.random.key(0))).items()}
    save_pretrained(tmp_path / "big", big, zeros, max_shard_bytes=10**8)
    save_pretrained(tmp_path / "small", LLAMA, PARAMS["llama"])
    out = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "small", tmp_path / "big"], check=True, capture_output=True, text=True
    )
    assert 0.9 < float(out.stdout) < 1.2


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_flipped_bit_is_found(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 4
    (folder / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name} is missing or has changed"):
        load_pretrained(folder)


def test_no_folder_and_a_folder_not_written_to_its_end_are_refused(folder, tmp_path, kind, monkeypatch):
    with pytest.raises(UserError, match="no model at"):
        load_pretrained(tmp_path / "nowhere")

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("limbeck.model.pretrained.folder.save_weights", killed)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(folder, CONFIGS[kind], PARAMS[kind], TOKENIZER)
    with pytest.raises(UserError, match="no model at"):
        load_pretrained(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", ".."])
def test_a_manifest_cannot_lead_out_of_the_folder(folder, name):
    (folder / "manifest.json").write_text(json.dumps({"files": {name: "0"}}))
    with pytest.raises(UserError, match="outside of its folder"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda p: p | {"model.norm.wieght": p["model.norm.weight"]}, "surplus tensor model.norm.wieght; did you mean"),
        (lambda p: {k: v for k, v in p.items() if k != "model.norm.weight"}, "model.norm.weight is missing"),
        (lambda p: p | {"model.norm.weight": np.ones(3, np.float32)}, r"model.norm.weight has shape \(3,\)"),
        (lambda p: p | {"model.norm.weight": np.ones(8, np.int32)}, "int32"),
        (lambda p: p | {"model.layers.2.mlp.up_proj.weight": p["lm_head.weight"]}, "surplus tensor model.layers.2"),
    ],
)
def test_weights_that_are_not_the_config_s_are_refused(llama, change, words):
    retensor(llama, change)
    with pytest.raises(UserError, match=words):
        load_pretrained(llama)


def test_buffers_of_older_checkpoints_are_passed_over(llama):
    more = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32),
        "model.layers.0.attn.bias": np.ones((1, 1, 4, 4), bool),
    }
    retensor(llama, lambda p: p | more)
    assert digest(load_pretrained(llama).params) == digest(PARAMS["llama"])


def test_a_head_that_is_not_the_embedding_is_not_tied_whatever_the_config_says(llama):
    reconfigure(llama, tie_word_embeddings=True)
    assert digest(load_pretrained(llama).params) == digest(PARAMS["llama"])


def test_layers_stored_in_two_types_need_one_named(llama):
    name = "model.layers.1.mlp.up_proj.weight"
    retensor(llama, lambda p: p | {name: p[name].astype(np.float16)})
    with pytest.raises(UserError, match="blocks/mlp/up/kernel: its layers are stored as float16, float32"):
        load_pretrained(llama)
    assert load_pretrained(llama, dtype="float32").params["blocks/mlp/up/kernel"].dtype == "float32"


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"model_type": "lama"}, "unknown model_type 'lama': known are llama, .*did you mean 'llama'"),
        ({"model_type": None}, "unknown model_type None"),
        ({"model_type": ["llama"]}, "unknown model_type"),
        ({"hidden_size": "8"}, "hidden_size='8' in the config: a positive whole number is wanted"),
        ({"hidden_size": None}, "hidden_size=None in the config"),
        ({"num_hidden_layers": -1}, "num_hidden_layers=-1"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers=1000"),
        ({"num_hidden_layers": 10**6}, "at most 10000"),
        ({"num_attention_heads": 0}, "num_attention_heads=0"),
        ({"vocab_size": 10**30}, "vocab_size=1000"),
        ({"rms_norm_eps": 0}, "rms_norm_eps=0"),
        ({"hidden_act": "gleu"}, "unknown activation 'gleu'.*did you mean 'gelu'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "unknown rope_type 'dynamic'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor=None"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1], "long_factor": [1, "x"]}}, "long_factor"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"architectures": ["LlamaForSequenceClassification"], "id2label": {"1": "a"}}, "id2label"),
        ({"torch_dtype": "int8"}, "unknown dtype 'int8'"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(llama, keys, words):
    reconfigure(llama, **keys)
    with pytest.raises(UserError, match=words):
        load_pretrained(llama)


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
_KEYS = st.sampled_from(
    [
        "architectures", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
        "intermediate_size", "max_position_embeddings", "rms_norm_eps", "hidden_act", "tie_word_embeddings",
        "attention_bias", "mlp_bias", "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor",
        "original_max_position_embeddings", "torch_dtype", "dtype", "sliding_window", "layer_types",
        "use_sliding_window", "max_window_layers", "no_rope_layers", "no_rope_layer_interval",
        "sliding_window_pattern", "id2label", "n_embd", "n_layer", "n_head", "n_inner", "use_parallel_residual",
        "rotary_pct", "query_pre_attn_scalar", "attn_logit_softcapping", "rope_local_base_freq", "vocab_size",
        "num_labels", *(field.name for field in dataclasses.fields(ModelConfig)),
    ]
)


@settings(max_examples=300, deadline=None)
@example(family="limbeck", changes={"attention_scale": 2**31})
@example(family="limbeck", changes={"embedding_scale": 10**400})
@example(family="gemma2", changes={"attn_logit_softcapping": 2**31})
@given(family=st.sampled_from([*FAMILIES, "limbeck"]), changes=st.dictionaries(_KEYS, _ANY, min_size=1, max_size=3))
def test_whatever_a_config_says_it_is_read_or_refused_in_one_line(family, changes):
    published = {**FAMILIES[family].omitted} if family in FAMILIES else {}
    sizes = {"vocab_size": 280, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    gpt2 = {"n_embd": 8, "n_layer": 2, "n_head": 2}
    described = {**published, **sizes, **gpt2, "intermediate_size": 8, "num_key_value_heads": 1, "model_type": family}
    described["architectures"] = ["LlamaForSequenceClassification"]
    if family == "limbeck":
        described = {"model_type": family, **dataclasses.asdict(NATIVE)}
        del described["family"]
    try:
        config = read_config(json.loads(json.dumps(described | changes)))
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(config, ModelConfig) and config.layer_windows() and config.layer_ropes()
        assert isinstance(config.norm_eps, (int, float)) and isinstance(config.tied_embedding, bool)
        if max(config.width, config.vocab_size, config.mlp_dim, config.head_dim) < 10**6:
            assert sources(config, shapes(config))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda data: data.replace(b'"width"', b'"widht"'), "unknown field 'widht'; did you mean 'width'"),
        (lambda data: data.replace(b'"width": 8,', b""), "missing"),
        (lambda data: data.replace(b'"theta"', b'"theat"'), "unknown field 'theat'; did you mean 'theta'"),
        (lambda data: data.replace(b'"width"', b'"family": "lama", "width"'), "unknown field 'family'"),
        (lambda data: data.replace(b'"norm_eps": 1e-06', b'"norm_eps": "x"'), "norm_eps='x': float is wanted"),
        (lambda data: data[:-4], "cannot be read"),
        (lambda data: b"[]", "does not hold a JSON object"),
        (lambda data: b"[" * 100_000, "cannot be read"),
    ],
)
def test_our_own_config_that_makes_no_sense_is_refused(tmp_path, change, words):
    save_pretrained(tmp_path, NATIVE, PARAMS["native"])
    rewrite(tmp_path, "config.json", change)
    with pytest.raises(UserError, match=words):
        load_pretrained(tmp_path)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(llama):
    train_bpe([" ".join(map(str, range(400)))], 290).save_folder(llama)
    (llama / "manifest.json").unlink()
    with pytest.raises(UserError, match="ids up to 289, the model's vocabulary ends at 279"):
        load_pretrained(llama)


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file"):
        save_pretrained(tmp_path / "file" / "m", NATIVE, PARAMS["native"])


def test_a_smaller_model_leaves_no_shard_of_the_larger(llama):
    save_pretrained(llama, LLAMA, PARAMS["llama"])
    assert not list(llama.glob("model-*")) and not (llama / "model.safetensors.index.json").exists()
    manifest = json.loads((llama / "manifest.json").read_text())["files"]
    assert manifest["model.safetensors"] == sha256_file(llama / "model.safetensors")
    assert digest(load_pretrained(llama).params) == digest(PARAMS["llama"])
