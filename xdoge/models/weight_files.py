"""Check the files of a model before and after transformers reads them.

transformers does not report some faults. It replaces missing weights by random tensors, reads any path that an index
names, and creates as many layers as a configuration says. Here these are errors.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

from xdoge.errors import MOST_NAMES, XDogeError
from xdoge.io import read_json, refuse_pointer
from xdoge.names import shown

MOST_PARTS = 10_000
"""Most layers or experts. No model has more, and transformers would create them all before it reads the weights."""

_PARTS = re.compile(r"layers?$|experts?$|blocks?$|depth")
_INTEGER, _WEIGHT = re.compile(r"[IU]\d+"), re.compile(r"(weight|proj)$")
_READ = (".safetensors", ".bin", ".json", ".model", ".jinja", ".txt")
_HEADER = 8  # bytes of a safetensors file that hold the length of its header


def check_files(folder: Path) -> None:
    """Raise an error if the configuration or the headers of the weight files show that a model is damaged.

    Raises:
        XDogeError: config.json or generation_config.json is not a JSON object, config.json has an absurd number of
            layers or experts, or an index names a file outside the folder. Or a safetensors file is truncated or
            contains integers instead of weights, or a file is a pipe.
    """
    safe = any((folder / name).exists() for name in ("model.safetensors", "model.safetensors.index.json"))
    for file in sorted(folder.iterdir()):
        if file.suffix in _READ and not file.is_file():
            raise XDogeError(f"{file} is no file, but a folder, a pipe or a link that leads nowhere.")
        if file.suffix in _READ and not (file.suffix == ".bin" and safe):  # transformers prefers safetensors
            refuse_pointer(file)
    config = read_json(folder / "config.json")
    if (folder / "generation_config.json").exists():
        read_json(folder / "generation_config.json")
    for key, value in _numbers(config):
        if _PARTS.search(key) and value > MOST_PARTS:
            raise XDogeError(f"{folder / 'config.json'}: {key} is {shown(value)}; it must be at most {MOST_PARTS:,}.")
    for index in sorted(folder.glob("*.index.json")):
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict):
            raise XDogeError(f"{index} has no weight_map, which says where each tensor lies.")
        for name in names.values():
            if not isinstance(name, str) or Path(name).name != name:
                raise XDogeError(f"{index} names {shown(name)}, which is not a file of that folder.")
    for file in sorted(folder.glob("*.safetensors")):
        for name, (kind, _) in _tensors(file).items():
            if _INTEGER.fullmatch(kind) and _WEIGHT.search(name) and not config.get("quantization_config"):
                raise XDogeError(
                    f"{file}: {name} holds integers ({kind}), as in a quantised model, and config.json has no "
                    "quantization_config that says how to read them."
                )


def refuse_adapter(folder: Path) -> None:
    """Raise XDogeError if a folder contains an adapter, which transformers ignores if peft is not installed."""
    if (folder / "adapter_config.json").exists():
        raise XDogeError(
            f"{folder} holds an adapter (adapter_config.json), which xdoge does not apply. Merge it into its base "
            "model with peft's merge_and_unload, and save the result to another folder."
        )


def check_size(folder: Path, parameters: int) -> None:
    """Raise an error if a configuration describes more than twice the parameters in the safetensors files.

    transformers would allocate all of them before it reports that they are missing.

    Args:
        folder: folder of the model.
        parameters: number of parameters that the configuration describes.

    Raises:
        XDogeError: the configuration and the weights do not match.
    """
    files = sorted(folder.glob("*.safetensors"))
    held = sum(size for file in files for _, size in _tensors(file).values())
    if files and parameters > 2 * held:
        raise XDogeError(
            f"{folder / 'config.json'} describes a model of {parameters:,} parameters, but its weights "
            f"hold {held:,}; these are not the files of one model."
        )


def _tensors(file: Path) -> dict[str, tuple[str, int]]:
    """Return the type and the number of elements of each tensor in a safetensors file, from its header.

    Raises:
        XDogeError: the file is truncated, or is not a safetensors file.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(_HEADER), "little")
            if size < _HEADER + length or length < 2:
                raise ValueError(f"{size:,} bytes end within its header")
            header: dict[str, Any] = json.loads(stream.read(length))
        tensors = {name: value for name, value in header.items() if name != "__metadata__"}
        end = _HEADER + length + max((value["data_offsets"][1] for value in tensors.values()), default=0)
        if size != end:
            raise ValueError(f"it has {size:,} bytes, but its header says {end:,}")
        return {name: (str(value["dtype"]), math.prod(value["shape"])) for name, value in tensors.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise XDogeError(f"{file} is damaged or cut off: {_line(error)}. Copy or download it again.") from error


def refuse_wrong_keys(name: str, info: Mapping[str, Any]) -> None:
    """Raise an error if weights do not match the configuration, according to transformers' loading info.

    Raises:
        XDogeError: tensors are missing, unexpected or of another shape.
    """
    wrong = [
        ("missing", sorted(info["missing_keys"])),
        ("unexpected", sorted(info["unexpected_keys"])),
        (
            "of another shape",
            sorted(f"{key} {tuple(has)}, not {tuple(wants)}" for key, has, wants in info["mismatched_keys"]),
        ),
        ("not convertible", sorted(info.get("conversion_errors", ()))),
    ]
    parts = [f"{what}: {_some(keys)}" for what, keys in wrong if keys]
    if parts:
        raise XDogeError(f"the weights of {name} are not those of its config.json; {'; '.join(parts)}.")


@contextlib.contextmanager
def foreign_errors(what: str) -> Iterator[None]:
    """Turn any exception while reading foreign files into an XDogeError that begins with `what`.

    Libraries raise exceptions of any type if the content of a file is unexpected.

    Raises:
        XDogeError: the block failed.
    """
    from transformers.utils.logging import get_verbosity, set_verbosity

    before = get_verbosity()
    set_verbosity(logging.CRITICAL)  # the error has the relevant information
    try:
        yield
    except (XDogeError, MemoryError):
        raise
    except Exception as error:
        raise XDogeError(f"{what}: {_line(error)}") from error
    finally:
        set_verbosity(before)


def _numbers(value: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """Yield the key and value of all numbers, including nested ones."""
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _numbers(item)
        elif isinstance(item, int | float):
            yield key, item


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - MOST_NAMES} more" if len(keys) > MOST_NAMES else ""
    return ", ".join(keys[:MOST_NAMES]) + more


def _line(error: Exception) -> str:
    if type(error).__name__ == "UnpicklingError":  # whose message advises to load any pickle
        return "it holds more than tensors, and xdoge runs no pickles"
    if isinstance(error, KeyError):
        return f"{error} is unknown or missing"
    return shorten(str(error), 200) or type(error).__name__  # shortened at a word, so that URLs stay whole
