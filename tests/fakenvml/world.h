/* What the file named by FAKE_NVML_FILE says: hosts, devices and rules; it is read again when it changes.
 *
 * Lines before the first `gpu` are about the host, those behind it about that GPU; `error`, `hang` and `delay` name a
 * function of NVML, `field:ID` of nvmlDeviceGetFieldValues, or `*`. tests/fakenvml.py writes such files.
 */
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, NO_DRIVER = 9,
       TIMEOUT = 10, LOST = 15, RESET_REQUIRED = 16 };
enum { GPUS = 16, MIGS = 8, RULES = 160, PROCESSES = 128, SAMPLES = 512, XIDS = 4096, UUIDS = 512, TEXT = 96, NAME = 48 };

/* Numbers of a device, each a line `name value`. */
#define VALUES \
    X(minor) X(lost) X(reset_required) X(events) X(architecture) X(capability_major) X(capability_minor) \
    X(memory) X(used) X(reserved) X(utilization) X(memory_activity) X(temperature) X(memory_temperature) X(margin) \
    X(slowdown) X(power) X(power_limit) X(energy) X(sm_clock) X(memory_clock) X(sm_clock_max) X(memory_clock_max) \
    X(reasons) X(sw_power_cap) X(thermal_policy) X(sync_boost) X(sw_thermal) X(hw_thermal) X(hw_power_brake) X(pstate) \
    X(ecc_corrected) X(ecc) X(ecc_corrected_lifetime) X(ecc_lifetime) X(remapped_correctable) X(remapped_uncorrectable) \
    X(remap_pending) X(remap_failed) X(retired_correctable) X(retired_uncorrectable) X(retired_pending) X(recovery) \
    X(pcie_generation) X(pcie_generation_max) X(pcie_lanes) X(pcie_lanes_max) X(pcie_replays) X(pcie_transmit) \
    X(pcie_receive) X(pcie_bits) X(persistence) X(mig) X(leaks) X(gpm) X(gpm_sm) X(gpm_tensor) X(gpm_dram) X(gpm_more) X(gpm_graphics) X(gpm_transmit) X(gpm_receive) \
    X(nvlink_transmit) X(nvlink_receive) X(nvlink_crc) X(nvlink_replay) X(nvlink_recovery) X(generates_samples) X(fabric_state) X(fabric_status)
#define X(name) V_##name,
enum { VALUES VALUE_COUNT };
#undef X
#define X(name) #name,
static const char *value_names[] = { VALUES };
#undef X

typedef unsigned long long number;
struct rule { char what, function[NAME]; int value; };
struct rules { int count; struct rule list[RULES]; };
struct process { unsigned pid; number bytes; unsigned gpu_instance, compute_instance; };
struct sample { number time; union { unsigned ui; number ull; } value; };
struct device {
    char uuid[TEXT], name[TEXT], pci[32], parent[TEXT], vbios[32];
    int index, mig_slot, process_count, sample_count, mig_count;
    unsigned gpu_instance, compute_instance;
    number values[VALUE_COUNT];
    struct rules rules; /* what follows the rules' count is not cleared */
    struct process processes[PROCESSES];
    struct sample samples[SAMPLES];
};
struct xid { number sequence, code; unsigned gpu_instance; char uuid[TEXT]; };
static struct world {
    char driver[TEXT], version[TEXT];
    int cuda, device_count, gpu_count, xid_count;
    struct rules rules;
    struct device devices[GPUS * (MIGS + 1)];
    struct xid xids[XIDS];
} world;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct stat seen;
static number checked_us; /* when the file was last looked at */
static char uuids[UUIDS][TEXT]; /* handles point here: a GPU keeps its handle when its index changes */
static int uuid_count, initialized;

static number now_us(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000ULL + now.tv_nsec / 1000;
}

static void rule(struct rules *rules, char what, const char *rest) {
    struct rule *new = &rules->list[rules->count];
    new->what = what;
    new->value = 0;
    if (rules->count < RULES && sscanf(rest, "%47s %d", new->function, &new->value) >= 1) rules->count++;
}

