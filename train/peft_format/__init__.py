"""Adapters in and out, in PEFT's format: `save_adapter`, `load_adapter`, and of which kind there an added leaf is."""

from limbeck.train.peft_format.folder import load_adapter, save_adapter
from limbeck.train.peft_format.write import kind_of_leaf

__all__ = ["kind_of_leaf", "load_adapter", "save_adapter"]
