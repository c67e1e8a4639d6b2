"""Perplexity: agreement with transformers and lm-eval, comparison between tokenizers, and resuming."""

from __future__ import annotations

import itertools
import json
import math
import os
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import save_byte_tokenizer, save_llama, sharpened
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from xdoge.corpus import Corpus
from xdoge.corpus.tokenizer import Tokenizer
from xdoge.distributed import Processes
from xdoge.errors import MemoryFullError, NonFiniteLossError, XDogeError
from xdoge.eval.documents import Documents, Text, validation_texts
from xdoge.eval.perplexity import Measured, PerplexitySettings, SourceScores, measure
from xdoge.eval.results import ALL
from xdoge.eval.scoring import LoadedModel, batches, load_on, windows
from xdoge.models.recipes import load_recipe
from xdoge.models.resolver import CausalModel

CONTEXT = 16  # of the recipe in conftest.py
PARALLEL = {
    "en": ["The dog sleeps.", "A green house by the water", "No, thanks", "Land and sea, " * 9],
    "gl": ["O can dorme.", "Unha casa verde a carón da auga", "Non, grazas", "Terra e mar, " * 9],
    "eu": ["Txakurra lo dago.", "Ur ondoko etxe berde bat", "Ez, eskerrik asko", "Lurra eta itsasoa, " * 9],
}


@pytest.fixture(scope="module")
def proxy(store, recipe, tmp_path_factory):
    """Folder of an untrained model in the layout of xdoge, with the store's SentencePiece model beside it."""
    folder = tmp_path_factory.mktemp("proxy") / "proxy"
    load_recipe(recipe).build(vocab_size=store.vocab_size, seed=0).save_pretrained(folder)
    store.tokenizer().export(folder)
    return str(folder)


@pytest.fixture(scope="module")
def hub_model(tmp_path_factory):
    """Folder of a model as on the Hub, with a tokenizer.json and a beginning-of-text token."""
    folder = tmp_path_factory.mktemp("hub") / "model"
    save_byte_tokenizer(folder, bos_token="<s>")
    shape = {"vocab_size": 258, "num_hidden_layers": 2, "max_position_embeddings": 24}
    save_llama(folder, **shape, bos_token_id=0, eos_token_id=1)
    return str(folder)


@pytest.fixture
def parallel(tmp_path):
    """The same four documents in three languages, one JSONL file each."""
    for language, documents in PARALLEL.items():
        lines = [json.dumps({"text": text, "id": n}) for n, text in enumerate(documents)]
        (tmp_path / f"{language}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return {language: Text((tmp_path / f"{language}.jsonl",)) for language in PARALLEL}


def naive_nats(model, tokens, begin, window, stride):
    """Return the nats of a document, with one forward pass for every token."""
    total, text = 0.0, [begin, *map(int, tokens)]
    for position in range(1, len(text)):
        over = max(0, position - window)
        end = min(len(text) - 1, window + math.ceil(over / stride) * stride)  # of the window that scores it
        seen = torch.tensor([text[max(0, end - window) : position]])
        total -= model(seen).logits[0, -1].double().log_softmax(-1)[text[position]].item()
    return total


def values(rows, **chosen):
    chosen_rows = [row for row in rows if all(getattr(row, key) == value for key, value in chosen.items())]
    return {(row.language, row.task, row.metric): row.value for row in chosen_rows}


@given(tokens=st.integers(0, 60), window=st.integers(2, 20), data=st.data())
def test_windows_score_each_token_once_with_the_context_promised(tokens, window, data):
    stride = data.draw(st.integers(1, window))
    parts = list(windows(7, tokens, window=window, stride=stride))
    scored = [target for part in parts for target in range(part.end - part.scored + 1, part.end + 1)]
    assert scored == list(range(1, tokens + 1))  # target p is predicted from inputs [start, p)
    for part in parts:
        assert part.document == 7
        assert 0 < part.scored <= part.length <= window
        first = part.end - part.scored + 1
        assert first - part.start >= min(first, window - stride + 1)


@given(tokens=st.integers(1, 60), window=st.integers(2, 20), data=st.data())
def test_windows_equal_those_of_the_harness(tokens, window, data):
    from lm_eval.utils import get_rolling_token_windows

    stride = data.draw(st.integers(1, window))
    text = list(range(1, tokens + 1))
    theirs = get_rolling_token_windows(text, prefix_token=0, max_seq_len=window, context_len=window - stride + 1)
    full = [0, *text]
    ours = [
        (full[part.start : part.end], full[part.end - part.scored + 1 : part.end + 1])
        for part in windows(0, tokens, window=window, stride=stride)
    ]
    assert ours == list(theirs)


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 100))
def test_batches_hold_every_window_once_within_the_budget(lengths, budget):
    parts = [part for n, length in enumerate(lengths) for part in windows(n, length, window=40, stride=40)]
    made = list(batches(parts, batch_tokens=budget))
    assert sorted(part for batch in made for part in batch) == sorted(parts)
    for batch in made:
        assert len(batch) == 1 or len(batch) * max(part.length for part in batch) <= budget


