"""Lets the tests of this folder import the modules beside them, and share tiny models."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, str]:
    """Folders of tiny models, and of an adapter, by name."""
    from prediction_files import make_models

    return make_models(tmp_path_factory.mktemp("models"))
