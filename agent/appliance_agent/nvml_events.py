"""Waits in a thread of its own for the XIDs that NVML reports. Only the NVML process does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from appliance_agent.gpus import Xid
from appliance_agent.nvml_calls import XID_EVENT, Fault, Handle, NvmlError, code_of, fault_of, nvml
from appliance_agent.nvml_identity import address_of

_WAIT_MS: Final = 1000  # how long `close` may have to wait


class XidWatch:
    """Belongs to one session, and must be closed before it."""

    def __init__(self, handles: Mapping[str, Handle], heard: Callable[[Xid], None]) -> None:
        self._handles = dict(handles)
        self._heard = heard
        self._events: Any = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="xids", daemon=True)

    @property
    def uuids(self) -> frozenset[str]:
        return frozenset(self._handles)

    def start(self) -> None:
        """A GPU that reports no XIDs is left out; without any there is nothing to wait for."""
        try:
            self._events = nvml.nvmlEventSetCreate()
        except NvmlError:
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

    def close(self) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._events is not None:
            try:
                nvml.nvmlEventSetFree(self._events)
            except NvmlError:
                return  # NVML is down, and its sets with it

    def _run(self) -> None:
        by_address = {address_of(handle): uuid for uuid, handle in self._handles.items()}
        while not self._over.is_set():
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, _WAIT_MS)
            except NvmlError as error:
                if fault_of(code_of(error)) is not Fault.NOT_NOW:
                    self._over.wait(_WAIT_MS / 1000)  # a lost GPU makes some drivers answer at once, for ever
                continue
            uuid = by_address.get(address_of(event.device), "")
            if uuid and event.eventType == XID_EVENT:
                self._heard(Xid(uuid=uuid, code=int(event.eventData), at_s=time.monotonic()))
