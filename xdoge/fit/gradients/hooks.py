"""Stand-ins: replacements of the modules' forward, which give gradients per segment in one backward pass.

Each stand-in has the same output as the module. Its backward does not form the weight's gradient. It hands the pieces
of this gradient to a `GradientSink`. Linear maps and embeddings hand over the two factors of the gradient, which they
have anyway. Norms use one copy of their gain per row. Any other module that owns parameters runs once per segment, with
a copy of its parameters for each segment. That is exact, but slow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from xdoge.errors import XDogeError
from xdoge.fit.gradients.segments import Dense, Lookup, Piece, Product, RowLayout, working_dtype


class GradientSink(Protocol):
    """Receives pieces of gradients from the stand-ins. `GradientAccumulator` implements it."""

    layout: RowLayout  # of the current microbatch
    anchor: torch.Tensor  # a leaf that makes outputs require a gradient, since no parameter is among the inputs
    checked: set[str]  # modules whose stand-in was compared with the module and gave the same output

    def expect(self, parameter: nn.Parameter) -> None:
        """Count a use of the parameter. Stand-ins call this in forward."""

    def arrive(self, parameter: nn.Parameter, piece: Piece) -> None:
        """Take the gradient of one use of the parameter. Stand-ins call this in backward."""

    def add_losses(self, losses: torch.Tensor) -> None:
        """Add the losses of all predicted tokens of the microbatch, (N,)."""


Forward = Callable[..., Any]


@dataclass(frozen=True)
class HookedModule:
    """A module and the function that replaces its forward; `is_fallback` marks the slow one for unknown modules."""

    name: str
    module: nn.Module
    stand_in: Callable[..., Any]
    is_fallback: bool = False


def hooked_modules(model: nn.Module) -> list[HookedModule]:
    """Return every module that owns parameters, with the function that replaces its forward.

    Raises:
        XDogeError: a module or a setting mixes rows, or the model is compiled.
    """
    if getattr(getattr(model, "config", None), "output_router_logits", False):
        raise XDogeError(
            "config.output_router_logits is True: the router's auxiliary loss mixes the rows of all "
            "sources, so the sources have no gradients of their own. Set it to False."
        )
    refuse_compiled(model)
    for name, module in model.named_modules():
        _refuse(name or type(model).__name__, module)
    return list(_walk(model, "", set()))


def refuse_compiled(model: nn.Module) -> None:
    """Raise XDogeError if a part of the model is compiled, since a compiled module does not call its stand-in."""
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise XDogeError(
                f"{name or type(module).__name__} is compiled by torch.compile, which leaves out the "
                "Python code in the backward pass that computes gradients per source. Pass the model "
                "before it is compiled."
            )


def _refuse(name: str, module: nn.Module) -> None:
    kind = type(module).__name__
    if any("BatchNorm" in base.__name__ for base in type(module).__mro__):
        raise XDogeError(
            f"{name} is a {kind}, which mixes the rows of all sources, so the sources have no gradients "
            "of their own. Use a norm that works row by row, such as LayerNorm or RMSNorm."
        )
    if isinstance(module, nn.Embedding) and (module.scale_grad_by_freq or module.max_norm is not None):
        setting = "scale_grad_by_freq" if module.scale_grad_by_freq else "max_norm"
        raise XDogeError(f"{name} is an embedding with {setting}, which depends on the whole batch. Switch it off.")


def _walk(module: nn.Module, name: str, seen: set[nn.Module]) -> Iterator[HookedModule]:
    if module in seen:
        return
    seen.add(module)
    forward = None if "forward" in vars(module) else getattr(type(module), "forward", None)
    owned = {key for key, value in module.named_parameters(recurse=False)}
    stand_in: Callable[..., Any] | None = None
    if "weight" in owned and (forward is nn.Linear.forward or (forward is not None and _is_conv1d(type(module)))):
        stand_in = _linear
    elif "weight" in owned and forward is nn.Embedding.forward:
        stand_in = _embedding
    elif "weight" in owned and forward in (nn.LayerNorm.forward, nn.RMSNorm.forward) and _has_vectors(module):
        stand_in = _norm
    elif owned and forward is not None and "RMSNorm" in type(module).__name__ and _has_vectors(module):
        stand_in = _gain  # every *RMSNorm of transformers multiplies by its gain elementwise; checked when it runs
    if stand_in is not None:
        yield HookedModule(name, module, stand_in)
    elif owned:
        yield HookedModule(name, module, _by_segment, is_fallback=True)
    else:
        for child_name, child in module.named_children():
            yield from _walk(child, f"{name}.{child_name}" if name else child_name, seen)


def _is_conv1d(kind: type) -> bool:
    """Whether this is GPT-2's linear map with a transposed weight. Does not import transformers."""
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def _has_vectors(module: nn.Module) -> bool:
    return all(parameter.dim() == 1 for parameter in module.parameters()) and not list(module.children())


