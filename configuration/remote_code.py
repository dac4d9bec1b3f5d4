"""The `auto_map` that leads from transformers' Auto classes to code beside the weights.

Unusual: this file is part of what it describes. Configurations, models and the image processor are copied into a model
repository as flat files (`modeling/sam_encoder.py` as `modeling_sam_encoder.py`), and there save and share themselves
without the rest of the package.
"""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

from .atomic_files import write_text
from .package_services import call_service

__all__ = ["SharedPart", "dump_json", "flat_name", "load_json", "register_remote_code", "settle_auto_map"]

PAYLOAD = ("configuration", "modeling", "processing")


def dump_json(content: Mapping[str, Any]) -> str:
    """Write a dictionary as JSON, formatted as transformers formats its files."""
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def load_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        `ValueError`: the file is not JSON, or is nested more deeply than Python reads.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def flat_name(owner: type) -> str:
    """Return the name of a class in an `auto_map`, such as `"modeling_sam_encoder.SamEncoder"`."""
    *_, folder, module = ("", *owner.__module__.split("."))
    flat = module if module.startswith(tuple(f"{name}_" for name in PAYLOAD)) else f"{folder}_{module}"
    return f"{flat}.{owner.__name__}"


def register_remote_code(owner: Any, auto_class: str) -> None:
    """Make transformers save the code of a class that was loaded from a model repository.

    transformers registers the classes that an `auto_map` names, but not those of a model's parts.
    """
    if owner.__module__.startswith("transformers_modules.") and owner._auto_class is None:
        owner.register_for_auto_class(auto_class)


def _module_of(value: Any) -> str | None:
    """Return the module that a value of an `auto_map` names, `"module.Class"` or `"owner/name--module.Class"`."""
    module = str(value).rpartition("--")[2].partition(".")[0]
    return module if module.isidentifier() else None  # Anything else may be a path.


def _copy_named_code(owner: type, path: Path) -> None:
    """Copy the code that the `auto_map` of a saved file names, with what it imports, from where a class was loaded.

    transformers copies the code of the class itself, but the `auto_map` of a configuration also names the model.
    """
    folder = Path(str(sys.modules[owner.__module__].__file__)).parent
    auto_map = json.loads(path.read_text(encoding="utf-8")).get("auto_map")
    for module in map(_module_of, auto_map.values() if isinstance(auto_map, dict) else ()):
        root = folder / f"{module}.py"
        if module is not None and root.is_file():
            for file in (root, *map(Path, get_relative_import_files(root))):
                shutil.copyfile(file, path.with_name(file.name))


class SharedPart:
    """Mixin of configurations and image processors: saved files name existing code only, and pushes include the code.

    It comes before transformers' class among the bases.
    """

    _shared_as: tuple[str, str]  # The Auto class that loads the part, and the name of its file.

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[Any], *args: Any, **kwargs: Any) -> Any:
        """Load from a folder or the Hub, as transformers' `from_pretrained`.

        Raises:
            `ValueError`: the file is nested too deeply, or a field in it is invalid.
            `OSError`: there is no such file, or it is not JSON.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)  # type: ignore[misc]
        except RecursionError as error:
            raise ValueError(
                f"{cls._shared_as[1]} of {pretrained_model_name_or_path} is nested too deeply."
            ) from error

    def save_pretrained(self, save_directory: str | os.PathLike[Any], push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Save to a folder, as transformers' `save_pretrained`.

        Args:
            save_directory: the folder. It is created if it does not exist.
            push_to_hub: also push to `repo_id`, by default the name of the folder, with the code that loads the file.
            kwargs: as in transformers, among them `repo_id`, `private`, `token`, `revision`, `create_pr` and
                `commit_message` for the push.
        """
        auto_class, name = self._shared_as
        register_remote_code(type(self), auto_class)
        names = ("repo_id", "commit_message", "private", "token", "create_pr", "revision")
        hub = {key: kwargs.pop(key) for key in names if push_to_hub and key in kwargs}
        result = super().save_pretrained(os.fspath(save_directory), **kwargs)  # type: ignore[misc]
        if self._auto_class is not None:  # type: ignore[attr-defined]
            _copy_named_code(type(self), Path(save_directory) / name)
        settle_auto_map(Path(save_directory) / name, **{auto_class: flat_name(type(self))})
        if push_to_hub:
            self.push_to_hub(hub.pop("repo_id", Path(save_directory).resolve().name), **hub)
        return result

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Push to the Hub with the code that loads the file, as transformers' `push_to_hub`.

        Args:
            repo_id: `name` or `owner/name`; the repository is created if it does not exist.
            kwargs: `private`, `token`, `revision`, `create_pr`, `commit_message` and `commit_description`.

        Returns:
            the address of the commit.
        """
        register_remote_code(type(self), self._shared_as[0])
        if self._auto_class is not None:  # type: ignore[attr-defined]
            return super().push_to_hub(repo_id, **kwargs)  # type: ignore[misc]
        return call_service("push_part", self, repo_id, **kwargs)


def settle_auto_map(path: Path, **own: str) -> None:
    """Make the `auto_map` of a saved file name exactly the code that lies beside the file.

    Args:
        path: a `config.json` or `preprocessor_config.json`.
        own: for each Auto class, the [`flat_name`] of the class that was saved.
    """
    content = load_json(path)
    before = content.pop("auto_map", None)
    known = before if isinstance(before, dict) else {}
    # "owner/name--module.Class" refers to code in another repository: keep only "module.Class".
    entries = {name: value.rpartition("--")[2] for name, value in known.items() if isinstance(value, str)} | own
    beside = {name: value for name, value in entries.items() if path.with_name(f"{_module_of(value)}.py").is_file()}
    if beside != (before or {}):
        write_text(path, dump_json(content | ({"auto_map": beside} if beside else {})))