static void host_line(const char *key, const char *rest) {
    struct xid *xid = &world.xids[world.xid_count];
    if (!strcmp(key, "driver")) sscanf(rest, "%95s", world.driver);
    else if (!strcmp(key, "version")) sscanf(rest, "%95s", world.version);
    else if (!strcmp(key, "cuda")) world.cuda = atoi(rest);
    else if (!strcmp(key, "xid") && world.xid_count < XIDS && sscanf(rest, "%llu %95s %llu %u", &xid->sequence, xid->uuid, &xid->code, &xid->gpu_instance) == 4) world.xid_count++;
}

static void gpu_line(struct device *gpu, const char *key, const char *rest) {
    struct process *process = &gpu->processes[gpu->process_count];
    struct sample *sample = &gpu->samples[gpu->sample_count];
    for (int i = 0; i < VALUE_COUNT; i++)
        if (!strcmp(key, value_names[i])) {
            gpu->values[i] = strtoull(rest, NULL, 10);
            return;
        }
    if (!strcmp(key, "name")) snprintf(gpu->name, TEXT, "%s", rest);
    if (!strcmp(key, "pci")) snprintf(gpu->pci, sizeof gpu->pci, "%s", rest);
    if (!strcmp(key, "vbios")) snprintf(gpu->vbios, sizeof gpu->vbios, "%s", rest);
    if (!strcmp(key, "sample") && gpu->sample_count < SAMPLES && sscanf(rest, "%llu %u", &sample->time, &sample->value.ui) == 2) gpu->sample_count++;
    if (!strcmp(key, "process") && gpu->process_count < PROCESSES && sscanf(rest, "%u %llu", &process->pid, &process->bytes) == 2) {
        process->gpu_instance = process->compute_instance = ~0u;
        gpu->process_count++;
    }
}

static struct device *add(const char *uuid, struct device *parent) {
    struct device *device = &world.devices[world.device_count++];
    memset(device, 0, offsetof(struct device, rules.list));
    snprintf(device->uuid, TEXT, "%s", uuid);
    device->index = parent ? parent->index : world.gpu_count++;
    if (parent) {
        snprintf(device->parent, TEXT, "%s", parent->uuid);
        snprintf(device->pci, sizeof device->pci, "%s", parent->pci);
        memcpy(device->values, parent->values, sizeof device->values);
        device->mig_slot = parent->mig_count++;
    }
    return device;
}

/* A `mig UUID GPU-INSTANCE COMPUTE-INSTANCE` line begins a MIG device of the GPU before it. */
static void parse(FILE *file) {
    char line[512], key[64];
    struct device *gpu = NULL, *device = NULL;
    world.device_count = world.gpu_count = world.xid_count = world.rules.count = 0;
    while (fgets(line, sizeof line, file)) {
        int used = 0;
        line[strcspn(line, "\n")] = 0;
        if (sscanf(line, "%63s %n", key, &used) != 1) continue;
        char *rest = line + used, uuid[TEXT];
        unsigned gpu_instance, compute_instance;
        if (!strcmp(key, "gpu") && world.gpu_count < GPUS) gpu = device = add(rest, NULL);
        else if (!strcmp(key, "mig_device") && gpu && gpu->mig_count < MIGS && sscanf(rest, "%95s %u %u", uuid, &gpu_instance, &compute_instance) == 3) {
            device = add(uuid, gpu);
            device->gpu_instance = gpu_instance;
            device->compute_instance = compute_instance;
        }
        else if (!strcmp(key, "error") || !strcmp(key, "hang") || !strcmp(key, "delay")) rule(device ? &device->rules : &world.rules, key[0], rest);
        else if (device) gpu_line(device, key, rest);
        else host_line(key, rest);
    }
}

