"""Names of a package that are imported when they are first used.

Unusual: importing torch and transformers takes seconds, so neither `import deepencoder` nor the help texts of the
command line may import a model. A package with a `__getattr__` (PEP 562) can offer names that it has not imported yet.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["lazy_attributes"]


def lazy_attributes(
    package: str, modules: Mapping[str, str], subpackages: tuple[str, ...] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and `__dir__` of a package.

    Args:
        package: the package's `__name__`.
        modules: for each public name, the module that defines it, relative to the package.
        subpackages: names of packages in the package, which are also imported when they are first used.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807
        if name in subpackages:
            return importlib.import_module(f".{name}", package)
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(modules[name], package), name)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:  # noqa: N807
        return sorted({*vars(sys.modules[package]), *modules, *subpackages})

    return __getattr__, __dir__
