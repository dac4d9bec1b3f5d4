"""How models call the conversion and sharing rooms."""

import pytest

from deepencoder.configuration import package_services
from deepencoder.configuration.package_services import call_service, provide_services
from deepencoder.services import SERVICES


@pytest.fixture(autouse=True)
def _own_services(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_services, "_services", {})


def test_a_service_is_loaded_when_it_is_called() -> None:
    loaded = []

    def load() -> object:
        loaded.append(True)
        return lambda *args, **kwargs: (args, kwargs)

    provide_services({"echo": load})  # type: ignore[dict-item]
    assert not loaded
    assert call_service("echo", 1, two=2) == ((1,), {"two": 2})
    assert loaded == [True]


def test_without_the_package_a_call_says_what_to_do() -> None:
    with pytest.raises(ImportError, match="load_original needs the deepencoder package: install"):
        call_service("load_original")


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_of_the_package_exists(name: str) -> None:
    function = SERVICES[name]()
    assert function.__name__ == name
