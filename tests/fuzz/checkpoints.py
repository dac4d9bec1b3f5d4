"""Checkpoints: headers, pickles, TorchScript archives, indexes of shards, and missing or renamed tensors.

Unusual: a conversion that succeeds must give the weights that were written, or say which parts it initialised.
"""

import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from safetensors.torch import load_file, save_file

from deepencoder.conversion.checkpoint import open_checkpoint
from deepencoder.conversion.from_original import load_original_with_report, plan_original

from ..conversion.samples import VALUES, build, layout_of
from .mutations import mutate_bytes, mutate_fields, nasty_json, nasty_value
from .trials import Trial, ViolationError

__all__ = ["nasty_pickle", "nasty_safetensors", "run"]

ERRORS = (ValueError, OSError)
DTYPES = ("F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "nonsense")
MAX_READ = 1 << 20  # elements of a tensor that is read


class _Runs:
    """Runs code when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


def nasty_safetensors(random: Random, data: bytes) -> bytes:
    """Return a safetensors file with another header."""
    size = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    match random.choice(("bytes", "length", "entry", "entry", "entry", "json")):
        case "bytes":
            return mutate_bytes(random, data)
        case "length":
            return random.choice((0, 1, size - 1, size + 1, 2**31, 2**63, 2**64 - 1)).to_bytes(8, "little") + data[8:]
        case "json":
            text = nasty_json(random, header)
        case _:
            _change_entry(random, header)
            text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


def _change_entry(random: Random, header: dict[str, Any]) -> None:
    name = random.choice(sorted(header))
    entry = header[name]
    match random.choice(("dtype", "shape", "offsets", "fields", "name", "metadata")):
        case "dtype" if "dtype" in entry:
            entry["dtype"] = random.choice(DTYPES)
        case "shape" if "shape" in entry:
            entry["shape"] = random.choice(([], [0], [2**40, 2**40], [-1], [*entry["shape"], 1], entry["shape"][::-1]))
        case "offsets" if "data_offsets" in entry:
            start, end = entry["data_offsets"]
            entry["data_offsets"] = random.choice(
                ([end, start], [0, end], [start, 2**60], [start + 1, end + 1], [start])
            )
        case "name":
            header[random.choice((name + "\x1b[31m", "", name.upper(), "a" * 300, "\0"))] = header.pop(name)
        case "metadata":
            header["__metadata__"] = nasty_value(random)
        case _:
            header[name] = mutate_fields(random, entry)


def nasty_gguf(random: Random, folder: Path, path: Path) -> bytes:
    """Return a GGUF file with some tensors of a checkpoint, damaged in its header or anywhere."""
    writer = GGUFWriter(path, "clip")
    writer.add_array("words", ["some", "words"])
    for name, tensor in list(load_file(folder / "model.safetensors").items())[:5]:
        stored = random.choice((GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0))
        fits = tensor.ndim > 1 and tensor.shape[-1] % 32 == 0
        stored = stored if fits else GGMLQuantizationType.F32
        writer.add_tensor(name, quantize(tensor.float().numpy(), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = path.read_bytes()
    header = random.choice((24, 200, len(data)))
    return mutate_bytes(random, data[:header]) + data[header:]


def nasty_pickle(trial: Trial) -> bytes:
    """Return a pickle that is damaged, runs code, refers to itself, or asks for memory."""
    random = trial.random
    weights = random.choice(trial.materials.weights[".pt"])
    match random.choice(("bytes", "bytes", "inside", "inside", "code", "cycle", "memo", "nest", "value")):
        case "bytes":
            return mutate_bytes(random, weights, random.choice(trial.materials.weights[".pt"]))
        case "inside":
            return _change_member(random, weights)
        case "code":
            return _wrap(random, pickle.dumps({"weight": _harmful(trial)}, protocol=2))
        case "cycle":
            content: dict[str, Any] = {"epoch": 1}
            content[random.choice(("state_dict", "model", "module"))] = content
            return _wrap(random, pickle.dumps(content, protocol=2))
        case "memo":
            index = random.choice((2**20, 2**28, 2**31 - 1)).to_bytes(4, "little")
            return _wrap(random, b"\x80\x02}r" + index + b".")
        case "nest":
            return _wrap(random, b"\x80\x02" + random.choice((b"]", b"}X\1\0\0\0a")) * 50_000 + b"." + b"a" * 50_000)
    return _wrap(random, pickle.dumps(nasty_value(random), protocol=2))


def _harmful(trial: Trial) -> Any:
    """Return an object that touches the canary when it is unpickled as code."""
    target = str(trial.materials.canary / "ran")
    return trial.random.choice(
        (
            _Runs(os.mkdir, target),
            _Runs(open, target, "w"),
            _Runs(os.system, f"true {target}"),
            _Runs(exec, f"open({target!r}, 'w')"),
            _Runs(torch.load, target),
            _Runs(eval, f"open({target!r}, 'w')"),
        )
    )


def _wrap(random: Random, data: bytes) -> bytes:
    """Put a pickle where `torch.save` or `torch.jit.save` would put it, or leave it bare."""
    place = random.choice((None, "archive", "scripted"))
    if place is None:
        return data
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/version", b"3\n")
        if place == "scripted":
            archive.writestr("a/code/__torch__.py", b"")
            archive.writestr("a/constants.pkl", b"\x80\x02).")
    return buffer.getvalue()


def _change_member(random: Random, data: bytes) -> bytes:
    """Damage one file of an archive; other files are damaged as a whole."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return mutate_bytes(random, data)
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        contents = {name: old.read(name) for name in old.namelist()}
    chosen = random.choice([name for name in contents if name.endswith(".pkl") or "/data/" in name])
    contents[chosen] = mutate_bytes(random, contents[chosen])
    buffer = io.BytesIO()
    with zipfile.ZipFile(
        buffer, "w", random.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    ) as new:
        for name, content in contents.items():
            new.writestr(name, content)
    return buffer.getvalue()


def _open_and_read(trial: Trial, path: Path) -> None:
    with trial.may_raise(*ERRORS, one_line=True):
        checkpoint = open_checkpoint(path)
        for name in list(checkpoint)[:20]:
            shape = checkpoint.shapes[name]
            if checkpoint.tensors[name].dtype is None:  # A kind of tensor that no model has.
                continue
            if torch.Size(shape).numel() <= MAX_READ and tuple(checkpoint[name].shape) != tuple(shape):
                raise ViolationError(f"{name} is described as {shape} and read as {tuple(checkpoint[name].shape)}")
        plan_original(path)


def _run_file(trial: Trial) -> None:
    random = trial.random
    folder = trial.materials.checkpoints[random.choice(sorted(trial.materials.checkpoints))]
    suffix = random.choice((".safetensors", ".safetensors", ".safetensors", ".gguf", ".pt", ".pth", ".bin"))
    if suffix == ".safetensors":
        data = nasty_safetensors(random, (folder / "model.safetensors").read_bytes())
    elif suffix == ".gguf":
        data = nasty_gguf(random, folder, trial.folder / "model.gguf")
    else:
        data = nasty_pickle(trial)
    path = trial.folder / f"model{suffix}"
    path.write_bytes(data)
    trial.note(file=path.name, size=len(data), head=data[:100])
    _open_and_read(trial, random.choice((path, trial.folder)))


def _run_index(trial: Trial) -> None:
    """An index of shards that names other files, and damaged JSON files beside the weights."""
    random, folder = trial.random, trial.folder / "checkpoint"
    shutil.copytree(trial.materials.checkpoints[random.choice(sorted(trial.materials.checkpoints))], folder)
    save_file({"secret": torch.ones(1)}, trial.folder / "outside.safetensors")
    shards: tuple[Any, ...] = (
        "model.safetensors",
        "../outside.safetensors",
        "/etc/passwd",
        "..",
        "missing",
        "",
        5,
        None,
        ["a"],
    )
    weight_map = {name: random.choice((shards[0], shards[0], *shards)) for name in ("a", "b", "secret")}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    if trial.chance(0.5):
        content = nasty_json(random, index) if trial.chance(0.5) else json.dumps(index).encode()
        (folder / "model.safetensors.index.json").write_bytes(content)
    config = nasty_json(random, {"model_type": "clip", "vision_config": {"num_attention_heads": 2, "patch_size": 16}})
    (folder / random.choice(("config.json", "preprocessor_config.json"))).write_bytes(config)
    trial.note(weight_map=weight_map, config=config[:200])
    _open_and_read(trial, folder)


def _change_tensor(random: Random, tensors: dict[str, torch.Tensor]) -> tuple[str, str]:
    """Drop, rename, reshape or add a tensor. Returns its name and what was done."""
    name = random.choice(sorted(tensors))
    tensor = tensors[name]
    change = random.choice(("none", "drop", "rename", "shape", "flat", "transpose", "integers", "add", "infinite"))
    match change:
        case "drop":
            del tensors[name]
        case "rename":
            place = random.randrange(len(name))
            tensors[name[:place] + random.choice("ae._x0") + name[place + 1 :]] = tensors.pop(name)
        case "shape":
            tensors[name] = torch.cat([tensor, tensor]) if tensor.ndim else tensor[None]
        case "flat":
            tensors[name] = tensor.flatten()
        case "transpose":
            tensors[name] = tensor.transpose(0, -1).contiguous() if tensor.ndim else tensor
        case "integers":
            tensors[name] = tensor.to(torch.int32)
        case "add":
            tensors[name + ".extra"] = torch.ones(2)
        case "infinite":
            tensors[name] = torch.full_like(tensor, random.choice((float("nan"), float("inf"))))
    return name, change


def _run_conversion(trial: Trial) -> None:
    """A whole checkpoint with one tensor changed: what is converted is what was written."""
    random = trial.random
    slug = random.choice(sorted(trial.materials.checkpoints))
    tensors = load_file(trial.materials.checkpoints[slug] / "model.safetensors")
    name, change = _change_tensor(random, tensors)
    trial.note(slug=slug, tensor=name, change=change)
    path = trial.folder / "model.safetensors"
    save_file(tensors, path)
    heads = VALUES.get(slug, {}).get("num_attention_heads")
    given = {} if heads is None or trial.chance(0.2) else {"num_attention_heads": heads}
    with trial.may_raise(*ERRORS, one_line=True):
        model, report = load_original_with_report(None, path, **given)
    expected = build(layout_of(slug)).state_dict()
    wrong = [key for key, value in model.state_dict().items() if not _same(value, expected.get(key))]
    told = {*report.initialized, *report.not_finite, *report.assumed, *report.left_behind}
    wrong = [key for key in wrong if not any(key.startswith(part) for part in told)]
    if change in ("none", "add") and wrong:
        raise ViolationError(f"converted {slug} to other weights: {wrong[:3]}")
    if change in ("drop", "rename") and wrong:
        raise ViolationError(
            f"{change} of {name} gave other weights, unannounced: {wrong[:3]}, said {sorted(told)[:3]}"
        )


def _same(ours: torch.Tensor, theirs: torch.Tensor | None) -> bool:
    return theirs is not None and ours.shape == theirs.shape and torch.equal(ours, theirs)


def run(trial: Trial) -> None:
    run_kind = trial.random.choice((_run_file, _run_file, _run_file, _run_index, _run_conversion))
    trial.note(kind=run_kind.__name__)
    run_kind(trial)