static int reload(void) {
    struct stat now;
    const char *path = getenv("FAKE_NVML_FILE");
    number time = now_us(CLOCK_MONOTONIC);
    if (time - checked_us < 1000) return seen.st_ino ? SUCCESS : NO_DRIVER; /* many calls make one look */
    checked_us = time;
    if (!path || stat(path, &now)) return NO_DRIVER;
    if (now.st_ino == seen.st_ino && now.st_size == seen.st_size && !memcmp(&now.st_mtim, &seen.st_mtim, sizeof now.st_mtim)) return SUCCESS;
    FILE *file = fopen(path, "r");
    if (!file) return NO_DRIVER;
    fstat(fileno(file), &seen);
    parse(file);
    fclose(file);
    return SUCCESS;
}

static const struct rule *found(const struct rules *rules, char what, const char *function) {
    for (int i = 0; i < rules->count; i++)
        if (rules->list[i].what == what && (!strcmp(rules->list[i].function, function) || !strcmp(rules->list[i].function, "*"))) return &rules->list[i];
    return NULL;
}

static struct device *device_of(const char *uuid) {
    for (int i = 0; i < world.device_count; i++) if (!strcmp(world.devices[i].uuid, uuid)) return &world.devices[i];
    return NULL;
}

static char *handle_of(const char *uuid) {
    for (int i = 0; i < uuid_count; i++) if (!strcmp(uuids[i], uuid)) return uuids[i];
    return uuid_count < UUIDS ? strcpy(uuids[uuid_count++], uuid) : NULL;
}

/* What the call's rules say, with the lock held when it returns; while a rule says hang, it does. */
static int obey(const char *function, const char *uuid) {
    for (int delayed = 0;; ) {
        pthread_mutex_lock(&lock);
        int result = reload();
        struct device *device = uuid ? device_of(uuid) : NULL;
        const struct rules *both[] = {&world.rules, device ? &device->rules : &world.rules};
        const struct rule *wait = NULL, *error = NULL;
        int hangs = 0;
        for (int i = 0; i < 2; i++) {
            if (found(both[i], 'h', function)) hangs = 1;
            if (!wait) wait = found(both[i], 'd', function);
            if (!error) error = found(both[i], 'e', function);
        }
        int delay_ms = wait && !delayed ? wait->value : 0;
        if (!hangs && !delay_ms) return result ? result : error ? error->value : SUCCESS;
        pthread_mutex_unlock(&lock);
        usleep(hangs ? 10000 : delay_ms * 1000);
        delayed |= !hangs;
    }
}

static int leave(int result) {
    pthread_mutex_unlock(&lock);
    return result;
}

static int enter(const char *function) {
    int result = obey(function, NULL);
    return result ? result : initialized ? SUCCESS : UNINITIALIZED;
}

/* What a driver tells of a MIG device; one that leaks tells what is its parent's as well. */
static int is_of_mig(const char *function) {
    const char *known[] = {"GetUUID", "GetName", "GetIndex", "GetMinorNumber", "GetMemoryInfo", "GetMemoryInfo_v2", "GetGpuInstanceId",
                           "GetComputeInstanceId", "GetComputeRunningProcesses_v3", "GetComputeRunningProcesses_v2"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) if (!strcmp(function + strlen("nvmlDevice"), known[i])) return 1;
    return 0;
}

static int enter_device(const char *function, const char *handle, struct device **device) {
    int result = handle ? obey(function, handle) : enter(function);
    if (!handle) return result ? result : INVALID;
    *device = device_of(handle);
    if (!initialized) return UNINITIALIZED;
    if (!*device) return strncmp(handle, "MIG-", 4) ? LOST : INVALID;
    struct device *gpu = (*device)->parent[0] ? device_of((*device)->parent) : *device;
    if (gpu->values[V_lost]) return LOST;
    if (gpu != *device && !(*device)->values[V_leaks] && !is_of_mig(function)) return NOT_SUPPORTED;
    if (gpu->values[V_reset_required] && strcmp(function, "nvmlDeviceGetUUID")) return RESET_REQUIRED;
    return result;
}

#define DEVICE(function, handle) \
    struct device *device; \
    int entered = enter_device(function, handle, &device); \
    if (entered) return leave(entered)
#define HOST(function) \
    int entered = enter(function); \
    if (entered) return leave(entered)
