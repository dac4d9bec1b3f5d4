"""Loads shared models as a machine without the deepencoder package does: `load_without_package.py JOBS.json`.

Each job is a dictionary:
    source: a folder or a Hub id.
    folder: where to save what was loaded.
    expected: a file with pixels and the `last_hidden_state` that the model must give for them.
    tolerance: the largest difference allowed; 0 unless the expected values come from another processor.
    options: keyword arguments for every `from_pretrained`.
    push: a Hub id to push the loaded model, image processor and configuration to.
    fails: whether loading must fail with an error that names the source. The other keys are then not needed.
"""

import json
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any


class Absent(MetaPathFinder):
    """Hides every installation and checkout of the package."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.partition(".")[0] == "deepencoder":
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


sys.meta_path.insert(0, Absent())

import torch  # noqa: E402
from huggingface_hub import HfApi  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import AutoConfig, AutoModel, pipeline  # noqa: E402
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # noqa: E402

PAGE = Image.new("RGB", (100, 60), "white")


def check(job: dict[str, Any], source: str, **options: Any) -> tuple[Any, Any, Any]:
    """Load model, configuration and image processor of a source, and use them."""
    config = AutoConfig.from_pretrained(source, trust_remote_code=True, **options)
    model = AutoModel.from_pretrained(source, trust_remote_code=True, **options).eval()
    processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=True, **options)
    for part in (model, config, processor):
        assert type(part).__module__.startswith("transformers_modules."), type(part)
    pixels, expected = torch.load(job["expected"])
    with torch.no_grad():
        found = model(pixels).last_hidden_state
    torch.testing.assert_close(found, expected, atol=job.get("tolerance", 0), rtol=0)
    assert "pixel_values" in processor(PAGE, return_tensors="pt")
    return model, config, processor


def check_saving(job: dict[str, Any], model: Any, config: Any, processor: Any) -> None:
    """Save what was loaded: the code goes along, and loads again."""
    folder = Path(job["folder"])
    model.save_pretrained(folder / "model")
    config.save_pretrained(folder / "config")
    processor.save_pretrained(folder / "model")
    check(job, str(folder / "model"))
    for name in ("model", "config"):
        for file in (folder / name).glob("*config.json"):
            for value in json.loads(file.read_text()).get("auto_map", {}).values():
                assert (folder / name / f"{value.split('.')[0]}.py").is_file(), (name, file.name, value)
    if type(model).__name__ == "DeepEncoder":  # Its halves take their code along, too.
        model.sam_encoder.save_pretrained(folder / "half")
        half = AutoModel.from_pretrained(folder / "half", trust_remote_code=True)
        assert type(half).__name__ == "SamEncoder"


def check_pushing(job: dict[str, Any], *parts: Any) -> None:
    """Push what was loaded, and load it from there."""
    for index, part in enumerate(parts):
        # Where the code is, other files may be, too.
        Path(str(sys.modules[type(part).__module__].__file__)).with_name("modeling_private.py").write_text("private")
        part.push_to_hub(job["push"], token="hf_secret")
        check_push(job, f"{job['push']}{index}", Path(job["folder"]) / f"pushed {index}", part)
    check(job, job["push"])


def check_push(job: dict[str, Any], repo_id: str, folder: Path, part: Any) -> None:
    """Save to a folder that holds a private file, and push: the private file stays."""
    folder.mkdir()
    (folder / "id_rsa").write_text("private")
    part.save_pretrained(folder, push_to_hub=True, repo_id=repo_id, token="hf_secret")
    names = set(HfApi(token="hf_secret").list_repo_files(repo_id))
    assert len(names) > 2 and not names & {"id_rsa", "modeling_private.py"}, names


def check_refusals(model: Any, source: str, **options: Any) -> None:
    """Ask for what takes the package, and for a model whose code is not trusted."""
    try:
        type(model).from_original("somewhere")
    except ImportError as error:
        assert type(error) is ImportError and "deepencoder" in str(error), error
    else:
        raise AssertionError("from_original worked without the package")
    try:
        AutoModel.from_pretrained(source, trust_remote_code=False, **options)
    except ValueError as error:
        assert "trust_remote_code" in str(error), error
    else:
        raise AssertionError("code ran that nobody trusted")


def run(job: dict[str, Any]) -> None:
    source, options = job["source"], job.get("options", {})
    if job.get("fails"):
        try:
            AutoConfig.from_pretrained(source, trust_remote_code=True, **options)
            AutoModel.from_pretrained(source, trust_remote_code=True, **options)
        except (OSError, ValueError) as error:
            assert source in str(error), error
            return
        raise AssertionError(f"{source} was loaded with {options}")
    model, config, processor = check(job, source, **options)
    check_saving(job, model, config, processor)
    if "push" in job:
        check_pushing(job, model, processor, config)
    pipe = pipeline("image-feature-extraction", model=source, trust_remote_code=True, **options)
    assert torch.tensor(pipe(PAGE)).ndim > 1
    check_refusals(model, source, **options)


for each in json.loads(Path(sys.argv[1]).read_text()):
    print("loading", each["source"], each.get("options", {}), flush=True)
    run(each)
print("done")
