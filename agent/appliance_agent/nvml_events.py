"""Waits in a thread of its own for the XIDs that NVML reports. Only the NVML process does."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from appliance_agent.gpus import Xid
from appliance_agent.nvml_calls import XID_EVENT, Fault, Handle, NvmlError, fault_of, function, nvml
from appliance_agent.nvml_identity import address_of

_WAIT_S: Final = 2.0  # it cannot be broken off, and each that ends in vain costs a wake-up
_PAUSE_S: Final = 1.0
_NO_INSTANCE: Final = 0xFFFFFFFF


class XidWatch:
    """Belongs to one session, and must be closed before it."""

    def __init__(self, handles: Mapping[str, Handle], heard: Callable[[Xid], None], *, faster: float = 1.0) -> None:
        self._handles = dict(handles)
        self._by_address = {address_of(handle): uuid for uuid, handle in handles.items()}
        self._heard = heard
        self._wait_ms = round(_WAIT_S * 1000 / faster)
        self._events: Any = None
        self._event = nvml.c_nvmlEventData_t()
        self._over = threading.Event()
        self._hangs_at_s = 0.0
        self._thread = threading.Thread(target=self._run, name="xids", daemon=True)

    def hears(self, handles: Mapping[str, Handle]) -> bool:
        """Whether it is there for exactly these."""
        return self._handles.keys() == handles.keys() and not self._over.is_set()

    def start(self) -> None:
        """A GPU that reports no XIDs is left out; without any there is nothing to wait for."""
        try:
            self._wait = function("nvmlEventSetWait_v2")
            self._events = nvml.nvmlEventSetCreate()
        except (NvmlError, AttributeError):
            return
        if [handle for handle in self._handles.values() if self._register(handle)]:
            self._thread.start()

    def _register(self, handle: Handle) -> bool:
        try:
            if not nvml.nvmlDeviceGetSupportedEventTypes(handle) & XID_EVENT:
                return False
            nvml.nvmlDeviceRegisterEvents(handle, XID_EVENT, self._events)
        except NvmlError:
            return False
        return True

    def end(self) -> bool:
        """Whether it has ended, which may take as long as a wait, or hangs: then so will whoever closes it."""
        if not self._over.is_set():
            self._over.set()
            self._hangs_at_s = time.monotonic() + 2 * self._wait_ms / 1000
        return not self._thread.is_alive() or time.monotonic() >= self._hangs_at_s

    def close(self) -> None:
        """Waits for its end, and tells what came since."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._events is None:
            return
        while not self._next(0):
            pass
        try:
            nvml.nvmlEventSetFree(self._events)
        except NvmlError:
            return  # NVML is down, and its sets with it

    def _run(self) -> None:
        while not self._over.is_set():
            code = self._next(self._wait_ms)
            if code and fault_of(code) is not Fault.NOT_NOW:
                self._over.wait(_PAUSE_S)  # a lost GPU makes some drivers answer at once, for ever

    def _next(self, wait_ms: int) -> int:
        code = self._wait(self._events, ctypes.byref(self._event), wait_ms)
        if not code and self._event.eventType == XID_EVENT:
            uuid = self._by_address.get(address_of(self._event.device), "")
            if uuid:
                self._heard(Xid(uuid, int(self._event.eventData), time.monotonic(), self._instance()))
        return code

    def _instance(self) -> int | None:
        """Of MIG, where the driver can tell in which it happened."""
        told = int(self._event.gpuInstanceId)
        return None if told == _NO_INSTANCE else told
