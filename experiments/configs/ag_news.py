"""Topic of a news item: AG News (Zhang et al. 2015, arXiv 1509.01626) with a head of four labels.

Data:     records {"title", "text", "label"}; the figures in the README are for 5,600 / 1,000 / 1,000 of its test set
Command:  limbeck run ag_news --task FOLDER/ag_news_7600 --model runs/foundation/model
"""

import dataclasses
import json

from limbeck.experiments.configs import sst2

DESCRIPTION = json.dumps({"output": "label", "template": {"query": "{title}\n{text}\nlabel:"}})

config = dataclasses.replace(
    sst2.config,
    task="data/ag_news_7600",
    description=DESCRIPTION,
    fit=dataclasses.replace(sst2.config.fit, length=256),
    on_bad_row="skip",  # a dozen items are longer than a row; they are counted and listed
)
main = "limbeck.experiments.tuning:run"
