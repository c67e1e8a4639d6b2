"""Benchmarks: the same scores as the harness, an outcome for every task, and resuming."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import save_byte_tokenizer, save_llama
from transformers import LlamaForCausalLM

from xdoge.analysis.models import score_rows
from xdoge.cli.eval import print_results
from xdoge.errors import XDogeError
from xdoge.eval.lm_eval import benchmarks as iberobench
from xdoge.eval.lm_eval import harness
from xdoge.eval.lm_eval.benchmarks import Benchmarked, TaskOutcome, check, expanded, run_suite
from xdoge.eval.lm_eval.bridge import bridged, compute_exact, compute_f1, load_metric
from xdoge.eval.lm_eval.catalogue import Catalogue, TaskData, TaskError, offline
from xdoge.eval.lm_eval.harness import Score, sentencepiece_tokenizer
from xdoge.eval.lm_eval.prefetch import prefetch
from xdoge.eval.lm_eval.tasks.veritasqa import answers
from xdoge.eval.results import ALL, Results, Row
from xdoge.eval.suite import HarnessSettings, Suite, SuiteTask, check_together

real = pytest.mark.skipif("XDOGE_REAL_DATA" not in os.environ, reason="XDOGE_REAL_DATA names no folder of real text")

QNLI = SuiteTask(task="qnlieu", language="eu", choices=2)
STS = SuiteTask(task="assin2_sts", language="pt", metric="pearsonr", output_type="generate_until")
ESCOLA = SuiteTask(task="escola", language="es", metric="mcc")
BEC = SuiteTask(task="bec2016eu", language="eu", metric="f1", choices=3)
COCOTEROS = SuiteTask(task="cocoteros_es", language="es", metric="rouge1", output_type="generate_until")
XQUAD = SuiteTask(task="xquad_ca", language="ca", metric="f1", output_type="generate_until")
VERITAS = [
    SuiteTask(
        task=f"veritasqa_{kind}_ca", language="ca", metric=metric, output_type=how,
        max=top, chance=0, data="veritasqa_ca",
    )
    for kind, metric, how, top in (
        ("gen", "bleu_max", "generate_until", 100),
        ("mc1", "mc1", "multiple_choice", 1),
        ("mc2", "mc2", "multiple_choice", 1),
    )
]  # fmt: skip
MULTI = [
    SuiteTask(task=f"truthfulqa-multi_mc{n}_{ln}", language=ln, chance=0.25, data=f"truthfulqa-multi_mc1_{ln}")
    for n in (1, 2)
    for ln in ("en", "es", "ca", "gl", "eu")
]
MGSM = SuiteTask(
    task="mgsm_direct_es", language="es", metric="exact_match", output_type="generate_until",
    data="mgsm_direct_es_spanish_bench",
)  # fmt: skip
WORDS = ["etxe", "berde", "ur", "bide", "mahai", "liburu", "katu", "lur", "hiri", "txakur"]


def rows_of(folder, **splits):
    for split, rows in splits.items():
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def sentence(n):
    return f"{WORDS[n % 10]} {WORDS[n // 3 % 10]} {n}"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Synthetic questions in the layout of the harness's tasks."""
    folder = tmp_path_factory.mktemp("questions")
    nli = [{"idx": n, "question": sentence(n), "sentence": sentence(n + 5), "label": n % 2} for n in range(9)]
    rows_of(folder / "qnlieu", test=nli, validation=nli[::-1])
    pairs = [
        {"premise": sentence(n), "hypothesis": sentence(n + 2), "relatedness_score": 1 + n % 5, "answer": None}
        for n in range(7)
    ]
    rows_of(folder / "assin2_sts", test=pairs, train=[{**pair, "answer": "bai"} for pair in pairs])
    judged = [{"Sentence": sentence(n), "Label": n % 2} for n in range(12)]
    rows_of(folder / "escola", validation=judged, train=judged[::-1])
    moods = [{"text": sentence(n), "label": n % 3} for n in range(6)]
    rows_of(folder / "bec2016eu", test=moods, validation=moods)
    made = [{"keywords": sentence(n), "context": sentence(n), "text": sentence(n + 1)} for n in range(4)]
    rows_of(folder / "cocoteros_es", test=made, train=made)
    asked = [
        {"context": f"{sentence(n)}.", "question": f"Pregunta {n}?", "answers": [{"text": sentence(n)}]}
        for n in range(8)
    ]
    rows_of(folder / "xquad_ca", test=asked)
    false = [
        {
            "id": str(n), "category": "c", "question": f" {sentence(n)}? ", "best_answer": "berde",
            "correct_answers": "berde; ur .", "incorrect_answers": "katu; hiri.;txakur",
        }
        for n in range(3)
    ]  # fmt: skip
    rows_of(folder / "veritasqa_ca", test=false)
    return folder


