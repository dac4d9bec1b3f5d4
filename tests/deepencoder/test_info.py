"""`deepencoder info`; `test_convert.py` has it look at checkpoints of other code."""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from deepencoder import DeepEncoder, DeepEncoderConfig, DeepEncoderImageProcessor, SamEncoderConfig

from ..conversion.samples import build, layout_of, state_dict_there


def test_info(cli: Any, tmp_path: Path) -> None:
    code, out, _ = cli("info")
    assert (
        code == 0
        and "page-reader: DeepEncoder, 5,741,152 parameters" in out
        and "sam_encoder" in out
        and "image_newline" in out
    )
    DeepEncoderConfig().save_pretrained(tmp_path)  # The folder has no weights: info reads none.
    code, out, _ = cli("info", tmp_path)
    assert code == 0 and "400,770,048" in out and "95,569,152" in out
    for mode, tokens in (("tiny", 73), ("small", 111), ("base", 273), ("large", 421), ("gundam", 903)):
        assert any(line.split()[0] == mode and str(tokens) in line for line in out.splitlines() if line.strip())
    SamEncoderConfig().save_pretrained(tmp_path / "sam")
    code, out, _ = cli("info", tmp_path / "sam")
    assert code == 0 and "SamEncoder" in out and "gundam" not in out


def test_what_a_user_decides_by(cli: Any, tmp_path: Path) -> None:
    """The size of the weights, and costs for the size that was measured."""
    _, out, _ = cli("info")
    assert "weights: 23 MB in float32" in out and "stored: 11.5 MB in float16" in out and "Intel" not in out
    DeepEncoderConfig(dtype="bfloat16").save_pretrained(tmp_path / "published")
    _, out, _ = cli("info", tmp_path / "published")
    assert "weights: 1.6 GB in float32, 802 MB in bfloat16 or float16; stored in bfloat16" in out
    (base,) = (line for line in out.splitlines() if line.startswith("base"))
    assert "3.99 s, 0.18 GB" in base and "two cores of an Intel Xeon with AMX" in out and "docs/tokens.md" in out
    assert "image processor: mode base" in out
    assert "pooled 1024, tokens 2048, vision_tokens 1280, multi_vector 128" in out
    DeepEncoder(DeepEncoderConfig.tiny()).half().save_pretrained(tmp_path / "tiny")
    DeepEncoderImageProcessor(mode="gundam").save_pretrained(tmp_path / "tiny")
    _, out, _ = cli("info", tmp_path / "tiny")
    assert "image processor: mode gundam" in out
    assert "; stored: " in out and "kB in float16" in out.partition("stored: ")[2].splitlines()[0]


def test_a_folder_without_a_model_is_one_line(cli: Any, tmp_path: Path) -> None:
    code, _, err = cli("info", tmp_path)
    assert code == 2 and len(err.strip().splitlines()) == 1 and "cannot be loaded" in err


def test_what_convert_refuses_is_refused(cli: Any, tmp_path: Path) -> None:
    """Convolutions in MLX's order were shown as a model of 16 channels."""
    tensors = state_dict_there(build(layout_of("deepseek-ocr")), layout_of("deepseek-ocr"))
    moved = {name: (t.permute(0, 2, 3, 1) if t.ndim == 4 else t).contiguous() for name, t in tensors.items()}
    save_file(moved, tmp_path / "model.safetensors")
    for arguments in (("info", tmp_path), ("convert", tmp_path, tmp_path / "target")):
        code, out, err = cli(*arguments)
        assert code == 2 and out == "" and len(err.strip().splitlines()) == 1 and "MLX" in err
    assert not (tmp_path / "target").exists()
