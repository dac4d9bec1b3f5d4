"""`deepencoder info`; `test_convert.py` has it look at checkpoints of other code."""

from pathlib import Path
from typing import Any

from deepencoder import DeepEncoderConfig, SamEncoderConfig


def test_info(cli: Any, tmp_path: Path) -> None:
    code, out, _ = cli("info")
    assert code == 0 and "94,320" in out and "sam_encoder" in out and "image_newline" in out
    DeepEncoderConfig().save_pretrained(tmp_path)  # The folder has no weights: info reads none.
    code, out, _ = cli("info", tmp_path)
    assert code == 0 and "400,770,048" in out and "95,569,152" in out
    for mode, tokens in (("tiny", 73), ("small", 111), ("base", 273), ("large", 421), ("gundam", 903)):
        assert any(line.split()[0] == mode and str(tokens) in line for line in out.splitlines() if line.strip())
    SamEncoderConfig().save_pretrained(tmp_path / "sam")
    code, out, _ = cli("info", tmp_path / "sam")
    assert code == 0 and "SamEncoder" in out and "gundam" not in out


def test_a_folder_without_a_model_is_one_line(cli: Any, tmp_path: Path) -> None:
    code, _, err = cli("info", tmp_path)
    assert code == 2 and len(err.strip().splitlines()) == 1 and "cannot be loaded" in err
