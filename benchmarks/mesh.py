"""A training step over simulated devices of one machine: its time, and the bytes and the temporaries of a device.

    python benchmarks/mesh.py
    python benchmarks/mesh.py --devices 1 2 4 8 --size 5m --length 64

Weak: as many rows for each device. Strong: the same batch whatever the devices. All of them share the machine's cores,
so a step that takes longer in the strong table shows what the mesh itself costs (collectives, smaller products); what
a device holds is what it would hold on a real one. Each line is a process of its own, the median of a few steps.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

_STEPS = 5


def measure(size: str, rows: int, length: int, mesh: list[str]) -> dict[str, float]:
    """Seconds of a step, bytes of a device's parameters and moments, of its temporaries, in this process."""
    import jax
    import numpy as np

    from limbeck.model.sharding import over, over_rows
    from limbeck.model.sizes import sized
    from limbeck.model.transformer import init
    from limbeck.train.config import OptimConfig
    from limbeck.train.loss import token_loss
    from limbeck.train.optim import make_optimizer
    from limbeck.train.step import init_state, make_step

    config = sized(size, 4096, length)
    tokens_BT = np.random.default_rng(0).integers(1, 4096, (rows, length + 1)).astype(np.int32)
    batch = {
        "tokens_BT": tokens_BT[:, :-1],
        "targets_BT": tokens_BT[:, 1:],
        "weights_BT": np.ones((rows, length), np.float32),
        "positions_BT": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "segments_BT": np.ones((rows, length), np.int32),
    }
    optimizer, key = make_optimizer(OptimConfig(), 100), jax.random.key(0)
    with over(mesh):
        state = init_state(optimizer, init(config, key))
        there = over_rows(batch)
        step = make_step(token_loss(config), optimizer, like=state).lower(state, {}, there, key).compile()
        held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
        seconds = []
        for _ in range(_STEPS + 1):
            began = time.perf_counter()
            state, metrics = jax.block_until_ready(step(state, {}, there, key))
            seconds.append(time.perf_counter() - began)
    return {
        "seconds": statistics.median(seconds[1:]),
        "held": held,
        "temporaries": step.memory_analysis().temp_size_in_bytes,
        "loss": float(metrics["loss"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--size", default="5m")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rows", type=int, default=16, help="of the strong batch; the weak one has so many eighths")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        rows, *mesh = args.one
        print(json.dumps(measure(args.size, int(rows), args.length, mesh)))
        return
    print("| scaling | mesh | rows | step | to one device | a device holds | temporaries |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for name in ("strong", "weak"):
        first = 0.0
        for devices in args.devices:
            rows = args.rows if name == "strong" else max(1, args.rows // 8) * devices
            for axis in ("data", "fsdp", "tensor") if devices > 1 else ("data",):
                environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
                environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
                words = [__file__, "--size", args.size, "--length", str(args.length)]
                command = [sys.executable, *words, "--one", str(rows), f"{axis}={devices}"]
                found = json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
                first = first or found["seconds"]
                sizes = [f"{found[part] / 2**20:.1f} MiB" for part in ("held", "temporaries")]
                times = f"{found['seconds']:.3f} s | {found['seconds'] / first:.2f}"
                print(f"| {name} | {axis}={devices} | {rows} | {times} | {' | '.join(sizes)} |", flush=True)


if __name__ == "__main__":
    main()
