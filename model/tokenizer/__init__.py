"""Text to token ids and back, any script: the tokenizer of any published model, chat templates, and our own."""

from limbeck.model.tokenizer.tokenizer import Tokenizer, byte_tokenizer, load_tokenizer, train_bpe

__all__ = ["Tokenizer", "byte_tokenizer", "load_tokenizer", "train_bpe"]
