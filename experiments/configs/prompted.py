"""A model prompted and not moved: zero, one and eight solved examples, over word tasks, sentiment, topics and sums in
GSM8K's format, where steps stand before the answer.

Data:     FOLDER/in_context_tasks, sst2, ag_news_7600 and gsm8k, where the points of the sweep look for them in data/
Command:  ln -s FOLDER data
          limbeck run prompted --sweep                        the tasks by number
          limbeck run prompted --sweep 0 --model MODEL        one of them
"""

import dataclasses

from limbeck.experiments.adaptation_config import AdaptationConfig, SearchConfig
from limbeck.experiments.configs import adapt, ag_news
from limbeck.experiments.configs.in_context import GSM8K, WORD_TASKS, WORDS

config = AdaptationConfig(
    tuning=dataclasses.replace(adapt.config.tuning, on_bad_row="skip"),
    shots=(0, 1, 8),
    variants=1,
    search=SearchConfig(candidates=0),
    ways=(),
    students=False,
)
main = "limbeck.experiments.adaptation:run"


def sweep() -> list[dict]:
    """A point a task."""
    words = [{"tuning.task": f"data/in_context_tasks/{name}.jsonl", "tuning.description": WORDS} for name in WORD_TASKS]
    others = [("sst2", ""), ("ag_news_7600", ag_news.DESCRIPTION)]
    sums = {"tuning.task": "data/gsm8k", "tuning.description": GSM8K, "prompt.max_new_tokens": 256, "shots": (0, 1)}
    return [*words, *({"tuning.task": f"data/{name}", "tuning.description": said} for name, said in others), sums]
