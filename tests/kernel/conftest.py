"""Real kernels of each supported ipykernel, one at a time, shared by the tests of a version."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .kernel_client import Client

ROOT = Path(__file__).parents[2]
VERSIONS: tuple[str, ...] = ("6.29.5", "6.31.0", "7.0.1", "7.1.0", "7.2.0", "7.3.0", "7.4.0")
# Those between behave as these do, each time that all were tried: `MLX_MAGIC_EVERY=1` tries them.
if os.environ.get("MLX_MAGIC_EVERY") != "1":
    # 7.0 to 7.3 route messages alike.
    VERSIONS = ("6.29.5", "7.3.0", "7.4.0")


def version_folder(version: str) -> Path:
    """Return the folder that ``make kernels`` has put this ipykernel into, or skip the test."""
    folders = os.environ.get("MLX_MAGIC_KERNELS") or ROOT / ".cache" / "ipykernel"
    folder = Path(folders) / version
    if not folder.is_dir():
        reason = f"ipykernel {version} is not at hand: run `make kernels`"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return folder


def start_client(version: str, home: Path) -> Client:
    """Start a kernel of this ipykernel, and make sure that it is that one."""
    client = Client([version_folder(version), ROOT], home)
    client.run("import ipykernel")
    assert client.value("ipykernel.__version__") == version
    return client


@pytest.fixture(scope="session", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    """Version of the kernel's ipykernel."""
    return str(request.param)


@pytest.fixture(scope="session")
def shared_client(version: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Hold one kernel for all tests of a version."""
    client = start_client(version, tmp_path_factory.mktemp("kernel"))
    yield client
    client.close()


@pytest.fixture
def client(shared_client: Client) -> Iterator[Client]:
    """Give the version's kernel to a test, and expect that the test leaves it idle."""
    yield shared_client
    if shared_client.in_flight():
        shared_client.interrupt()
        for cell in shared_client.in_flight():
            shared_client.finish(cell)


@pytest.fixture(params=["main shell", "subshell"])
def subshell_id(request: pytest.FixtureRequest, version: str, client: Client) -> str | None:
    """Where a front end sends its clicks: JupyterLab to a subshell, VS Code to the main shell."""
    if request.param == "main shell":
        return None
    if version.startswith("6."):
        pytest.skip("ipykernel 6 has no subshells")
    return client.new_subshell()
