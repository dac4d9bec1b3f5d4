"""Files of every kind, and what is said of damaged and of harmful ones."""

import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deepencoder.conversion.checkpoint import open_checkpoint
from deepencoder.conversion.converter import convert_checkpoint

from .samples import build, folder, layout_of, state_dict_there

DEEPSEEK_OCR = layout_of("deepseek-ocr")


class Harmful:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemExit('ran')",))


def fails(source: Path, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        convert_checkpoint(source)
    assert len(str(error.value).splitlines()) == 1


def safetensors(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def entry(start: int, end: int, shape: str = "[1]", dtype: str = "F32") -> str:
    return f'{{"dtype": "{dtype}", "shape": {shape}, "data_offsets": [{start}, {end}]}}'


DAMAGED_HEADERS = {
    "no JSON": (b"{", "damaged header"),
    "not a JSON object": (b"[1]", "not a JSON object"),
    "bomb": (b"[" * 100_000, "damaged header"),
    "no fields": (b'{"a": {}}', "'a' has shape None"),
    "no numbers": (b'{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}', "shape"),
    "negative": (f'{{"a": {entry(0, 4, "[-1]")}}}'.encode(), "shape"),
    "twice": (f'{{"a": {entry(0, 4)}, "a": {entry(4, 8)}}}'.encode(), "'a' occurs twice"),
    "overlap": (f'{{"a": {entry(0, 4)}, "b": {entry(2, 6)}}}'.encode(), "'b' overlaps"),
    "hole": (f'{{"a": {entry(0, 4)}, "b": {entry(8, 12)}}}'.encode(), "gap"),
    "out of range": (f'{{"a": {entry(0, 4)}, "b": {entry(4, 4000, "[999]")}}}'.encode(), "incomplete or damaged"),
    "backwards": (f'{{"a": {entry(4, 0)}}}'.encode(), "offsets"),
    "wrong size": (f'{{"a": {entry(0, 8, "[3]")}}}'.encode(), r"\(3,\).*8 bytes"),
    "too much": (f'{{"a": {entry(0, 4)}}}'.encode(), "incomplete or damaged"),
}


@pytest.mark.parametrize("name", DAMAGED_HEADERS)
def test_damaged_headers(name: str, tmp_path: Path) -> None:
    header, words = DAMAGED_HEADERS[name]
    (tmp_path / "model.safetensors").write_bytes(safetensors(header, b"12345678"))
    fails(tmp_path, words)


def test_damaged_files(tmp_path: Path) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR)
    whole = tmp_path / "whole.safetensors"
    save_file(tensors, whole)
    contents = {
        "truncated.safetensors": (whole.read_bytes()[:-10], "incomplete or damaged"),
        "cut.safetensors": (whole.read_bytes()[:100], "header does not fit"),
        "short.safetensors": (struct.pack("<Q", 10**9) + b"{}", "header does not fit"),
        "empty.safetensors": (b"", "header does not fit"),
        "text.safetensors": (b"version https://git-lfs.github.com/spec/v1", "header does not fit"),
        "harmful.pth": (pickle.dumps({"weight": Harmful()}), "without running its code"),
        "empty.pth": (b"", "is damaged"),
        "text.pth": (b"version https://git-lfs.github.com/spec/v1", "is damaged"),
    }
    for name, (content, words) in contents.items():
        (tmp_path / name).write_bytes(content)
        fails(tmp_path / name, words)
    torch.save({"epoch": 1}, tmp_path / "no-tensors.pth")
    fails(tmp_path / "no-tensors.pth", "no dict of tensors")
    save_file({"something.weight": torch.zeros(1)}, tmp_path / "unknown.safetensors")
    fails(tmp_path / "unknown.safetensors", "something.weight")
    for name, misshapen in (
        ("vision_model.pre_layrnorm.weight", torch.zeros(7)),
        ("sam_model.pos_embed", torch.zeros(1, 32)),
        ("sam_model.patch_embed.proj.weight", torch.zeros(3)),
        ("projector.layers.weight", torch.zeros(())),
        ("vision_model.embeddings.class_embedding", torch.zeros(())),
        ("sam_model.blocks.0.attn.rel_pos_h", torch.zeros(15, 0)),
    ):
        save_file(tensors | {name: misshapen}, tmp_path / "misshapen.safetensors")
        with pytest.raises(ValueError) as error:
            convert_checkpoint(tmp_path / "misshapen.safetensors")
        assert len(str(error.value).splitlines()) == 1


def test_damaged_folders(tmp_path: Path) -> None:
    def index(name: str, content: Any) -> Path:
        path = folder(tmp_path, name)
        save_file({"a": torch.zeros(1)}, path / "here.safetensors")
        (path / "model.safetensors.index.json").write_text(json.dumps(content))
        return path

    twice = folder(tmp_path, "twice")
    for name in ("one", "two"):
        save_file({"same": torch.zeros(1)}, twice / f"{name}.safetensors")
    no_json = folder(tmp_path, "no-json")
    save_file({"a": torch.zeros(1)}, no_json / "model.safetensors")
    (no_json / "config.json").write_text("{")
    for source, words in (
        (twice, "another shard"),
        (index("outside", {"weight_map": {"a": "../whole.safetensors"}}), "outside its folder"),
        (index("root", {"weight_map": {"a": "/etc/passwd"}}), "outside its folder"),
        (index("up", {"weight_map": {"a": ".."}}), "outside its folder"),
        (index("missing", {"weight_map": {"a": "gone.safetensors"}}), "gone.safetensors"),
        (index("liar", {"weight_map": {"b": "here.safetensors"}}), "here.safetensors lacks.*b"),
        (index("list", {"weight_map": ["a"]}), "not a valid index"),
        (index("number", {"weight_map": {"a": 5}}), "not a valid index"),
        (index("other", []), "not a valid index"),
        (folder(tmp_path, "nothing"), "contains no .safetensors"),
        (no_json, "not valid JSON"),
    ):
        fails(source, words)
    for missing in (tmp_path / "gone", "./gone", "gone/a/b"):
        with pytest.raises(FileNotFoundError, match="gone"):
            convert_checkpoint(missing)


def test_safetensors_come_before_pickles(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    torch.save({"b": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"b": "pytorch_model.bin"}}))
    assert list(open_checkpoint(tmp_path)) == ["a"]


