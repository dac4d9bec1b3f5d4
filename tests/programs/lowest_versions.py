"""Print the lowest declared version of each direct dependency, one `name==version` per line, for `make lowest`.

    python tests/programs/lowest_versions.py [EXTRA ...]

torch is printed without a version, so that pip keeps the one that is installed.
"""

import sys
from pathlib import Path

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def lowest(extras: list[str]) -> list[str]:
    """Return pinned requirements of the package and of the extras, to which extras that they name are added."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    pending = [Requirement(line) for line in project["dependencies"]]
    for extra in extras:
        pending += [Requirement(line) for line in project["optional-dependencies"][extra]]
    pinned: dict[str, str] = {}
    for requirement in pending:
        if requirement.name == "deepencoder":
            extra_lines = lowest(sorted(requirement.extras))
            pinned |= dict(line.split("==") for line in extra_lines if "==" in line)
            continue
        (bound,) = (part for part in requirement.specifier if part.operator == ">=")
        pinned[requirement.name] = bound.version
    pinned.pop("torch", None)
    return ["torch", *(f"{name}=={version}" for name, version in sorted(pinned.items()))]


if __name__ == "__main__":
    print("\n".join(lowest(sys.argv[1:])))
