"""Short names of processors, from what Linux says about them."""

import platform
from importlib import import_module
from typing import Any

import pytest

AMD = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 26
model\t\t: 2
model name\t: AMD EPYC
flags\t\t: fpu avx2 avx512f avx512_bf16

processor\t: 1
vendor_id\t: GenuineIntel
"""
INTEL = """vendor_id : GenuineIntel
cpu family : 6
model : {model}
model name : Intel(R) Xeon(R) Processor
flags : avx2 avx512f avx512_bf16 {flags}
"""
ARM = """processor : 0
Features : fp asimd sve bf16
CPU implementer : 0x41
"""


@pytest.fixture
def processors() -> Any:
    return import_module("processors")


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (AMD, "amd-epyc-zen5-avx512bf16"),
        (AMD.replace("26", "25").replace(": 2\n", ": 17\n"), "amd-epyc-zen4-avx512bf16"),
        (AMD.replace("26", "99").replace("EPYC", "Ryzen 9 1234X"), "amd-ryzen-avx512bf16"),
        (INTEL.format(model=143, flags="amx_bf16"), "intel-xeon-sapphirerapids-amx"),
        (INTEL.format(model=999, flags="amx_bf16"), "intel-xeon-amx"),
        (INTEL.format(model=85, flags="").replace("avx512_bf16", ""), "intel-xeon-skylake-avx512"),
    ],
)
def test_names(processors: Any, cpuinfo: str, name: str) -> None:
    assert processors.describe_processor(cpuinfo) == name


def test_other_architectures(processors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert processors.describe_processor(ARM) == "aarch64-sve"
    assert processors.describe_processor("") == "aarch64"
    monkeypatch.setattr(platform, "machine", lambda: "")
    assert processors.describe_processor("") == "unknown"


def test_this_machine_has_a_name(processors: Any) -> None:
    assert processors.processor_slug().replace("-", "").replace("_", "").isalnum()
