"""The units as systemd itself reads them: no word that it does not know, and as little power as it can do with."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SYSTEMD = Path(__file__).parent.parent / "systemd"
UNIT = SYSTEMD / "ollama-agent.service"
PROGRAM = "/opt/ollama-appliance/bin/ollama-agent"


def analyze(*words: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("install systemd")
    return subprocess.run(["systemd-analyze", *map(str, words)], capture_output=True, text=True, check=False)


def settings(text: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*)$", text, flags=re.MULTILINE))


def test_systemd_knows_every_word_of_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(PROGRAM, "/bin/true"))

    result = analyze("verify", unit)

    assert (result.returncode, result.stderr) == (0, "")


def test_a_word_that_systemd_does_not_know_would_be_seen(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(PROGRAM, "/bin/true").replace("WatchdogSec=", "WatchdogSecs="))

    assert "Unknown key" in analyze("verify", unit).stderr


def test_the_agent_has_little_power() -> None:
    result = analyze("security", "--offline=true", "--threshold=20", UNIT)

    assert result.returncode == 0, result.stdout[-500:]


def test_the_program_is_named_in_one_place_of_the_unit_and_as_the_installation_names_it() -> None:
    text = UNIT.read_text()

    assert text.count("/opt/") == 1
    assert settings(text)["ExecStart"] == f"{PROGRAM} run"


def test_the_engine_is_wanted_and_not_required() -> None:
    text = UNIT.read_text()

    assert "docker.service" in settings(text)["Wants"]
    assert "docker.service" in settings(text)["After"]
    assert not {"Requires", "BindsTo", "PartOf", "Requisite"} & set(settings(text))


def test_nvidias_devices_are_allowed_by_number_for_a_driver_that_is_loaded_later() -> None:
    """Names are looked up in /proc/devices when the unit starts."""
    allowed = re.findall(r"^DeviceAllow=(.*)$", UNIT.read_text(), flags=re.MULTILINE)

    assert {"char-195 rw", "char-nvidia* rw", "/dev/nvidiactl rw"} <= set(allowed)


def test_systemd_never_gives_up() -> None:
    told = settings(UNIT.read_text())

    assert (told["Restart"], told["StartLimitIntervalSec"]) == ("always", "0")
    assert "RestartPreventExitStatus" not in told


@pytest.mark.parametrize("example", sorted((SYSTEMD / "ollama-agent.service.d").iterdir()), ids=lambda path: path.name)
def test_an_example_says_from_which_version_on_it_is_known(example: Path) -> None:
    version = example.name.partition("-")[0]

    assert example.suffixes == [".conf", ".example"], "systemd must not read it as it is"
    assert f"systemd {version} and newer" in example.read_text()


def test_the_system_user_and_the_directories_are_as_the_unit_expects(tmp_path: Path) -> None:
    if shutil.which("systemd-sysusers") is None:
        pytest.skip("install systemd")
    told = settings(UNIT.read_text())
    (tmp_path / "etc").mkdir()
    root = f"--root={tmp_path}"

    subprocess.run(["systemd-sysusers", root, "-"], input=(SYSTEMD / "sysusers.d/ollama-agent.conf").read_text(), text=True, check=True)  # fmt: skip
    subprocess.run(["systemd-tmpfiles", root, "--create", "-"], input=(SYSTEMD / "tmpfiles.d/ollama-agent.conf").read_text(), text=True, check=True)  # fmt: skip

    name, _, user, group, _, home, shell = (tmp_path / "etc/passwd").read_text().strip().split(":")
    assert (name, told["User"], told["Group"]) == ("ollama-agent",) * 3
    assert 0 < int(user) < 1000
    assert int(group) == int((tmp_path / "etc/group").read_text().split(":")[2])
    assert home == f"/var/lib/{told['StateDirectory']}"
    assert shell.endswith("nologin")
    assert (tmp_path / "etc/ollama-appliance").stat().st_mode & 0o7777 == 0o755
    state = (tmp_path / home.removeprefix("/")).stat()
    assert (state.st_uid, state.st_gid, state.st_mode & 0o7777) == (int(user), int(group), 0o755)
    assert told.get("StateDirectoryMode", "0755") == "0755"
