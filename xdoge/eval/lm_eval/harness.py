"""A language model behind lm-eval's interface. It is loaded once for all tasks and keeps its own tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from xdoge.corpus.tokenizer import Tokenizer
from xdoge.distributed import Processes
from xdoge.errors import Interrupted, XDogeError
from xdoge.eval.lm_eval.catalogue import TaskError, one_line, quiet
from xdoge.eval.scoring import load_on
from xdoge.eval.suite import HarnessSettings
from xdoge.io import sha256_json
from xdoge.models.resolver import CausalModel
from xdoge.models.tokenizers import model_file, model_tokenizer
from xdoge.sampling.permutation import derive_key

RESAMPLES = 100
"""Number of resamples of the questions, for the standard error of a score that is not a mean. lm-eval uses as many for
BLEU."""


@dataclass(frozen=True)
class Score:
    """The score of a model in a task.

    Attributes:
        value: score in the metric's own unit.
        stderr: standard error of the score; None if it cannot be estimated, as for a single question.
        n: number of questions.
        higher_is_better: whether a higher score is better, according to the harness.
        filter: filter of the harness that the answers went through.
        truncated: number of questions whose prompt was longer than the model's context. Its beginning, usually
            examples, was cut off.
        prompts: SHA-256 of all prompts. Two models were asked the same questions if it is equal.
    """

    value: float
    stderr: float | None
    n: int
    higher_is_better: bool
    filter: str
    truncated: int
    prompts: str


class HarnessModel:
    """A causal language model that answers the questions of lm-eval.

    Attributes:
        tokenizer: fingerprint of the tokenizer.
        begin: token before every prompt; None if the model's own tokenizer decides.
        context: number of tokens that the model sees at once; 0 before the first task.
    """

    def __init__(self, causal: CausalModel, processes: Processes, settings: HarnessSettings) -> None:
        self._causal, self._processes, self._settings = causal, processes, settings
        tokenizer = model_tokenizer(causal.name)
        self.tokenizer, self.begin = tokenizer.fingerprint, _begin(causal, tokenizer)
        self._lm: Any = None
        self.context = 0

    def score(self, task: Any, metric: str, wanted_filter: str | None) -> Score | None:
        """Return the score in a task, in every process; None if the harness did not compute this metric.

        Raises:
            TaskError: the model could not answer in one of the processes.
        """
        self._lm = self._lm or self._load()
        with quiet():
            from lm_eval.evaluator import evaluate

            results = evaluate(
                lm=self._lm,
                task_dict={"tasks": {task.task_name: task}},
                limit=self._settings.limit,
                bootstrap_iters=0,  # lm-eval would resample every metric, also unused ones
                log_samples=True,
            )
            return self._score(task, metric, wanted_filter, results)

    def _score(self, task: Any, metric: str, wanted: str | None, results: Mapping[str, Any]) -> Score | None:
        samples = results["samples"][task.task_name]
        chosen = wanted or samples[0]["filter"]
        value = results["results"][task.task_name].get(f"{metric},{chosen}")
        if value is None:
            return None
        kept = sorted((sample for sample in samples if sample["filter"] == chosen), key=lambda sample: sample["doc_id"])
        values = [sample[metric] for sample in kept]
        seed = derive_key("benchmark", self._settings.seed, task.task_name)
        return Score(
            float(value),
            _stderr(task.aggregation()[metric], values, seed),
            len(values),
            bool(task.higher_is_better()[metric]),
            chosen,
            sum(any(self._truncates(*asked) for asked in sample["arguments"]) for sample in kept),
            sha256_json({"prompts": [sample["prompt_hash"] for sample in kept]}),
        )

    def _truncates(self, context: str, answer: str | Mapping[str, Any]) -> bool:
        """Return whether a prompt and its answer are longer than the model's context."""
        if isinstance(answer, str):
            return len(self._lm.tok_encode(context + answer)) - 1 > self.context  # the last token predicts nothing
        room = int(answer.get("max_gen_toks", self._lm.max_gen_toks))
        return len(self._lm.tok_encode(context)) + room > self.context

    def _divided(self, ask: Callable[[list[Any]], list[Any]], requests: list[Any]) -> list[Any]:
        """Return the answers to all requests, in every process. Each process runs the model on a part of the requests.

        The harness itself divides the questions earlier and gathers the answers later. A process that fails in between
        would leave the others waiting, and the prompts would depend on the number of processes. Here, only the work of
        the model is divided.

        Raises:
            TaskError: a process could not answer. All processes raise it, with the reason of the first.
        """
        rank, count = self._processes.rank, self._processes.world_size
        own, answers, failure = [request for request in requests if request.doc_id % count == rank], list[Any](), None
        try:
            answers = ask(own) if own else answers
        except (Interrupted, XDogeError):
            raise
        except Exception as error:  # a task that fails must not stop the other tasks
            failure = error
        parts = self._processes.all_gather_objects((failure and self._reason(failure), answers))
        if reasons := [reason for reason, _ in parts if reason]:
            raise TaskError("failed", reasons[0]) from failure
        answered = [iter(part) for _, part in parts]
        return [next(answered[request.doc_id % count]) for request in requests]

    def _reason(self, error: Exception) -> str:
        """Return in one line why the model could not answer."""
        if isinstance(error, AssertionError):  # lm-eval raises these without a message
            return str(error) or f"an answer is empty, or longer than the context of the model, {self.context} tokens"
        return one_line(error)

    def _load(self) -> Any:
        from lm_eval.models.huggingface import HFLM
        from transformers import AutoTokenizer

        settings, divided = self._settings, self._divided

        class Divided(HFLM):  # type: ignore[misc, no-any-unimported, unused-ignore]
            """Divides only the answers over processes. The harness sees each process as the only one."""

            def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
                return divided(super().loglikelihood, requests)

            def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
                return divided(super().generate_until, requests)

        if self.begin is None:
            tokenizer: Any = AutoTokenizer.from_pretrained(self._causal.name, trust_remote_code=False)
        else:
            tokenizer = sentencepiece_tokenizer(str(model_file(self._causal.name, "tokenizer.model")), begin=self.begin)
        with quiet():
            # in bfloat16, the softmax would give many answers the same probability
            lm = Divided(
                pretrained=load_on(self._processes, self._causal, settings.precision, settings.device),
                tokenizer=tokenizer,
                batch_size=settings.batch_size,
                max_length=self._causal.context,
                softmax_dtype="float32",
            )
        self.context = int(lm.max_length)
        return lm


