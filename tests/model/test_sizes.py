"""Named sizes are as big as their names say, and machines have a rate."""

import math

import pytest

from limbeck.model.errors import UserError
from limbeck.model.peak import matmul_rate, peak
from limbeck.model.sizes import SIZES, sized
from limbeck.model.transformer import shapes


@pytest.mark.parametrize("name", [name for name in SIZES if name != "tiny"])
def test_a_size_is_named_by_its_parameters(name):
    said = float(name[:-1]) * {"m": 1e6, "b": 1e9}[name[-1]]
    leaves = shapes(sized(name, 4096, 512))
    blocks = sum(math.prod(leaf.shape) for path, leaf in leaves.items() if path.startswith("blocks/"))
    assert blocks == pytest.approx(said, rel=0.15)


def test_another_name_is_refused():
    with pytest.raises(UserError, match="unknown size '30': one of tiny, .*; did you mean '30m'"):
        sized("30", 4096, 512)


def test_the_rate_of_this_machine_is_measured():
    assert 1e9 < matmul_rate(512, 2) < 1e16
    assert peak() is not None
