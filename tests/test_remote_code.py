"""Models that travel with their code: pushed to a Hub, loaded in a process that has not got this package, saved there,
and loaded again."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from deepencoder import (
    ClipVisionEncoder,
    ClipVisionEncoderConfig,
    DeepEncoder,
    DeepEncoderConfig,
    DeepEncoderImageProcessor,
    SamEncoder,
    SamEncoderConfig,
)

from .conftest import ROOT, randomize
from .hub_server import COMMIT, Hub

MODELS = {
    "deepencoder": lambda: DeepEncoder(DeepEncoderConfig.tiny()),
    "sam": lambda: SamEncoder(SamEncoderConfig.tiny()),
    "clip": lambda: ClipVisionEncoder(ClipVisionEncoderConfig.tiny(post_norm="pooled", projection_dim=24)),
}
PROGRAM = '''
import json, sys
from pathlib import Path

class Absent:
    """A machine without the package: neither an installation nor a checkout of it can be imported."""
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "deepencoder":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import torch
from transformers import AutoConfig, AutoModel, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from PIL import Image

source, folder, options = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
pixels, expected = torch.load(folder / "expected.pt")

def check(source, **options):
    config = AutoConfig.from_pretrained(source, trust_remote_code=True, **options)
    model = AutoModel.from_pretrained(source, trust_remote_code=True, **options).eval()
    processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=True, **options)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    assert type(config).__module__.startswith("transformers_modules."), type(config)
    assert type(processor).__module__.startswith("transformers_modules."), type(processor)
    with torch.no_grad():
        assert torch.equal(model(pixels).last_hidden_state, expected), "other numbers"
    page = processor(Image.new("RGB", (100, 60), "white"), return_tensors="pt")
    assert "pixel_values" in page
    return config, model, processor

push = options.pop("push", False)
config, model, processor = check(source, **options)
for name, save in {"model": model, "config": config}.items():
    save.save_pretrained(folder / name)
processor.save_pretrained(folder / "model")
check(str(folder / "model"))
for name in ("model", "config"):
    for file in (folder / name).glob("*config.json"):
        for value in json.loads(file.read_text()).get("auto_map", {}).values():
            assert (folder / name / f"{value.split('.')[0]}.py").is_file(), (name, file.name, value)
model_type = {"DeepEncoder": "sam_encoder"}.get(type(model).__name__)
if model_type is not None:  # a half takes its code along, too
    getattr(model, model_type).save_pretrained(folder / "half")
    half = AutoModel.from_pretrained(folder / "half", trust_remote_code=True)
    assert type(half).__name__ == "SamEncoder"
if push:
    for part in (model, processor, config):
        part.push_to_hub("me/again", token="hf_secret")
    check("me/again")
pipe = pipeline("image-feature-extraction", model=source, trust_remote_code=True, **options)
print("pipeline", torch.tensor(pipe(Image.new("RGB", (100, 60)))).shape)
try:
    type(model).from_original("somewhere")
except ImportError as error:
    print(error)
try:
    AutoModel.from_pretrained(source, trust_remote_code=False, **options)
except ValueError as error:
    print("refused:", "trust_remote_code" in str(error))
print("done")
'''


def save_expected(model: Any, folder: Path) -> None:
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.save((pixels, model(pixels).last_hidden_state), folder / "expected.pt")


def run_elsewhere(
    source: str, folder: Path, environment: dict[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the program in a process that has not got this package."""
    script = folder / "program.py"
    script.write_text(PROGRAM)
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables |= {"HF_HOME": str(folder / "home"), "HF_MODULES_CACHE": str(folder / "modules")} | (environment or {})
    command = [sys.executable, str(script), source, str(folder), json.dumps(options)]
    return subprocess.run(command, capture_output=True, text=True, env=variables, cwd=folder, timeout=300)


