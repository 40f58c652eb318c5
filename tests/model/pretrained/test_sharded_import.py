"""A folder of several shards goes onto a mesh: every device with its part, every process with its own, no more."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from limbeck.model.config import ModelConfig
from limbeck.model.pretrained import save_pretrained
from limbeck.model.transformer import shapes

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")

# Of Llama 3 8B's proportions: units of 3.5 widths, an eighth of the vocabulary, half the depth, 149 million parameters.
SHAPED = ModelConfig(
    vocab_size=16032,
    width=768,
    depth=16,
    num_heads=12,
    num_kv_heads=4,
    head_dim=64,
    mlp_dim=2688,
    max_len=64,
    tied_embedding=False,
    family="llama",
)
TINY = ModelConfig(vocab_size=64, width=8, depth=2, num_heads=2, num_kv_heads=2, head_dim=4, mlp_dim=8, max_len=16)

# The peak is this program's alone; what getrusage says is inherited from the parent process.
LOADING = """
import re, sys, jax
from limbeck.model.hosts import joined
from limbeck.model.pretrained import load_pretrained
from limbeck.model.sharding import over
def peak():
    return 1024 * int(re.search("VmHWM:[^0-9]*([0-9]+)", open("/proc/self/status").read())[1])
def load():
    with over(sys.argv[3:]):
        load_pretrained(sys.argv[1])
        before = peak()
        params = jax.block_until_ready(load_pretrained(sys.argv[2]).params)
    whole = sum(x.nbytes for x in params.values())
    held = {x.device: 0 for x in params["embed/embedding"].addressable_shards}
    for path, leaf in params.items():
        for part in leaf.addressable_shards:
            held[part.device] += part.data.nbytes
            if not path.endswith("scale"):
                assert part.data.nbytes * jax.device_count() == leaf.nbytes, path
    assert all(each < 1.01 * whole / jax.device_count() for each in held.values()), held
    print(whole, len(held), (peak() - before) / whole)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """[a tiny model's, a model's of the proportions of one of 8 billion parameters in several shards]"""
    root = tmp_path_factory.mktemp("sharded")
    for name, config in (("tiny", TINY), ("shaped", SHAPED)):
        ones = {path: jnp.ones(leaf.shape, jnp.bfloat16) for path, leaf in shapes(config).items()}
        save_pretrained(root / name, config, ones, max_shard_bytes=6 * 10**7)
    assert len(list((root / "shaped").glob("model-*.safetensors"))) >= 4
    return [str(root / name) for name in ("tiny", "shaped")]


def loaded(folders, mesh, devices, processes=1):
    """(bytes of the model, devices here, the peak above a process's with a tiny model, of the model) in each process"""
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    if processes > 1:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{taken.getsockname()[1]}"
        environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
    end = "with joined():\n    load()\n" if processes > 1 else "load()\n"
    command = [sys.executable, "-c", LOADING + end, *folders, *mesh]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [
        subprocess.Popen(command, env={**environment, "JAX_PROCESS_ID": str(process)}, **piped)
        for process in range(processes)
    ]
    try:
        told = [each.communicate(timeout=120) for each in running]
    finally:
        for each in running:
            each.kill()
    for each, (_, errors) in zip(running, told, strict=True):
        assert each.returncode == 0, errors
    return [tuple(map(float, words.split())) for words, _ in told]


def test_eight_devices_of_one_process_hold_the_model_once(folders):
    """At most 1.2 times the weights: no second copy, and no leaf whole beside its parts."""
    ((whole, devices, peak),) = loaded(folders, ["fsdp=4", "tensor=2"], 8)
    assert whole > 2e8 and devices == 8
    assert 0.9 < peak < 1.2


@pytest.mark.slow
def test_each_of_two_processes_reads_its_half(folders):
    for whole, devices, peak in loaded(folders, ["fsdp=4"], 2, processes=2):
        assert whole > 2e8 and devices == 2
        assert 0.45 < peak < 0.7
