"""Offline inference: the engine, the key, the store, the bulk job, the look-up."""