def assert_done(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0 and done.stdout.strip().endswith("done"), done.stdout + done.stderr[-3000:]
    assert "pip install deepencoder" in done.stdout and "refused: True" in done.stdout


def all_auto_maps_lead_somewhere(folder: Path) -> dict[str, str]:
    found = {}
    for file in folder.glob("*config.json"):
        for name, value in json.loads(file.read_text()).get("auto_map", {}).items():
            assert (folder / f"{value.split('.')[0]}.py").is_file(), (file.name, value)
            found[name] = value
    return found


@pytest.mark.parametrize("kind", MODELS)
def test_a_folder_loads_without_the_package(kind: str, tmp_path: Path) -> None:
    model: Any = randomize(MODELS[kind]())
    model.save_pretrained(tmp_path / "shared", self_contained=True)
    assert set(all_auto_maps_lead_somewhere(tmp_path / "shared")) == {"AutoConfig", "AutoModel", "AutoImageProcessor"}
    save_expected(model, tmp_path)
    assert_done(run_elsewhere(str(tmp_path / "shared"), tmp_path))


@pytest.mark.parametrize("kind", MODELS)
def test_push_and_load_elsewhere(kind: str, hub: Hub, tmp_path: Path) -> None:
    model: Any = randomize(MODELS[kind]())
    address = model.push_to_hub("some/shared", token=hub.token, tags=["mine"])
    assert address.startswith(f"{hub.url}/some/shared/commit/")
    save_expected(model, tmp_path)
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HUB_DISABLE_XET": "1"}
    assert_done(run_elsewhere("some/shared", tmp_path, environment, push=True))
    # Offline, after the first time.
    assert_done(run_elsewhere("some/shared", tmp_path, {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}))
    card = ModelCard((hub.find("some/shared", None) or ("", Path()))[1].joinpath("README.md").read_text())
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "image-feature-extraction"
    assert card.data.license == "apache-2.0" and "mine" in (card.data.tags or [])
    assert f"{model.num_parameters():,} parameters" in card.text and "some/shared" in card.text


def test_private_missing_revision_and_a_broken_line(hub: Hub, tmp_path: Path) -> None:
    model: Any = randomize(MODELS["deepencoder"]())
    model.push_to_hub("some/private", token=hub.token, private=True, revision="experiment")
    save_expected(model, tmp_path)
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token}
    # The weights stop half-way, twice: the client goes on.
    hub.cut_after, hub.cuts = 100_000, 2
    assert_done(run_elsewhere("some/private", tmp_path, environment, revision="experiment"))
    assert hub.cuts == 0
    for where, variables, options in (
        ("some/private", {"HF_ENDPOINT": hub.url}, {"revision": "experiment"}),
        ("some/missing", environment, {}),
        ("some/private", environment, {"revision": "missing"}),
        ("some/private", environment, {}),  # nothing is on main
    ):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        torch.save((torch.zeros(1), torch.zeros(1)), folder / "expected.pt")
        done = run_elsewhere(where, folder, variables, **options)
        assert done.returncode != 0 and re.search("(OS|Value)Error: .*some/", done.stderr), done.stderr[-2000:]


def test_with_the_package_no_remote_code_runs(tmp_path: Path) -> None:
    model: Any = randomize(MODELS["deepencoder"]())
    model.save_pretrained(tmp_path / "shared", self_contained=True)
    for file in (tmp_path / "shared").glob("*.py"):
        file.write_text("raise SystemExit('remote code ran')")
    loaded = AutoModel.from_pretrained(tmp_path / "shared", trust_remote_code=True)
    assert type(loaded) is DeepEncoder
    assert type(AutoConfig.from_pretrained(tmp_path / "shared", trust_remote_code=True)) is DeepEncoderConfig
    processor = AutoImageProcessor.from_pretrained(tmp_path / "shared", trust_remote_code=True)
    assert type(processor) is DeepEncoderImageProcessor
    # Saved again, it names no code: none is there.
    loaded.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    loaded.config.save_pretrained(tmp_path / "config")
    for folder in ("again", "config"):
        assert all_auto_maps_lead_somewhere(tmp_path / folder) == {}
        assert not list((tmp_path / folder).glob("*.py"))
    # Saved where the code lies, it names it.
    processor.save_pretrained(tmp_path / "shared")
    loaded.save_pretrained(tmp_path / "shared")
    assert set(all_auto_maps_lead_somewhere(tmp_path / "shared")) == {"AutoConfig", "AutoModel", "AutoImageProcessor"}


def test_a_plain_save_takes_no_code_along(tmp_path: Path) -> None:
    MODELS["deepencoder"]().save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


FROZEN = ROOT / "tests" / "frozen"


@pytest.mark.parametrize("folder", sorted(path.name for path in FROZEN.iterdir() if path.is_dir()))
def test_exports_of_older_versions_still_load(folder: str, tmp_path: Path) -> None:
    """As they were shared: with the code they brought, and with the package as it is now."""
    (tmp_path / "expected.pt").write_bytes((FROZEN / folder / "expected.pt").read_bytes())
    assert_done(run_elsewhere(str(FROZEN / folder), tmp_path))
    pixels, expected = torch.load(FROZEN / folder / "expected.pt", weights_only=True)
    model = AutoModel.from_pretrained(FROZEN / folder).eval()
    assert type(model) is DeepEncoder
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).last_hidden_state, expected, atol=2e-6, rtol=0)
    assert AutoImageProcessor.from_pretrained(FROZEN / folder).mode == "base"