def test_few_windows_of_uneven_length_are_not_padded_to_the_longest():
    lengths = [126, 95, 222, 123, 61, 161, 461, 310]
    parts = [part for n, length in enumerate(lengths) for part in windows(n, length, window=512, stride=512)]
    made = list(batches(parts, batch_tokens=2048))
    assert [[part.length for part in batch] for batch in made] == [[461], [310], [222, 161], [126, 123, 95], [61]]


def test_nats_of_short_documents_are_the_loss_of_transformers(hub_model):
    model = AutoModelForCausalLM.from_pretrained(hub_model).eval()
    documents = [np.arange(2, 2 + size) * 7 % 256 + 2 for size in (1, 5, 23, 12, 5)]
    nats = LoadedModel("it", model).nats(documents, begin=0, window=24, stride=12, batch_tokens=64)
    for document, total in zip(documents, nats, strict=True):
        ids = torch.tensor([[0, *document.tolist()]])
        loss = model(input_ids=ids, labels=ids).loss.item() * len(document)
        assert total == pytest.approx(loss, rel=2e-6)


@pytest.mark.parametrize(("window", "stride"), [(24, 24), (24, 12), (10, 3), (2, 1)])
def test_nats_of_long_documents_are_those_of_a_token_at_a_time(hub_model, window, stride):
    model = AutoModelForCausalLM.from_pretrained(hub_model).eval()
    documents = [np.arange(2, 2 + size) * 7 % 256 + 2 for size in (61, 24, 25, 0, 40)]
    nats = LoadedModel("it", model).nats(documents, begin=0, window=window, stride=stride, batch_tokens=100)
    with torch.inference_mode():
        expected = [naive_nats(model, document, 0, window, stride) for document in documents]
    np.testing.assert_allclose(nats, expected, rtol=3e-6)


def test_the_shares_of_several_processes_make_up_the_whole(hub_model):
    model = LoadedModel("it", AutoModelForCausalLM.from_pretrained(hub_model).eval())
    documents = [np.arange(2, 2 + size) for size in (61, 24, 3, 40, 9)]
    settings = {"begin": 0, "window": 24, "stride": 12, "batch_tokens": 48}
    shares = [model.nats(documents, share=(rank, 3), **settings) for rank in range(3)]
    np.testing.assert_allclose(sum(shares), model.nats(documents, **settings), rtol=1e-12)
    assert all(0 < share.sum() < sum(map(sum, shares)) for share in shares)


@pytest.mark.parametrize("window", [24, 9])
def test_the_harness_gives_the_same_nats(hub_model, parallel, window):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    measured = measure(hub_model, parallel, settings=PerplexitySettings(window=window, stride=window))
    harness = HFLM(pretrained=hub_model, max_length=window, batch_size=3, device="cpu", add_bos_token=False)
    for language, documents in PARALLEL.items():
        requests = [Instance("loglikelihood_rolling", {}, (text,), n) for n, text in enumerate(documents)]
        theirs = harness.loglikelihood_rolling(requests, disable_tqdm=True)
        np.testing.assert_allclose(measured.sources[language].totals[:, 0], np.negative(theirs), rtol=2e-6)


