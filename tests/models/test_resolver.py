"""Models by name: training and evaluation use the same files and tokenizer, and raise the same errors."""

from __future__ import annotations

import huggingface_hub.constants
import pytest

from xdoge.errors import XDogeError
from xdoge.eval.perplexity import measure
from xdoge.mixtures.mixture import Mixture
from xdoge.models.recipes import load_recipe
from xdoge.models.resolver import CausalModel
from xdoge.train.trainer import train

NAME, COMMIT = "someone/tiny", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def snapshot(store, recipe, tmp_path, monkeypatch):
    """Folder of `NAME` in the Hub's cache, which has the SentencePiece file of the store's tokenizer."""
    cache = tmp_path / "hub"
    folder = cache / f"models--{NAME.replace('/', '--')}" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs" / "main").write_text(COMMIT)
    load_recipe(recipe).build(vocab_size=store.vocab_size, seed=0).save_pretrained(folder)
    store.tokenizer().export(folder)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return folder


@pytest.fixture
def train_on_it(store, tmp_path):
    """A function that tries to train the model for a step."""

    def run():
        weights = dict.fromkeys(store.sources, 0.25)
        mixture = Mixture.plan(weights, available_tokens=store.tokens(), budget_tokens=16 * 16)
        return train(mixture, store, out=tmp_path / "run", model=NAME, steps=1, batch_size=8)

    return run


def test_a_store_of_a_hub_model_s_sentencepiece_file_is_trained_and_measured_on(snapshot, store, train_on_it):
    assert (snapshot / "tokenizer.model").is_file()
    assert set(measure(NAME, store).sources) == set(store.sources)
    assert train_on_it().summary["model"]["base"] == {"architecture": "llama", "commit": COMMIT}


def test_a_store_of_another_tokenizer_is_refused_by_training_and_evaluation(snapshot, store, train_on_it):
    piece = snapshot / "tokenizer.model"
    piece.write_bytes(piece.read_bytes().replace(b"etxe", b"etxo"))
    for use in (train_on_it, lambda: measure(NAME, store)):
        with pytest.raises(XDogeError, match=rf"another tokenizer .*{NAME}"):
            use()


def test_a_model_of_the_hub_is_identified_by_its_commit(snapshot):
    model = CausalModel.find(NAME)
    assert model.pin() == {"commit": COMMIT}
    assert model.identity() == {"name": NAME, "commit": COMMIT}
