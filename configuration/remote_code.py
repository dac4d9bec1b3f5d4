"""What lets a model travel: the map from Auto classes to code beside the weights, and the way back to the package.

Unusual: configuration, modeling and the image processor are copied into a model repository as flat files
(`modeling/sam_encoder.py` as `modeling_sam_encoder.py`), without the rest of the package. What they need of it is
asked for by name, when it is needed.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from .atomic_files import write_text
from .package_services import call_service

__all__ = ["SharedPart", "flat_name", "register_remote_code", "settle_auto_map"]

PAYLOAD = ("configuration", "modeling", "processing")


def flat_name(owner: type) -> str:
    """Return what a class is called in an `auto_map`: `"modeling_sam_encoder.SamEncoder"`."""
    *_, folder, module = ("", *owner.__module__.split("."))
    flat = module if module.startswith(tuple(f"{name}_" for name in PAYLOAD)) else f"{folder}_{module}"
    return f"{flat}.{owner.__name__}"


def register_remote_code(owner: Any, auto_class: str) -> None:
    """See to it that a class that came with a model takes its code along, the parts of a model too."""
    if owner.__module__.startswith("transformers_modules.") and owner._auto_class is None:
        owner.register_for_auto_class(auto_class)


def _copy_neighbours(owner: type, folder: Path) -> None:
    """Copy the code that came with a class: a configuration's file names the model's, too."""
    for path in Path(str(sys.modules[owner.__module__].__file__)).parent.glob("*_*.py"):
        if not path.name.startswith("__"):
            shutil.copyfile(path, folder / path.name)


class SharedPart:
    """What configurations and image processors share: pushed, they take their code along; saved, they name no other.

    Goes before transformers' class among the bases.
    """

    _shared_as: tuple[str, str]  # the Auto class, and the file

    def save_pretrained(self, save_directory: str | os.PathLike[Any], push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Write the file, which names code that lies beside it only; see transformers."""
        auto_class, name = self._shared_as
        register_remote_code(type(self), auto_class)
        names = ("repo_id", "commit_message", "private", "token", "create_pr", "revision")
        hub = {key: kwargs.pop(key) for key in names if push_to_hub and key in kwargs}
        result = super().save_pretrained(os.fspath(save_directory), **kwargs)  # type: ignore[misc]
        if self._auto_class is not None:  # type: ignore[attr-defined]
            _copy_neighbours(type(self), Path(save_directory))
        settle_auto_map(Path(save_directory) / name, **{auto_class: flat_name(type(self))})
        if push_to_hub:
            self.push_to_hub(hub.pop("repo_id", Path(save_directory).resolve().name), **hub)
        return result

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Share the file with the code that reads it; see transformers' `push_to_hub`."""
        register_remote_code(type(self), self._shared_as[0])
        if self._auto_class is not None:  # type: ignore[attr-defined]
            return super().push_to_hub(repo_id, **kwargs)  # type: ignore[misc]
        return call_service("push_part", self, repo_id, **kwargs)


def settle_auto_map(path: Path, **own: str) -> None:
    """See to it that the `auto_map` of a saved file names just the code that lies beside it.

    Args:
        path: a `config.json` or `preprocessor_config.json`.
        own: for each Auto class, the [`flat_name`] of the class that was saved.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    before = content.pop("auto_map", None)
    known = before if isinstance(before, dict) else {}
    entries = {name: value.rpartition("--")[2] for name, value in known.items() if isinstance(value, str)} | own
    beside = {name: value for name, value in entries.items() if (path.parent / f"{value.split('.')[0]}.py").is_file()}
    if beside != (before or {}):
        content |= {"auto_map": beside} if beside else {}
        # As transformers writes it.
        write_text(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