def test_a_model_that_caps_its_logits_is_scored_with_its_own_logits(tmp_path):
    config = Gemma2Config(
        vocab_size=99, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=2.0, max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    model = sharpened(Gemma2ForCausalLM(config)).eval()
    documents = [np.arange(1, 9), np.arange(3, 20)]
    nats = LoadedModel("it", model).nats(documents, begin=2, window=32, stride=16, batch_tokens=64)
    with torch.inference_mode():
        expected = [naive_nats(model, document, 2, 32, 16) for document in documents]
    np.testing.assert_allclose(nats, expected, rtol=3e-6)


def test_a_store_and_its_text_files_give_the_same_numbers(proxy, store, tmp_path):
    tokens, bounds = store.flat("eu/wiki", "validation"), store.document_bounds("eu/wiki", "validation")
    model = AutoModelForCausalLM.from_pretrained(proxy).eval()
    measured = measure(proxy, store)
    scores = measured.sources["eu/wiki"]
    with torch.inference_mode():
        expected = [
            naive_nats(model, tokens[a : b - 1], store.end_of_document, CONTEXT, CONTEXT // 2)
            for a, b in itertools.pairwise(bounds)
        ]
    np.testing.assert_allclose(scores.totals[:, 0], expected, rtol=3e-6)
    assert scores.totals[:, 3].sum() == pytest.approx(store.n_bytes("validation")["eu/wiki"])
    assert (scores.totals[:, 2] == 12).all()  # words of each document of conftest.py

    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=f"{proxy}/tokenizer.model")
    files = {}
    for source in store.sources:
        flat, ends = store.flat(source, "validation"), store.document_bounds(source, "validation")
        lines = [processor.decode(flat[a : b - 1].tolist()) for a, b in itertools.pairwise(ends)]
        files[source] = Text((tmp_path / f"{source.replace('/', '-')}.txt",))
        files[source].files[0].write_text("\n".join(lines), encoding="utf-8")
    again = measure(proxy, files)
    assert [row.key for row in again.rows()] == [row.key for row in measured.rows()]
    for row, other in zip(measured.rows(), again.rows(), strict=True):
        assert row.value == pytest.approx(other.value, rel=1e-9)


def test_a_store_of_another_tokenizer_is_refused(hub_model, store):
    with pytest.raises(XDogeError, match="another tokenizer .*as files"):
        measure(hub_model, store).rows()


def test_numbers_of_known_totals():
    """Two languages have nats, tokens, words and bytes for which the results are obvious."""
    log2 = math.log(2)
    sources = {
        "en/a": SourceScores(np.array([[8 * log2, 4, 2, 16], [8 * log2, 4, 2, 16]]), ("x", "y")),
        "en/b": SourceScores(np.array([[16 * log2, 4, 4, 8]]), (None,)),
        "gl/a": SourceScores(np.array([[16 * log2, 8, 4, 8], [2 * log2, 1, 1, 1]]), ("y", "z")),
    }
    rows = Measured("m", sources, PerplexitySettings(), {}).rows()
    assert values(rows, metric="bits_per_byte") == pytest.approx(
        {
            ("en", "perplexity", "bits_per_byte"): 32 / 40,
            ("en", "perplexity/a", "bits_per_byte"): 0.5,
            ("en", "perplexity/b", "bits_per_byte"): 2.0,
            ("gl", "perplexity", "bits_per_byte"): 2.0,
            ("gl", "perplexity/a", "bits_per_byte"): 2.0,
            (ALL, "perplexity", "bits_per_byte"): (0.8 + 2.0) / 2,
        }
    )
    assert values(rows, metric="perplexity_per_token", task="perplexity/b") == pytest.approx(
        {("en", "perplexity/b", "perplexity_per_token"): 16.0}
    )
    assert values(rows, metric="perplexity_per_word", language="en", task="perplexity") == pytest.approx(
        {("en", "perplexity", "perplexity_per_word"): 2 ** (32 / 8)}
    )
    assert values(rows, metric="bits_relative_to_en") == pytest.approx(
        {("gl", task, "bits_relative_to_en"): 2.0 for task in ("perplexity", "perplexity/a")}  # y alone is in both
    )
    by_key = {row.key[1:]: row for row in rows}
    assert by_key["en", "perplexity/b", "bits_per_byte"].stderr is None  # one document
    assert by_key["en", "perplexity/a", "bits_per_byte"].stderr is None  # no difference between documents
    assert by_key[ALL, "perplexity", "bits_per_byte"].n == 5
    assert not any(row.higher_is_better for row in rows)


def test_words_without_separators_have_no_row():
    sources = {"zh": SourceScores(np.array([[2000.0, 500, 1, 1500], [2100.0, 500, 1, 1500]]), (None, None))}
    metrics = {row.metric for row in Measured("m", sources, PerplexitySettings(), {}).rows()}
    assert metrics == {"perplexity_per_token", "bits_per_byte"}


def test_the_bootstrap_agrees_with_the_standard_error_of_a_mean():
    generator = np.random.default_rng(0)
    nats = generator.normal(300, 30, size=400)
    totals = np.stack([nats, np.full(400, 100.0), np.full(400, 50.0), np.full(400, 100.0)], axis=1)
    sources = {"en": SourceScores(totals, (None,) * 400)}
    rows = Measured("m", sources, PerplexitySettings(resamples=4000), {}).rows()
    bits = next(row for row in rows if row.metric == "bits_per_byte")
    assert bits.stderr == pytest.approx(nats.std(ddof=1) / 20 / 100 / math.log(2), rel=0.05)
    assert rows == Measured("m", sources, PerplexitySettings(resamples=4000), {}).rows()
    assert rows != Measured("m", sources, PerplexitySettings(resamples=4000, seed=1), {}).rows()


@pytest.mark.parametrize("seed", range(3))
def test_an_average_over_translations_has_the_error_of_one_of_them(seed):
    """If languages were resampled separately, the error of the average of n equal ones would be too small by √n."""
    generator = np.random.default_rng(seed)
    totals = np.stack([generator.normal(300, 60, size=30), *np.full((3, 30), 100.0)], axis=1)
    reference = np.stack([generator.normal(300, 60, size=30), *np.full((3, 30), 100.0)], axis=1)
    order = generator.permutation(30)
    sources = {
        "en": SourceScores(reference, tuple(map(str, range(30)))),
        "gl": SourceScores(totals, tuple(map(str, range(30)))),
        "pt": SourceScores(totals[order], tuple(map(str, order))),
    }
    rows = {row.key[1:]: row for row in Measured("m", sources, PerplexitySettings(resamples=50), {}).rows()}
    for relative in (rows[language, "perplexity", "bits_relative_to_en"] for language in ("pt", ALL)):
        assert relative.stderr == pytest.approx(rows["gl", "perplexity", "bits_relative_to_en"].stderr)
    del sources["en"]
    rows = {row.key[1:]: row for row in Measured("m", sources, PerplexitySettings(resamples=50), {}).rows()}
    average, galician = (rows[language, "perplexity", "bits_per_byte"] for language in (ALL, "gl"))
    assert average.stderr == pytest.approx(galician.stderr)


def test_parallel_text_gives_bits_relative_to_the_reference(hub_model, parallel):
    measured = measure(hub_model, parallel)
    nats = {language: scores.totals[:, 0].sum() for language, scores in measured.sources.items()}
    ratios = values(measured.rows(), metric="bits_relative_to_en")
    expected = {language: nats[language] / nats["en"] for language in ("gl", "eu")}
    expected[ALL] = (expected["gl"] + expected["eu"]) / 2
    assert ratios == pytest.approx({(k, "perplexity", "bits_relative_to_en"): v for k, v in expected.items()})
    basque = values(measure(hub_model, parallel, settings=PerplexitySettings(reference="eu")).rows(), language="en")
    assert basque["en", "perplexity", "bits_relative_to_eu"] == pytest.approx(1 / expected["eu"])


def test_a_file_with_a_column_for_each_language_and_parquet_are_read(hub_model, parallel, tmp_path):
    columns = {f"sentence_{language}": documents for language, documents in PARALLEL.items()}
    pq.write_table(pa.table({"id": range(4), **columns}), tmp_path / "flores.parquet")
    wide = {ln: Text((tmp_path / "flores.parquet",), column=f"sentence_{ln}") for ln in PARALLEL}
    narrow, other = measure(hub_model, parallel).rows(), measure(hub_model, wide).rows()
    assert narrow == other


def test_every_byte_and_word_of_the_text_is_counted(hub_model, parallel):
    measured = measure(hub_model, parallel)
    for language, documents in PARALLEL.items():
        totals = measured.sources[language].totals
        assert totals[:, 3].tolist() == [len(text.encode()) for text in documents]
        assert totals[:, 2].tolist() == [len(text.split()) for text in documents]
        assert totals[:, 1].tolist() == totals[:, 3].tolist()  # this tokenizer's tokens are bytes


def test_text_is_encoded_outside_the_main_thread_so_that_signals_are_handled(hub_model, parallel, monkeypatch):
    threads, encode = [], Tokenizer.encode

    def watched(self, texts):
        threads.append(threading.current_thread())
        return encode(self, texts)

    monkeypatch.setattr(Tokenizer, "encode", watched)
    measure(hub_model, parallel)
    assert len(threads) == len(PARALLEL)
    assert threading.main_thread() not in threads


def test_drawn_documents_are_translations_of_each_other(hub_model, parallel):
    measured = measure(hub_model, parallel, settings=PerplexitySettings(max_documents=2))
    ids = {scores.ids for scores in measured.sources.values()}
    assert len(ids) == 1
    assert len(next(iter(ids))) == 2


@given(st.lists(st.text(max_size=3), min_size=1, max_size=20, unique=True), st.integers(1, 20), st.randoms())
def test_the_draw_does_not_depend_on_order_or_on_other_documents(ids, most, draw):
    def drawn(names):
        zeros = np.zeros(len(names))
        return set(Documents([np.zeros(1)] * len(names), zeros, zeros, names).some(most).ids)

    chosen = drawn(ids)
    assert len(chosen) == min(most, len(ids))
    assert drawn(draw.sample(ids, len(ids))) == chosen
    assert drawn([name for name in ids if name in chosen]) == chosen


def test_a_killed_evaluation_continues(hub_model, parallel, tmp_path, monkeypatch):
    whole, partial, seen = measure(hub_model, parallel).rows(), tmp_path / "partial", []

    def stop(event):
        if (event.kind, event.name) == ("source", "gl"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(hub_model, parallel, partial=partial, on_progress=stop).rows()
    assert [file.name[:3] for file in partial.iterdir()] == ["en-"]
    assert measure(hub_model, parallel, partial=partial, on_progress=seen.append).rows() == whole
    assert [event.name for event in seen if event.kind == "skip"] == ["en"]
    assert [event.name for event in seen if event.kind == "done"] == ["gl", "eu"]
    monkeypatch.setattr(CausalModel, "load", lambda *_, **__: pytest.fail("measured again"))
    assert measure(hub_model, parallel, partial=partial).rows() == whole


def test_stored_sources_with_other_text_settings_or_weights_are_not_used(hub_model, parallel, tmp_path):
    def measured_again(settings=None):
        seen = []
        measure(hub_model, parallel, partial=tmp_path / "partial", settings=settings, on_progress=seen.append).rows()
        return [event.name for event in seen if event.kind == "done"]

    assert measured_again() == ["en", "gl", "eu"]
    assert measured_again() == []
    assert measured_again(PerplexitySettings(batch_tokens=99, resamples=9, seed=3)) == []  # change no nats
    for other in ({"window": 12}, {"window": 16, "stride": 12}, {"stride": 7}, {"max_documents": 3}):
        assert measured_again(PerplexitySettings(**other)) == ["en", "gl", "eu"]
    file = parallel["gl"].files[0]
    file.write_text(file.read_text(encoding="utf-8").replace("casa", "cousa"), encoding="utf-8")
    assert measured_again() == ["gl"]
    weights = os.stat(f"{hub_model}/model.safetensors")
    os.utime(f"{hub_model}/model.safetensors", ns=(weights.st_atime_ns, weights.st_mtime_ns + 1))
    assert measured_again() == ["en", "gl", "eu"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 25}, "window 25 is longer than the context of .*, 24"),
        ({"window": 8, "stride": 9}, "stride 9 is longer than the window, 8"),
    ],
)
def test_impossible_windows_are_refused(hub_model, parallel, settings, message):
    with pytest.raises(XDogeError, match=message):
        measure(hub_model, parallel, settings=PerplexitySettings(**settings)).rows()


