"""At each position, the data set has the sequence that the sampler names, and marks where documents begin."""

from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, Subset, default_collate

from xdoge.errors import XDogeError
from xdoge.mixtures.mixture import Mixture
from xdoge.sampling.dataset import MixtureDataset, _document_begins, document_mask
from xdoge.sampling.sampler import Draw, MixtureSampler

T = 16


def sampler_for(store, length=T, **settings):
    weights = dict.fromkeys(store.sources, 1 / len(store.sources))
    mixture = Mixture.plan(weights, available_tokens=store.tokens(), budget_tokens=100 * length)
    settings = {"batch_size": 10, "sequence_length": length} | settings
    return MixtureSampler(mixture, lengths=store.sequence_counts(length), **settings)


@pytest.fixture(scope="module")
def sampler(store):
    return sampler_for(store)


@pytest.fixture(scope="module")
def dataset(store, sampler):
    return MixtureDataset(store, sampler, T)


def test_the_item_at_a_position_is_the_sequence_that_the_sampler_draws_there(store, sampler, dataset):
    assert len(dataset) == len(sampler) == 100
    for position in range(len(dataset)):
        draw = sampler[position]
        expected = store.sequence(draw.source, draw.index, T).astype(np.int64)
        item = dataset[position]
        assert set(item) == {"input_ids", "labels"}
        for tensor in item.values():
            assert tensor.dtype == torch.int64
            np.testing.assert_array_equal(tensor, expected)


def test_a_rank_has_its_own_positions(store, sampler, dataset):
    view = MixtureDataset(store, sampler.shard(world_size=3, rank=1), T)
    assert len(view) == 33
    assert torch.equal(view[:]["input_ids"], dataset[1:100:3]["input_ids"])


@pytest.mark.parametrize("documents", ["ignore", "separate"])
def test_items_are_the_same_for_every_way_of_indexing(store, sampler, documents):
    dataset = MixtureDataset(store, sampler, T, documents=documents)
    positions = [7, 3, 99, 3, 20, 0]
    draws = [sampler[position] for position in positions]
    single = [dataset[position] for position in positions]
    names = ["input_ids", "labels", "position_ids"][: 2 if documents == "ignore" else 3]
    for items in ([dataset[draw] for draw in draws], dataset.__getitems__(positions), dataset.__getitems__(draws)):
        assert [list(item) for item in items] == [names] * len(items)
        assert all(
            torch.equal(item[name], expected[name])
            for item, expected in zip(items, single, strict=True)
            for name in names
        )
    for batch in (dataset[positions], dataset[np.array(positions)], dataset[draws]):
        assert all(torch.equal(batch[name], torch.stack([expected[name] for expected in single])) for name in names)
    assert torch.equal(dataset[20:26]["input_ids"], dataset[list(range(20, 26))]["input_ids"])
    assert dataset[[]]["input_ids"].shape == (0, T)


@pytest.mark.parametrize("documents", ["ignore", "separate"])
def test_a_loader_makes_the_same_batches_with_any_batch_size_and_collation(store, sampler, documents):
    """Many rows of a source are read together, and few one by one. Whole batches are not collated row by row."""
    dataset = MixtureDataset(store, sampler, T, documents=documents)
    items = [dataset[position] for position in range(100)]
    for size in (7, 50, 100):
        for batch, begin in zip(DataLoader(dataset, batch_size=size), range(0, 100, size), strict=True):
            plain = default_collate([dict(item) for item in items[begin : begin + size]])
            assert list(batch) == list(plain)
            for name, rows in batch.items():
                assert torch.equal(rows, plain[name])
            batch["labels"][:] = -1
            assert torch.equal(batch["input_ids"], plain["input_ids"])
    both = ConcatDataset([dataset, dataset])
    (batch,) = DataLoader(both, batch_size=4, sampler=[0, 1, 100, 101])
    assert torch.equal(batch["input_ids"], torch.stack([items[n]["input_ids"] for n in (0, 1, 0, 1)]))


def test_loaders_read_the_plan_by_draws_and_by_positions_and_from_anywhere(store, dataset):
    plan = dataset[:]["input_ids"]
    loaders = [
        DataLoader(dataset, batch_size=8),
        DataLoader(dataset, batch_size=8, sampler=sampler_for(store)),
        DataLoader(dataset, batch_size=None, sampler=BatchSampler(range(100), 8, drop_last=False)),
    ]
    for loader in loaders:
        assert torch.equal(torch.cat([batch["input_ids"] for batch in loader]), plan)
    rest = DataLoader(Subset(dataset, range(64, 100)), batch_size=8)
    assert torch.equal(torch.cat([batch["input_ids"] for batch in rest]), plan[64:])


def test_a_worker_gets_the_plan_and_maps_the_files_itself(dataset):
    everything = dataset[:]["input_ids"]  # every file is mapped now
    sent = pickle.dumps(dataset)
    assert len(sent) < 10_000
    assert torch.equal(pickle.loads(sent)[:]["input_ids"], everything)