@pytest.mark.parametrize("nest", [None, "state_dict", "model", "module"])
@pytest.mark.parametrize("old_format", [False, True])
def test_pickles_may_be_nested_and_old(nest: str | None, old_format: bool, tmp_path: Path) -> None:
    tensors: Any = {"a": torch.randn(3), "b": torch.randn(2, 2).T}
    content = tensors if nest is None else {"epoch": 3, nest: tensors}
    torch.save(content, tmp_path / "file.pt", _use_new_zipfile_serialization=not old_format)
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint) == {"a", "b"}
    assert all(torch.equal(checkpoint[name], tensor) for name, tensor in tensors.items())


class Scripted(nn.Module):
    """Modules, parameters and buffers of several dtypes, one below the other."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Sequential(nn.Conv2d(3, 4, 2), nn.LayerNorm([4, 3, 3]))
        self.scale = nn.Parameter(torch.randn(4, 1, 1).half())
        self.register_buffer("resolution", torch.tensor(4))
        self.other: nn.Module = nn.Identity()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.other(self.visual(pixels) * self.scale)


@pytest.fixture
def archive(tmp_path: Path) -> tuple[Path, nn.Module]:
    module = Scripted().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and yet what CLIP was published in
        torch.jit.save(torch.jit.trace(module, torch.randn(1, 3, 4, 4)), tmp_path / "model.pt")
    return tmp_path / "model.pt", module


def test_torchscript_archives_are_read_as_data(
    archive: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("code of the archive would be compiled")

    monkeypatch.setattr(torch.jit, "load", never)
    path, module = archive
    checkpoint = open_checkpoint(path)
    assert set(checkpoint) == set(module.state_dict())
    assert all(torch.equal(checkpoint[name], tensor) for name, tensor in module.state_dict().items())


def rewrite(path: Path, change: Callable[[str, bytes], bytes]) -> None:
    with zipfile.ZipFile(path) as old:
        contents = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in contents.items():
            new.writestr(name, change(name, content))


def test_harmful_torchscript_archives(archive: tuple[Path, nn.Module]) -> None:
    path, _ = archive
    whole = path.read_bytes()
    rewrite(path, lambda name, content: pickle.dumps(Harmful()) if name.endswith("/data.pkl") else content)
    fails(path, "without running its code.*builtins.exec")
    path.write_bytes(whole)
    rewrite(path, lambda name, content: content[:-4] if name.endswith("/data/0") else content)
    fails(path, "is damaged")
    path.write_bytes(whole)
    rewrite(path, lambda name, content: content[:50] if name.endswith("/data.pkl") else content)
    fails(path, "is damaged")


def test_what_trainers_write_beside_weights(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (tmp_path / name).write_bytes(pickle.dumps(Harmful()))
    assert list(open_checkpoint(tmp_path)) == ["a"]
    for name in ("model.safetensors", "model.fp16.safetensors", "open_clip_model.safetensors"):
        save_file({"b": torch.zeros(1)}, tmp_path / name)
    assert list(open_checkpoint(tmp_path)) == ["b"]


def test_tensors_that_are_not_dense(tmp_path: Path) -> None:
    tensors: dict[str, Any] = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR)
    dense = tensors["sam_model.blocks.0.mlp.lin1.weight"]
    for other in (dense.to_sparse(), dense.to_sparse_csr(), dense.to("meta")):
        torch.save(tensors | {"sam_model.blocks.0.mlp.lin1.weight": other}, tmp_path / "model.pth")
        fails(tmp_path / "model.pth", "lin1.weight is not a dense tensor")
    torch.save(tensors | {"sam_model.net_2.weight": torch.zeros(())}, tmp_path / "model.pth")
    fails(tmp_path / "model.pth", "compressor")
    torch.save(tensors | {"\ud800": torch.zeros(1)}, tmp_path / "model.pth")
    fails(tmp_path / "model.pth", "not valid Unicode")


def test_a_refused_pickle_says_what_it_wants(tmp_path: Path) -> None:
    torch.save({"args": Path("x"), "state_dict": {}}, tmp_path / "model.pth")
    fails(tmp_path / "model.pth", r"it refers to pathlib\.")


CONFIGS = [
    ("config.json", {"model_type": []}),
    ("config.json", {"model_type": {}, "vision_config": 3}),
    ("config.json", {"vision_config": {"width": {"clip": {"width": 192, "heads": 0}}}}),
    ("config.json", {"vision_config": {"hidden_size": 192, "num_attention_heads": "x"}}),
    ("config.json", {"candidate_resolutions": [[None]]}),
    ("config.json", {"candidate_resolutions": [[[1]]]}),
    ("config.json", {"candidate_resolutions": [[float("inf")]]}),
    ("preprocessor_config.json", {"size": {"height": "a", "width": None}}),
    ("preprocessor_config.json", {"size": {"height": 640, "width": 640}, "background_color": "red"}),
    ("preprocessor_config.json", {"size": {"height": 640, "width": 640}, "image_mean": "x"}),
    ("preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5], "image_std": [0, 0, 0]}),
    ("processor_config.json", {"image_processor": {"size": {"height": [], "width": 1}}}),
    ("model.safetensors.index.json", {"weight_map": {}}),
]


@pytest.mark.parametrize(("name", "content"), CONFIGS)
def test_damaged_files_beside_the_tensors(name: str, content: Any, tmp_path: Path) -> None:
    save_file(state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR), tmp_path / "model.safetensors")
    (tmp_path / name).write_text(json.dumps(content))
    try:
        convert_checkpoint(tmp_path)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert name == "config.json" and not isinstance(content.get("model_type"), str)
