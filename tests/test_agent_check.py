"""What `ollama-agent check` says of a broken host: for each fault its finding, the fix to type, and nothing besides."""

import json
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from checkfacts import (
    ABSENT,
    CDI,
    DRIVER,
    FACTS,
    GIBIBYTE,
    GPUS,
    HEALTHY,
    IMAGE,
    LABELS,
    NOW_S,
    OLD,
    SEEN,
    SNAPSHOT,
    TOOLKIT,
    broken,
    container,
    reading,
)

from appliance_agent import daemon_json
from appliance_agent.check_facts import (
    Answer,
    CheckFacts,
    GpuUser,
    ImageState,
    Listener,
    Nvml,
    Program,
    Reach,
    StoreState,
    Toolkit,
)
from appliance_agent.check_render import render_findings, render_json
from appliance_agent.config import Config, Container, Engine
from appliance_agent.finding import Finding, Severity
from appliance_agent.findings import failed, findings
from appliance_agent.gpus import Gpu, GpuSnapshot, RecoveryAction
from appliance_agent.spec import SlotPlan
from appliance_builder.cli import cli

ERROR, WARNING = Severity.ERROR, Severity.WARNING
NO_NVML = Nvml(GpuSnapshot(at_s=0.0, up=False, because="NVML Shared Library Not Found"))
NO_DRIVER = {"module_version": "", "library": "", "library_version": "", "module_built": False, "uvm_node": False}
SAID = 'could not select device driver "" with capabilities: [[gpu]]'
STORE = Config(image="ollama/ollama:0.13.5", store="/srv/models", model="deepseek-r1:32b")
PLAIN = replace(SEEN, reference=STORE.image, labels=None)


def images(**values: object) -> CheckFacts:
    return broken(image=replace(ImageState(SEEN, architecture="amd64"), **values))  # type: ignore[arg-type]


def labelled(**values: object) -> CheckFacts:
    return images(seen=replace(SEEN, labels=replace(LABELS, **values)))  # type: ignore[arg-type]


def on_engine(facts: object, **more: object) -> CheckFacts:
    return broken(engine={"facts": facts}, **more)


def stored(**values: object) -> CheckFacts:
    state = StoreState(**{"manifest": True, "models": ("deepseek-r1:32b",), "owner": "996:996", **values})  # type: ignore[arg-type]
    return broken(config=STORE, image=ImageState(PLAIN, architecture="amd64"), store=state)


def listening(
    name: str, port: int, *, pid: int | None = 77, address: str = "0.0.0.0", agent: bool = False
) -> CheckFacts:
    return broken(listeners=(Listener(address, port, pid, name, "root", agent=agent),))


def using(**values: object) -> CheckFacts:
    first = {"uuid": GPUS[0].uuid, "pid": 4711, "name": "python3", "memory_bytes": 10 * GIBIBYTE}
    return broken(
        gpu_users=(GpuUser(**{**first, **values}),),  # type: ignore[arg-type]
        containers=(container("training", id="d" * 64), container("ollama-0", mine=True, slot=0, id="e" * 64)),
    )


MIG_EMPTY = reading(mig_enabled=True)
SMALL = Nvml(replace(SNAPSHOT, gpus=tuple(replace(gpu, memory_bytes=15 * GIBIBYTE) for gpu in GPUS)))

