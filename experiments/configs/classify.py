"""The lesson on your own records, such as labelled texts: every way of adapting a small foundation to one task.

The foundation is pretrained on the built-in text and on the task's training texts, without their labels.

Command:  limbeck run classify --task FOLDER_OR_FILE --workdir runs/NAME
"""

import dataclasses

from limbeck.experiments.configs import quickstart
from limbeck.experiments.lesson_config import tuning

config = dataclasses.replace(
    quickstart.config,
    base=dataclasses.replace(quickstart.BASE, max_len=512),
    student=dataclasses.replace(quickstart.STUDENT, max_len=512),
    documents=6_000,
    pretrain=dataclasses.replace(quickstart.config.pretrain, steps=500),
    full=tuning(steps=120, learning_rate=1e-3),
    # Fewer parameters want more steps here: at 120, less than a pass over SST-2, these three were at chance (LOG.md).
    lora=tuning(steps=400, learning_rate=3e-3),
    bias_norm=tuning(steps=400, learning_rate=3e-3),
    last_block=tuning(steps=400, learning_rate=1e-3),
    distil=dataclasses.replace(quickstart.config.distil, steps=300),
)
main = "limbeck.experiments.lesson:run"
