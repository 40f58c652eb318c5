"""Set before jax is imported: eight simulated devices, and compiled programs kept from one test run to the next."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "limbeck" / "xla-tests"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets, in LIMBECK_DATA or beside the repository; skips where there are none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LIMBECK_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no data sets in {folder}; LIMBECK_DATA names another folder")
    return folder


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of its own, as large as the test's `small_disk` parameter says; skips where none can be mounted."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root on Linux")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield disk
    # Lazily: an array that a test has mapped from a file there may still wait to be collected.
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.fixture(scope="session")
def tpu_compiler() -> None:
    """Skips where the TPU's compiler is not, which needs no TPU."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu, the TPU's compiler, is for Linux on x86-64 alone")


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs() -> Iterator[None]:
    """Lets go of a module's compiled programs: each holds mappings, and a process may have 65,530 of them on Linux."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