# facts, severity, code, words of the sentence, words of the fix
CASES: dict[str, tuple[CheckFacts, Severity, str, str, str]] = {
    # the driver
    "no driver": (
        broken(driver=NO_DRIVER, nvml=NO_NVML),
        *(ERROR, "driver-missing", "not installed (2 GPUs wait for it)", "apt-get install nvidia-driver"),
    ),
    "no driver on Ubuntu": (
        broken(driver=NO_DRIVER, nvml=NO_NVML, host={"ubuntu": True}),
        *(ERROR, "driver-missing", "no /proc/driver/nvidia, no libnvidia-ml.so.1", "ubuntu-drivers install"),
    ),
    "no GPU": (
        broken(driver={**NO_DRIVER, "cards": 0}, nvml=NO_NVML),
        *(ERROR, "no-gpu", "no NVIDIA GPU on its PCI bus", '`gpus = "none"`'),
    ),
    "driver not loaded": (
        broken(driver={"module_version": ""}, nvml=NO_NVML),
        *(ERROR, "driver-not-loaded", "the kernel has not loaded it", "sudo modprobe nvidia"),
    ),
    "driver not built for this kernel": (
        broken(driver={"module_version": "", "module_built": False}, nvml=NO_NVML),
        *(ERROR, "driver-not-built", "no module for the running kernel 6.1.0-18-amd64", "dkms autoinstall"),
    ),
    "nouveau": (
        broken(driver={"module_version": "", "nouveau": True}, nvml=NO_NVML),
        *(ERROR, "nouveau", "nouveau holds the GPU", "update-initramfs -u && sudo reboot"),
    ),
    "driver and library differ": (
        broken(driver={"library_version": "570.1.2"}, nvml=NO_NVML),
        *(ERROR, "driver-mismatch", f"the kernel runs {DRIVER}, the libraries are 570.1.2", "sudo reboot"),
    ),
    "library missing": (
        broken(driver={"library": "", "library_version": ""}, nvml=NO_NVML),
        *(ERROR, "driver-library", "libnvidia-ml.so.1 is not installed", "apt-get install nvidia-driver"),
    ),
    "NVML frozen": (
        broken(nvml=Nvml(None, "no answer within 5 s")),
        *(ERROR, "nvml-down", "does not answer (NVML): no answer within 5 s", "timeout 30 nvidia-smi"),
    ),
    "NVML down": (
        broken(nvml=Nvml(GpuSnapshot(at_s=0.0, up=False, because="Unknown Error"))),
        *(ERROR, "nvml-down", "Unknown Error", "dmesg"),
    ),
    "driver too old": (
        broken(
            nvml=Nvml(replace(SNAPSHOT, driver_version="470.1")),
            toolkit={"cdi": (replace(CDI, driver_version="470.1"),)},
        ),
        *(WARNING, "driver-old", "driver 470.1 is older than 531", "apt-get install nvidia-driver"),
    ),
    "no nvidia-uvm": (
        broken(driver={"uvm_node": False}),
        *(ERROR, "uvm-node", "/dev/nvidia-uvm is missing", "sudo nvidia-modprobe -u -c=0"),
    ),
    # the GPUs
    "persistence mode off": (
        broken(nvml=reading(persistence=False)),
        *(WARNING, "persistence", "persistence mode is off on GPU 0", "systemctl enable --now nvidia-persistenced"),
    ),
    "persistence mode off, no daemon": (
        broken(nvml=reading(persistence=False), driver={"persistenced": False}),
        *(WARNING, "persistence", "persistence mode is off", "sudo nvidia-smi -pm 1"),
    ),
    "MIG without instances": (
        broken(nvml=MIG_EMPTY),
        *(ERROR, "mig-empty", "has MIG enabled but no MIG device", "sudo nvidia-smi mig -i 0 -cgi PROFILE -C"),
    ),
    "GPU lost": (broken(nvml=reading(lost=True)), ERROR, "gpu-lost", "fell off the bus", "sudo reboot"),
    "GPU wants a reset": (
        broken(nvml=reading(recovery_action=RecoveryAction.GPU_RESET)),
        *(ERROR, "gpu-reset", "asks for a reset", f"nvidia-smi --gpu-reset -i {GPUS[0].uuid}"),
    ),
    "GPU wants a reboot": (
        broken(nvml=reading(recovery_action=RecoveryAction.NODE_REBOOT)),
        *(ERROR, "gpu-reset", "asks for a reboot", "sudo reboot"),
    ),
    "GPU says reset required": (
        broken(nvml=reading(reset_required=True)),
        *(ERROR, "gpu-reset", "asks for a reset", "--gpu-reset"),
    ),
    "GPU silent": (
        broken(nvml=reading(error="Timeout")),
        ERROR,
        "gpu-error",
        "does not answer: Timeout",
        "nvidia-smi -i",
    ),
    "GPU busy": (using(), WARNING, "gpu-busy", "`python3` (4711) 10.0 GiB", "ps -fp 4711"),
    "GPU busy with a container": (
        using(container_id="d" * 64),
        *(WARNING, "gpu-busy", "container `training` 10.0 GiB", "docker stop training"),
    ),
    "GPU busy with Ollama's own service": (
        using(name="ollama_llama_se"),
        *(WARNING, "gpu-busy", "`ollama_llama_se`", "sudo systemctl disable --now ollama"),
    ),
    "GPU memory too small": (
        broken(nvml=SMALL),
        *(
            ERROR,
            "gpu-memory",
            "needs 24.0 GiB of GPU memory, slot 0 has 15.0 GiB (and 1 more slots)",
            "`gpus_per_instance = 2`",
        ),
    ),
    "GPU memory too small, on purpose": (
        broken(nvml=SMALL, config=replace(HEALTHY.config, partial_offload=True)),
        *(WARNING, "gpu-memory", "a part of it will be computed on the CPU", "`gpus_per_instance = 2`"),
    ),
    "a GPU that is not there": (
        broken(config=replace(HEALTHY.config, gpus=(0, 7))),
        *(ERROR, "gpu-choice", "names `7`, and there is no such GPU", "nvidia-smi -L"),
    ),
    # the toolkit
    "no toolkit": (
        on_engine(OLD, toolkit=Toolkit()),
        *(ERROR, "toolkit-missing", SAID, "apt-get install -y nvidia-container-toolkit"),
    ),
    "no toolkit, Red Hat": (
        on_engine(OLD, toolkit=Toolkit(), host={"distribution": "dnf"}),
        *(ERROR, "toolkit-missing", SAID, "dnf install -y nvidia-container-toolkit"),
    ),
    "no toolkit, and no driver's answer either": (
        on_engine(OLD, toolkit=Toolkit(), nvml=Nvml(None, "frozen")),
        *(ERROR, "toolkit-missing", SAID, "nvidia-ctk runtime configure --runtime=docker"),
    ),
    "toolkit installed after dockerd started": (
        on_engine(
            replace(OLD, cgroup_driver="cgroupfs"),
            toolkit={"hook": Program("/usr/bin/nvidia-container-runtime-hook", NOW_S)},
        ),
        *(ERROR, "toolkit-later", SAID, "sudo systemctl restart docker"),
    ),
    "the same with containers that a restart would stop": (
        on_engine(
            replace(OLD, cgroup_driver="cgroupfs"),
            toolkit={"hook": Program("/usr/bin/nvidia-container-runtime-hook", NOW_S)},
            containers=(container("db"),),
        ),
        *(ERROR, "toolkit-later", "installed after the Docker Engine started", "# stops 1 running container"),
    ),
    "no CDI specification": (
        on_engine(replace(FACTS, devices=()), toolkit={"cdi": ()}),
        *(WARNING, "cdi-missing", "no CDI specification", "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"),
    ),
    "no CDI specification and nothing else": (
        on_engine(replace(FACTS, devices=(), runtimes=("runc",)), toolkit={"cdi": (), "hook": None, "runtime": None}),
        *(ERROR, "cdi-missing", "no CDI specification", "sudo nvidia-ctk cdi generate"),
    ),
    "no CDI specification, and CDI is wanted": (
        on_engine(
            replace(FACTS, devices=()),
            toolkit={"cdi": ()},
            config=replace(HEALTHY.config, injection="cdi"),
        ),
        *(ERROR, "cdi-missing", "in /etc/cdi or /var/run/cdi", "sudo nvidia-ctk cdi generate"),
    ),
    "CDI specification of another card": (
        broken(toolkit={"cdi": (replace(CDI, devices=("0", "GPU-99999999-gone")),)}),
        *(ERROR, "cdi-stale", "names a GPU that is not there: GPU-99999999-gone", "--output=/etc/cdi/nvidia.yaml"),
    ),
    "CDI specification of an older driver": (
        broken(toolkit={"cdi": (replace(CDI, driver_version="535.1"),)}),
        *(ERROR, "cdi-stale", f"is of driver 535.1, and {DRIVER} runs", "nvidia-ctk cdi generate"),
    ),
    "CDI specification without a newer card": (
        broken(toolkit={"cdi": (replace(CDI, devices=("0", GPUS[0].uuid)),)}),
        *(ERROR, "cdi-stale", f"does not name {GPUS[1].uuid}", "nvidia-ctk cdi generate"),
    ),
    "CDI switched off": (
        on_engine(replace(FACTS, version="26.1.5", api_version=(1, 45), devices=(), cdi_directories=())),
        *(WARNING, "cdi-off", "CDI is off in Docker Engine 26.1.5", '["cdi"]=True'),
    ),
    "injection that cannot work": (
        on_engine(OLD, config=replace(HEALTHY.config, injection="cdi")),
        *(ERROR, "injection", "no CDI: Docker Engine 20.10.24 is older than 25.0", ""),
    ),
    "the daemon-reload trap": (
        on_engine(OLD),
        *(WARNING, "cgroup-reload", "after `systemctl daemon-reload` running containers lose their GPUs", "cgroupfs"),
    ),
    "the daemon-reload trap where CDI could be had": (
        on_engine(replace(FACTS, version="26.1.5", api_version=(1, 45), devices=()), toolkit={"cdi": ()}),
        *(WARNING, "cgroup-reload", "Ollama goes on on the CPU", "nvidia-ctk cdi generate"),
    ),
    # the engine
    "no socket": (
        broken(engine={"reach": Reach.NO_SOCKET}),
        *(ERROR, "socket-missing", "no Docker Engine at /run/docker.sock", "sudo systemctl enable --now docker"),
    ),
    "nobody listens": (
        broken(engine={"reach": Reach.REFUSED}),
        *(ERROR, "engine-down", "the Docker Engine is not running", "sudo systemctl start docker"),
    ),
    "not in the group docker": (
        broken(engine={"reach": Reach.FORBIDDEN}, host={"docker_group": False}),
        *(ERROR, "socket-forbidden", "not in the group `docker`", "sudo usermod -aG docker svc"),
    ),
    "in the group docker, but not in this session": (
        broken(engine={"reach": Reach.FORBIDDEN}),
        *(ERROR, "group-session", "this session began before that", "newgrp docker"),
    ),
    "no group docker": (
        broken(engine={"reach": Reach.FORBIDDEN, "socket_group": "root"}, host={"docker_group": False}),
        *(ERROR, "group-missing", "there is no group `docker`", "sudo groupadd docker"),
    ),
    "engine frozen": (
        broken(engine={"reach": Reach.FROZEN}),
        *(ERROR, "engine-frozen", "does not answer: it is frozen or overloaded", "sudo systemctl restart docker"),
    ),
    "engine slow": (
        broken(engine={"slow": "took 21 s for `docker info`"}),
        *(WARNING, "engine-slow", "took 21 s for `docker info`, and answers other questions", "docker node ls"),
    ),
    "engine slower": (
        broken(engine={"slow": "has not answered `docker info` within 45 s", "facts": None}),
        *(WARNING, "engine-slow", "within 45 s, and answers other questions: what depends on it is not", "docker node"),
    ),
    "no engine": (
        broken(engine={"reach": Reach.BROKEN, "detail": "BadStatusLine"}),
        *(ERROR, "engine-broken", "is no Docker Engine: BadStatusLine", "curl --unix-socket"),
    ),
    "engine too old": (
        on_engine(replace(OLD, version="19.03.1", api_version=(1, 40))),
        *(ERROR, "engine-old", "speaks API 1.40, the agent needs 1.41", "apt-get install"),
    ),
    "snap": (
        broken(engine={"snap": True}),
        *(ERROR, "engine-snap", "is the snap", "snap remove --purge docker"),
    ),
    "rootless": (broken(engine={"rootless": True}), WARNING, "engine-rootless", "runs rootless", "no-cgroups"),
    # the image
    "image at no registry": (
        images(seen=ABSENT, answer=Answer.NO_SUCH_IMAGE),
        *(ERROR, "image-unknown", "registry.lan has no such image", f"appliance build MODEL -t {IMAGE} --push"),
    ),
    "no credentials": (
        images(seen=ABSENT, answer=Answer.DENIED),
        *(ERROR, "registry-denied", "no credentials are stored", "docker login registry.lan"),
    ),
    "no credentials of the service": (
        replace(
            images(seen=ABSENT, answer=Answer.DENIED), host=replace(HEALTHY.host, service_home="/var/lib/ollama-agent")
        ),
        *(ERROR, "registry-denied", "no credentials", "sudo -H -u ollama-agent -g docker docker login registry.lan"),
    ),
    "no credentials in a directory of their own": (
        replace(
            images(seen=ABSENT, answer=Answer.DENIED),
            config=replace(HEALTHY.config, engine=Engine(docker_config="/etc/logins")),
        ),
        *(ERROR, "registry-denied", "no credentials", "sudo docker --config /etc/logins login registry.lan"),
    ),
    "bad credentials": (
        images(seen=ABSENT, answer=Answer.DENIED, credentials=True),
        *(ERROR, "registry-denied", "are not good enough", "docker login registry.lan"),
    ),
    "registry down": (
        images(seen=ABSENT, answer=Answer.UNREACHABLE, detail="no route to host"),
        *(ERROR, "registry-unreachable", "cannot reach registry.lan: no route to host", "docker load -i"),
    ),
    "image absent, never to be pulled": (
        broken(image=ImageState(ABSENT), config=replace(HEALTHY.config, pull="never")),
        *(ERROR, "image-absent", "is not on this host", f"docker pull {IMAGE}"),
    ),
    "disk too small for the image": (
        broken(
            image=ImageState(ABSENT, answer=Answer.THERE, download_bytes=20 * GIBIBYTE),
            engine={"free_bytes": 39 * GIBIBYTE},
        ),
        *(
            ERROR,
            "disk-small",
            "39.0 GiB are free in /var/lib/docker, the image needs about 40.0 GiB",
            "docker image prune",
        ),
    ),
    "disk nearly full": (
        broken(image=ImageState(ABSENT, answer=Answer.THERE), engine={"free_bytes": 3 * GIBIBYTE}),
        *(WARNING, "disk-tight", "only 3.0 GiB are free", "docker system df"),
    ),
    "image of a newer layout": (
        images(seen=replace(SEEN, labels=None, problem="image has layout version 9, this program knows 1")),
        *(ERROR, "image-layout", "layout version 9", "scripts/install-agent"),
    ),
    "labels that cannot be read": (
        images(seen=replace(SEEN, labels=None, problem="label x is no number: 'y'")),
        *(ERROR, "image-labels", "is no number", "appliance build"),
    ),
    "not an appliance image": (
        images(seen=replace(SEEN, labels=None)),
        *(ERROR, "image-plain", "not an appliance image, and no `store`", "set `store` and `model`"),
    ),
    "not an appliance image, but a model is named": (
        broken(image=ImageState(replace(SEEN, labels=None)), config=replace(HEALTHY.config, model="x:1b")),
        *(WARNING, "image-plain", "only its start shows whether `x:1b` is in it", "appliance build x:1b"),
    ),
    "weights inside and a store": (
        broken(config=replace(STORE, image=IMAGE), store=StoreState(manifest=True)),
        *(ERROR, "image-and-store", "has its weights inside", "leave `store` out"),
    ),
    "another model": (
        broken(config=replace(HEALTHY.config, model="llama3:8b")),
        *(ERROR, "image-model", "`model` says `llama3:8b`", '`model = "deepseek-r1:32b"`'),
    ),
    "another machine": (
        images(architecture="arm64"),
        *(ERROR, "image-architecture", "is for arm64, this host is amd64", "docker pull --platform linux/amd64"),
    ),
    "Ollama too old to think": (
        labelled(ollama_version="0.11.4"),
        *(WARNING, "ollama-old", "without the opening tag", "--base ollama/ollama:0.12.4"),
    ),
    "Ollama too old": (
        labelled(ollama_version="0.5.11-rc1", think="as-is"),
        *(WARNING, "ollama-old", "tested with 0.12.4 and newer", "--base ollama/ollama:0.12.4"),
    ),
    "clock behind the image": (
        images(created_s=NOW_S + 3600),
        *(WARNING, "clock-behind", "the host's clock is behind", "timedatectl set-ntp true"),
    ),
    # the store
    "store absent": (
        stored(problem="there is no such directory"),
        *(ERROR, "store-absent", "/srv/models cannot be used: there is no such directory", "OLLAMA_MODELS=/srv/models"),
    ),
    "model not in the store": (
        stored(manifest=False, models=("deepseek-r1:8b", "llama3:8b")),
        *(ERROR, "store-model", "did you mean `deepseek-r1:8b`?", "ollama pull deepseek-r1:32b"),
    ),
    "empty store": (
        stored(manifest=False, models=()),
        *(ERROR, "store-model", "it holds no model at all", "ollama pull deepseek-r1:32b"),
    ),
    "model not whole": (
        stored(missing_blobs=2),
        *(ERROR, "store-incomplete", "2 of its files are missing", "ollama pull deepseek-r1:32b"),
    ),
    "store unreadable": (
        stored(unreadable="/srv/models/blobs"),
        *(
            ERROR,
            "store-unreadable",
            "user 65534:65534 of the containers cannot read /srv/models/blobs",
            "chmod -R a+rX /srv/models",
        ),
    ),
    # ports and names
    "port taken by a process": (
        listening("nginx", 8881),
        *(ERROR, "port-taken", "port 8881 for slot 1 is taken by `nginx` (process 77, user root)", "ps -fp 77"),
    ),
    "port taken by somebody": (
        listening("", 8880, pid=None),
        *(
            ERROR,
            "port-taken",
            "port 8880 for slot 0 is taken by a process of user `root`",
            "sudo ss -ltnp 'sport = :8880'",
        ),
    ),
    "port of the metrics taken": (
        listening("node_exporter", 9440),
        *(ERROR, "port-taken", "port 9440 for metrics is taken by `node_exporter`", "another `port` in [metrics]"),
    ),
    "port taken by a container": (
        broken(containers=(container("webui", port=8880),)),
        *(ERROR, "port-taken", "port 8880 for slot 0 is taken by the container `webui`", "docker stop webui"),
    ),
    "name taken": (
        broken(containers=(container("ollama-1"),)),
        *(ERROR, "name-taken", "has the name `ollama-1`", "docker rename ollama-1 ollama-1-old"),
    ),
    # the host
    "processes hidden": (
        broken(host={"hides": "hidepid=invisible", "service_home": "/var/lib/ollama-agent"}),
        *(WARNING, "proc-hidden", "user `ollama-agent` cannot see", "sudo mount -o remount,hidepid=0 /proc"),
    ),
    "processes hidden, and no service": (
        broken(host={"hides": "hidepid=2"}),
        *(WARNING, "proc-hidden", "with `hidepid=2`, so user `svc` cannot see", "usermod -aG proc svc"),
    ),
    "clock": (
        broken(host={"synchronized": False}),
        WARNING,
        "clock",
        "is not synchronised",
        "timedatectl set-ntp true",
    ),
    "memory": (
        broken(host={"free_memory_bytes": GIBIBYTE}),
        *(WARNING, "memory-small", "1.0 GiB of memory are free, 2 slots need about 2.0 GiB", "ps axo"),
    ),
    "memory for the model on the CPU": (
        broken(config=replace(HEALTHY.config, gpus="none"), driver=None, host={"free_memory_bytes": 8 * GIBIBYTE}),
        *(WARNING, "memory-small", "the slot needs about 24.0 GiB", "ps axo"),
    ),
    "memory limit for the model on the CPU": (
        broken(
            config=replace(HEALTHY.config, gpus="none", container=Container(memory_bytes=8 * GIBIBYTE)), driver=None
        ),
        *(ERROR, "memory-limit", "is 8.0 GiB, the model needs about 24.0 GiB", '`memory = "25G"`'),
    ),
    "open files": (broken(host={"open_files": 256}), WARNING, "open-files", "may open 256 files", "ulimit -n 1024"),
    "a neighbour that hangs": (
        broken(late=("the store /mnt/nfs did not answer within 5 s",)),
        *(WARNING, "late", "the store /mnt/nfs did not answer within 5 s", ""),
    ),
}
# What else the fault entails; everything else would be noise at night.
ENTAILED = {
    "no toolkit, and no driver's answer either": {"nvml-down"},
    "no CDI specification": {"cgroup-reload"},
    "no CDI specification and nothing else": {"cgroup-reload"},
    "CDI switched off": {"cgroup-reload"},
    "the daemon-reload trap where CDI could be had": {"cdi-missing"},
}


