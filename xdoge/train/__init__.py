"""Target models: trained on a mixture from scratch, or continued from a model that exists.

settings.py     what the user may choose, and what fills in the rest
start.py        the recipe or the model that training starts from, and whether the store's tokens are its own
validation.py   validation loss by source and by language
trainer.py      `train`: transformers' Trainer over a MixtureDataset, its run folder, resuming
"""