@pytest.mark.parametrize("length", [2, 5, T, 61])
def test_separate_documents_begin_at_position_0_without_a_label(store, length):
    sampler = sampler_for(store, length)
    dataset = MixtureDataset(store, sampler, length, documents="separate")
    batch = dataset[:]
    begun = 0
    for t in range(len(dataset)):
        draw = sampler[t]
        begins = set(store.document_bounds(draw.source).tolist())
        first, position = draw.index * length, 0
        for column, token in enumerate(store.sequence(draw.source, draw.index, length).tolist()):
            begin = column > 0 and first + column in begins
            position = 0 if begin or column == 0 else position + 1
            begun += begin
            assert batch["input_ids"][t, column] == token
            assert batch["position_ids"][t, column] == position
            assert batch["labels"][t, column] == (-100 if begin else token)
    assert begun > 0


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(2, 12), st.data())
def test_document_begins_are_those_of_a_plain_loop(sizes, length, data):
    bounds = np.cumsum([0, *sizes])
    count = int(bounds[-1]) // length
    rows = data.draw(st.lists(st.integers(0, count - 1), max_size=6)) if count else []
    row, column = _document_begins(bounds, np.array(rows, dtype=np.int64) * length, length)
    expected = [(i, j) for i, r in enumerate(rows) for j in range(1, length) if r * length + j in bounds[:-1]]
    assert list(zip(row.tolist(), column.tolist(), strict=True)) == expected


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_transformers_keeps_separate_documents_apart_by_itself(store, attention):
    from transformers import LlamaConfig, LlamaForCausalLM

    dataset = MixtureDataset(store, sampler_for(store, 64), 64, documents="separate")
    config = LlamaConfig(
        vocab_size=store.vocab_size,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=store.end_of_document,
        attn_implementation=attention,
        use_cache=False,
    )
    model = LlamaForCausalLM(config).double().eval()
    batch = dataset[:4]
    logits, losses, labels = [], [], 0
    with torch.no_grad():
        packed = model(**batch)
        for ids, positions in zip(batch["input_ids"], batch["position_ids"], strict=True):
            cuts = [*torch.nonzero(positions == 0).flatten().tolist(), 64]
            assert len(cuts) > 2
            for begin, end in pairwise(cuts):
                document = ids[None, begin:end]
                alone = model(document, labels=document)
                logits.append(alone.logits[0])
                if end - begin > 1:
                    losses.append(alone.loss * (end - begin - 1))
                    labels += end - begin - 1
        mask = document_mask(batch["position_ids"])
        if attention == "sdpa":
            masked = model(batch["input_ids"], attention_mask=mask, position_ids=batch["position_ids"])
            torch.testing.assert_close(masked.logits, packed.logits)
    torch.testing.assert_close(packed.logits.flatten(0, 1), torch.cat(logits))
    torch.testing.assert_close(packed.loss, sum(losses) / labels)


def test_the_document_mask_shows_a_token_the_earlier_ones_of_its_document():
    mask = document_mask(torch.tensor([[0, 1, 0, 0, 1], [0, 1, 2, 3, 4]]))
    assert mask.dtype == torch.bool
    assert mask.shape == (2, 1, 5, 5)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    assert torch.equal(mask[1, 0], torch.ones(5, 5, dtype=torch.bool).tril())


def test_a_sampler_or_length_that_does_not_match_the_store_is_refused(store, sampler, dataset):
    with pytest.raises(XDogeError, match=r"^sequence_length is 1; it takes 2 tokens to predict one\.$"):
        MixtureDataset(store, sampler, 1)
    with pytest.raises(XDogeError, match=r"^documents is 'mask'; .* ignore, separate\.$"):
        MixtureDataset(store, sampler, T, documents="mask")
    with pytest.raises(
        XDogeError,
        match=r"^sequence_length is 8, but the sampler was made for sequences of 16 tokens",
    ):
        MixtureDataset(store, sampler, 8)
    count = store.sequence_counts(T)["es/web"]
    with pytest.raises(XDogeError, match=r"^the sampler has no source 'ca/web'; it has es/web, es/wiki, "):
        dataset[Draw("ca/web", 0, 0)]
    with pytest.raises(XDogeError, match=rf"^es/web has {count} sequences of 16 tokens, so there is no index {count}"):
        dataset[Draw("es/web", 0, count)]
    with pytest.raises(IndexError, match="position 100 lies beyond the plan's 100 sequences"):
        dataset[100]


def test_a_sampler_for_another_store_is_refused(store):
    def sampler_of(lengths):
        tokens = {source: T * length for source, length in lengths.items()}
        weights = dict.fromkeys(lengths, 1 / len(lengths))
        mixture = Mixture.plan(weights, available_tokens=tokens, budget_tokens=10 * T)
        return MixtureSampler(mixture, lengths=lengths, batch_size=2, sequence_length=T)

    count = store.sequence_counts(T)["es/web"]
    with pytest.raises(
        XDogeError,
        match=r"^the sampler draws from ca/web, which .*store lacks; it has es/web, es/wiki, gl/wiki, eu/wiki\.$",
    ):
        MixtureDataset(store, sampler_of({"es/web": count, "ca/web": 20}), T)
    with pytest.raises(
        XDogeError,
        match=rf"^the sampler expects es/web to have {count - 1} sequences, but in .*store it has {count}; make the "
        r"sampler with lengths=store\.sequence_counts\(16\)\.$",
    ):
        MixtureDataset(store, sampler_of({"es/web": count - 1}), T)