def test_the_revision_is_the_one_that_was_asked_for(hub: Hub) -> None:
    model: Any = MODELS["sam"]()
    model.push_to_hub("some/model", token=hub.token)
    model.push_to_hub("some/model", token=hub.token, revision="other")
    first, second = hub.find("some/model", "main"), hub.find("some/model", "other")
    assert first is not None and second is not None and COMMIT not in (first[0], second[0]) and first != second


def test_parts_that_are_pushed_later(hub: Hub, tmp_path: Path) -> None:
    """An image processor and a configuration take their code along, and leave the repository loadable."""
    model: Any = randomize(MODELS["sam"]())
    save_expected(model, tmp_path)
    model.push_to_hub("some/model", token=hub.token, max_shard_size="50KB")
    processor = DeepEncoderImageProcessor(mode="tiny")
    processor.push_to_hub("some/model", token=hub.token)
    model.config.push_to_hub("some/model", token=hub.token)
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token}
    assert_done(run_elsewhere("some/model", tmp_path, environment))
    card = hub.find("some/model", None)
    assert card is not None
    hub.commit("some/model", "main", {"README.md": b"my own words"})
    model.push_to_hub("some/model", token=hub.token)
    found = hub.find("some/model", None)
    assert found is not None
    assert (found[1] / "README.md").read_text() == "my own words"
    assert json.loads((found[1] / "preprocessor_config.json").read_text())["size"]["height"] == 512
    assert not list(found[1].glob("model-*"))  # the shards of the first push
    assert set(all_auto_maps_lead_somewhere(found[1])) == {"AutoConfig", "AutoModel", "AutoImageProcessor"}


@pytest.mark.parametrize("kind", MODELS)
def test_saving_and_pushing_in_one(kind: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = MODELS[kind]()
    options = {"push_to_hub": True, "token": hub.token}
    model.save_pretrained(tmp_path / "a", repo_id="w/model", tags=["mine"], **options)
    DeepEncoderImageProcessor(mode="tiny").save_pretrained(tmp_path / "b", repo_id="w/processor", **options)
    model.config.save_pretrained(tmp_path / "c", repo_id="w/config", **options)
    for repo, names in (
        ("w/model", {"AutoConfig", "AutoModel", "AutoImageProcessor"}),
        ("w/processor", {"AutoImageProcessor"}),
        ("w/config", {"AutoConfig", "AutoModel"}),
    ):
        found = hub.find(repo, None)
        assert found is not None and set(all_auto_maps_lead_somewhere(found[1])) == names
    for folder in ("a", "b", "c"):
        assert all_auto_maps_lead_somewhere(tmp_path / folder) == {}
    found = hub.find("w/model", None)
    assert found is not None
    card = ModelCard((found[1] / "README.md").read_text())
    assert "w/model" in card.text and "mine" in (card.data.tags or [])


def test_a_card_of_ours_is_renewed(hub: Hub, tmp_path: Path) -> None:
    MODELS["deepencoder"]().save_pretrained(tmp_path, self_contained=True)
    MODELS["sam"]().save_pretrained(tmp_path, self_contained=True)
    assert "Model type `deepencoder_sam`" in (tmp_path / "README.md").read_text()


def test_what_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    class Mine(SamEncoder):
        pass

    model: Any = Mine(SamEncoderConfig.tiny())
    adapted: Any = MODELS["clip"]()
    peft = pytest.importorskip("peft")
    adapted.add_adapter(peft.LoraConfig(r=2, target_modules=["qkv_proj"]))
    for refused, words in ((model, "Mine"), (adapted, "adapters")):
        with pytest.raises(ValueError, match=words):
            refused.save_pretrained(tmp_path / "refused", self_contained=True)
    assert not (tmp_path / "refused").exists()


def test_which_part_is_in_training_stays_so(tmp_path: Path) -> None:
    model: Any = MODELS["deepencoder"]().train()
    model.sam_encoder.eval()
    model.save_pretrained(tmp_path, self_contained=True)
    assert model.training and model.clip_encoder.training and not model.sam_encoder.training