@pytest.fixture(scope="module")
def model(store, tmp_path_factory):
    """Folder of a random model with a SentencePiece model beside it, as xdoge writes them."""
    folder = tmp_path_factory.mktemp("models") / "proxy"
    shape = {"vocab_size": store.vocab_size, "max_position_embeddings": 1024}
    save_llama(folder, **shape, bos_token_id=None, eos_token_id=None, use_cache=False)
    store.tokenizer().export(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def no_network():
    with offline():
        yield


def run(model, data, *tasks, **options):
    settings = HarnessSettings.parse({"device": "cpu", **options.pop("settings", {})}, where="settings")
    suite = Suite(name="mine", num_fewshot=2, tasks=tasks)
    return run_suite(model, suite, settings=settings, local_data=data, **options)


def only(scored):
    (outcome,) = scored.outcomes
    return outcome


def built(task, data, num_fewshot=0):
    catalogue = Catalogue([task.task])
    source = catalogue.data(task, data)
    return catalogue.build(task, source, num_fewshot=num_fewshot, seed=1234)


@pytest.mark.parametrize("task", [QNLI, ESCOLA, STS], ids=lambda task: task.task)
def test_scores_are_those_of_the_harness(model, data, task, tmp_path):
    """The reference uses lm-eval's own entry point, model class and reading of the JSON files."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from xdoge.eval.lm_eval.catalogue import quiet

    ours = only(run(model, data, task, settings={"limit": 4}))
    catalogue = Catalogue([task.task])
    config = dict(catalogue._manager.task_index[task.task].cfg)
    paths = sorted((data / task.task).glob("*.jsonl"), reverse=True)  # the reference needs train before test
    files = {path.stem: str(path) for path in paths}
    splits = {key: None for key, value in config.items() if key.endswith("_split") and value not in files}
    spec = {"task": task.task, "dataset_path": "json", "dataset_name": None, **splits}
    spec["dataset_kwargs"] = {"data_files": files, "cache_dir": str(tmp_path)}
    begin = 2  # the end-of-document token of models trained with SentencePiece
    with quiet(), bridged():
        (entry,) = catalogue._manager.load({"group": "reference", "task": [spec]})["tasks"].values()
        theirs = simple_evaluate(
            HFLM(
                pretrained=LlamaForCausalLM.from_pretrained(model),
                tokenizer=sentencepiece_tokenizer(f"{model}/tokenizer.model", begin=begin),
                max_length=1024,
                batch_size=1,
            ),
            tasks=[entry],
            num_fewshot=2,
            limit=4,
            bootstrap_iters=0,
            task_manager=catalogue._manager,
        )
    value = theirs["results"][task.task][f"{task.metric},none"]
    assert ours.outcome == "ran"
    assert ours.score.value == pytest.approx(value, abs=1e-9)
    assert (ours.score.n, ours.num_fewshot, ours.score.truncated) == (4, 2, 0)
    if task is QNLI:
        right = [sample["acc"] for sample in theirs["samples"][task.task]]
        spread = math.sqrt(sum((score - value) ** 2 for score in right) / 3 / 4)
        assert ours.score.stderr == pytest.approx(spread)


def test_tokens_equal_those_of_sentencepiece(model):
    check_tokens(
        f"{model}/tokenizer.model",
        ["etxe berdea", " ur  handi ", "", "</s> <s> <unk>", "ñandú 🐸 \n\n tab\t.", "▁azpi", "A: ", "Ω" * 5],
    )


@real
def test_tokens_equal_those_of_sentencepiece_on_real_text():
    folder = Path(os.environ["XDOGE_REAL_DATA"])
    lines = (folder / "iberobench/flores/dev.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    texts = [text for row in rows for key, text in row.items() if key.startswith("sentence")]
    check_tokens(str(folder / "tokenizer/iberian-16k.model"), [*texts, "\n\n".join(texts[:50])])


def check_tokens(path, texts):
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=path)
    tokenizer = sentencepiece_tokenizer(path, begin=processor.eos_id())
    for text in texts:
        own = processor.encode(text)
        assert tokenizer.encode(text) == [processor.eos_id(), *own]
        assert tokenizer.encode(text, add_special_tokens=False) == own
        assert tokenizer.decode(own) == processor.decode(own)
    assert tokenizer.decode(processor.eos_id(), skip_special_tokens=False) == "</s>"
    assert tokenizer.decode([processor.eos_id()], skip_special_tokens=True) == ""


def test_the_harness_sees_the_token_before_a_document_first(model, data):
    from xdoge.distributed import Processes
    from xdoge.models.resolver import CausalModel

    asked = harness.HarnessModel(
        CausalModel.find(model), Processes(0, 1, "cpu"), HarnessSettings(batch_size=1, precision="float32")
    )
    lm = asked._load()
    assert asked.begin == lm.prefix_token_id == 2
    context, continuation = lm._encode_pair("Testua: etxe", " berde")
    assert context[0] == 2
    assert 2 not in [*context[1:], *continuation]


def test_a_model_with_a_tokenizer_json_uses_it(data, tmp_path):
    save_byte_tokenizer(tmp_path, bos_token="<s>")
    save_llama(tmp_path, vocab_size=258, max_position_embeddings=2048, bos_token_id=0, eos_token_id=1)
    scored = run(str(tmp_path), data, QNLI, settings={"limit": 2})
    assert only(scored).outcome == "ran"
    assert scored.to_dict()["before_prompt"] is None


@real
def test_every_task_with_real_questions_is_built():
    data = Path(os.environ["XDOGE_REAL_DATA"]) / "iberobench"
    suite = Suite.find("iberobench")
    suite = suite.model_copy(update={"tasks": (*suite.tasks, *MULTI, MGSM)})
    tasks, catalogue = expanded(suite)
    made, failed, folders = set(), {}, set()
    for task in tasks:
        source = catalogue.data(task, data)
        if not source.files:
            continue
        try:
            num_fewshot = catalogue.num_fewshot(task, suite.num_fewshot, HarnessSettings())
            catalogue.build(task, source, num_fewshot=num_fewshot, seed=0)
        except TaskError as error:
            failed[task.task] = (error.outcome, str(error).rpartition(": ")[2])
        else:
            made.add(task.task)
            folders.add(task.folder)
    assert folders == {path.name for path in data.iterdir() if path.is_dir()}
    # The local FLORES has six languages. Pairs with other languages are in the suite, but their column is missing.
    assert {reason for _, reason in failed.values()} == {
        f"'sentence_{language}_Latn' is undefined" for language in ("deu", "fra", "ita")
    }
    assert len(made) == 50 + 9 + 11
    assert len(failed) == 30


def test_tasks_that_import_missing_functions_work(model, data):
    scored = run(model, data, BEC, COCOTEROS, XQUAD, settings={"limit": 3})
    assert [(outcome.outcome, outcome.reason) for outcome in scored.outcomes] == [("ran", "")] * 3
    assert all(0 <= outcome.score.value <= 1 and outcome.score.n == 3 for outcome in scored.outcomes)
    assert "transformers.data.metrics" not in sys.modules
    assert not hasattr(datasets, "load_metric")
    with pytest.raises(XDogeError, match="the metric 'bleurt' of `evaluate`"):
        load_metric("bleurt")


@pytest.mark.parametrize(
    ("gold", "predicted", "exact", "f1"),
    [
        ("The Denver Broncos", "denver broncos!", 1, 1.0),
        ("a la casa", "casa", 0, 2 / 3),  # "a" is an English article
        ("gato gato", "gato", 0, 2 / 3),
        ("", "", 1, 1.0),
        ("the", "casa", 0, 0.0),
        ("one two", "three", 0, 0.0),
    ],
)
def test_answers_are_compared_as_squad_does(gold, predicted, exact, f1):
    assert compute_exact(gold, predicted) == exact
    assert compute_f1(gold, predicted) == pytest.approx(f1)


@given(*[st.lists(st.sampled_from(["the", "a", "Ana", "ana.", "mar", "Él", "-"]), max_size=6).map(" ".join)] * 2)
def test_answers_are_compared_as_torchmetrics_does(gold, predicted):
    from torchmetrics.functional.text.squad import _compute_exact_match_score, _compute_f1_score

    assert compute_exact(gold, predicted) == int(_compute_exact_match_score(predicted, gold))
    assert compute_f1(gold, predicted) == pytest.approx(float(_compute_f1_score(predicted, gold)))


def test_no_question_is_an_example_of_itself(data):
    task = built(XQUAD, data, num_fewshot=5)  # examples come from the questions, since there is no other split
    for document in task.eval_docs:
        prompt = task.fewshot_context(document, 5)
        assert prompt.count(document["question"]) == 1
    with pytest.raises(TaskError, match="its test split has 7 examples for the prompt, not 8"):
        built(XQUAD, data, num_fewshot=8)


def test_a_column_that_is_null_in_one_split_is_read_as_it_is(data):
    task = built(STS, data, num_fewshot=1)
    assert {row["answer"] for row in task.eval_docs} == {None}
    assert {row["answer"] for row in task.sampler.df} == {"bai"}


def test_veritasqa_is_asked_without_examples(model, data):
    scored = run(model, data, *VERITAS, settings={"num_fewshot": 5, "limit": 2})
    assert [(task.outcome, task.num_fewshot, task.examples) for task in scored.outcomes] == [("ran", 0, None)] * 3
    task = built(VERITAS[1], data)
    (first, *_) = task.eval_docs
    assert task.fewshot_context(first, 0) == "Q: etxe etxe 0?\nA:"
    assert task.doc_to_choice(first) == ["berde.", "katu.", "hiri.", "txakur."]
    assert built(VERITAS[2], data).doc_to_choice(first) == ["berde.", "ur .", "katu.", "hiri.", "txakur."]


def test_veritasqa_metrics_of_known_answers():
    document = {"best_answer": "b", "correct_answers": "b; c", "incorrect_answers": "x;y"}
    assert answers.mc1(document, [(-1.0, False), (-2.0, False), (-1.5, False)]) == {"mc1": 1.0}
    assert answers.mc1(document, [(-1.0, False), (-1.0, False), (-1.5, False)]) == {"mc1": 0.0}
    logs = [(math.log(part) - 2000, False) for part in (0.1, 0.3, 0.2, 0.2)]  # their probabilities are all 0
    assert answers.mc2(document, logs) == {"mc2": pytest.approx(0.5)}
    document = {"correct_answers": "el mar es de color azul oscuro.", "incorrect_answers": "el mar es verde"}
    exact = answers.generated(document, [" el mar es de color azul oscuro."])
    assert exact["bleu_max"] == pytest.approx(100)
    assert exact["bleu_acc"] == 1.0
    wrong = answers.generated(document, ["el mar es verde."])
    assert wrong["bleu_diff"] == pytest.approx(wrong["bleu_max"] - 100)
    assert wrong["bleu_diff"] < 0
    assert wrong["bleu_acc"] == 0.0


def test_every_task_has_an_outcome_and_none_stops_the_others(model, data, tmp_path, monkeypatch):
    score = harness.HarnessModel.score

    def failing(self, task, metric, wanted):
        if task.task_name == "escola":
            raise RuntimeError("CUDA out of memory")
        return score(self, task, metric, wanted)

    monkeypatch.setattr(harness.HarnessModel, "score", failing)
    monkeypatch.setattr(iberobench, "is_published", lambda task: True)
    rows_of(tmp_path / "qnlieu", test=[{"question": "a", "label": 0}])
    rows_of(tmp_path / "assin2_rte", train=[{}])
    (tmp_path / "xquad_es").mkdir()
    (tmp_path / "xquad_es" / "validation.jsonl").write_text('{"a": 1}\nb\n')
    (tmp_path / "escola").symlink_to(data / "escola")
    (tmp_path / "bec2016eu").symlink_to(data / "bec2016eu")
    scored = run(
        model,
        tmp_path,
        QNLI,
        SuiteTask(task="assin2_rte", language="pt", choices=2),
        SuiteTask(task="xquad_es", language="es", metric="f1", output_type="generate_until"),
        SuiteTask(task="hellaswag", language="en", choices=4),
        SuiteTask(task="nothing_of_the_kind", language="en", choices=2),
        ESCOLA,
        BEC.model_copy(update={"metric": "acc"}),
        BEC.model_copy(update={"task": "vaxx_stance", "data": "bec2016eu"}),
        settings={"limit": 2},
    )
    reasons = [(task.spec.task, task.outcome, task.reason) for task in scored.outcomes]
    assert reasons == [
        ("qnlieu", "no data", f"{tmp_path}/qnlieu lacks a column: 'sentence' is undefined"),
        ("assin2_rte", "no data", f"{tmp_path}/assin2_rte has no test.jsonl"),
        ("xquad_es", "no data", f"{tmp_path}/xquad_es/validation.jsonl, line 2, is not JSON"),
        ("hellaswag", "no data", "neither among the local data nor in the cache of the Hub"),
        ("nothing_of_the_kind", "broken upstream", "lm-eval 0.4.13 has no task of that name"),
        ("escola", "failed", "RuntimeError: CUDA out of memory"),
        ("bec2016eu", "wrong suite", "bec2016eu has no metric acc; it has f1"),
        ("vaxx_stance", "ran", ""),
    ]
    assert {row.task for row in scored.rows()} == {"vaxx_stance"}  # no average: less than half of the tasks ran
    json.dumps(scored.to_dict(), allow_nan=False)


def test_code_that_comes_with_a_data_set_is_never_run(model, monkeypatch):
    asked = []

    def load(path, name=None, **options):
        asked.append((path, options))
        raise RuntimeError("Dataset scripts are no longer supported, but scored xnli_va.py")

    monkeypatch.setattr(datasets, "load_dataset", load)
    task = SuiteTask(task="xnli_va", language="ca", choices=3)  # its YAML asks to trust remote code
    outcome = only(run(model, None, task))
    assert outcome.outcome == "broken upstream"
    assert outcome.reason == "gplsi/xnli_va needs a loading script, which `datasets` no longer runs"
    (need,) = prefetch(Suite(name="mine", tasks=(task,)))
    assert (need.where, need.note) == ("missing", outcome.reason)
    assert asked == [("gplsi/xnli_va", {})] * 2


def test_without_network_the_hub_is_asked_once(model, monkeypatch):
    asked = []

    def load(path, name=None, **options):
        asked.append(datasets.config.HF_HUB_OFFLINE)
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    tasks = [SuiteTask(task=name, language="en", choices=2) for name in ("hellaswag", "piqa", "arc_easy")]
    scored = run(model, None, *tasks)
    assert {task.outcome for task in scored.outcomes} == {"no data"}
    assert asked == [False, True, True]  # a second attempt would wait half a minute for nothing
    assert datasets.config.HF_HUB_OFFLINE is False
    prefetch(Suite(name="mine", tasks=tuple(tasks)))
    assert asked == [False, True, True] * 2


def test_what_a_suite_needs_is_listed(data):
    suite = Suite(name="mine", tasks=(QNLI, SuiteTask(task="piqa", language="en", choices=2), *VERITAS[:1]))
    events = []
    needs = prefetch(suite, data, on_progress=events.append)
    assert [(need.task, need.dataset, need.splits, need.where) for need in needs] == [
        ("qnlieu", "orai-nlp/basqueGLUE qnli", ("test", "validation"), "local"),
        ("piqa", "baber/piqa", ("validation", "train"), "missing"),
        ("veritasqa_gen_ca", "projecte-aina/veritasQA ca", ("test",), "local"),
    ]
    assert needs[1].note == "neither among the local data nor in the cache of the Hub"
    assert (events[-1].kind, events[-1].done) == ("done", 3)


def test_a_killed_run_continues(model, data, tmp_path, monkeypatch):
    partial, seen, options = tmp_path / "partial", [], {"settings": {"limit": 2}}
    whole = run(model, data, QNLI, BEC, ESCOLA, **options)

    def stop(event):
        if event.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, data, QNLI, BEC, ESCOLA, partial=partial, on_progress=stop, **options)
    assert sorted(file.name.partition("-")[0] for file in partial.iterdir()) == ["bec2016eu", "qnlieu"]
    again = run(model, data, QNLI, BEC, ESCOLA, partial=partial, on_progress=seen.append, **options)
    assert again.rows() == whole.rows()
    assert [event.name for event in seen if event.kind == "skip"] == ["qnlieu", "bec2016eu"]
    assert [(event.done, event.total) for event in seen if event.kind == "source"] == [(1, 3), (2, 3), (3, 3)]
    monkeypatch.setattr(harness.HarnessModel, "_load", lambda self: pytest.fail("asked again"))
    assert run(model, data, QNLI, BEC, ESCOLA, partial=partial, **options).rows() == whole.rows()


def test_stored_tasks_with_other_questions_settings_or_weights_are_not_used(model, data, tmp_path, monkeypatch):
    score = Score(0.5, 0.1, 2, True, "none", 0, "0")
    asked = []
    monkeypatch.setattr(harness.HarnessModel, "score", lambda self, task, *_: asked.append(task.task_name) or score)
    rows_of(tmp_path / "qnlieu", test=[{"question": "a", "sentence": "b", "label": 0}] * 9)

    def asked_again(task=QNLI, **settings):
        asked.clear()
        run(model, tmp_path, task, partial=tmp_path / "partial", settings=settings)
        return bool(asked)

    assert asked_again()
    assert not asked_again()
    assert not asked_again(batch_size=7)  # changes no score
    assert not asked_again(QNLI.model_copy(update={"choices": 3}))  # the raw score is stored
    for other in ({"limit": 3}, {"num_fewshot": 1}, {"seed": 1}, {"precision": "bfloat16"}):
        assert asked_again(**other)
    rows_of(tmp_path / "qnlieu", test=[{"question": "c", "sentence": "b", "label": 0}] * 9)
    assert asked_again()
    weights = os.stat(f"{model}/model.safetensors")
    os.utime(f"{model}/model.safetensors", ns=(weights.st_atime_ns, weights.st_mtime_ns + 1))
    assert asked_again()


def test_a_group_of_the_harness_stands_for_its_tasks():
    flores = SuiteTask(
        task="flores_gl", language="gl", metric="bleu", output_type="generate_until", max=100, data="flores"
    )
    tasks, catalogue = expanded(Suite(name="mine", tasks=(flores,)))
    wanted = [task for task in Suite.find("iberobench").tasks if task.group == "flores_gl"]
    assert {task.task for task in tasks} == {task.task for task in wanted}
    assert {(task.group, task.folder, task.max) for task in tasks} == {("flores_gl", "flores", 100)}
    assert all(catalogue.data(task, None).dataset == "facebook/flores" for task in tasks)


def test_a_task_by_its_name_and_by_that_of_its_group_is_refused():
    group, member = (
        SuiteTask(task=name, language="gl", metric="bleu", output_type="generate_until", max=100)
        for name in ("flores_gl", "galician_bench_flores_gl-ca")
    )
    with pytest.raises(XDogeError, match="flores_gl-ca is listed twice"):
        expanded(Suite(name="mine", tasks=(group, member)))


@pytest.mark.parametrize(
    ("other", "settings", "message"),
    [
        ({"num_fewshot": 2}, {}, None),
        ({"num_fewshot": 2}, {"num_fewshot": 0}, None),
        ({}, {"num_fewshot": 0}, None),
        ({}, {}, "mine and other differ in num_fewshot of qnlieu, but a table has one number"),
        ({"num_fewshot": 2, "choices": 3}, {}, "mine and other differ in choices of qnlieu"),
        ({"num_fewshot": 2, "group": "g"}, {}, "mine and other differ in group of qnlieu"),
        ({"num_fewshot": 2, "group": "mine"}, {}, "mine is the name of a suite and of a task of other"),
    ],
)
def test_suites_that_would_give_a_row_two_values_are_refused_before_anything_runs(other, settings, message):
    mine = Suite(name="mine", num_fewshot=2, tasks=(QNLI,))
    suites = [mine, Suite(name="other", tasks=(QNLI.model_copy(update=other),))]
    if message is None:
        check(suites, HarnessSettings(**settings))
    else:
        with pytest.raises(XDogeError, match=message):
            check(suites, HarnessSettings(**settings))


def test_suites_of_one_name_or_of_groups_of_other_tasks_are_refused():
    mine = Suite(name="mine", tasks=(QNLI,))
    with pytest.raises(XDogeError, match="two suites are called mine; give one of the files another `name:`"):
        check([mine, mine], HarnessSettings())
    galician, catalan = (
        SuiteTask(task=f"flores_{pair}", language="gl", metric="bleu", output_type="generate_until", group="g")
        for pair in ("gl", "ca")
    )
    with pytest.raises(XDogeError, match="all and some differ in the tasks of g"):
        check_together({"all": [galician, catalan], "some": [galician]})


def outcome(task, value, *, stderr=None, language="eu", reason="", **fields):
    scale = {} if "choices" in fields or "chance" in fields else {"chance": 0}
    spec = SuiteTask(task=task, language=language, **scale, **fields)
    if value is None:
        return TaskOutcome(spec, "no data", reason)
    return TaskOutcome(spec, "ran", score=Score(value, stderr, 100, True, "none", 0, "0"))


def test_averages_of_known_scores():
    outcomes = (
        outcome("a", 0.75, stderr=0.03, choices=2),  # 50 ± 6
        outcome("b", 0.2, stderr=0.03, choices=4),  # -6.67 ± 4
        outcome("c", None, choices=4),
        outcome("x-y", 10.0, stderr=3.0, max=100, metric="bleu", output_type="generate_until", group="g"),
        outcome("y-x", 30.0, stderr=4.0, max=100, metric="bleu", output_type="generate_until", group="g"),
        outcome("d", -0.1, language="gl", metric="mcc"),
        outcome("e", None, language="pt"),
    )
    scored = Benchmarked("m", "mine", outcomes, HarnessSettings(), {})
    rows = {row.key[1:]: row for row in Results.of(scored.rows(), settings={}).rows}
    assert {key: (row.value, row.stderr, row.n) for key, row in rows.items()} == {
        ("eu", "a", "acc"): (0.75, 0.03, 100),
        ("eu", "a", "normalised"): (50, pytest.approx(6), 100),
        ("eu", "b", "acc"): (0.2, 0.03, 100),
        ("eu", "b", "normalised"): (pytest.approx(-20 / 3), pytest.approx(4), 100),
        ("eu", "x-y", "bleu"): (10, 3, 100),
        ("eu", "x-y", "normalised"): (10, 3, 100),
        ("eu", "y-x", "bleu"): (30, 4, 100),
        ("eu", "y-x", "normalised"): (30, 4, 100),
        ("gl", "d", "mcc"): (-0.1, None, 100),
        ("gl", "d", "normalised"): (-10, None, 100),
        ("eu", "g", "bleu"): (20, 2.5, 2),
        ("eu", "g", "normalised"): (20, 2.5, 2),
        ("eu", "mine", "normalised"): (
            pytest.approx((50 - 20 / 3 + 20) / 3), pytest.approx(math.sqrt(36 + 16 + 6.25) / 3), 3,
        ),
        ("gl", "mine", "normalised"): (-10, None, 1),
        (ALL, "mine", "normalised"): (pytest.approx(((50 - 20 / 3 + 20) / 3 - 10) / 2), None, 2),
    }  # fmt: skip
    assert all(row.higher_is_better for row in rows.values())
    listed = scored.to_dict()["outcomes"]
    assert {task["task"]: task["outcome"] for task in listed if task["outcome"] != "ran"} == {
        "c": "no data",
        "e": "no data",
    }
    assert listed[0]["normalised"] == 50
    assert (listed[0]["chance"], listed[0]["max"], listed[0]["metric"]) == (0.5, 1.0, "acc")


@pytest.mark.parametrize(("ran", "averages"), [(1, set()), (2, {"eu", ALL})])
def test_no_average_over_less_than_half_of_the_tasks(ran, averages, capsys):
    outcomes = [outcome(f"t{n}", 0.5 if n < ran else None, choices=4) for n in range(4)]
    outcomes += [outcome("u", 0.5, language="gl", choices=4), outcome("v", None, language="gl", choices=4)]
    outcomes += [outcome("w", 0.5, language="ca", choices=4)]
    scored = Benchmarked("m", "mine", tuple(outcomes), HarnessSettings(), {})
    assert {row.language for row in scored.rows() if row.task == "mine"} == {"gl", "ca", *averages}
    older = [Row("m", language, "mine", "normalised", 33.0, None, 1, True) for language in ("eu", "gl", "ca", ALL)]
    table = Results.of(older, settings={"benchmarks": {"mine": {"m": scored.to_dict()}}})
    assert {row["language"] for row in score_rows(table, baseline=None)} == {"gl", "ca", *averages}
    print_results(table)
    assert ("50% of the tasks ran: 1 of 4 tasks in eu, 3 of 7 tasks." in capsys.readouterr().out) == (ran == 1)


def test_prompts_that_do_not_fit_are_counted(model, data, tmp_path):
    long = [{"question": "etxe " * 600, "sentence": "ur " * 600, "label": 0}] * 3
    rows_of(tmp_path / "qnlieu", test=[*long, {"question": "a", "sentence": "b", "label": 1}])
    score = only(run(model, tmp_path, QNLI, settings={"num_fewshot": 0})).score
    assert (score.truncated, score.n) == (3, 4)


def test_importing_brings_in_nothing_heavy():
    code = (
        "import json, sys, xdoge.eval.lm_eval.benchmarks, xdoge.eval.suite;"
        "heavy = 'torch', 'transformers', 'datasets', 'lm_eval', 'evaluate';"
        "print(json.dumps([m for m in heavy if m in sys.modules]))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == []


def test_a_source_of_files_is_known_by_their_bytes(tmp_path):
    rows_of(tmp_path, test=[{"a": 1}])
    source = TaskData("d", None, {}, ("test",), {"test": tmp_path / "test.jsonl"}, "test")
    before = source.identity()
    rows_of(tmp_path, test=[{"a": 2}])
    os.utime(tmp_path / "test.jsonl", ns=(1, 1))
    assert source.identity() != before
