"""What numbers were measured on, and what measured them."""

import os
import platform
from pathlib import Path
from typing import Any

import jax

from limbeck.experiments.rundir import versions


def provenance(rundir: Path, seed: int) -> dict[str, Any]:
    """What a report says of where its numbers come from: command, seed, machine, versions."""
    command = (rundir / "command.txt").read_text(encoding="utf-8").splitlines()[-1]
    return {"command": command, "seed": seed, "machine": machine(), "versions": versions()}


def machine() -> dict[str, Any]:
    """Processor, cores, system and JAX's device."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
    }
