"""The mixture card: its numbers are those of the mixture, unknown facts are marked, and names are escaped."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from xdoge import Mixture, WeightSet, XDogeError
from xdoge.analysis.card import OPEN, mixture_card
from xdoge.corpus.prepare import prepare
from xdoge.io import sha256_json
from xdoge.mixtures.strategies import strategy_weights


@pytest.fixture
def planned(store):
    """Weights for the tiny store, and a mixture in which one source is at its cap."""
    shares = dict(zip(store.sources, (0.2, 0.2, 0.1, 0.5), strict=True))
    weights = WeightSet(
        "learned",
        shares,
        floor=0.01,
        method={"steps": 300, "seed": 3, "score": "unbiased"},
        proxy={"name": "60m", "parameters": 60_000_000, "tokens_seen": 5_000},
    )
    corpus = {"name": store.name, "sha256": store.sha256}
    mixture = Mixture.plan(
        weights, available_tokens=store.tokens(), budget_tokens=8_000, max_epochs=1, corpus=corpus, name="mine"
    )
    return weights, mixture


def cells(card, name):
    """Return the cells of the first row of a table that begins with a name."""
    line = next(line for line in card.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_the_card_states_the_numbers_of_the_mixture_and_the_store(planned, store):
    weights, mixture = planned
    card = mixture_card(mixture, store=store, weights=weights)
    share = mixture.sources["eu/wiki"]
    assert share.capped
    assert cells(card, "eu/wiki") == [
        "eu/wiki",
        "1 file",
        "not stated",
        f"{store.documents()['eu/wiki']:,}",
        f"{share.available_tokens:,}",
        f"{store.n_bytes()['eu/wiki']:,}",
        f"{share.tokens:,}",
        "1.00 (at its cap)",
    ]
    es = mixture.languages["es"]
    assert cells(card, "es")[2:4] == [f"{es.weight:.2%}", f"{es.tokens:,}"]
    distinct = sum(min(share.available_tokens, share.tokens) for share in mixture.sources.values())
    assert f"8,000 tokens, read from {distinct:,} unique tokens of the {sum(store.tokens().values()):,}" in card
    digests = [sha256_json(part.to_dict()) for part in (mixture, weights)]
    for digest in (*digests, store.sha256, store.tokenizer_fingerprint):
        assert f"`{digest}`" in card
    assert "`60m`, 60,000,000 parameters, 5,000 tokens" in card
    assert "floor `0.01`, score `unbiased`, steps `300`, seed `3`" in card
    assert "lowered the losses of the target sources" in card
    assert all(line in card for line in mixture.warnings())


def test_the_card_says_that_weights_come_from_a_baseline(planned, store):
    weights, mixture = planned
    weights = replace(weights, method={**weights.method, "baseline": "doremi"})
    mixture = Mixture.plan(
        weights, available_tokens=store.tokens(), budget_tokens=8_000, corpus=mixture.corpus, max_epochs=1
    )
    card = mixture_card(mixture, store=store, weights=weights)
    assert "by the method `doremi`" in card
    assert "lowered the losses of the target sources" not in card


def test_the_headings_are_those_of_the_template_in_its_order(planned, store):
    numbers = re.findall(r"^#+ ([\d.]+)", mixture_card(planned[1], store=store), flags=re.M)
    assert numbers == ["1.", "1.1", "1.2", "1.3", "2.", "2.2", "3.", "3.1", "3.2", "3.3"]


def test_unknown_information_is_left_to_the_provider(planned):
    _, mixture = planned
    card = mixture_card(mixture)
    assert card.count(OPEN) == 7
    assert "How these were found is not stated here" in card
    assert cells(card, "eu/wiki")[1:3] == ["not stated", "not stated"]
    assert "Licences as stated" not in card


def test_data_sets_and_licences_come_from_the_corpus(corpus, tmp_path):
    (tmp_path / "hub").mkdir()
    for name, text in (("hub/train", "eu-wiki"), ("wiki", "gl-wiki"), ("held-out", "es-wiki")):
        (tmp_path / f"{name}.jsonl").write_text((corpus.parent / f"{text}.jsonl").read_text())
    (tmp_path / "corpus.yaml").write_text(
        "name: c\ntokenizer: {train: {vocab_size: 300}}\nlanguages:\n  eu:\n    family: isolate\n    sources:\n"
        "      web: {dataset: hub, license: cc0-1.0}\n"
        "      wiki: {files: wiki.jsonl, license: 'cc|by', validation: held-out.jsonl}\n"
    )
    store = prepare(tmp_path / "corpus.yaml", tmp_path / "store", workers=1)
    mixture = Mixture.plan(
        {"eu/web": 0.75, "eu/wiki": 0.25}, available_tokens=store.tokens(), budget_tokens=400, name="m"
    )
    card = mixture_card(mixture, store=store)
    assert cells(card, "eu/web")[1:3] == ["hub", "cc0-1.0"]
    assert card.index("### 2.1 Publicly available datasets") < card.index("| eu/web |") < card.index("### 2.2 to 2.6")
    assert cells(card, "eu/wiki")[1:3] == ["1 file", r"cc\|by"]
    assert cells(card, "cc0-1.0") == ["cc0-1.0", "300", "75.00%"]
    assert cells(card, "eu")[1] == "isolate"


@pytest.mark.parametrize("strategy", ["uniform", "unimax", "proportional"])
def test_strategies_are_known_by_the_hash_of_their_weights(store, strategy):
    weights = strategy_weights(strategy, store.tokens())
    mixture = Mixture.plan(weights, available_tokens=store.tokens(), budget_tokens=4_000)
    assert f"No model learned the shares; they follow the strategy `{strategy}`." in mixture_card(mixture)
    other = Mixture.plan(
        {source: 1 / len(store.sources) for source in store.sources},
        available_tokens=store.tokens(),
        budget_tokens=4_000,
        name=strategy,
    )
    assert "is not stated here" in mixture_card(other)


def test_caps_of_their_own_and_earlier_phases_are_stated(store):
    available = store.tokens()
    mixture = Mixture.plan(
        {"es": 0.5, "gl": 0.3, "eu": 0.2},
        available_tokens=available,
        budget_tokens=2_000,
        caps={"eu": 8},
        read_before={"es/web": 500},
        name="two",
    )
    card = mixture_card(mixture)
    assert "- Cap on repetition: at most 4 epochs; exceptions: eu/wiki 8 epochs." in card
    assert "2,000 tokens, after 500 tokens of earlier phases" in card


def test_a_store_or_weights_of_another_mixture_are_refused(planned, store):
    weights, mixture = planned
    elsewhere = replace(mixture, corpus={"name": "x", "sha256": "0" * 64})
    with pytest.raises(XDogeError, match="mine .* not 0{12}"):
        mixture_card(elsewhere, store=store)
    with pytest.raises(XDogeError, match="'other' .* mine"):
        mixture_card(mixture, weights=replace(weights, name="other"))


def test_names_cannot_become_markup(planned):
    _, mixture = planned
    card = mixture_card(replace(mixture, name="a|b <script> `x` [y](z) # no"))
    assert card.splitlines()[0] == r"# Training data of a\|b &lt;script&gt; \`x\` \[y\](z) # no"
    assert "<script>" not in re.sub(r"`[^`]*`", "", card)


def test_the_command_writes_the_card_and_no_file_over_another(xdoge, planned, store, tmp_path):
    weights, mixture = planned
    weights.save(tmp_path / "weights.json")
    mixture.save(tmp_path / "mixture.json")
    command = ("card", tmp_path / "mixture.json", "--store", store.path, "--weights", tmp_path / "weights.json")
    status, out, _ = xdoge(*command)
    assert (status, out) == (0, mixture_card(mixture, store=store, weights=weights))
    assert xdoge(*command, "--out", tmp_path / "CARD.md")[:2] == (0, f"{tmp_path / 'CARD.md'}\n")
    assert (tmp_path / "CARD.md").read_text() == out
    assert xdoge("card", tmp_path)[:2] == (0, mixture_card(mixture))  # a training run has its mixture.json
    status, out, err = xdoge("card", store.path)
    assert (status, out, err) == (1, "", f"error: {store.path}/mixture.json does not exist.\n")
    status, _, err = xdoge(*command, "--out", tmp_path / "CARD.md")
    assert (status, "exists; name another file" in err) == (1, True)