def test_a_folder_without_a_model_or_a_tokenizer_is_refused(hub_model, parallel, tmp_path):
    with pytest.raises(XDogeError, match=r"has no config\.json; .*/model"):
        measure(os.path.dirname(hub_model), parallel).rows()
    AutoModelForCausalLM.from_pretrained(hub_model).save_pretrained(tmp_path / "bare")
    with pytest.raises(XDogeError, match="bare has no tokenizer"):
        measure(str(tmp_path / "bare"), parallel).rows()
    with pytest.raises(XDogeError, match="'es mal' cannot be a source; write LANGUAGE or LANGUAGE/NAME"):
        measure(hub_model, {"es mal": parallel["gl"]}).rows()
    with pytest.raises(XDogeError, match="no column 'sentence'; it has text, id"):
        measure(hub_model, {"gl": Text(parallel["gl"].files, column="sentence")}).rows()


def test_a_token_outside_the_vocabulary_and_a_loss_of_nan_are_refused(hub_model, parallel, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(hub_model).eval()
    with pytest.raises(XDogeError, match="an embedding for 258 tokens, .* the token 258"):
        LoadedModel("it", model).nats([np.array([258])], begin=0, window=8, stride=8, batch_tokens=8)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    monkeypatch.setattr(CausalModel, "load", lambda *_, **__: model)
    with pytest.raises(NonFiniteLossError, match="gives document 0 of en a loss of nan"):
        measure(hub_model, parallel).rows()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), RuntimeError("alloc: can't allocate memory: you")])
