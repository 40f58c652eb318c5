"""A checkpoint is whole or not there, seen when it is damaged, and held by one run at a time."""


import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limbeck.model.errors import UserError
from limbeck.train.checkpoint import (
    checkpoint_writer,
    newest_checkpoint,
    read_checkpoint,
    steps,
    write_checkpoint,
)


def tree_of(step: int, size: int = 16) -> dict:
    return {"step": jnp.int32(step), "trainable": {"norm/scale": jnp.arange(float(size)) + step}, "opt": [jnp.ones(3)]}


def test_a_flipped_bit_sends_the_run_back_to_the_checkpoint_before(tmp_path, capsys):
    for step in (2, 4, 6):
        write_checkpoint(tmp_path, step, tree_of(step), {"at": step})
    assert steps(tmp_path) == [4, 6]
    checkpoint, notes = newest_checkpoint(tmp_path) or pytest.fail("nothing found")
    tree = read_checkpoint(checkpoint, tree_of(0))
    assert notes == {"at": 6}
    jax.tree.map(np.testing.assert_array_equal, tree, tree_of(6))
    victim = max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    checkpoint, notes = newest_checkpoint(tmp_path) or pytest.fail("nothing found")
    assert notes == {"at": 4} and int(read_checkpoint(checkpoint, tree_of(0))["step"]) == 4
    assert "damaged" in capsys.readouterr().err
    (tmp_path / "4" / "manifest.json").unlink()
    assert newest_checkpoint(tmp_path) is None


def test_what_is_saved_is_what_was_there_when_save_was_called(tmp_path):
    """The step goes on, and reuses the state's memory, while the file is being written."""
    state, curve = np.arange(1 << 20, dtype=np.float32), []
    with checkpoint_writer(tmp_path) as save:
        for step in (1, 2, 3):
            save(step, {"x": state}, {"curve": curve})
            state += 1
            curve.append(step)
    checkpoint, notes = newest_checkpoint(tmp_path) or pytest.fail("nothing found")
    assert notes == {"curve": [1, 2]}
    np.testing.assert_array_equal(read_checkpoint(checkpoint, {"x": state})["x"], np.arange(1 << 20) + 2)
    assert steps(tmp_path) == [2, 3]


def test_a_folder_is_one_runs_own(tmp_path):
    with (
        checkpoint_writer(tmp_path),
        pytest.raises(UserError, match="in use by another"),
        checkpoint_writer(tmp_path),
    ):
        pass
    with checkpoint_writer(tmp_path):
        pass


# Orbax closes its event loop while writes that also failed are still in it; what they then raise goes nowhere.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("small_disk", ["1m"], indirect=True)
def test_a_full_disk_is_said_and_the_last_checkpoint_stays(small_disk):
    folder = small_disk / "run"
    write_checkpoint(folder, 2, tree_of(2), {})
    big = {"x": jax.random.normal(jax.random.key(0), (400_000,))}
    with pytest.raises(UserError, match="the disk is full"), checkpoint_writer(folder) as save:
        save(4, big, {})
    assert steps(folder) == [2]
    with checkpoint_writer(folder) as save:
        save(6, tree_of(6), {})
    checkpoint, _ = newest_checkpoint(folder) or pytest.fail("nothing found")
    assert int(read_checkpoint(checkpoint, tree_of(0))["step"]) == 6
