"""NVIDIA's driver as findings: there, loaded, whole, and every GPU able to work. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from appliance_agent import fabric, gpu_choice
from appliance_agent.check_facts import CheckFacts, DriverState
from appliance_agent.finding import Finding, error, fine, warning
from appliance_agent.gpus import Gpu, GpuReading, GpuSnapshot, RecoveryAction

_TOPIC = "driver"
_OLDEST = 531
_INSTALL_GUIDE = "docs.nvidia.com/datacenter/tesla/driver-installation-guide"
_PERSISTENCE = "docs.nvidia.com/deploy/driver-persistence"
_FABRIC_GUIDE = "docs.nvidia.com/datacenter/tesla/fabric-manager-user-guide"
_MIG_GUIDE = "docs.nvidia.com/datacenter/tesla/mig-user-guide"
_RESET = {
    RecoveryAction.GPU_RESET: "the driver asks for a reset of it",
    RecoveryAction.DRAIN_AND_RESET: "the driver asks to drain and reset it",
    RecoveryAction.NODE_REBOOT: "the driver asks for a reboot",
}


def driver_findings(facts: CheckFacts) -> Iterator[Finding]:
    driver, snapshot = facts.driver, facts.nvml.snapshot
    if driver is None:
        return
    if snapshot is None or not snapshot.up:
        yield _down(facts, driver)
        return
    yield _there(snapshot)
    if _major(snapshot.driver_version) < _OLDEST:
        yield warning(
            _TOPIC,
            "driver-old",
            f"driver {snapshot.driver_version} is older than {_OLDEST}, the oldest that Ollama supports: it may compute on the CPU",
            *_install(facts),
            see="docs.ollama.com/gpu",
        )
    if driver.module_version and not driver.uvm_node:
        yield error(
            _TOPIC,
            "uvm-node",
            "/dev/nvidia-uvm is missing: CUDA fails in every container, Ollama computes on the CPU",
            "sudo nvidia-modprobe -u -c=0",
            see=f"{_PERSISTENCE} (device nodes are made by the first root process that uses the GPU)",
        )
    yield from _gpus(driver, snapshot)


def _down(facts: CheckFacts, driver: DriverState) -> Finding:
    loaded, library = driver.module_version, driver.library
    if loaded and library and driver.library_version and driver.library_version != loaded:
        return error(
            _TOPIC,
            "driver-mismatch",
            f"driver/library version mismatch: the kernel runs {loaded}, the libraries are {driver.library_version}; "
            "the driver was updated and the host not rebooted",
            "sudo reboot",
            see="`cat /proc/driver/nvidia/version` shows what runs",
        )
    if loaded and library:
        return _silent(facts)
    if loaded:
        return error(
            _TOPIC,
            "driver-library",
            f"the kernel runs driver {loaded}, but its library libnvidia-ml.so.1 is not installed",
            *_install(facts),
            see=_INSTALL_GUIDE,
        )
    return _not_loaded(facts, driver)


def _not_loaded(facts: CheckFacts, driver: DriverState) -> Finding:
    if driver.nouveau:
        return _nouveau(facts)
    if driver.module_built and driver.library:
        return error(
            _TOPIC,
            "driver-not-loaded",
            "NVIDIA's driver is installed, but the kernel has not loaded it",
            "sudo modprobe nvidia nvidia-uvm || sudo dmesg | grep -iE 'nvrm|nvidia|module verification'",
            see=f"{_INSTALL_GUIDE} (with Secure Boot the module must be signed)",
        )
    if driver.library and driver.module_built is False:
        return error(
            _TOPIC,
            "driver-not-built",
            f"NVIDIA's driver has no module for the running kernel {facts.host.kernel}: the kernel was updated without it",
            f"{_headers(facts)} && sudo dkms autoinstall && sudo modprobe nvidia",
            see=f"{_INSTALL_GUIDE} (kernel headers)",
        )
    if driver.cards == 0:
        return error(
            _TOPIC,
            "no-gpu",
            "this host has no NVIDIA GPU on its PCI bus, and no driver",
            "lspci -d 10de:",
            '# without a GPU, set `gpus = "none"` in the configuration: one server on the CPU',
        )
    return error(
        _TOPIC,
        "driver-missing",
        f"NVIDIA's driver is not installed ({driver.cards} GPUs wait for it): "
        "no /proc/driver/nvidia, no libnvidia-ml.so.1",
        *_install(facts),
        see=_INSTALL_GUIDE,
    )


def _nouveau(facts: CheckFacts) -> Finding:
    rebuild = "sudo dracut --force" if facts.host.distribution == "dnf" else "sudo update-initramfs -u"
    return error(
        _TOPIC,
        "nouveau",
        "the driver nouveau holds the GPU, NVIDIA's cannot be loaded beside it",
        "printf 'blacklist nouveau\\noptions nouveau modeset=0\\n' | sudo tee /etc/modprobe.d/blacklist-nouveau.conf",
        f"{rebuild} && sudo reboot",
        see=f"{_INSTALL_GUIDE} (disabling nouveau)",
    )


def _silent(facts: CheckFacts) -> Finding:
    snapshot = facts.nvml.snapshot
    because = (snapshot.because if snapshot else facts.nvml.problem) or "no reason given"
    return error(
        _TOPIC,
        "nvml-down",
        f"the driver does not answer (NVML): {because}",
        "timeout 30 nvidia-smi; sudo dmesg | grep -iE 'nvrm|xid' | tail -20",
        see="docs.nvidia.com/deploy/xid-errors",
    )


def _there(snapshot: GpuSnapshot) -> Finding:
    names = [gpu.name for gpu in snapshot.gpus if not gpu.is_mig]
    counted = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "no GPU"
    parts = sum(gpu.is_mig for gpu in snapshot.gpus)
    more = f", {parts} MIG devices" if parts else ""
    return fine(_TOPIC, "driver", f"driver {snapshot.driver_version}, {counted}{more}")


def _gpus(driver: DriverState, snapshot: GpuSnapshot) -> Iterator[Finding]:
    whole = [gpu for gpu in snapshot.gpus if not gpu.is_mig]
    for gpu in whole:
        reading = snapshot.readings.get(gpu.uuid)
        if reading is not None:
            yield from _one(gpu, reading)
    for gpu in without_parts(snapshot):
        yield error(
            "gpu",
            "mig-empty",
            gpu_choice.undivided([gpu], {gpu.uuid})[0],
            f"sudo nvidia-smi mig -i {gpu.index} -lgip   # what it can be divided into",
            f"sudo nvidia-smi mig -i {gpu.index} -cgi PROFILE -C",
            f"sudo nvidia-smi -i {gpu.index} -mig 0   # or no MIG",
            see=_MIG_GUIDE,
        )
    yield from _fabric(whole, snapshot)
    readings = [snapshot.readings.get(gpu.uuid) for gpu in whole]
    if off := [gpu for gpu, reading in zip(whole, readings, strict=True) if reading and reading.persistence is False]:
        which = "all GPUs" if len(off) == len(whole) else "GPU " + ", ".join(str(gpu.index) for gpu in off)
        yield warning(
            "gpu",
            "persistence",
            f"persistence mode is off on {which}: the driver unloads between uses, each first call takes seconds",
            "sudo systemctl enable --now nvidia-persistenced" if driver.persistenced else "sudo nvidia-smi -pm 1",
            see=_PERSISTENCE,
        )


def _fabric(whole: list[Gpu], snapshot: GpuSnapshot) -> Iterator[Finding]:
    if pending := fabric.pending(whole, snapshot.readings):
        yield error(
            "gpu",
            "fabric",
            f"the host {pending.partition(';')[0]}; until then CUDA fails, and Ollama would compute on the CPU",
            "systemctl status nvidia-fabricmanager",
            f"nv-fabricmanager --version   # must be {snapshot.driver_version}, the driver's",
            "sudo systemctl enable --now nvidia-fabricmanager",
            see=_FABRIC_GUIDE,
        )
    readings = {gpu.index: reading for gpu in whole if (reading := snapshot.readings.get(gpu.uuid))}
    if failed := [str(index) for index, reading in readings.items() if fabric.failed(reading)]:
        yield warning(
            "gpu",
            "fabric-failed",
            f"the NVSwitch fabric was not set up for GPU {', '.join(failed)}: what needs NVLink will be slow or fail",
            "sudo journalctl -u nvidia-fabricmanager | tail -20",
            see=_FABRIC_GUIDE,
        )


def _one(gpu: Gpu, reading: GpuReading) -> Iterator[Finding]:
    if reading.lost:
        yield error(
            "gpu",
            "gpu-lost",
            f"{gpu_choice.tell(gpu)} is lost: it fell off the bus",
            "sudo dmesg | grep -i xid | tail -20; sudo reboot",
            see="docs.nvidia.com/deploy/xid-errors (79)",
        )
    elif reading.reset_required or reading.recovery_action in _RESET:
        wants = _RESET.get(reading.recovery_action or RecoveryAction.GPU_RESET, "it needs a reset")
        reboot = reading.recovery_action is RecoveryAction.NODE_REBOOT
        yield error(
            "gpu",
            "gpu-reset",
            f"{gpu_choice.tell(gpu)} cannot work: {wants}",
            "sudo reboot" if reboot else f"sudo nvidia-smi --gpu-reset -i {gpu.uuid}   # nothing may run on it",
            see="docs.nvidia.com/deploy/gpu-debug-guidelines",
        )
    elif reading.error:
        yield error(
            "gpu",
            "gpu-error",
            f"{gpu_choice.tell(gpu)} does not answer: {reading.error}",
            f"timeout 30 nvidia-smi -i {gpu.uuid} -q; sudo dmesg | grep -iE 'nvrm|xid' | tail -20",
            see="docs.nvidia.com/deploy/xid-errors",
        )


def without_parts(snapshot: GpuSnapshot) -> list[Gpu]:
    """GPUs in MIG mode on which nobody has made a MIG device."""
    parents = {gpu.parent_uuid for gpu in snapshot.gpus}
    enabled = {uuid for uuid, reading in snapshot.readings.items() if reading.mig_enabled}
    return [gpu for gpu in snapshot.gpus if gpu.uuid in enabled and gpu.uuid not in parents and not gpu.is_mig]


def _install(facts: CheckFacts) -> tuple[str, ...]:
    if facts.host.ubuntu:
        return ("sudo ubuntu-drivers install --gpgpu && sudo reboot",)
    match facts.host.distribution:
        case "apt":
            return (
                "sudo apt-get install nvidia-driver && sudo reboot   # from Debian's non-free or NVIDIA's repository",
            )
        case "dnf":
            return ("sudo dnf module install nvidia-driver:open-dkms && sudo reboot   # from NVIDIA's repository",)
        case _:
            return (f"# install NVIDIA's driver as {_INSTALL_GUIDE} says, then `sudo reboot`",)


def _headers(facts: CheckFacts) -> str:
    if facts.host.distribution == "dnf":
        return "sudo dnf install kernel-devel-$(uname -r)"
    return "sudo apt-get install linux-headers-$(uname -r)"


def _major(version: str) -> int:
    head = version.partition(".")[0]
    return int(head) if head.isdecimal() else _OLDEST