def test_too_little_memory_is_one_line_with_advice(hub_model, monkeypatch, error):
    def full(*_, **__):
        raise error

    model = LoadedModel("it", AutoModelForCausalLM.from_pretrained(hub_model).eval())
    monkeypatch.setattr(model, "_losses", full)
    with pytest.raises(MemoryFullError, match="^out of memory while scoring 64 tokens at once with it; lower"):
        model.nats([np.arange(9)], begin=0, window=24, stride=12, batch_tokens=64)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(MemoryFullError, match=r"^out of memory while loading .*device=split"):
        load_on(Processes(0, 1, "cpu"), CausalModel.find(hub_model), "float32", "cpu")


def test_the_validation_files_of_a_corpus_are_found(tmp_path, corpus):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "bai"}\n')
    (tmp_path / "corpus.yaml").write_text(
        "name: it\ntokenizer: {huggingface: gpt2}\n"
        "languages: {eu: {sources: {web: {files: a.jsonl, validation: b.jsonl}}}}\n"
    )
    assert validation_texts(Corpus.load(tmp_path / "corpus.yaml")) == {"eu/web": Text((tmp_path / "b.jsonl",))}
    with pytest.raises(XDogeError, match=r"es\.sources\.web has no validation files; name the text of es/web itself"):
        validation_texts(Corpus.load(corpus))


def test_an_id_of_several_documents_is_left_out():
    scores = SourceScores(np.arange(16.0).reshape(4, 4), ("a", "b", "a", None))
    assert scores.nats_by_id() == {"b": 4.0}


def test_batches_are_run_in_an_order_that_suits_the_progress(hub_model, parallel):
    seen = []
    measure(hub_model, parallel, settings=PerplexitySettings(batch_tokens=30), on_progress=seen.append).rows()
    of_one = [event for event in seen if event.name == "gl"]
    assert [event.kind for event in of_one] == ["source"] * (len(of_one) - 1) + ["done"]
    assert [event.tokens for event in of_one] == sorted(event.tokens for event in of_one)
    last = of_one[-1]
    assert (last.done, last.total) == (4, 4)
    assert last.tokens == sum(len(text.encode()) for text in PARALLEL["gl"])
