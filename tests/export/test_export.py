"""Exports: their files, their warnings, and how installed trainers read them."""

from __future__ import annotations

import csv
import importlib
import io
import json
import math
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from xdoge import Mixture, XDogeError
from xdoge.export import FORMATS, export
from xdoge.mixtures.mixture import Share

SHARES = {  # half a pass, one and a half, four passes at the cap, nothing
    "es/web": Share(learned_weight=0.4, weight=0.5, tokens=50_000, available_tokens=100_000, max_epochs=4.0),
    "es/wiki": Share(learned_weight=0.25, weight=0.3, tokens=30_000, available_tokens=20_000, max_epochs=4.0),
    "eu/wiki": Share(
        learned_weight=0.3, weight=0.2, tokens=20_000, available_tokens=5_000, max_epochs=4.0, capped=True
    ),
    "gl/web": Share(learned_weight=0.05, weight=0.0, tokens=0, available_tokens=1_000, max_epochs=4.0),
}
DOCUMENTS = {"es/web": 500, "es/wiki": 1_000, "eu/wiki": 100}  # of 200, 20 and 50 tokens
LEFT_OUT = "left out, because the mixture reads 0 tokens of them: gl/web."


def mixture(shares=SHARES, **more):
    budget = sum(share.tokens for share in shares.values())
    return Mixture(name="three", budget_tokens=budget, max_epochs=4.0, seed=7, sources=shares, **more)


def reading(**tokens_and_available):
    """Make a mixture of sources "xx/NAME" from (tokens, available tokens)."""
    budget = sum(tokens for tokens, _ in tokens_and_available.values())
    return mixture(
        {
            f"xx/{name}": Share(0.5, tokens / budget, tokens, held)
            for name, (tokens, held) in tokens_and_available.items()
        }
    )


