/* A libnvidia-ml.so.1 without a GPU: answers what a file says. */
#define _GNU_SOURCE
#include "world.h"

struct utilization { unsigned gpu, memory; };
struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char text[32]; };
struct memory { number total, free, used; };
struct memory_v2 { unsigned version; number total, reserved, free, used; };
struct margin { unsigned version; int celsius; };
struct fabric { unsigned char cluster[16]; int status; unsigned clique; unsigned char state; };
struct fabric_v2 { unsigned version; unsigned char cluster[16]; int status; unsigned clique; unsigned char state; unsigned health; };

#define NUMBER(function, type, member) \
    int function(char *handle, type *value) { DEVICE(#function, handle); *value = device->member; return leave(SUCCESS); }
#define VALUE(function, type, name) \
    int function(char *handle, type *value) { DEVICE(#function, handle); *value = device->values[V_##name]; return leave(SUCCESS); }
#define TEXT_OF(function, member) \
    int function(char *handle, char *text, unsigned size) { DEVICE(#function, handle); snprintf(text, size, "%s", device->member); return leave(SUCCESS); }

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    int result = obey("nvmlInitWithFlags", NULL);
    initialized += !result;
    return leave(result);
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { HOST("nvmlShutdown"); initialized--; return leave(SUCCESS); }
const char *nvmlErrorString(int result) { return result ? "fake error" : "Success"; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { HOST("nvmlSystemGetDriverVersion"); snprintf(text, size, "%s", world.driver); return leave(SUCCESS); }
int nvmlSystemGetNVMLVersion(char *text, unsigned size) { HOST("nvmlSystemGetNVMLVersion"); snprintf(text, size, "%s", world.version); return leave(SUCCESS); }
int nvmlSystemGetCudaDriverVersion(int *version) { HOST("nvmlSystemGetCudaDriverVersion"); *version = world.cuda; return leave(SUCCESS); }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { return nvmlSystemGetCudaDriverVersion(version); }
int nvmlDeviceGetCount_v2(unsigned *count) { HOST("nvmlDeviceGetCount"); *count = world.gpu_count; return leave(SUCCESS); }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, char **handle) {
    HOST("nvmlDeviceGetHandleByIndex");
    for (int i = 0; i < world.device_count; i++) {
        struct device *device = &world.devices[i];
        if (device->parent[0] || device->index != (int)index) continue;
        if (device->values[V_lost]) return leave(LOST);
        *handle = handle_of(device->uuid);
        return leave(SUCCESS);
    }
    return leave(INVALID);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, char **handle) {
    HOST("nvmlDeviceGetHandleByUUID");
    struct device *device = device_of(uuid);
    if (!device || device->values[V_lost]) return leave(device ? LOST : NOT_FOUND);
    *handle = handle_of(uuid);
    return leave(SUCCESS);
}

TEXT_OF(nvmlDeviceGetUUID, uuid)
TEXT_OF(nvmlDeviceGetName, name)
NUMBER(nvmlDeviceGetIndex, unsigned, index)
VALUE(nvmlDeviceGetMinorNumber, unsigned, minor)
VALUE(nvmlDeviceGetPowerUsage, unsigned, power)
VALUE(nvmlDeviceGetEnforcedPowerLimit, unsigned, power_limit)
VALUE(nvmlDeviceGetTotalEnergyConsumption, number, energy)
VALUE(nvmlDeviceGetCurrentClocksEventReasons, number, reasons)
VALUE(nvmlDeviceGetCurrentClocksThrottleReasons, number, reasons)
VALUE(nvmlDeviceGetPersistenceMode, unsigned, persistence)
VALUE(nvmlDeviceGetSupportedEventTypes, number, events)
VALUE(nvmlDeviceGetPerformanceState, unsigned, pstate)
VALUE(nvmlDeviceGetCurrPcieLinkGeneration, unsigned, pcie_generation)
VALUE(nvmlDeviceGetMaxPcieLinkGeneration, unsigned, pcie_generation_max)
VALUE(nvmlDeviceGetCurrPcieLinkWidth, unsigned, pcie_lanes)
VALUE(nvmlDeviceGetMaxPcieLinkWidth, unsigned, pcie_lanes_max)
VALUE(nvmlDeviceGetPcieReplayCounter, unsigned, pcie_replays)
VALUE(nvmlDeviceGetRetiredPagesPendingStatus, unsigned, retired_pending)
VALUE(nvmlDeviceGetArchitecture, unsigned, architecture)
TEXT_OF(nvmlDeviceGetVbiosVersion, vbios)
NUMBER(nvmlDeviceGetGpuInstanceId, unsigned, gpu_instance)
NUMBER(nvmlDeviceGetComputeInstanceId, unsigned, compute_instance)

int nvmlDeviceGetTemperature(char *handle, int sensor, unsigned *value) { DEVICE("nvmlDeviceGetTemperature", handle); *value = device->values[V_temperature]; return leave(sensor ? INVALID : SUCCESS); }
int nvmlDeviceGetTemperatureThreshold(char *handle, int which, unsigned *value) { DEVICE("nvmlDeviceGetTemperatureThreshold", handle); *value = device->values[V_slowdown]; return leave(which == 1 ? SUCCESS : INVALID); }
int nvmlDeviceGetMarginTemperature(char *handle, struct margin *value) { DEVICE("nvmlDeviceGetMarginTemperature", handle); value->celsius = device->values[V_margin]; return leave(value->version == 0x1000008 ? SUCCESS : INVALID); }
int nvmlDeviceGetClockInfo(char *handle, int clock, unsigned *value) { DEVICE("nvmlDeviceGetClockInfo", handle); *value = device->values[clock == 2 ? V_memory_clock : V_sm_clock]; return leave(SUCCESS); }
int nvmlDeviceGetMaxClockInfo(char *handle, int clock, unsigned *value) { DEVICE("nvmlDeviceGetMaxClockInfo", handle); *value = device->values[clock == 2 ? V_memory_clock_max : V_sm_clock_max]; return leave(SUCCESS); }
int nvmlDeviceGetUtilizationRates(char *handle, struct utilization *value) { DEVICE("nvmlDeviceGetUtilizationRates", handle); value->gpu = device->values[V_utilization]; value->memory = device->values[V_memory_activity]; return leave(SUCCESS); }
int nvmlDeviceGetCudaComputeCapability(char *handle, int *major, int *minor) { DEVICE("nvmlDeviceGetCudaComputeCapability", handle); *major = device->values[V_capability_major]; *minor = device->values[V_capability_minor]; return leave(SUCCESS); }

int nvmlDeviceGetTotalEccErrors(char *handle, int kind, int counter, number *value) {
    static const int places[2][2] = {{V_ecc_corrected, V_ecc_corrected_lifetime}, {V_ecc, V_ecc_lifetime}};
    DEVICE("nvmlDeviceGetTotalEccErrors", handle);
    *value = device->values[places[kind == 1][counter == 1]];
    return leave(SUCCESS);
}

int nvmlDeviceGetRemappedRows(char *handle, unsigned *correctable, unsigned *uncorrectable, unsigned *pending, unsigned *failed) {
    DEVICE("nvmlDeviceGetRemappedRows", handle);
    *correctable = device->values[V_remapped_correctable];
    *uncorrectable = device->values[V_remapped_uncorrectable];
    *pending = device->values[V_remap_pending];
    *failed = device->values[V_remap_failed];
    return leave(SUCCESS);
}

int nvmlDeviceGetRetiredPages(char *handle, int cause, unsigned *count, number *addresses) {
    DEVICE("nvmlDeviceGetRetiredPages", handle);
    unsigned room = *count;
    *count = device->values[cause ? V_retired_uncorrectable : V_retired_correctable];
    return leave(*count && (!addresses || *count > room) ? TOO_SMALL : SUCCESS);
}

int nvmlDeviceGetPciInfo_v3(char *handle, struct pci *value) {
    DEVICE("nvmlDeviceGetPciInfo", handle);
    memset(value, 0, sizeof *value);
    sscanf(device->pci, "%x:%x:%x", &value->domain, &value->bus, &value->device);
    snprintf(value->legacy, sizeof value->legacy, "%04x:%02x:%02x.0", value->domain & 0xffff, value->bus & 0xff, value->device & 0xff);
    snprintf(value->text, sizeof value->text, "%s", device->pci);
    return leave(SUCCESS);
}

int nvmlDeviceGetMemoryInfo(char *handle, struct memory *value) {
    DEVICE("nvmlDeviceGetMemoryInfo", handle);
    value->total = device->values[V_memory];
    value->used = device->values[V_used] + device->values[V_reserved];
    value->free = value->total - value->used;
    return leave(SUCCESS);
}

int nvmlDeviceGetMemoryInfo_v2(char *handle, struct memory_v2 *value) {
    DEVICE("nvmlDeviceGetMemoryInfo_v2", handle);
    value->total = device->values[V_memory];
    value->reserved = device->values[V_reserved];
    value->used = device->values[V_used];
    value->free = value->total - value->used - value->reserved;
    return leave(SUCCESS);
}

int nvmlDeviceGetMigMode(char *handle, unsigned *current, unsigned *pending) { DEVICE("nvmlDeviceGetMigMode", handle); *current = *pending = device->values[V_mig]; return leave(SUCCESS); }
int nvmlDeviceGetMaxMigDeviceCount(char *handle, unsigned *count) { DEVICE("nvmlDeviceGetMaxMigDeviceCount", handle); *count = device->values[V_mig] ? MIGS : 0; return leave(SUCCESS); }
int nvmlDeviceGetMigDeviceHandleByIndex(char *parent, unsigned slot, char **handle) {
    DEVICE("nvmlDeviceGetMigDeviceHandleByIndex", parent);
    for (int i = 0; i < world.device_count && device->values[V_mig]; i++) {
        struct device *mig = &world.devices[i];
        if (strcmp(mig->parent, device->uuid) || mig->mig_slot != (int)slot) continue;
        *handle = handle_of(mig->uuid);
        return leave(SUCCESS);
    }
    return leave(NOT_FOUND);
}

/* Of the state one byte is written, as the driver does: what is behind it in the caller's four is not its own. */
int nvmlDeviceGetGpuFabricInfo(char *handle, struct fabric *value) {
    DEVICE("nvmlDeviceGetGpuFabricInfo", handle);
    value->state = device->values[V_fabric_state];
    value->status = device->values[V_fabric_status];
    return leave(SUCCESS);
}

int nvmlDeviceGetGpuFabricInfoV(char *handle, struct fabric_v2 *value) {
    DEVICE("nvmlDeviceGetGpuFabricInfoV", handle);
    if (value->version != 0x2000024) return leave(INVALID);
    value->state = device->values[V_fabric_state];
    value->status = device->values[V_fabric_status];
    return leave(SUCCESS);
}

static int processes(const char *function, char *handle, unsigned *count, struct process *list) {
    DEVICE(function, handle);
    unsigned room = list ? *count : 0;
    *count = device->process_count;
    if (*count > room) return leave(TOO_SMALL);
    if (*count) memcpy(list, device->processes, *count * sizeof *list);
    return leave(SUCCESS);
}
int nvmlDeviceGetComputeRunningProcesses_v3(char *handle, unsigned *count, struct process *list) { return processes("nvmlDeviceGetComputeRunningProcesses_v3", handle, count, list); }
int nvmlDeviceGetComputeRunningProcesses_v2(char *handle, unsigned *count, struct process *list) { return processes("nvmlDeviceGetComputeRunningProcesses_v2", handle, count, list); }

#include "counters.h"
#include "events.h"
