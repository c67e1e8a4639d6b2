"""Target models: trained on a mixture from scratch, or continued from a model that exists.

settings.py     what the user may choose, and what fills in the rest
start.py        the recipe or the model that training starts from, and whether the store's tokens are its own
trainer.py      `train`: transformers' Trainer over a MixtureDataset, resuming
record.py       what a run writes: rows of metrics, the model, train.json
"""