# ---------------------------------------------------------------------------------------------- stand-ins


def _linear(sink: GradientSink, hooked: HookedModule, forward: Forward, input: torch.Tensor) -> torch.Tensor:
    _check_rows(sink, hooked, input)
    expect_gradients(sink, hooked.module)
    flat = input.reshape(-1, input.shape[-1])  # outputs of two dimensions are no views: the model may change them
    output: torch.Tensor = _Linear.apply(flat, sink.anchor, hooked.module, sink)  # type: ignore[no-untyped-call]
    return output.view(*input.shape[:-1], output.shape[-1])


def _embedding(sink: GradientSink, hooked: HookedModule, forward: Forward, input: torch.Tensor) -> torch.Tensor:
    n_rows, n_tokens = sink.layout.n_rows, sink.layout.n_tokens
    if input.dim() == 1 and len(input) == n_tokens != n_rows:
        input = input[None]
    if input.dim() > 1 and input.shape[0] == 1 < n_rows:
        input = input.expand(n_rows, *input.shape[1:])  # the same position ids for all rows
    _check_rows(sink, hooked, input)
    expect_gradients(sink, hooked.module)
    flat = input.reshape(-1)  # as in _linear
    output: torch.Tensor = _Embedding.apply(flat, sink.anchor, hooked.module, sink)  # type: ignore[no-untyped-call]
    return output.view(*input.shape, output.shape[-1])


def _norm(sink: GradientSink, hooked: HookedModule, forward: Forward, input: torch.Tensor) -> torch.Tensor:
    module: Any = hooked.module
    _check_rows(sink, hooked, input)
    if isinstance(module, nn.LayerNorm):
        output = functional.layer_norm(input, module.normalized_shape, None, None, module.eps)
    else:
        output = functional.rms_norm(input, module.normalized_shape, None, module.eps)
    output = output * _per_row(sink, module.weight, input)
    bias = getattr(module, "bias", None)
    return output if bias is None else output + _per_row(sink, bias, input)


def _gain(sink: GradientSink, hooked: HookedModule, forward: Forward, *args: Any, **kwargs: Any) -> torch.Tensor:
    first = args[0] if args else next(iter(kwargs.values()))
    _check_rows(sink, hooked, first)
    slots = _slots(hooked.module)
    gains = [_per_row(sink, gain, first) for _, _, gain in slots]
    output: torch.Tensor = _with_parameters(slots, gains, forward, args, kwargs)
    if hooked.name not in sink.checked:
        _check_same(sink, hooked, output, lambda: forward(*args, **kwargs))
    return output


def _by_segment(sink: GradientSink, hooked: HookedModule, forward: Forward, *args: Any, **kwargs: Any) -> Any:
    """Run the module once per segment, on the segment's rows and with the segment's own copy of the parameters."""
    slots = _slots(hooked.module)
    parameters = list({id(p): p for _, _, p in slots}.values())  # a parameter tied inside the module counts once
    copies = {id(p): _per_segment(sink, p) for p in parameters}
    layout = sink.layout

    def run(separate: bool) -> Any:
        outputs = []
        for i, (_, start, stop) in enumerate(layout.blocks()):
            values = [copies[id(p)][i] if separate else p for _, _, p in slots]
            cut_args, cut_kwargs = _cut(args, layout, start, stop), _cut(kwargs, layout, start, stop)
            outputs.append(_with_parameters(slots, values, forward, cut_args, cut_kwargs))
        return _join(outputs)

    if hooked.name not in sink.checked:
        modes = [(module, module.training) for module in hooked.module.modules()]
        hooked.module.eval()
        try:  # without dropout, whose random numbers would differ between the two runs
            with torch.no_grad():
                _check_same(sink, hooked, _run_apart(hooked, run), lambda: forward(*args, **kwargs))
        finally:
            for module, mode in modes:
                module.training = mode
    return run(separate=True)


