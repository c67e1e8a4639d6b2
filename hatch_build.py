"""A hook of hatchling. PyPI shows README.md outside the repository, so its relative links become links to GitHub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)(\[[^]]*\])\((?!https?:|mailto:|#)([^)\s]+)\)")


class ReadmeHook(MetadataHookInterface):
    """Adds the description of the package, which is README.md with absolute links."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set `readme` in the metadata of the project."""
        repository = metadata["urls"]["Homepage"]
        raw = repository.replace("github.com", "raw.githubusercontent.com")

        def absolute(link: re.Match[str]) -> str:
            mark, text, target = link.groups()
            return f"{mark}{text}({raw}/main/{target})" if mark else f"{text}({repository}/blob/main/{target})"

        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": LINK.sub(absolute, readme)}
