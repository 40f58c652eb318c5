"""What an option scores whatever is asked, taken off its score. Dimension key: `N` records, `M` blanks, `O` options.

Scores come from any view and are read as log-probabilities up to a number a row; what is handed back sums to one in
each row after exp.
"""

import random

import numpy as np
from numpy.typing import ArrayLike

from limbeck.model.errors import UserError
from limbeck.prompting.scores import log_mean, log_probabilities
from limbeck.tasks.task import Task
from limbeck.tasks.template import fields

CONTENT_FREE = ("N/A", "[MASK]", "")  # what stands where a record's text would, by Zhao et al.


def contextual(score_NO: ArrayLike, blank_MO: ArrayLike) -> np.ndarray:
    """Log-probabilities [N, O], each divided by the option's mean probability over the blanks.

    Blanks are prompts whose query says nothing (Zhao et al. 2021, arXiv 2102.09690), or random words of the task
    (Fei et al. 2023, arXiv 2305.19148). A bias is taken off exactly where all blanks are alike. No blanks are a
    ValueError.
    """
    blank_MO = log_probabilities(blank_MO)
    if not len(blank_MO):
        raise ValueError("contextual calibration without blanks")
    return log_probabilities(log_probabilities(score_NO) - log_mean(blank_MO))


def batch(score_NO: ArrayLike) -> np.ndarray:
    """Log-probabilities [N, O], less the option's mean over all records that are asked together.

    Zhou et al. 2023, arXiv 2309.17249; the mean is of log-probabilities, which takes a bias off exactly. The answer
    to a record hangs on the others: it suits a batch whose right answers are spread over the options. A single record
    is a UserError, as all its options would come out equal.
    """
    score_NO = log_probabilities(score_NO)
    if len(score_NO) == 1:
        raise UserError("calibration='batch' of 1 record makes all options equal: ask for more, or use 'contextual'")
    return log_probabilities(score_NO - score_NO.mean(axis=0)) if len(score_NO) else score_NO


def domain_texts(task: Task, count: int, seed: int) -> list[str]:
    """`count` texts of random words of the training split's queries, of their mean length (Fei et al. 2023).

    What stands between white space is a word, drawn as often as it occurs; answers are not read. To stand in every
    field of the query: the length is that of one field. Raises UserError for a task whose queries have no words.
    """
    names = dict.fromkeys(fields(task.template.query))
    texts = [record[name] for record in task.splits["train"] for name in names]
    ends = np.cumsum([len(text.split()) for text in texts])
    if ends[-1] == 0:
        raise UserError(f"task {task.name!r}: no words in the training split's queries; use calibration='contextual'")
    words = max(1, round(float(ends[-1]) / len(texts)))
    rng = random.Random(seed)

    def word() -> str:
        place = rng.randrange(int(ends[-1]))
        index = int(np.searchsorted(ends, place, side="right"))
        return texts[index].split()[place - int(ends[index])]  # counted from the text's end: negative

    return [" ".join(word() for _ in range(words)) for _ in range(count)]
