"""The door to `pynvml`: NVML's return codes, and calls of its functions without the costly wrappers around them.

Only the NVML process may pass it: a call that hangs in the driver cannot be ended.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from typing import Any, Final

import pynvml  # pyright: ignore[reportMissingTypeStubs]

from appliance_agent.gpu_meters import Busy, Bytes

nvml: Any = pynvml
Handle = Any  # a pointer of ctypes
Values = dict[str, Any]  # fields of a GpuReading
NvmlError: type[Exception] = pynvml.NVMLError

XID_EVENT: Final = 0x8
SUCCESS: Final = 0
NOT_SUPPORTED: Final = 3
NOT_FOUND: Final = 6
TOO_SMALL: Final = 7
FUNCTION_NOT_FOUND: Final = 13
UNKNOWN: Final = 999  # NVML's own code for what it cannot explain


class Fault(Enum):
    """What a return code says of the GPU, the host or the question."""

    UNSUPPORTED = "unsupported"  # never ask this GPU again
    NOT_NOW = "not now"
    LOST = "lost"
    RESET_REQUIRED = "reset required"
    HOST = "host"  # NVML itself is not usable any more
    OTHER = "other"


_FAULTS: Final = {
    1: Fault.HOST,  # UNINITIALIZED
    2: Fault.UNSUPPORTED,  # INVALID_ARGUMENT: a field or a structure that an older driver does not know
    3: Fault.UNSUPPORTED,  # NOT_SUPPORTED
    4: Fault.UNSUPPORTED,  # NO_PERMISSION
    6: Fault.NOT_NOW,  # NOT_FOUND
    7: Fault.NOT_NOW,  # INSUFFICIENT_SIZE: processes came between two calls
    9: Fault.HOST,  # DRIVER_NOT_LOADED
    10: Fault.NOT_NOW,  # TIMEOUT
    12: Fault.HOST,  # LIBRARY_NOT_FOUND
    13: Fault.UNSUPPORTED,  # FUNCTION_NOT_FOUND
    15: Fault.LOST,  # GPU_IS_LOST
    16: Fault.RESET_REQUIRED,  # RESET_REQUIRED
    18: Fault.HOST,  # LIB_RM_VERSION_MISMATCH
    19: Fault.NOT_NOW,  # IN_USE
    21: Fault.NOT_NOW,  # NO_DATA
    25: Fault.UNSUPPORTED,  # ARGUMENT_VERSION_MISMATCH
    26: Fault.UNSUPPORTED,  # DEPRECATED
}
_LATE: Final = "`systemctl restart ollama-agent`, if the driver came after it"  # its unit lists devices when it starts
_INIT_WORDS: Final = {
    4: f"no permission to use NVML: this user cannot open /dev/nvidiactl; {_LATE}",
    9: "the NVIDIA kernel module is not loaded: try `modprobe nvidia`, then see `dmesg | grep -i nvrm`",
    12: "no NVIDIA driver: libnvidia-ml.so.1 was not found",
    15: "NVML cannot be initialised, a GPU is lost: see `dmesg | grep -i xid`, then reboot",
    17: f"the operating system keeps NVML from its devices, /dev/nvidia*; {_LATE}",
    18: "the NVIDIA library and the loaded kernel module are of different versions: reboot, or load the module anew",
    UNKNOWN: f"NVML cannot be initialised: unknown error, see `dmesg | grep -i nvrm`; {_LATE}",
}


def code_of(error: Exception) -> int:
    if isinstance(error, AttributeError):  # the installed pynvml or library is older than the call
        return FUNCTION_NOT_FOUND
    return int(getattr(error, "value", UNKNOWN))


def fault_of(code: int) -> Fault:
    return _FAULTS.get(code, Fault.OTHER)


def words_of(code: int) -> str:
    return str(NvmlError(code)).lower()


def why_not_up(code: int) -> str:
    return _INIT_WORDS.get(code, f"NVML cannot be initialised: {words_of(code)}")


def function(name: str) -> Callable[..., int]:
    """Of the library that pynvml has loaded. Raises AttributeError if it has no such function."""
    return getattr(nvml.nvmlLib, name)  # type: ignore[no-any-return]


@dataclass(slots=True)
class Meters:
    """Of one GPU, for as long as the NVML process lives."""

    busy: Busy = field(default_factory=Busy)
    pcie: dict[str, Bytes] = field(default_factory=dict[str, Bytes])
    failed_calls: int = 0


@dataclass(slots=True)
class Subject:
    """Whom a question is about. A MIG device has a parent, which alone knows some of it."""

    handle: Handle
    meters: Meters
    parent: Handle | None = None
    gpu_instance: int = 0


Ask = Callable[[Handle, Values], int]  # asks, puts the answers into the values, and returns NVML's code


@dataclass(frozen=True, slots=True)
class Call:
    """What `prepare` makes is asked over and over. It may raise AttributeError: the library lacks the function."""

    name: str
    prepare: Callable[[Subject], Ask]


def shared(make: Callable[[], Ask]) -> Callable[[Subject], Ask]:
    """One for all GPUs: what is asked of eight in a row is in the processor's cache from the second on."""
    made = cache(make)
    return lambda _: made()


def number(
    name: str,
    gives: str,
    *arguments: int,
    kind: Any = ctypes.c_uint,
    read: Callable[[int], Any] | None = None,
) -> Call:
    """A function that writes one number; where `read` makes None of it, it says nothing."""

    def make() -> Ask:
        asked, buffer = function(name), kind()
        words = (*arguments, ctypes.byref(buffer))

        def ask(handle: Handle, values: Values) -> int:
            code = asked(handle, *words)
            if not code:
                value = buffer.value if read is None else read(buffer.value)
                if value is not None:
                    values[gives] = value
            return code

        return ask

    return Call(f"{name}({', '.join(map(str, arguments))})" if arguments else name, shared(make))


def numbers(name: str, reads: Mapping[str, Callable[[int], Any] | None]) -> Call:
    """A function that writes several numbers, through a pointer each; without `read` nobody wants it."""

    def make() -> Ask:
        asked, buffer = function(name), (ctypes.c_uint * len(reads))()
        size = ctypes.sizeof(ctypes.c_uint)
        words = tuple(ctypes.byref(buffer, place * size) for place in range(len(reads)))
        wanted = [(gives, place, read) for place, (gives, read) in enumerate(reads.items()) if read]

        def ask(handle: Handle, values: Values) -> int:
            code = asked(handle, *words)
            if not code:
                for gives, place, read in wanted:
                    values[gives] = read(buffer[place])
            return code

        return ask

    return Call(name, shared(make))


def structure(name: str, made: Callable[[], Any], store: Callable[[Values, Any], None], *, title: str = "") -> Call:
    """A function that fills a structure."""

    def make() -> Ask:
        asked, buffer = function(name), made()
        word = ctypes.byref(buffer)

        def ask(handle: Handle, values: Values) -> int:
            code = asked(handle, word)
            if not code:
                store(values, buffer)
            return code

        return ask

    return Call(title or name, shared(make))
