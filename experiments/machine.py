"""What numbers were measured on."""

import os
import platform
from typing import Any

import jax


def machine() -> dict[str, Any]:
    """Processor, cores, system and JAX's device."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
    }
