"""The promises of SECURITY.md: xdoge runs no file as code, and a store reads only its own files."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest

import xdoge as package
from xdoge.corpus import TokenStore
from xdoge.errors import XDogeError

CODE = sorted(Path(package.__file__).parent.rglob("*.py"))
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load"}


def test_no_module_runs_text_or_loads_pickles():
    assert len(CODE) > 50
    for file in CODE:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            where = f"{file}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                assert not {alias.name.partition(".")[0] for alias in node.names} & UNSAFE_MODULES, where
            elif isinstance(node, ast.ImportFrom):
                harmless = {alias.name for alias in node.names} == {"UnpicklingError"}
                assert harmless or (node.module or "").partition(".")[0] not in UNSAFE_MODULES, where
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert called not in UNSAFE_CALLS, where
                assert called != "torch.load" or keywords.get("weights_only") == "True", where
                assert called != "yaml.load" or keywords.get("Loader") == "_StrictLoader", where
                assert keywords.get("allow_pickle", "False") == keywords.get("shell", "False") == "False", where
                assert not called.endswith("from_pretrained") or keywords.get("trust_remote_code") == "False", where
                assert keywords.get("trust_remote_code", "False") == "False", where


# --- models that bring code ------------------------------------------------------------------------------------------

HOSTILE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig):
    model_type = "hostile"
class Model(LlamaForCausalLM):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """A path at which hostile code would write a file. All questions are answered with yes."""
    pytest.importorskip("transformers")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "code was run"


def model_with_code(folder, marker, model_type):
    folder.mkdir()
    classes = {"AutoConfig": "hostile.Config", "AutoModelForCausalLM": "hostile.Model"}
    config = {"model_type": model_type, "architectures": ["Model"], "auto_map": classes, "hidden_size": 8}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 8}
    tokenizer = {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": [None, "hostile.Tokenizer"]}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "hostile.py").write_text(HOSTILE.format(marker=str(marker)))
    return str(folder)


@pytest.mark.parametrize("model_type", ["hostile", "llama"])
def test_code_of_a_model_is_not_run(tmp_path, marker, model_type):
    from xdoge.corpus.tokenizer import huggingface
    from xdoge.models.initial_model import InitialModel
    from xdoge.models.resolver import CausalModel

    name = model_with_code(tmp_path / "model", marker, model_type)
    with pytest.raises(XDogeError):
        CausalModel.find(name).load()
    with pytest.raises(XDogeError):
        InitialModel.find(name).build(None, sequence_length=8, seed=0)
    with pytest.raises(XDogeError):
        huggingface(name)
    assert not marker.exists()


class Touch:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_in_place_of_weights_is_not_run(tmp_path, marker, zipped):
    from xdoge.models.initial_model import InitialModel
    from xdoge.models.resolver import CausalModel

    torch = pytest.importorskip("torch")
    name = model_with_code(tmp_path / "model", marker, "llama")
    file = tmp_path / "model" / "pytorch_model.bin"
    if zipped:
        torch.save({"model.norm.weight": Touch(marker)}, file)
    else:
        file.write_bytes(pickle.dumps(Touch(marker), protocol=2))
    with pytest.raises(XDogeError, match="cannot be loaded"):
        CausalModel.find(name).load()
    with pytest.raises(XDogeError, match="cannot be loaded"):
        InitialModel.find(name).build(None, sequence_length=8, seed=0)
    assert not marker.exists()


def test_code_of_a_data_set_is_not_run(tmp_path, marker):
    from xdoge.corpus.prepare import prepare

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "data.py").write_text(f"open({str(marker)!r}, 'w')")
    (tmp_path / "data" / "rows.jsonl").write_text('{"text": "etxe"}')
    path = tmp_path / "corpus.yaml"
    path.write_text(
        "{name: x, tokenizer: {train: {vocab_size: 300}}, languages: {eu: {sources: {web: {dataset: data}}}}}"
    )
    with pytest.raises(XDogeError, match="corpus.yaml: .*web.* Dataset scripts are no longer supported"):
        prepare(path, tmp_path / "store", workers=1)
    assert not marker.exists()


# --- stores that reach outside ---------------------------------------------------------------------------------------


@pytest.fixture
def copied(store, tmp_path):
    """A store that tests may change."""
    return Path(shutil.copytree(store.path, tmp_path / "store"))


def change(folder, edit):
    path = folder / "store.json"
    value = json.loads(path.read_text())
    edit(value["sources"])
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    "file", ["../../outside.arrow", "/etc/passwd", "tokens/es/wiki.train.arrow", "tokens/es/../../x"]
)
def test_a_store_has_the_tokens_of_a_source_in_one_place(copied, file):
    change(copied, lambda sources: sources["es/web"]["train"].update(file=file))
    with pytest.raises(XDogeError, match="store.json: the tokens of es/web .*, not in tokens/es/web"):
        TokenStore.open(copied)


@pytest.mark.parametrize("name", ["es/../../web", "../web", "es/./web", "/es/web", "es/wеb", "es"])
def test_a_store_has_no_source_whose_name_is_another_path(copied, name):
    change(copied, lambda sources: sources.update({name: sources.pop("es/web")}))
    with pytest.raises(XDogeError, match="store.json: .*a source is named language/source"):
        TokenStore.open(copied)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("/dev/zero", "is not a file or a link to a file"),
        ("web.train.arrow", "is missing from the store"),  # itself
        ("/nowhere", "is missing from the store"),
        (__file__, "bytes where store.json says"),
    ],
)
def test_a_link_in_a_store_to_what_is_no_token_file_is_refused(copied, target, message):
    file = copied / "tokens" / "es" / "web.train.arrow"
    file.unlink()
    file.symlink_to(target)
    with pytest.raises(XDogeError, match=f"web.train.arrow {message}|web.train.arrow has .* {message}"):
        TokenStore.open(copied)


def test_a_pipe_in_a_store_is_not_waited_for(copied):
    file = copied / "tokens" / "es" / "web.train.arrow"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(XDogeError, match="is not a file or a link to a file"):
        TokenStore.open(copied)


def test_a_link_to_a_file_of_the_right_size_gives_no_text(copied, tmp_path):
    """The error about a file outside the store reveals nothing of its content, only that it has no tokens."""
    file = copied / "tokens" / "es" / "web.train.arrow"
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret ".ljust(file.stat().st_size, b"x"))
    file.unlink()
    file.symlink_to(secret)
    store = TokenStore.open(copied)
    with pytest.raises(XDogeError, match="web.train.arrow is not a token file") as error:
        store.flat("es/web")
    assert "secret" not in str(error.value).replace(str(tmp_path), "")
    with pytest.raises(XDogeError, match="SHA-256 differs"):
        store.verify()


def test_tokens_outside_are_only_ever_numbers_of_a_bin_file(copied):
    raw = {"file": "/etc/passwd", "dtype": "uint16", "size": 10, "sha256": "", "begin": 0, "end": 5}
    for entry, message in [
        (raw, "/etc/passwd cannot hold tokens"),
        (raw | {"file": "/x.bin", "dtype": "object"}, "store.json is damaged"),
        (raw | {"file": "/x.bin", "end": 6}, "store.json is damaged"),
        (raw | {"file": "/x.bin"}, "/x.bin is missing from the store; it lies outside the store"),
    ]:
        change(copied, lambda sources, entry=entry: sources["es/web"]["train"].update(raw=[entry]))
        with pytest.raises(XDogeError, match=message):
            TokenStore.open(copied)