def _run_apart(hooked: HookedModule, run: Callable[[bool], Any]) -> Any:
    try:
        return run(False)
    except (RuntimeError, ValueError, TypeError, LookupError) as error:
        raise XDogeError(
            f"{hooked.name} ({type(hooked.module).__name__}) cannot be run on the rows of one source "
            f"alone, so its gradient cannot be split by source: {shorten(str(error), 150)}"
        ) from error


def expect_gradients(sink: GradientSink, module: nn.Module) -> None:
    """Count a use of each trainable parameter that the module owns."""
    for parameter in module.parameters(recurse=False):
        if parameter.requires_grad:
            sink.expect(parameter)


def _check_rows(sink: GradientSink, hooked: HookedModule, input: torch.Tensor) -> None:
    n_rows, n_tokens = sink.layout.n_rows, sink.layout.n_tokens
    batch_first = input.dim() >= 1 and input.shape[0] == n_rows and (input.dim() > 1 or n_rows != n_tokens)
    flattened = input.dim() == 2 and input.shape[0] == n_rows * n_tokens
    if not batch_first and not flattened:
        raise XDogeError(
            f"{hooked.name} ({type(hooked.module).__name__}) gets an input of shape {tuple(input.shape)}, "
            f"whose first dimension is not the {n_rows} rows of the batch, so its gradient cannot be "
            "split by source."
        )


def _check_same(sink: GradientSink, hooked: HookedModule, output: Any, expected: Callable[[], Any]) -> None:
    """Raise XDogeError if the module's output changes when segments run separately, or with one gain per row."""
    with torch.no_grad():
        pairs = list(zip(_tensors(output), _tensors(expected()), strict=True))
    for ours, theirs in pairs:
        tolerance = 1e-4 if theirs.dtype in (torch.float32, torch.float64) else 3e-2
        if ours.shape != theirs.shape:
            raise XDogeError(
                f"{hooked.name} ({type(hooked.module).__name__}) does not get the rows of the batch in "
                "order, so its gradient cannot be split by source."
            )
        if not (ours.detach() - theirs).double().norm() <= tolerance * theirs.double().norm():
            raise XDogeError(
                f"{hooked.name} ({type(hooked.module).__name__}) gives another output when the rows of "
                "each source are run separately: it mixes rows, so the sources have no gradients of "
                "their own."
            )
    sink.checked.add(hooked.name)


Slots = list[tuple[nn.Module, str, nn.Parameter]]


def _slots(module: nn.Module) -> Slots:
    return [
        (owner, key, parameter)
        for owner in module.modules()
        for key, parameter in owner.named_parameters(recurse=False, remove_duplicate=False)
    ]


def _with_parameters(
    slots: Slots, values: Sequence[torch.Tensor], forward: Callable[..., Any], args: Any, kwargs: Any
) -> Any:
    """Return the output of `forward`, with `values` in place of the parameters."""
    for (owner, key, _), value in zip(slots, values, strict=True):
        owner._parameters[key] = value  # type: ignore[assignment]
    try:
        return forward(*args, **kwargs)
    finally:
        for owner, key, parameter in slots:
            owner._parameters[key] = parameter


def _cut(value: Any, layout: RowLayout, start: int, stop: int) -> Any:
    if isinstance(value, torch.Tensor):
        if value.dim() and value.shape[0] == layout.n_rows:
            return value[start:stop]
        if value.dim() and value.shape[0] == layout.n_rows * layout.n_tokens:
            return value[start * layout.n_tokens : stop * layout.n_tokens]
    if isinstance(value, tuple | list):
        return type(value)(_cut(item, layout, start, stop) for item in value)
    if isinstance(value, dict):
        return {key: _cut(item, layout, start, stop) for key, item in value.items()}
    return value