def sentencepiece_tokenizer(path: str, *, begin: int) -> Any:
    """Return a transformers tokenizer with exactly the tokens of a SentencePiece model, and `begin` before every text.

    The tokenizer that transformers converts such a model to gives other tokens.
    """
    import sentencepiece
    from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

    class Faithful(SentencePieceBackend):  # type: ignore[misc, no-any-unimported, unused-ignore]
        """Passes the text to SentencePiece without splitting off special tokens, and joins byte tokens again."""

        def convert_tokens_to_string(self, tokens: list[str]) -> str:
            texts, special = [""], set(self.all_special_tokens)
            run: list[str] = []
            for token in [*tokens, None]:
                if token is None or token in special:
                    texts += [self.sp_model.decode_pieces(run), token or ""]
                    run = []
                else:
                    run.append(token)
            return "".join(texts)

    processor = sentencepiece.SentencePieceProcessor(model_file=path)
    pieces = {"unk_token": processor.unk_id(), "bos_token": begin, "eos_token": processor.eos_id()}
    tokenizer: Any = Faithful
    return tokenizer(
        vocab_file=path,
        special_tokens_pattern="bos",
        split_special_tokens=True,
        **{name: processor.id_to_piece(token) for name, token in pieces.items()},
    )


def _begin(causal: CausalModel, tokenizer: Tokenizer) -> int | None:
    if tokenizer.kind != "sentencepiece":
        return None
    return tokenizer.end_of_document if causal.begin is None else causal.begin


def _stderr(aggregate: Callable[[list[Any]], float], values: list[Any], seed: int) -> float | None:
    """Return the standard error of a score: exact for a mean, from a bootstrap over questions for any other."""
    import numpy as np
    from lm_eval.api.metrics import mean

    if len(values) < 2:
        return None
    if aggregate is mean:
        return float(np.std(values, ddof=1) / np.sqrt(len(values)))
    generator = np.random.default_rng(seed)
    draws = generator.integers(len(values), size=(RESAMPLES, len(values)))
    spread = float(np.std([aggregate([values[i] for i in draw]) for draw in draws.tolist()], ddof=1))
    return spread if np.isfinite(spread) else None
