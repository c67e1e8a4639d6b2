"""Convert a GGUF file to a model folder that `xdoge train` can continue from: float32 weights and the tokenizer.

`transformers` opens the file and dequantises it. The resulting model still counts as quantised, and can be neither
saved nor trained. Therefore this script copies the weights into a new model with the same configuration. The converted
model is a little worse than the original, because of the quantisation.

    pip install gguf accelerate
    python gguf_to_model.py SmolLM2-135M-Instruct.Q4_1.gguf smollm2
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def convert(file: Path, out: Path) -> None:
    """Write the model in `file` and its tokenizer to the folder `out`."""
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    quantised = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(quantised)(config)
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(**where).save_pretrained(out)


def main(argv: Sequence[str] | None = None) -> int:
    """Convert the file that the command line names."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    convert(Path(arguments[0]), Path(arguments[1]))
    print(arguments[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
