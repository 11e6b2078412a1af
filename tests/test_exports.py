"""The public list, and how light it is to import."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from importlib.resources import files
from types import ModuleType
from typing import Final

import pytest

import broker

PUBLIC: Final = [
    "Ack", "AtMostEvery", "Broker", "ChangeLog", "Column", "Completion", "Dataset", "Delta", "Event", "Every", "Handle",
    "Heard", "Lag", "Latest", "Listener", "Producers", "ProductionRequest", "Published", "Received", "Replica", "Report",
    "Response", "Responses", "Schema", "Settings", "Since", "Snapshot", "Unchanged", "connect", "errors", "sinks", "sources",
]  # fmt: skip
HEAVY: Final = ("duckdb", "pyarrow", "redis", "minio", "sqlglot", "rq", "click", "rich", "pydantic")


def loaded_after(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after `code`."""
    script = f"{code}\nimport sys\nprint('\\n'.join(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_the_public_names_are_exactly_these() -> None:
    assert broker.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_resolves_and_has_a_docstring(name: str) -> None:
    found = getattr(broker, name)
    assert found.__doc__, f"broker.{name} says nothing of itself"
    assert isinstance(found, ModuleType) or found.__module__.startswith("broker.")


@pytest.mark.parametrize("name", ["errors", "sinks", "sources"])
def test_every_name_a_public_module_offers_exists(name: str) -> None:
    module = getattr(broker, name)
    assert all(hasattr(module, inner) for inner in getattr(module, "__all__", []))


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="'broker' has no attribute 'nonsense'"):
        getattr(broker, "nonsense")  # noqa: B009 - mypy knows that it is not there


def test_dir_lists_the_public_names() -> None:
    assert {*PUBLIC, "__version__"} == set(dir(broker))


def test_importing_the_package_loads_no_driver() -> None:
    assert loaded_after("import broker").isdisjoint(HEAVY)


def test_the_version_command_loads_no_driver() -> None:
    code = "import sys; sys.argv = ['broker', '--version']\nfrom broker.cli.__main__ import main\nassert main() == 0"
    loaded = loaded_after(code)
    assert loaded.isdisjoint(HEAVY)
    assert broker.__version__ in loaded


def test_connecting_loads_drivers_but_none_that_a_local_store_and_no_filter_need_not() -> None:
    loaded = loaded_after("import broker; broker.connect")
    assert "duckdb" in loaded
    assert loaded.isdisjoint({"minio", "sqlglot"})


def test_the_version_is_the_one_the_distribution_says() -> None:
    assert version("data-request-broker") == broker.__version__


def test_the_package_says_that_it_is_typed() -> None:
    assert files("broker").joinpath("py.typed").is_file()