def trouble(found: tuple[Finding, ...]) -> list[Finding]:
    return [finding for finding in found if finding.severity is not Severity.OK]


@pytest.mark.parametrize("case", CASES)
def test_a_fault_is_found_with_its_fix_and_nothing_besides(case: str) -> None:
    facts, severity, code, words, fix = CASES[case]

    found = trouble(findings(facts))

    assert {finding.code for finding in found} - ENTAILED.get(case, set()) == {code}
    named = next(finding for finding in found if finding.code == code)
    assert named.severity is severity
    assert words in named.sentence
    assert fix in "\n".join(named.fix)
    assert failed(found) == any(finding.severity is ERROR for finding in found)


def test_every_fault_that_the_issue_lists_has_a_case() -> None:
    listed = {
        *("driver-missing", "driver-mismatch", "toolkit-missing", "toolkit-later", "cdi-missing", "cgroup-reload"),
        *("socket-forbidden", "engine-old", "port-taken", "image-unknown", "disk-small", "gpu-memory", "persistence"),
        *("clock", "clock-behind"),
    }

    assert listed <= {code for _, _, code, _, _ in CASES.values()}


def test_a_healthy_host_is_all_well() -> None:
    found = findings(HEALTHY)

    assert trouble(found) == []
    assert not failed(found)
    assert [finding.sentence for finding in found] == [
        "driver 550.54.15, 2 x NVIDIA L40S",
        "Docker Engine 28.5.2, API 1.51, data in /var/lib/docker",
        "GPUs reach containers by CDI: the engine reports the devices",
        f"{IMAGE}: deepseek-r1:32b, Q4_K_M, 20.0 GiB",
        "2 slots, one GPU each, 127.0.0.1 ports 8880 to 8881",
        "the slots' ports and 9440 for metrics are free or ours",
    ]


