"""Export for OLMo-core: a source mixture."""

from __future__ import annotations

import math

from xdoge.export.request import Export, Request, to_yaml


def olmo_core(request: Request) -> Export:
    """Source mixture of OLMo-core, a `SourceMixtureList`: YAML.

    Use: `SourceMixtureDatasetConfig(source_list=SourceMixtureList.from_yaml(FILE), requested_tokens=BUDGET, ...)`. The
    budget is in the first line of the file.

    Weights: shares of tokens, which must sum to 1 within 1e-5. OLMo-core reads whole sequences. `max_repetition_ratio`
    is the epoch cap of the source, at least 1; without a cap it is the number of passes, rounded up. OLMo-core does not
    start if the source's share needs more passes than that.

    At the end of a source nothing happens, because whole passes and the rest are laid out in advance. The rest is the
    first part of each file, not a random part. If a source is read less than once, text at the end of its files is
    never read, so shuffle the files. The loader shuffles all passes together.

    Paths: "data/{language}/{source}/*.npy", a file of token ids or a pattern for several.

    Source: olmo_core/data: source_mixture.py, numpy_dataset.py, `NumpyFSLDatasetMixture` (3.0.0).
    """
    places = request.places("data/{language}/{source}/*.npy")
    passes = request.passes
    entries = []
    for source, share in request.shares.items():
        most = share.max_epochs if share.max_epochs is not None else math.ceil(passes[source])
        entries.append(
            {
                "source_name": source,
                "target_ratio": share.weight,
                "paths": [places[source]],
                "max_repetition_ratio": max(1.0, float(most)),
            }
        )
    least = min(passes, key=lambda source: passes[source])
    partly = sum(value < 1 for value in passes.values())
    warnings = [
        f"{partly} of {len(passes)} sources are not read in full: OLMo-core reads the first part of each "
        f"file ({passes[least]:.1%} of {least}) and never the rest."
    ]
    text = to_yaml({"sources": entries}, f"requested_tokens: {request.mixture.budget_tokens}")
    return Export(text, ".yaml", tuple(warnings if partly else ()))
