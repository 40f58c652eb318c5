"""A teacher in the loss."""