def test_every_fault_says_what_to_type() -> None:
    for case, (facts, _, _, _, _) in CASES.items():
        for finding in trouble(findings(facts)):
            assert finding.fix or finding.code in ("late", "injection"), case
            assert not finding.sentence.endswith("."), case


def commands() -> list[str]:
    found = [line for facts, *_ in CASES.values() for finding in findings(facts) for line in finding.fix]
    return sorted({line for line in found if not line.startswith("#")})


@pytest.mark.parametrize("command", commands())
def test_what_is_to_be_typed_is_a_command(command: str) -> None:
    checked = subprocess.run(["bash", "-n", "-c", command], check=False, capture_output=True, text=True)

    assert checked.returncode == 0, checked.stderr
    assert "\n" not in command


def test_the_builders_commands_are_the_builders() -> None:
    for command in commands():
        words = shlex.split(command, comments=True)
        if words[0] == "appliance":
            named = cli.commands[words[1]]
            known = {option for parameter in named.params for option in parameter.opts}
            assert {word for word in words[2:] if word.startswith("-")} <= known, command


def test_a_change_of_the_engines_configuration_keeps_what_is_there(tmp_path: Path) -> None:
    file = tmp_path / "daemon.json"
    for text, expected in (
        (None, {"features": {"cdi": True}, "exec-opts": ["native.cgroupdriver=cgroupfs"]}),
        (
            '{"features": {"x": true}, "exec-opts": ["a=b"], "data-root": "/srv"}',
            {
                "features": {"x": True, "cdi": True},
                "exec-opts": ["a=b", "native.cgroupdriver=cgroupfs"],
                "data-root": "/srv",
            },
        ),
    ):
        file.unlink(missing_ok=True)
        if text:
            file.write_text(text)

        for command in (daemon_json.cdi(), daemon_json.cgroupfs()):
            changed = command.removeprefix("sudo ").removesuffix(f" && {daemon_json.RESTART}")
            subprocess.run(["bash", "-c", changed.replace("/etc/docker/daemon.json", str(file))], check=True)

        assert json.loads(file.read_text()) == expected


