"""Adapters in and out, in PEFT's format: `save_adapter` and `load_adapter`."""

from limbeck.train.peft_format.folder import load_adapter, save_adapter

__all__ = ["load_adapter", "save_adapter"]
