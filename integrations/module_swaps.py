"""Exchanges what is inside a module of other code for one of our models, and undoes that.

Unusual: parameters are handed over one at a time rather than copied, and state dicts go on using the names of the
other code. What is left of the other code's parts has no data meanwhile, and is kept outside of the tree of modules.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from ..conversion.key_mapping import same_sides, split_tensor
from ..conversion.key_tables import KeyRow

__all__ = ["OURS", "Swap", "put_in", "swap_of", "take_out"]

OURS = "deepencoder"
"""Name of our model in the module that it runs in."""
SWAP = "_deepencoder_swap"  # attribute of that module


@dataclass
class Swap:
    """What belongs in a module whose inside is exchanged.

    Args:
        rows: those of its tensors that our model uses, by our names.
        shapes: shapes of these tensors, by the names of the other code.
        children, parameters: its own children, and the parameters that it has itself.
        unused: names of the tensors that neither model uses, by the name under which the module holds them meanwhile.
        hooks: handles of the hooks that translate names.
    """

    rows: dict[str, KeyRow]
    shapes: dict[str, tuple[int, ...]]
    children: dict[str, nn.Module] = field(default_factory=dict)
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    hooks: list[Any] = field(default_factory=list)


def swap_of(module: nn.Module) -> Swap | None:
    """Return what belongs in a module, or None if nothing was exchanged there."""
    return vars(module).get(SWAP)


def _put(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(path), leaf, tensor)


def _take(module: nn.Module, name: str) -> nn.Parameter:
    """Take a parameter out of a module, and leave one without data there."""
    parameter = module.get_parameter(name)
    _put(module, name, nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad))
    return parameter


def _carry_state(source: nn.Module, target: nn.Module) -> None:
    """Give one module the training mode and the activation checkpointing of another."""
    target.train(source.training)
    checkpointed: Any = [part for part in source.modules() if getattr(part, "gradient_checkpointing", False)]
    parts: Any = [part for part in target.modules() if hasattr(part, "gradient_checkpointing")]
    for part in parts:
        part.gradient_checkpointing = bool(checkpointed)
        if checkpointed:
            part._gradient_checkpointing_func = checkpointed[-1]._gradient_checkpointing_func


def _hand_over(module: nn.Module, model: nn.Module, rows: Mapping[str, KeyRow]) -> None:
    """Move the parameters of other code into our model: the same objects, unless several are joined."""
    for name, row in rows.items():
        parts = [_take(module, there) for there in row.there]
        wanted = model.get_parameter(name).shape
        if len(parts) == 1 and parts[0].shape == wanted:
            _put(model, name, parts[0])
        else:
            joined = torch.cat([part.detach() for part in parts]) if len(parts) > 1 else parts[0].detach()
            _put(model, name, nn.Parameter(joined.reshape(wanted), parts[0].requires_grad))


def _hand_back(module: nn.Module, model: nn.Module, swap: Swap) -> None:
    """Undo [`_hand_over`]."""
    for name, row in swap.rows.items():
        parameter = _take(model, name)
        if len(row.there) == 1 and tuple(parameter.shape) == swap.shapes[row.there[0]]:
            _put(module, row.there[0], parameter)
            continue
        for there, part in split_tensor(row, parameter.detach()):
            own = part.clone() if len(row.there) > 1 else part
            _put(module, there, nn.Parameter(own.reshape(swap.shapes[there]), parameter.requires_grad))


def _write_names(module: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Give the entries of a state dict the names of the other code; entries of adapters keep theirs."""
    swap = vars(module)[SWAP]
    for name, row in swap.rows.items():
        tensor = state_dict.pop(f"{prefix}{OURS}.{name}", None)
        if tensor is not None:
            for there, part in split_tensor(row, tensor):
                state_dict[prefix + there] = part.reshape(swap.shapes[there])
    for here, there in swap.unused.items():
        if prefix + here in state_dict:
            state_dict[prefix + there] = state_dict.pop(prefix + here)


def _read_names(module: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Undo [`_write_names`] before a state dict is loaded."""
    swap = vars(module)[SWAP]
    shapes = {name: parameter.shape for name, parameter in module.get_submodule(OURS).named_parameters()}
    for name, row in swap.rows.items():
        if all(prefix + there in state_dict for there in row.there):
            parts = [state_dict.pop(prefix + there) for there in row.there]
            joined = torch.cat(parts) if len(parts) > 1 else parts[0]
            fits = name in shapes and same_sides(joined.shape, shapes[name])
            state_dict[f"{prefix}{OURS}.{name}"] = joined.reshape(shapes[name]) if fits else joined
    for here, there in swap.unused.items():
        if prefix + there in state_dict:
            state_dict[prefix + here] = state_dict.pop(prefix + there)


def _keep_unused(module: nn.Module, swap: Swap) -> None:
    """Keep tensors of the module's parts that our model does not use where moves to other devices reach them."""
    saved = module.state_dict()
    tensors = [*module.named_parameters(), *module.named_buffers()]
    inner = [(name, tensor) for name, tensor in tensors if name not in swap.shapes and "." in name]
    for index, (there, tensor) in enumerate(inner):
        here = f"unused_{index}"
        swap.unused[here] = there
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(here, tensor)
        else:
            module.register_buffer(here, tensor, persistent=there in saved)


def put_in(module: nn.Module, model: nn.Module, run: Callable[..., Any], swap: Swap) -> None:
    """Exchange what is inside a module for our model.

    Args:
        module: of other code.
        model: ours, without data. It gets the module's parameters, training mode and activation checkpointing.
        run: calls our model, as its first argument, with the arguments of the module.
        swap ([`Swap`]): `rows` and `shapes`; the rest is filled in.
    """
    _carry_state(module, model)
    parts, own = dict(module.named_children()), [name for name, _ in module.named_parameters(recurse=False)]
    _keep_unused(module, swap)
    _hand_over(module, model, swap.rows)
    swap.children, swap.parameters = parts, {name: module.get_parameter(name) for name in own}
    for name in [*swap.children, *swap.parameters]:
        delattr(module, name)
    setattr(module, OURS, model)
    setattr(module, SWAP, swap)
    module.forward = partial(run, model)
    swap.hooks = [
        module.register_state_dict_post_hook(_write_names),
        module.register_load_state_dict_pre_hook(_read_names),
    ]


def take_out(module: nn.Module) -> None:
    """Undo [`put_in`], with the weights as they are now."""
    swap, model = vars(module)[SWAP], module.get_submodule(OURS)
    for hook in swap.hooks:
        hook.remove()
    unused = {there: getattr(module, here) for here, there in swap.unused.items()}
    for name in ("forward", SWAP, OURS, *swap.unused):
        delattr(module, name)
    for name, part in {**swap.children, **swap.parameters}.items():
        setattr(module, name, part)
    for there, tensor in unused.items():
        _put(module, there, tensor)
    _hand_back(module, model, swap)
    _carry_state(model, module)