def consumer(name):
    """Import a trainer's module and ignore its warnings. Skip the test if it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(name.partition(".")[0], exc_type=ImportError)
        return importlib.import_module(name)


def write(to, plan=None, **more):
    """Export with all arguments that any format needs."""
    return export(plan or mixture(), to, **({"documents": DOCUMENTS} | more))


# All formats


@pytest.mark.parametrize("to", FORMATS)
def test_every_format_tells_its_weights_and_what_happens_at_the_end_of_a_source(to):
    text = " ".join(FORMATS[to].__doc__.split())
    assert "Weights" in text
    assert "end of a source" in text
    assert "Paths" in text.title()


def test_the_manual_names_every_format():
    manual = (Path(__file__).parents[2] / "docs/reference/exports.md").read_text(encoding="utf-8")
    assert all(f"| `{to}` |" in manual for to in FORMATS)


@pytest.mark.parametrize("to", [to for to in FORMATS if to != "csv"])
def test_sources_that_are_not_read_are_left_out_and_named(to):
    written = write(to)
    assert "gl" not in written.text
    assert LEFT_OUT in written.warnings
    assert all(line.count("\n") == 0 and any(map(str.isdigit, line)) for line in written.warnings)


@pytest.mark.parametrize("to", FORMATS)
def test_paths_may_be_a_template_or_a_mapping(to):
    templated = write(to, paths="P-{language}-{source}").text
    assert all(path in templated for path in ("P-es-web", "P-es-wiki", "P-eu-wiki"))
    mapped = write(to, paths={source: f"P-{source.replace('/', '-')}" for source in SHARES}).text
    assert mapped == templated


@pytest.mark.parametrize("to", FORMATS)
def test_tokens_read_in_earlier_phases_bring_a_warning(to):
    shares = SHARES | {"eu/wiki": Share(0.3, 0.2, 10_000, 5_000, read_before=9_000)}
    lines = write(to, mixture(shares)).warnings
    warned = [line for line in lines if line.startswith("earlier phases read 9,000 tokens, 9,000 of them from eu/wiki")]
    assert len(warned) == (to != "csv")


@pytest.mark.parametrize(
    ("to", "options", "message"),
    [
        ("megatorn", {}, "format 'megatorn' is unknown; known: megatron, megatron-json,"),
        (
            "csv",
            {"paths": "{lang}"},
            "paths '{lang}' is not a template; it may contain {language}, {source} and {name}, as in 'data/",
        ),
        ("csv", {"paths": "{"}, "paths '{' is not a template"),
        ("csv", {"paths": "{source}"}, "paths give 'wiki' to both es/wiki and eu/wiki; each source needs its own"),
        ("grain", {"paths": {"es/web": "a"}}, "paths has no entry for 'es/wiki'"),
        ("grain", {"documents": {"es/web": 1}}, "documents has no entry for 'es/wiki'"),
        (
            "grain",
            {"documents": DOCUMENTS | {"eu/wiki": 5_001}},
            "documents['eu/wiki'] is 5,001; it must be from 1 to 5,000",
        ),
        (
            "grain",
            {"sequence_length": 0},
            "sequence_length is 0; it must be a whole number from 1 to the budget, 100,000",
        ),
        ("megatron", {"paths": "my data/{name}"}, "path 'my data/es/web' of es/web: Megatron splits its list at white"),
        (
            "llamafactory",
            {"paths": "{language},{source}"},
            "data set 'es,web' of es/web: LLaMA-Factory splits names at",
        ),
        ("llamafactory", {"documents": None}, "Give documents, "),
    ],
)
def test_mixtures_that_cannot_be_exported_are_refused(to, options, message):
    with pytest.raises(XDogeError) as error:
        write(to, **options)
    assert message in str(error.value)


@given(st.lists(st.tuples(st.integers(1, 10**13), st.integers(1, 10**12)), min_size=1, max_size=12))
def test_weights_keep_every_digit_and_sum_to_one(pairs):
    plan = reading(**{f"s{i}": pair for i, pair in enumerate(pairs)})
    tokens = [share.weight for share in plan.sources.values()]
    documents = {source: max(1, share.available_tokens // 300) for source, share in plan.sources.items()}
    draws = [share.tokens * documents[name] / share.available_tokens for name, share in plan.sources.items()]
    assert list(map(float, export(plan, "megatron").text.split()[::2])) == tokens
    assert [entry["target_ratio"] for entry in yaml.safe_load(export(plan, "olmo-core").text)["sources"]] == tokens
    table = csv.DictReader(io.StringIO(export(plan, "csv").text))
    assert [float(row["weight"]) for row in table] == tokens
    chances = json.loads(export(plan, "datasets", documents=documents).text)["interleave"]["probabilities"]
    assert chances == pytest.approx([draw / math.fsum(draws) for draw in draws], rel=1e-12)
    assert math.fsum(chances) == pytest.approx(1, abs=1e-14)
    assert math.fsum(tokens) == pytest.approx(1, abs=1e-14)


# Rows: sequences, documents, or unknown


def test_a_draw_of_documents_is_in_proportion_to_token_share_over_mean_length():
    plan = json.loads(write("datasets").text)
    rows = {"es/web": 250, "es/wiki": 1_500, "eu/wiki": 400}  # passes times documents
    assert plan["rows"] == 2_150
    assert plan["interleave"]["probabilities"] == pytest.approx([count / 2_150 for count in rows.values()])


def test_a_sequence_length_makes_rows_sequences():
    plan = json.loads(write("grain", sequence_length=10).text)
    assert plan["rows"] == 10_000
    assert plan["weights"] == pytest.approx([0.5, 0.3, 0.2])


@pytest.mark.parametrize("to", ["datasets", "grain", "mosaicml-proportion"])
def test_shares_of_tokens_for_unknown_rows_bring_a_warning(to):
    warned = [
        line for line in write(to, documents=None).warnings if "right only if all rows have the same number" in line
    ]
    known = [line for line in write(to).warnings if "right only if all rows have the same number" in line]
    assert (len(warned), len(known)) == (1, 0)


def test_random_draws_say_how_far_off_they_may_be():
    lines = write("torchtitan", sequence_length=100).warnings
    assert "rows are drawn at random: eu/wiki gets 200 ± 13 rows (6.3%)." in lines
    many = reading(a=(6 * 10**9, 10**10), b=(4 * 10**9, 10**10))
    assert export(many, "torchtitan", sequence_length=1_000).warnings == ()


# datasets


def test_datasets_reads_the_mixture_and_continues_beyond_the_budget_unless_stopped():
    datasets = consumer("datasets")
    written = write("datasets")
    plan = json.loads(written.text)
    sets = [
        datasets.Dataset.from_dict({"source": [source] * DOCUMENTS[source], "row": range(DOCUMENTS[source])})
        for source in plan["sources"]
    ]
    mixed = datasets.interleave_datasets(sets, **plan["interleave"])
    drawn = Counter(mixed.take(plan["rows"])["source"])
    for source, expected in {"es/web": 250, "es/wiki": 1_500, "eu/wiki": 400}.items():
        assert abs(drawn[source] - expected) < 4 * math.sqrt(expected)
    everything = Counter(mixed["source"])
    assert len(mixed) == pytest.approx(2 * plan["rows"], rel=0.1)
    assert everything["eu/wiki"] == pytest.approx(8 * DOCUMENTS["eu/wiki"], rel=0.1)
    (line,) = (line for line in written.warnings if "interleaving" in line)
    assert "one epoch of es/web. This is 2.00 times the budget and 8.0 epochs of eu/wiki" in line
    eu = [row for row, source in zip(mixed["row"], mixed["source"], strict=True) if source == "eu/wiki"]
    assert eu[:100] == eu[100:200] == list(range(100))  # every pass in the same order


def test_datasets_ends_early_if_all_sources_are_read_more_than_once():
    datasets = consumer("datasets")
    plan = reading(a=(25_000, 10_000), b=(75_000, 20_000))
    written = export(plan, "datasets", sequence_length=10)
    assert "(xx/a 2.50 times)" in written.warnings[-1]
    assert "40% of the budget. Repeat each data set 3 times" in written.warnings[-1]
    options = json.loads(written.text)
    sets = [datasets.Dataset.from_dict({"row": range(1_000)}), datasets.Dataset.from_dict({"row": range(2_000)})]
    assert len(datasets.interleave_datasets(sets, **options["interleave"])) == pytest.approx(4_000, rel=0.1)
    thrice = [dataset.repeat(3) for dataset in sets]
    assert len(datasets.interleave_datasets(thrice, **options["interleave"])) >= options["rows"] == 10_000


# Grain


def test_grain_reads_the_mixture_up_to_the_rounding_that_is_warned_of():
    grain = consumer("grain")
    plan = reading(a=(10_000, 100_000), b=(10_090, 100_000), c=(79_910, 100_000))
    written = export(plan, "grain", sequence_length=10)
    (line,) = written.warnings
    assert "100 of 999 for xx/b, which changes its rows by -0.79%" in line
    options = json.loads(written.text)
    sets = [grain.MapDataset.range(10_000).map(lambda _, name=name: name) for name in "abc"]
    mixed = grain.MapDataset.mix([dataset.seed(0).shuffle().repeat() for dataset in sets], options["weights"])[
        : options["rows"]
    ]
    drawn = Counter(mixed[index] for index in range(len(mixed)))
    assert abs(drawn["b"] - 10_000 * 100 / 999) <= 1
    assert drawn["b"] / 1_009 - 1 == pytest.approx(-0.0079, abs=0.001)


def test_a_cap_that_rounding_exceeds_is_named():
    shares = {
        "xx/a": Share(0.2, 0.4, 40_000, 10_000, max_epochs=4.0, capped=True),
        "xx/b": Share(0.8, 0.6, 60_000, 1_000_000, max_epochs=4.0),
    }
    assert export(mixture(shares), "grain", sequence_length=10).warnings == ()  # 100 of 250 exactly
    shares["xx/b"] = Share(0.8, 60_380 / 100_380, 60_380, 1_000_000, max_epochs=4.0)  # 150.95 is cut to 150
    lines = export(mixture(shares), "grain", sequence_length=10).warnings
    assert "xx/a is read 4.015 times" in lines[-1]


def test_grain_ends_with_its_first_source_and_sliced_before_mixing_draws_the_same_source_on_all_ranks():
    grain = consumer("grain")
    options = json.loads(write("grain", sequence_length=10).text)
    sets = [
        grain.MapDataset.range(SHARES[source].available_tokens // 10).map(lambda _, source=source: source)
        for source in options["sources"]
    ]
    assert len(grain.MapDataset.mix(sets, options["weights"])) == 2_500  # eu/wiki ends after a quarter of 10,000
    endless = [dataset.repeat() for dataset in sets]
    sliced = [grain.MapDataset.mix([dataset[rank::2] for dataset in endless], options["weights"]) for rank in range(2)]
    assert all(sliced[0][step] == sliced[1][step] for step in range(100))
    mixed = grain.MapDataset.mix(endless, options["weights"])
    assert any(mixed[2 * step] != mixed[2 * step + 1] for step in range(100))


# Megatron-LM, NeMo, Megatron-Bridge


def test_megatron_blends_to_within_two_sequences():
    parse = consumer("megatron.core.datasets.utils").get_blend_from_list
    helpers = consumer("megatron.core.datasets.helpers")
    config = consumer("megatron.core.datasets.blended_megatron_dataset_config").BlendedMegatronDatasetConfig
    blend = parse(write("megatron").text.split())
    assert blend == (
        ["data/es/web_text_document", "data/es/wiki_text_document", "data/eu/wiki_text_document"],
        [0.5, 0.3, 0.2],
    )
    assert config(random_seed=1, sequence_length=10, blend=blend, split="1,0,0").blend == blend
    source, index = np.zeros(10_000, np.int16), np.zeros(10_000, np.int64)
    helpers.build_blending_indices(source, index, blend[1], 3, 10_000, False)
    for end in (1_001, 3_333, 10_000):
        counts = np.bincount(source[:end], minlength=3)
        assert np.abs(counts - end * np.array(blend[1])).max() < 2


def test_megatron_shuffles_passes_together_as_is_warned():
    order = consumer("megatron.core.datasets.gpt_dataset")._build_document_index
    (line,) = (line for line in write("megatron").warnings if "in 1 of 3 sources" in line)
    assert "shuffles 4 epochs of eu/wiki together, and reads it 4.00 times" in line
    assert line in write("megatron-json").warnings
    documents = order(np.arange(1_000), 5, np.random.RandomState(0), True)  # 4.02 passes are built: the fifth is apart
    assert len(set(documents[:1_000].tolist())) < 750
    assert sorted(documents[4_000:].tolist()) == list(range(1_000))
    assert export(reading(a=(17, 10), b=(9, 10)), "megatron").warnings == ()  # 1.7 passes: the second is apart


def test_the_json_for_megatron_names_all_three_splits():
    blend = json.loads(write("megatron-json", paths="{language}.{source}").text)
    assert blend == {"train": ["0.5", "es.web", "0.3", "es.wiki", "0.2", "eu.wiki"], "valid": None, "test": None}
    parse = consumer("megatron.core.datasets.utils").get_blend_from_list
    assert parse(blend["train"]) == (["es.web", "es.wiki", "eu.wiki"], [0.5, 0.3, 0.2])
    assert parse(blend["valid"]) is None


# torchtitan


def test_torchtitan_is_given_weights_in_a_piece_of_python():
    text = write("torchtitan", paths="p/{name}").text
    assert 'HFDataSource(dataset="es/web", dataset_path="p/es/web", weight=0.5),' in text
    compile(text, "export.py", "exec")


def test_torchtitan_draws_the_same_sources_on_all_ranks():
    consumer("torchtitan.hf_datasets.text_datasets")
    mixing = consumer("torchtitan.hf_datasets.interleaved")
    namespace: dict = {}
    exec(write("torchtitan").text, namespace)
    loader = namespace["dataloader"]
    assert [source.weight for source in loader.sources] == [0.5, 0.3, 0.2]
    assert [source.dataset_path for source in loader.sources] == ["data/es/web", "data/es/wiki", "data/eu/wiki"]

    class Endless(list):
        def __iter__(self):
            while True:
                yield self[0]

        state_dict = load_state_dict = lambda self, *_: {}

    weights = [source.weight for source in loader.sources]
    ranks = [iter(mixing.InterleavedDataset([Endless([i]) for i in range(3)], weights, loader.seed)) for _ in range(2)]
    assert all(next(ranks[0]) == next(ranks[1]) for _ in range(200))


# MosaicML streaming


def test_mosaicml_takes_the_budget_in_one_epoch():
    exact = yaml.safe_load(write("mosaicml", sequence_length=16).text)["streams"]
    assert {source: stream["choose"] for source, stream in exact.items()} == {
        "es/web": 3_125,
        "es/wiki": 1_875,
        "eu/wiki": 1_250,
    }
    repeats = yaml.safe_load(write("mosaicml").text)["streams"]
    assert repeats["es/wiki"] == {"local": "data/es/wiki", "repeat": 1.5}
    shares = yaml.safe_load(write("mosaicml-proportion", sequence_length=16).text)
    assert shares["epoch_size"] == 6_250
    assert [stream["proportion"] for stream in shares["streams"].values()] == [0.5, 0.3, 0.2]


def test_a_source_of_less_than_a_sequence_is_named():
    plan = reading(a=(99_990, 100_000), b=(10, 1_000))
    written = export(plan, "mosaicml", sequence_length=1_000)
    assert list(yaml.safe_load(written.text)["streams"]) == ["xx/a"]
    assert written.warnings == ("left out, because the mixture reads less than a sequence of 1,000 tokens: xx/b.",)


@pytest.mark.parametrize("to", ["mosaicml", "mosaicml-proportion"])
@pytest.mark.parametrize("length", [None, 10])
def test_mosaicml_streams_choose_what_the_plan_reads(to, length):
    stream = consumer("streaming").Stream
    value = yaml.safe_load(write(to, sequence_length=length).text)
    streams = [stream(**fields) for fields in value["streams"].values()]
    held = [SHARES[name].available_tokens // length if length else DOCUMENTS[name] for name in value["streams"]]
    stream.apply_weights(streams, np.array(held), value.get("epoch_size"), 0)
    expected = [5_000, 3_000, 2_000] if length else [250, 1_500, 400]
    assert np.abs(np.array([dataset.choose for dataset in streams]) - expected).max() <= (to == "mosaicml-proportion")


# OLMo-core


def test_olmo_core_gets_ratios_and_caps():
    written = write("olmo-core")
    assert written.text.startswith("# requested_tokens: 100000\n")
    assert yaml.safe_load(written.text)["sources"][2] == {
        "source_name": "eu/wiki",
        "target_ratio": 0.2,
        "paths": ["data/eu/wiki/*.npy"],
        "max_repetition_ratio": 4.0,
    }
    assert "1 of 3 sources" in written.warnings[-1]
    assert "50.0% of es/web" in written.warnings[-1]
    uncapped = yaml.safe_load(export(reading(a=(25, 10), b=(5, 10)), "olmo-core").text)["sources"]
    assert [source["max_repetition_ratio"] for source in uncapped] == [3.0, 1.0]
    half = {"xx/a": Share(1.0, 1.0, 5, 10, max_epochs=0.5)}
    assert yaml.safe_load(export(mixture(half), "olmo-core").text)["sources"][0]["max_repetition_ratio"] == 1.0


def test_olmo_core_builds_the_mixture_from_files(tmp_path):
    consumer("olmo_core.data.numpy_dataset")
    mixing = consumer("olmo_core.data.source_mixture")
    paths = {source: str(tmp_path / f"{source.replace('/', '-')}.npy") for source in DOCUMENTS}
    for source, path in paths.items():
        np.arange(SHARES[source].available_tokens, dtype=np.uint32).tofile(path)
    (tmp_path / "mixture.yaml").write_text(write("olmo-core", paths=paths).text)
    config = mixing.SourceMixtureDatasetConfig(
        source_list=mixing.SourceMixtureList.from_yaml(tmp_path / "mixture.yaml"),
        requested_tokens=100_000,
        global_batch_size=1_000,
        quiet=True,
        render_tables=False,
    )
    built = config.build(npdtype=np.uint32, sequence_length=10)
    tokens = {source.name: [part.tokens for part in source.path_tokens] for source in built.sources}
    assert tokens == {"es/web": [50_000], "es/wiki": [20_000, 10_000], "eu/wiki": [5_000] * 4}


# LLaMA-Factory, axolotl


def test_llamafactory_gets_chances_of_documents():
    value = yaml.safe_load(write("llamafactory", sequence_length=10).text)
    assert value["dataset"] == "es_web,es_wiki,eu_wiki"
    assert value["mix_strategy"] == "interleave_over"
    assert [float(chance) * 2_150 for chance in value["interleave_probs"].split(",")] == pytest.approx(
        [250, 1_500, 400]
    )
    assert isinstance(
        yaml.safe_load(export(reading(a=(5, 9)), "llamafactory", documents={"xx/a": 1}).text)["interleave_probs"], str
    )


def test_llamafactory_accepts_the_fields():
    arguments = consumer("llamafactory.hparams.data_args").DataArguments
    data = arguments(**yaml.safe_load(write("llamafactory").text))
    assert data.dataset == ["es_web", "es_wiki", "eu_wiki"]
    assert data.interleave_probs == pytest.approx([250 / 2_150, 1_500 / 2_150, 400 / 2_150])


def test_axolotl_lists_a_source_as_often_as_it_is_read():
    value = yaml.safe_load(write("axolotl").text)
    listed = Counter()
    for entry in value["datasets"]:
        listed[entry["path"]] += entry.get("weight", 1)
    assert listed == {"data/es/web": 0.5, "data/es/wiki": 1.5, "data/eu/wiki": 4}
    assert len(value["datasets"]) == 7
    assert value["num_epochs"] == 1
    assert value["dataset_exact_deduplication"] is False


def test_axolotl_accepts_the_data_sets():
    schema = consumer("axolotl.utils.schemas.datasets").SFTDataset
    entries = [schema(**entry) for entry in yaml.safe_load(write("axolotl").text)["datasets"]]
    assert [entry.weight for entry in entries] == [0.5, None, 0.5, None, None, None, None]


# CSV


def test_the_table_holds_every_source_and_what_is_known_of_it():
    written = export(mixture(), "csv", documents=DOCUMENTS, sequence_length=16)
    assert written.warnings == ()
    lines = list(csv.DictReader(io.StringIO(written.text)))
    assert [line["source"] for line in lines] == list(SHARES)
    assert lines[2] == {
        "source": "eu/wiki",
        "language": "eu",
        "path": "data/eu/wiki",
        "weight": "0.2",
        "tokens": "20000",
        "available_tokens": "5000",
        "read_before": "0",
        "epochs": "4.0",
        "max_epochs": "4.0",
        "capped": "true",
        "sequences": "1250",
        "document_weight": repr(400 / 2_150),
    }
    assert lines[3]["document_weight"] == "0.0"
