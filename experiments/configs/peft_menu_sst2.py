"""Every way of tuning but `entries` side by side, on the sentiment of film reviews.

Data:     as of sst2
Command:  limbeck run peft_menu_sst2 --task FOLDER/sst2 --model runs/foundation/model
"""

import dataclasses

from limbeck.experiments.configs import peft_menu, sst2

config = dataclasses.replace(
    peft_menu.config,
    tuning=dataclasses.replace(
        sst2.config,
        fit=dataclasses.replace(
            sst2.config.fit,
            steps=200,
            evaluate_every=100,
            optim=dataclasses.replace(sst2.config.fit.optim, learning_rate=1e-3),
        ),
        method=peft_menu.config.tuning.method,
    ),
    methods=(*peft_menu.config.methods, "head"),
)
main = "limbeck.experiments.menu:run"
