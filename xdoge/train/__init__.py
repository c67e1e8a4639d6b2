"""Train target models on a mixture, from scratch or from a pre-trained model.

settings.py          settings and their defaults
trainer.py           `train`: starts or resumes a run
mixture_trainer.py   transformers' Trainer on a `MixtureDataset`
run_log.py           files that a run writes: metrics, the model, train.json
result.py            the result of a finished run
"""

from xdoge._callable import make_callable

make_callable(__name__, f"{__name__}.trainer")
