"""Show the descriptions of settings on the API pages instead of calls of pydantic's `Field` (a Griffe extension)."""

from __future__ import annotations

import ast
from typing import Any

from griffe import Attribute, Docstring, Extension, ObjectNode


class FieldDocs(Extension):
    """Turns `name: type = Field(default, description=text)` into `name: type = default` with the docstring `text`."""

    def on_attribute_instance(self, *, node: ast.AST | ObjectNode, attr: Attribute, **_: Any) -> None:
        """Replace the value of an attribute that calls `Field`, and set its docstring."""
        call = getattr(node, "value", None)
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Field"):
            return
        for keyword in call.keywords:
            if keyword.arg == "description":
                attr.docstring = Docstring(str(ast.literal_eval(keyword.value)), parent=attr)
        attr.value = ast.unparse(call.args[0]) if call.args else None
        attr.labels.discard("class-attribute")
