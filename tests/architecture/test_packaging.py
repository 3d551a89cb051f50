"""A branch can be installed alone: its wheel holds no coordinator, and its command works without one."""

import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The branch's wheel, built and unpacked as pip would."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", str(ROOT / "deploy" / "branch")]
    subprocess.run([*command, "--outdir", str(out)], check=True, capture_output=True)
    target = out / "site"
    with zipfile.ZipFile(next(out.glob("*.whl"))) as wheel:
        wheel.extractall(target)
    return target


def run(installed: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    # -S: no .pth files, so the editable installation of this checkout is out of sight.
    code = (
        "import sys; sys.path[:0] = sys.argv.pop(1).split(chr(58));"
        "from sfumato.common.cli import main; sys.argv[0] = 'sfumato'; main()"
    )
    path = f"{installed}:{sysconfig.get_paths()['purelib']}"
    return subprocess.run(
        [sys.executable, "-S", "-c", code, path, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100"},
        cwd=installed,
        check=False,
    )


def test_the_wheel_holds_a_branch_and_nothing_else(installed: Path) -> None:
    parts = {p.name for p in (installed / "sfumato").iterdir()}
    assert parts == {"client", "privacy", "common"}


def test_its_command_knows_the_branch_alone(installed: Path) -> None:
    shown = run(installed, "--help")
    assert shown.returncode == 0, shown.stderr
    assert "branch" in shown.stdout
    for other in ("coordinator", "simulate", "demo"):
        assert other not in shown.stdout


def test_a_branch_is_set_up_by_it(installed: Path, tmp_path: Path) -> None:
    refused = run(installed, "branch", "status", str(tmp_path))
    assert refused.returncode == 2
    assert "not a branch's directory" in refused.stderr
    imports = run(installed, "branch", "init", "--help")
    assert imports.returncode == 0 and "--budget-epsilon" in imports.stdout


def test_vault_and_courier_import_without_the_coordinator(installed: Path) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1].split(chr(58));"
        "import sfumato.client.vault.service, sfumato.client.courier.executor, sfumato.client.setup;"
        "assert not any(m.startswith(('sfumato.server', 'sfumato.lab')) for m in sys.modules)"
    )
    path = f"{installed}:{sysconfig.get_paths()['purelib']}"
    subprocess.run([sys.executable, "-S", "-c", code, path], check=True, cwd=installed)


def test_one_version_everywhere() -> None:
    """The bundle's hash is what tells another release's coordinator apart: it must change with every release."""
    files = ("pyproject.toml", "deploy/branch/pyproject.toml", "common/sfumato/common/bundle/pyproject.toml")
    versions = {f: tomllib.loads((ROOT / f).read_text())["project"]["version"] for f in files}
    assert len(set(versions.values())) == 1, versions
    assert f"## {versions['pyproject.toml']}" in (ROOT / "CHANGELOG.md").read_text()
