from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

from training.export import export, load_reader
from training.reader import ReadingObjective


def test_an_export_is_a_model_with_its_processor_and_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reader = ReadingObjective().eval()
    state = reader.state_dict()
    (tmp_path / "run").mkdir()
    torch.save({"average": state, "model": state, "step": 7}, tmp_path / "run" / "checkpoint.pt")
    folder = tmp_path / "export"
    export(tmp_path / "run", folder)
    assert (folder / "model.safetensors").stat().st_size < 12e6
    assert load_file(folder / "model.safetensors")["image_newline"].dtype == torch.float16
    assert AutoModel.from_pretrained(folder).dtype == torch.float32  # Many CPUs are slow in float16.
    processor = AutoImageProcessor.from_pretrained(folder)
    assert dict(processor.size) == {"height": 640, "width": 640}
    loaded, pixels = load_reader(folder), torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        logits, expected = (one.head(one.encode(pixels)[1]) for one in (loaded, reader))
    torch.testing.assert_close(logits, expected, atol=0.05, rtol=0.05)
