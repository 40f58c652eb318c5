"""Models in and out of files: `load_pretrained`, `save_pretrained`, `describe`, and what they are made of."""

from limbeck.model.pretrained.folder import (
    Leaf,
    Pretrained,
    add_to_card,
    describe,
    lineage_of,
    load_pretrained,
    save_pretrained,
    shapes_at,
    stored_lineage,
)

__all__ = [
    "Leaf",
    "Pretrained",
    "add_to_card",
    "describe",
    "lineage_of",
    "load_pretrained",
    "save_pretrained",
    "shapes_at",
    "stored_lineage",
]
