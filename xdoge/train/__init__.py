"""Target models: trained on a mixture from scratch, or continued from a model that exists.

settings.py        what the user may choose, and what fills in the rest
trainer.py         `train`: transformers' Trainer over a MixtureDataset, resuming
run_log.py         what a run writes: rows of metrics, the model, train.json
"""

from xdoge._callable import make_callable

make_callable(__name__, f"{__name__}.trainer")