def test_without_gpus_nothing_of_nvidia_is_looked_for() -> None:
    facts = broken(
        config=replace(HEALTHY.config, gpus="none"),
        driver=None,
        nvml=Nvml(None),
        toolkit=Toolkit(),
        engine={"facts": OLD},
    )

    found = findings(facts)

    assert trouble(found) == []
    assert {"driver", "gpu", "toolkit"} & {finding.topic for finding in found} == set()


def test_a_running_agent_does_not_stand_in_its_own_way() -> None:
    running = broken(
        containers=tuple(
            container(f"ollama-{slot}", mine=True, slot=slot, gpus=(gpu.uuid,), port=8880 + slot, id=str(slot) * 64)
            for slot, gpu in enumerate(GPUS)
        ),
        listeners=(
            Listener("0.0.0.0", 9440, 99, "ollama-agent", "ollama-agent", agent=True),
            Listener("127.0.0.1", 8880, 98, "docker-proxy", "root"),
        ),
        gpu_users=(GpuUser(GPUS[0].uuid, 97, "ollama", 24 * GIBIBYTE, "0" * 64),),
        host={"free_memory_bytes": GIBIBYTE},
    )

    assert trouble(findings(running)) == []


def test_slots_that_run_keep_their_ports_when_a_gpu_is_gone() -> None:
    gone = container("ollama-0", mine=True, slot=0, gpus=("GPU-gone",), port=8880)
    here = container("ollama-1", mine=True, slot=1, gpus=(GPUS[0].uuid,), port=8881, id="f" * 64)
    one = Nvml(replace(SNAPSHOT, gpus=GPUS[:1], readings={}))

    found = findings(broken(nvml=one, containers=(gone, here), toolkit=TOOLKIT))

    assert "2 slots, one GPU each, 127.0.0.1 ports 8880 to 8881" in [finding.sentence for finding in found]


