"""Every way of tuning but `entries` side by side, on what a bank's customer wants.

Data:     as of banking77
Command:  limbeck run peft_menu_banking77 --task FOLDER/banking77 --model runs/foundation/model
"""

import dataclasses

from limbeck.experiments.configs import banking77, peft_menu

config = dataclasses.replace(
    peft_menu.config,
    tuning=dataclasses.replace(
        banking77.config,
        fit=dataclasses.replace(banking77.config.fit, steps=300, evaluate_every=150),
        method=peft_menu.config.tuning.method,
    ),
    methods=(*peft_menu.config.methods, "head"),
)
main = "limbeck.experiments.menu:run"
