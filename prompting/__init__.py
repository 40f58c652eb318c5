"""Using a model without moving it."""
