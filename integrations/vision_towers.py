"""Our encoder in the vision tower of a language model that others wrote, and back.

Unusual: the modules that are replaced stay where they are, with their classes and configurations; only what is inside
them is exchanged. So the model is saved, shared and resumed as if nothing had happened, and no copy of its code is
needed.
"""

from typing import Any

from torch import nn

from ..conversion.key_mapping import check_shape, map_keys, source_shapes
from .hosts import Half, find_halves
from .module_swaps import OURS, Swap, put_in, swap_of, take_out

__all__ = ["replace_vision_tower", "restore_vision_tower"]


def _check_replaceable(module: nn.Module, place: str) -> None:
    if any(hasattr(part, "_hf_hook") for part in module.modules()):
        raise ValueError(
            f"model: accelerate places the parts of {place} on several devices, or offloads them. Load the model onto "
            "one device."
        )
    for name, parameter in module.named_parameters():
        if type(parameter) is not nn.Parameter or parameter.is_meta or not parameter.is_floating_point():
            raise ValueError(f"model: {place}.{name} is quantised, sharded or without data: it cannot be replaced.")


def _plan(module: nn.Module, half: Half) -> tuple[Any, Swap]:
    """Check everything, and return our model, without data, with what is needed to put it in."""
    _check_replaceable(module, half.place)
    parameters = {name: value for name, value in module.named_parameters() if not name.startswith(half.unused)}
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    try:
        rows, unknown = map_keys(parameters, half.table)
    except ValueError:  # Some of the parameters that are to be joined have other names.
        rows, unknown = {}, sorted(parameters)
    if unknown:
        raise ValueError(f"model: {half.place} has parameters that are not known. Merge adapters first.")
    for row in rows.values():
        kinds = {
            (parameters[name].dtype, parameters[name].device, parameters[name].requires_grad) for name in row.there
        }
        if len(kinds) > 1:
            raise ValueError(
                f"model: {' and '.join(row.there)} become one parameter, and must agree in dtype, device and "
                "requires_grad."
            )
    ours_there = source_shapes(rows, shapes)
    model = half.build(module, ours_there)
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if set(wanted) != set(rows):
        differing = sorted(set(wanted) ^ set(rows))
        raise ValueError(f"model: {half.place} differs from ours in {', '.join(differing[:3])}.")
    for name, row in rows.items():
        check_shape(row, ours_there[name], wanted[name])
    return model, Swap(rows, shapes)


def _modules_with_ours(model: nn.Module) -> list[tuple[nn.Module, Swap]]:
    return [(module, swap) for module in model.modules() if (swap := swap_of(module)) is not None]


def replace_vision_tower(model: Any) -> Any:
    """Let a vision-language model of other code see through our encoder.

    It computes the same in less memory, and mostly in less time. The model stays an object of its class and keeps its
    projector, its newline token and its separator. `save_pretrained`, `state_dict` and `load_state_dict` use the names
    of its own code, so that the result loads where this package is not installed. Parameters keep their dtype, device
    and `requires_grad`, and are not copied. Where the projections to queries, keys and values are separate parameters,
    they become one; therefore make the optimiser afterwards. accelerate cannot offload the model as long as our
    encoder is in it.

    Args:
        model: transformers' `UnlimitedOcrForConditionalGeneration`, a model of DeepSeek-OCR's own code (with the parts
            `sam_model` and `vision_model`), or a model that contains one of them. Of transformers'
            `DeepseekOcr2ForConditionalGeneration`, the SAM half is replaced.

    Returns:
        `model`, which is changed in place.

    Raises:
        `ValueError`: the model has no such vision tower, ours is in it already, or the tower is quantised, sharded,
            offloaded or has adapters. The model is then as it was.
    """
    if _modules_with_ours(model):
        raise ValueError("model: its vision tower was replaced already.")
    plans = [(module, half, *_plan(module, half)) for module, half in find_halves(model)]
    for module, half, ours, swap in plans:
        put_in(module, ours, half.run, swap)
    return model


def restore_vision_tower(model: Any) -> Any:
    """Undo [`replace_vision_tower`], with the weights as they are now.

    Args:
        model: a model whose vision tower was replaced. It is changed in place.

    Returns:
        `model`.

    Raises:
        `ValueError`: its vision tower was not replaced, or has parameters beside its own, such as adapters. The model
            is then as it was.
    """
    found = _modules_with_ours(model)
    if not found:
        raise ValueError("model: its vision tower was not replaced.")
    for module, swap in found:
        names = {name for name, _ in module.get_submodule(OURS).named_parameters()}
        strange = sorted(names ^ set(swap.rows))
        if strange:
            raise ValueError(f"model: its vision tower has parameters such as {strange[0]!r}. Merge adapters first.")
    for module, _ in found:
        take_out(module)
    return model