def _join(outputs: list[Any]) -> Any:
    first = outputs[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(outputs)
    if isinstance(first, tuple | list):
        return type(first)(_join(list(items)) for items in zip(*outputs, strict=True))
    if isinstance(first, Mapping):
        return type(first)(**{key: _join([output[key] for output in outputs]) for key in first})
    return first


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


# ---------------------------------------------------------------------------------------------- autograd


def lowered(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in the precision that autocast gives to the operands of a matrix product, if it is on."""
    device = tensor.device.type
    if tensor.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))


class _Linear(torch.autograd.Function):
    """A linear map. Its backward hands the two factors of the weight's gradient to the sink."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, anchor: torch.Tensor, module: Any, sink: GradientSink) -> torch.Tensor:
        ctx.sink, ctx.module, ctx.dtype = sink, module, input.dtype
        x, weight = lowered(input), lowered(module.weight)
        bias = None if module.bias is None else lowered(module.bias)
        if not isinstance(module, nn.Linear):
            weight = weight.T  # transformers' Conv1D
        ctx.save_for_backward(x, weight)
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        sink, module = ctx.sink, ctx.module
        x, weight = ctx.saved_tensors
        input_grad = (grad @ weight).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        if module.weight.requires_grad:
            left, right = (grad, x) if isinstance(module, nn.Linear) else (x, grad)
            sink.arrive(module.weight, Product(left, right, sink.layout))
        if module.bias is not None and module.bias.requires_grad:
            sink.arrive(module.bias, Dense(sink.layout.sum(grad)[:, :, None]))
        return input_grad, None, None, None


class _Embedding(torch.autograd.Function):
    """An embedding. Its backward hands the tokens and their output gradients to the sink."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, anchor: torch.Tensor, module: Any, sink: GradientSink) -> torch.Tensor:
        ctx.sink, ctx.module = sink, module
        ctx.save_for_backward(tokens)
        return functional.embedding(tokens, module.weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        sink, module = ctx.sink, ctx.module
        (tokens,) = ctx.saved_tensors
        if module.padding_idx is not None:
            grad = grad.masked_fill((tokens == module.padding_idx)[:, None], 0)
        if module.weight.requires_grad:
            sink.arrive(module.weight, Lookup.of(tokens, grad, sink.layout))
        return None, None, None, None


def _per_row(sink: GradientSink, parameter: nn.Parameter, input: torch.Tensor) -> torch.Tensor:
    """Return one copy of a parameter vector per row of `input`, (B, 1, …, d), so that gradients arrive per row."""
    if not parameter.requires_grad:
        return parameter
    sink.expect(parameter)
    copies: torch.Tensor = _PerRow.apply(sink.anchor, (parameter,), sink)  # type: ignore[no-untyped-call]
    if input.shape[0] == sink.layout.n_rows:
        return copies.view(-1, *[1] * (input.dim() - 2), copies.shape[-1])
    return copies.repeat_interleave(sink.layout.n_tokens, dim=0)


class _PerRow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, holder: tuple[nn.Parameter], sink: GradientSink) -> torch.Tensor:
        ctx.sink, ctx.parameter = sink, holder[0]
        return ctx.parameter.expand(sink.layout.n_rows, -1).clone()  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        ctx.sink.arrive(ctx.parameter, Dense(ctx.sink.layout.sum(grad)[:, :, None]))
        return None, None, None


def _per_segment(sink: GradientSink, parameter: nn.Parameter) -> Sequence[torch.Tensor]:
    """Return one alias of a parameter for each segment that has rows in this microbatch."""
    if not parameter.requires_grad:
        return [parameter] * len(sink.layout.blocks())
    sink.expect(parameter)
    aliases: Sequence[torch.Tensor]
    aliases = _PerSegment.apply(sink.anchor, (parameter,), sink)  # type: ignore[no-untyped-call]
    return aliases


class _PerSegment(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchor: torch.Tensor, holder: tuple[nn.Parameter], sink: GradientSink
    ) -> tuple[torch.Tensor, ...]:
        ctx.sink, ctx.parameter = sink, holder[0]
        return tuple(ctx.parameter.detach() for _ in sink.layout.blocks())

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        sink, parameter = ctx.sink, ctx.parameter
        dtype = working_dtype(parameter.dtype)
        dense = parameter.new_zeros(sink.layout.n_segments, *matrix_shape(parameter), dtype=dtype)
        for (segment, _, _), grad in zip(sink.layout.blocks(), grads, strict=True):
            dense[segment] = grad.reshape(dense.shape[1:])
        sink.arrive(parameter, Dense(dense))
        return None, None, None


def matrix_shape(parameter: torch.Tensor) -> tuple[int, int]:
    """Return the shape (n, d) of a parameter viewed as a matrix. A vector becomes a column."""
    return (parameter.shape[0], parameter[0].numel()) if parameter.dim() > 1 else (parameter.numel(), 1)
