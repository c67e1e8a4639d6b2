"""Find, check, identify and load a causal language model by its name: a local folder, a run folder, or a Hub name.

Training and evaluation both use this module, so they accept the same models. Code that comes with a model is never run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from xdoge.errors import XDogeError, argument, importing
from xdoge.io import sha256_file
from xdoge.models.memory import memory_errors
from xdoge.models.tokenizers import model_file
from xdoge.models.weight_files import check_files, check_size, foreign_errors, refuse_adapter, refuse_wrong_keys
from xdoge.names import shown

LONGEST = 2048
"""Default number of tokens of a sequence or window, unless the model's context is shorter."""

CONTEXT_KEYS = ("max_position_embeddings", "max_seq_len", "max_target_positions", "max_sequence_length")
"""Keys of a configuration that can give the context. The first one present counts.

MPT and DBRX have the second, Whisper the third.
"""

FROM_PADDING = frozenset(
    {"camembert", "data2vec-text", "prophetnet", "roberta", "roberta-prelayernorm"}
    | {"xlm-roberta", "xlm-roberta-xl", "xmod"}
)
"""Model types whose positions of text start from the id of the padding token + 1."""


@dataclass(frozen=True)
class CausalModel:
    """A causal language model that is not loaded yet.

    Attributes:
        name: folder, or name on the Hub.
        config: configuration of transformers.
    """

    name: str
    config: Any

    @classmethod
    def find(cls, name: str, *, kinds: str = "") -> Self:
        """Return the model of a name. No weights are loaded yet.

        Args:
            name: folder of a model, a run folder, or a name on the Hub.
            kinds: other kinds of name that the caller accepts, for the error message, such as "a recipe, ".

        Raises:
            XDogeError: the model cannot be read, or is not a causal language model.
        """
        name = model_folder(name)
        folder = Path(name)
        refuse_adapter(folder)
        if folder.is_dir() and not (folder / "config.json").is_file():
            inside = [str(file.parent) for file in sorted(folder.glob("*/config.json"))]
            hint = f"; there is a model in {' and '.join(inside)}" if inside else ""
            raise XDogeError(f"model {name!r} is not a model: it has no config.json{hint}.")
        if not folder.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
            raise XDogeError(f"model {name!r} does not exist.")
        with importing("proxy"):
            from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig
        if folder.is_dir():
            check_files(folder)
        what = (
            "is a folder that cannot be read as a model"
            if folder.is_dir()
            else f"is not {kinds}a folder or a model on the Hub"
        )
        with foreign_errors(f"model {name!r} {what}"):
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise XDogeError(f"model {name!r} is a {config.model_type}, which is not a causal language model.")
        model = cls(name, config)
        _ = model.context, model.begin  # raise their errors before the long work starts
        return model

    @property
    def context(self) -> int | None:
        """Tokens of the longest sequence that the model can read, None if there is no limit.

        Raises:
            XDogeError: the configuration gives less than two tokens, or something else than a number.
        """
        config = self.config.get_text_config()
        key = next((key for key in CONTEXT_KEYS if getattr(config, key, None) is not None), CONTEXT_KEYS[0])
        value = getattr(config, key, None)
        if value is None or value == -1:  # XLNet: no limit
            return None
        if config.model_type in FROM_PADDING and isinstance(config.pad_token_id, int):
            value -= config.pad_token_id + 1
        if type(value) is not int or value < 2:
            raise XDogeError(
                f"{self.name}/config.json: {key} {shown(getattr(config, key))} is too small for a "
                "sequence of two tokens."
            )
        return value

    @property
    def default_length(self) -> int:
        """Tokens of a sequence or window if the user does not set them."""
        return min(self.context or LONGEST, LONGEST)

    def check_length(self, setting: str, length: int) -> None:
        """Raise an error if sequences are longer than the model's context.

        Args:
            setting: name of the setting, for the message.
            length: tokens of a sequence.

        Raises:
            XDogeError: `length` is larger than the context.
        """
        if self.context is not None and length > self.context:
            raise XDogeError(
                f"{argument(setting)} {length:,} is longer than the context of {self.name}, {self.context:,}; lower it "
                "or leave it out."
            )

    @property
    def begin(self) -> int | None:
        """Id of the token that begins a text, None if the model has none.

        Raises:
            XDogeError: the id is not in the vocabulary.
        """
        config = self.config.get_text_config()
        token, size = getattr(config, "bos_token_id", None), getattr(config, "vocab_size", None)
        if token is not None and not (type(token) is int and type(size) is int and 0 <= token < size):
            raise XDogeError(
                f"{self.name}/config.json: bos_token_id {shown(token)} is not in a vocabulary of "
                f"{shown(size)}; set it to the token that begins a text, or to null."
            )
        return token

    def identity(self) -> dict[str, Any]:
        """Return what shows quickly whether the model changed: sizes and times of files, or the commit on the Hub."""
        if not Path(self.name).is_dir():
            return {"name": self.name, **self.pin()}
        files = [file for file in sorted(Path(self.name).iterdir()) if file.suffix in (".safetensors", ".bin", ".json")]
        return {"files": {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}}

    def pin(self) -> dict[str, Any]:
        """Return what identifies the weights permanently: SHA-256 of the files, or the commit on the Hub."""
        if not Path(self.name).is_dir():
            file = model_file(self.name, "config.json")  # in a folder whose name is the commit
            return {"commit": file.parent.name if file else None}
        names = re.compile(r"config\.json|.*\.safetensors|pytorch_model.*\.bin")
        files = [path for path in sorted(Path(self.name).iterdir()) if names.fullmatch(path.name)]
        return {"sha256": {path.name: sha256_file(path) for path in files}}

    def load(
        self,
        *,
        length: int | None = None,
        precision: str = "float32",
        device: str = "cpu",
        split: bool = False,
        advice: str = "use a machine with more memory",
    ) -> Any:
        """Return the model of transformers with its weights.

        Args:
            length: tokens of the longest sequence that it will read. Default: its context.
            precision: name of torch's type for the weights.
            device: device of the model.
            split: distribute the layers over all GPUs instead.
            advice: end of the message if memory is full.

        Raises:
            XDogeError: the weights cannot be loaded, or do not match the configuration. Or the model's predictions
                depend on later tokens, or it has fewer positions than `length`.
            MemoryFullError: the device has too little memory.
        """
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar

        from xdoge.models.probes import refuse_future

        disable_progress_bar()  # type: ignore[no-untyped-call]
        options = {"device_map": "auto"} if split else {}
        with (
            foreign_errors(f"the weights of {self.name} cannot be loaded"),
            memory_errors(f"while loading {self.name}; {advice}"),
        ):
            if Path(self.name).is_dir() and not getattr(self.config, "quantization_config", None):
                check_size(Path(self.name), parameter_count(self.config))
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                self.name,
                dtype=getattr(torch, precision),
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # the error is raised below, with the name of the tensor
                **options,
            )
            model, info = loaded
            refuse_wrong_keys(self.name, info)
            model = model if split else model.to(device)
        with memory_errors(f"while trying {self.name} on a few tokens; {advice}"):
            refuse_future(model, self.name, length=length or self.context or 0)
        return model


def parameter_count(config: Any) -> int:
    """Return the number of parameters of the causal language model of a configuration, without allocating them."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return sum(parameter.numel() for parameter in model.parameters())


def model_folder(name: str) -> str:
    """Return the folder of the trained model if `name` is a run folder. Return any other name unchanged.

    Raises:
        XDogeError: the run is not finished.
    """
    folder = Path(name)
    for file, inside in (("train.json", "model"), ("weights.json", "proxy")):
        if (folder / file).is_file() and (folder / inside).is_dir():
            return str(folder / inside)
    if (folder / "config.yaml").is_file() and not (folder / "config.json").is_file():
        raise XDogeError(f"{name} is a run that is not finished; resume it first.")
    return name