@pytest.mark.parametrize(
    ("listener", "address", "taken"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("::", "127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("192.168.1.2", "127.0.0.1", False),
        ("192.168.1.2", "0.0.0.0", True),
    ],
)
def test_a_port_is_taken_only_where_the_addresses_meet(listener: str, address: str, *, taken: bool) -> None:
    facts = broken(
        listeners=(Listener(listener, 8880, 1, "x", "root"),), config=replace(HEALTHY.config, address=address)
    )

    assert failed(findings(facts)) is taken


def test_the_gravest_comes_first() -> None:
    facts = broken(host={"synchronized": False}, engine={"reach": Reach.FROZEN})

    found = findings(facts)

    assert [finding.severity for finding in found] == sorted((f.severity for f in found), reverse=True)


def test_an_image_that_can_be_pulled_is_no_fault() -> None:
    facts = images(seen=ABSENT, answer=Answer.THERE, download_bytes=20 * GIBIBYTE)

    found = findings(facts)

    assert trouble(found) == []
    assert f"{IMAGE} is not on this host yet; registry.lan has it, the agent pulls it" in [f.sentence for f in found]


def test_a_store_that_serves_is_told() -> None:
    found = findings(stored())

    assert trouble(found) == []
    assert "/srv/models has `deepseek-r1:32b`, user 65534:65534 can read it" in [finding.sentence for finding in found]


def test_mig_devices_are_slots_of_their_own() -> None:
    parent = GPUS[0]
    part = Gpu("MIG-1", 0, 0, "NVIDIA L40S MIG 1g", 30 * GIBIBYTE, parent_uuid=parent.uuid, gpu_instance=1)
    snapshot = replace(
        SNAPSHOT, gpus=(parent, part, GPUS[1]), readings=(reading(mig_enabled=True).snapshot or SNAPSHOT).readings
    )
    engine = replace(FACTS, devices=(*FACTS.devices, "nvidia.com/gpu=MIG-1"))
    named = replace(CDI, devices=("MIG-1", GPUS[1].uuid))

    found = findings(on_engine(engine, nvml=Nvml(snapshot), toolkit={"cdi": (named,)}))

    assert trouble(found) == []
    assert "driver 550.54.15, 2 x NVIDIA L40S, 1 MIG devices" in [finding.sentence for finding in found]


def test_a_command_is_never_broken_and_a_sentence_always() -> None:
    found = findings(broken(engine={"reach": Reach.FORBIDDEN, "socket_group": "root"}, host={"docker_group": False}))

    lines = render_findings(found, colour=False, width=60).splitlines()

    command = "sudo groupadd docker && sudo usermod -aG docker svc && sudo systemctl restart docker.socket docker"
    assert f"{' ' * 18}{command}" in lines
    assert all(len(line) <= 60 for line in lines if "&&" not in line)
    assert lines[0].startswith("error    engine   user `svc`")
    assert lines[-1] == "1 error"


def test_colour_marks_how_grave_it_is_and_changes_no_text() -> None:
    found = findings(broken(host={"synchronized": False}, engine={"reach": Reach.FROZEN}))

    coloured = render_findings(found, colour=True, width=80)

    plain = coloured
    for code in ("\x1b[1;31m", "\x1b[33m", "\x1b[32m", "\x1b[2m", "\x1b[1m", "\x1b[0m"):
        plain = plain.replace(code, "")
    assert "\x1b[1;31merror" in coloured
    assert plain.split() == render_findings(found, colour=False, width=80).split()


def test_what_an_engine_says_moves_no_cursor() -> None:
    found = findings(images(seen=ABSENT, answer=Answer.UNREACHABLE, detail="a\x1b[2Jb\nc"))

    assert "\x1b" not in render_findings(found, colour=False, width=80)


@pytest.mark.parametrize(
    ("facts", "end"),
    [(HEALTHY, "all is well"), (broken(host={"synchronized": False}), "1 warning: the agent can run")],
)
def test_the_last_line_is_the_verdict(facts: CheckFacts, end: str) -> None:
    assert render_findings(findings(facts), colour=False, width=80).splitlines()[-1] == end


def test_programs_get_the_same_as_people() -> None:
    found = findings(broken(engine={"reach": Reach.FROZEN}))

    value = json.loads(render_json(found))

    assert value["ok"] is False
    first = value["findings"][0]
    assert (first["severity"], first["topic"], first["code"]) == ("error", "engine", "engine-frozen")
    assert first["fix"][-1] == "sudo systemctl restart docker"
    assert len(value["findings"]) == len(found)


def test_a_plan_that_only_containers_remember_has_no_port_of_its_own() -> None:
    """Their names and ports are not the plan's: it derives both from the configuration."""
    renamed = broken(
        config=replace(HEALTHY.config, base_port=9000),
        containers=(container("x-5", mine=True, slot=5, gpus=(GPUS[1].uuid,)),),
    )

    sentences = [finding.sentence for finding in findings(renamed)]

    assert "2 slots, one GPU each, 127.0.0.1 ports 9000 to 9005" in sentences
    assert SlotPlan(5, "ollama-5", (GPUS[1].uuid,), 9005).port == 9005
