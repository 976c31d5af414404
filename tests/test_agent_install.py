"""install-agent on a Debian 12 host with systemd and without network, from a folder of wheels."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from agentbundle import SCRIPT, another_version, copied, make_bundle
from systemd_host import SHARED, SystemdHost

BUNDLE = f"{SHARED}/bundle"
INSTALL = f"{BUNDLE}/install-agent"
CONFIGURATION = "/etc/ollama-appliance/agent.toml"
UNIT = "/etc/systemd/system/ollama-agent.service"


@pytest.fixture(scope="module")
def host(systemd_host: SystemdHost, agent_bundle: Path) -> SystemdHost:
    if not (systemd_host.shared / "bundle").exists():
        copied(agent_bundle, systemd_host.shared / "bundle")
    return systemd_host


def test_the_folder_holds_all_that_a_host_needs(agent_bundle: Path) -> None:
    names = {path.name.partition("-")[0] for path in agent_bundle.glob("*.whl")}

    ends = {path.name.partition("-")[0]: path.name.rpartition("-")[2] for path in agent_bundle.glob("*.whl")}
    compiled = sorted(path.name.rpartition("_2_28_")[2] for path in agent_bundle.glob("bcrypt-*-abi3-manylinux*.whl"))
    assert {"ollama_appliance", "docker", "nvidia_ml_py", "prometheus_client", "sdnotify", "click", "pyyaml"} <= names
    assert {end for name, end in ends.items() if name != "bcrypt"} == {"any.whl"}, "any Python, any machine"
    assert compiled == ["aarch64.whl", "x86_64.whl"], "any Python, each machine that has GPUs"
    assert (agent_bundle / "install-agent").read_bytes() == SCRIPT.read_bytes()
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=agent_bundle, check=True)


def test_a_folder_with_other_wheels_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine-1.0-py3-none-any.whl").write_text("mine")

    with pytest.raises(RuntimeError, match="there is a wheel that is not from here"):
        make_bundle(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["mine-1.0-py3-none-any.whl"]


def files(host: SystemdHost) -> str:
    places = "/opt /etc/systemd /etc/sysusers.d /etc/tmpfiles.d /etc/ollama-appliance /usr/local/bin"
    return host.must("sh", "-c", f"find {places} -printf '%p %l %m %u %T@\\n' | sort")


def test_a_first_installation_says_what_is_to_be_filled_in_and_a_second_changes_nothing(host: SystemdHost) -> None:
    first = host.run(INSTALL)

    assert first.status == 0, first.stderr
    assert f"installing {CONFIGURATION}, a sample to be filled in" in first.stderr
    assert "image: is missing" in first.stderr
    assert f"hint: edit {CONFIGURATION}, then: ollama-agent check && systemctl start ollama-agent" in first.stderr
    assert host.must("systemctl", "is-enabled", "ollama-agent") == "enabled\n"
    assert not host.is_active("ollama-agent")
    assert host.must("stat", "--format=%a %U", CONFIGURATION) == "644 root\n"
    assert host.must("id", "--groups", "--name", "ollama-agent") == "ollama-agent\n"

    before = files(host)
    second = host.run(INSTALL)

    assert second.status == 0, second.stderr
    assert "installing" not in second.stderr
    assert files(host) == before


def test_the_user_can_log_in_to_a_registry_before_the_first_start_and_check_looks_there(host: SystemdHost) -> None:
    write = 'umask 077 && mkdir -p "$HOME/.docker" && echo {} > "$HOME/.docker/config.json"'
    as_user = ("setpriv", "--reuid=ollama-agent", "--regid=ollama-agent", "--clear-groups", "--reset-env")
    look = (
        "from appliance_agent import check_image, config; print(check_image.login_directory(config.Config(image='x')))"
    )

    host.must(*as_user, "sh", "-c", write)
    python = host.must("readlink", "-f", "/opt/ollama-appliance/bin").strip() + "/python"
    told = host.run(python, "-c", look, environment={"DOCKER_CONFIG": "/root/.docker"})

    assert told.stdout == "/var/lib/ollama-agent/.docker\n", told.stderr
    assert host.must("stat", "--format=%a %U", "/var/lib/ollama-agent") == "755 ollama-agent\n"
    assert host.must("cat", "/var/lib/ollama-agent/.docker/config.json") == "{}\n"


def test_an_upgrade_keeps_the_configuration_and_replaces_program_and_unit(host: SystemdHost) -> None:
    host.write(CONFIGURATION, 'image = "registry.lan/ai/r1:32b"\n')
    host.must("sh", "-c", f"echo '# an older one' >> {UNIT}")
    old = host.must("readlink", "/opt/ollama-appliance/bin")
    another_version(copied(host.shared / "bundle", host.shared / "newer"))

    upgraded = host.run(f"{SHARED}/newer/install-agent", "--no-start")

    assert upgraded.status == 0, upgraded.stderr
    assert f"installing {UNIT}" in upgraded.stderr
    assert "not started, as asked" in upgraded.stderr
    assert host.must("readlink", "/opt/ollama-appliance/bin") != old
    assert host.run("test", "-d", f"/opt/ollama-appliance/{old.strip()}").status == 0, "it may still be running"
    assert host.must("cat", CONFIGURATION) == 'image = "registry.lan/ai/r1:32b"\n'
    assert "an older one" not in host.must("cat", UNIT)
    host.must("rm", CONFIGURATION)


def test_it_may_go_elsewhere_by_a_root_with_a_strict_umask_and_is_found_there_when_it_is_removed(
    host: SystemdHost,
) -> None:
    host.must(INSTALL, "--uninstall")

    host.must("sh", "-c", f"umask 077 && {INSTALL} --prefix /opt/elsewhere")

    assert "ExecStart=/opt/elsewhere/bin/ollama-agent run" in host.must("cat", UNIT)
    assert host.must("ls", "/opt") == "elsewhere\n"
    host.must("setpriv", "--reuid=ollama-agent", "--regid=ollama-agent", "--clear-groups", "ollama-agent", "--version")

    host.must("install", "-d", "/var/lib/ollama-agent")
    removed = host.run(INSTALL, "--uninstall")

    assert removed.status == 0, removed.stderr
    assert "removing /opt/elsewhere" in removed.stderr
    assert "these stay: /etc/ollama-appliance, /var/lib/ollama-agent, user ollama-agent" in removed.stderr
    assert re.findall(r"^\S*agent\S*", files(host), flags=re.MULTILINE) == [CONFIGURATION]
    assert host.run("test", "-d", "/var/lib/ollama-agent").status == 0
    assert host.run(INSTALL, "--uninstall").status == 0, "and again"


@pytest.mark.parametrize(
    ("words", "status", "error", "hint"),
    [
        (["--wheel", "x"], 2, "unknown word: --wheel", "--help"),
        (["--wheels"], 2, "--wheels needs a value", "--help"),
        (["--containers"], 1, "--containers goes with --uninstall only", "--help"),
        (["--prefix", "opt"], 1, "not an absolute path: opt", "--prefix /opt/ollama-appliance"),
        (["--wheels", "/nowhere"], 1, "no such folder: /nowhere", "--make-wheels /nowhere"),
        (["--wheels", "/etc"], 1, "no wheel of ollama-appliance in /etc", "--make-wheels DIR"),
        (["--python", "/usr/bin/perl"], 1, "Python 3.11 or newer is needed, found: Python 3.11", "--python PROGRAM"),
        (["--uninstall", "--containers"], 1, "no program at /opt/ollama-appliance/bin/ollama-agent", "docker ps"),
    ],
)
def test_what_cannot_be_done_is_told_with_what_to_do_and_leaves_nothing(
    host: SystemdHost, words: list[str], status: int, error: str, hint: str
) -> None:
    before = files(host)

    answer = host.run(INSTALL, *words)

    first, second = answer.stderr.splitlines()
    assert answer.status == status
    assert first.startswith(f"error: {error}")
    assert second.startswith("hint: ")
    assert hint in second
    assert files(host) == before


def test_somebody_who_is_not_root_is_told_so(host: SystemdHost) -> None:
    answer = host.run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", INSTALL)

    assert (answer.status, answer.stderr) == (1, f"error: this needs root\nhint: sudo {INSTALL}\n")


def test_a_host_without_docker_is_told_to_install_it(host: SystemdHost) -> None:
    host.must("groupmod", "--new-name=elsewhere", "docker")
    try:
        answer = host.run(INSTALL)
    finally:
        host.must("groupmod", "--new-name=docker", "elsewhere")

    assert answer.status == 1
    assert answer.stderr.startswith("error: there is no group docker, so Docker Engine is not installed\nhint: ")


def test_a_machine_without_systemd_is_told_so(agent_bundle: Path) -> None:
    if Path("/run/systemd/system").exists():
        pytest.skip("systemd runs here")
    answer = subprocess.run([agent_bundle / "install-agent"], capture_output=True, text=True, check=False)

    assert answer.returncode == 1
    assert answer.stderr.startswith("error: systemd does not run here\nhint: ")


def test_a_folder_that_was_damaged_on_the_way_is_refused(host: SystemdHost) -> None:
    damaged = copied(host.shared / "bundle", host.shared / "damaged")
    (wheel,) = damaged.glob("docker-*.whl")
    wheel.write_bytes(wheel.read_bytes()[:-1])

    answer = host.run(f"{SHARED}/damaged/install-agent")

    assert answer.status == 1
    assert answer.stderr == (
        f"error: the wheels are not as they were made: {wheel.name}: FAILED\nhint: copy the folder again\n"
    )


def test_a_folder_that_lacks_a_wheel_says_which_and_installs_nothing(host: SystemdHost) -> None:
    host.must(INSTALL, "--uninstall")
    lacking = copied(host.shared / "bundle", host.shared / "lacking")
    (lacking / "SHA256SUMS").unlink()
    next(lacking.glob("requests-*.whl")).unlink()

    answer = host.run(f"{SHARED}/lacking/install-agent")

    assert answer.status == 1
    assert "No matching distribution found for requests" in answer.stderr
    assert "error: the wheels in /shared/lacking do not fit together" in answer.stderr
    assert host.run("test", "-e", UNIT).status != 0
    assert host.must("ls", "/opt/ollama-appliance/releases") == ""
    assert host.run(INSTALL).status == 0, "and a good folder repairs it"
