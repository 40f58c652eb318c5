"""Where a written answer ends: stop strings as sets of tokens, and in the text."""

from collections.abc import Sequence

import numpy as np

from limbeck.inference.requests import Generation
from limbeck.model.tokenizer import Tokenizer


class Stops:
    """The tokens that end an answer, worked out once for each set of stop strings."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._texts: list[str] | None = None
        self._sets: dict[tuple[str, ...], np.ndarray] = {}

    def tokens(self, stop: tuple[str, ...]) -> np.ndarray:
        """stop_V: the tokenizer's own, and every token whose text holds a stop string.

        A stop string across tokens is found in the text.
        """
        if stop not in self._sets:
            stop_V = np.zeros(self._vocab_size, bool)
            stop_V[list(self._tokenizer.stop_ids)] = True
            if stop:
                if self._texts is None:
                    self._texts = [self._tokenizer.decode([i]) for i in range(self._tokenizer.vocab_size)]
                for i, text in enumerate(self._texts):
                    stop_V[i] |= any(string in text for string in stop)
            self._sets[stop] = stop_V
        return self._sets[stop]

    def generation(self, stop: Sequence[str], ids: list[int], logprobs: np.ndarray) -> Generation:
        """Cut before the first stop string; what was written after it does not count."""
        stopped = bool(ids) and ids[-1] in self._tokenizer.stop_ids
        text = self._tokenizer.decode(ids)
        found = [at for at in (text.find(string) for string in stop) if at >= 0]
        if found:
            stopped, text = True, text[: min(found)]
            # The fewest tokens whose text shows a stop string: the answer and the stop itself.
            used = next(n for n in range(1, len(ids) + 1) if any(s in self._tokenizer.decode(ids[:n]) for s in stop))
            ids, logprobs = ids[:used], logprobs[:used]
        return Generation(text, tuple(ids), float(logprobs.sum()), stopped)
