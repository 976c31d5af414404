/* A libnvidia-ml.so.1 without a GPU: answers what the file named by FAKE_NVML_FILE says, and reads it again when it changes.
 *
 * Lines before the first `gpu` are about the host, those behind it about that GPU; `error`, `hang` and `delay` name a
 * function of NVML, `field:ID` of nvmlDeviceGetFieldValues, or `*`. tests/fakenvml.py writes such files.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, NO_DRIVER = 9,
       TIMEOUT = 10, LOST = 15, RESET_REQUIRED = 16 };
enum { GPUS = 16, MIGS = 8, RULES = 64, PROCESSES = 32, XIDS = 4096, UUIDS = 512, TEXT = 96 };

typedef unsigned long long number;
struct rule { char what, function[TEXT]; int value; };
struct rules { struct rule list[RULES]; int count; };
struct process { unsigned pid; number bytes; unsigned gpu_instance, compute_instance; };
struct device {
    char uuid[TEXT], name[TEXT], pci[32], parent[TEXT];
    int index, minor, mig_slot, lost, reset_required, process_count, mig_count;
    unsigned gpu_instance, compute_instance;
    unsigned utilization, temperature, power, power_limit, sm_clock, memory_clock, persistence, mig, recovery;
    number memory, used, reserved, energy, reasons, ecc, events;
    struct process processes[PROCESSES];
    struct rules rules;
};
struct xid { number sequence, code; char uuid[TEXT]; };
struct world {
    char driver[TEXT], version[TEXT];
    int cuda, device_count, gpu_count, xid_count;
    struct rules rules;
    struct device devices[GPUS * (MIGS + 1)];
    struct xid xids[XIDS];
};
struct event_set { number seen; char *registered[GPUS]; int count; };
struct event { char *device; number type, data; unsigned gpu_instance, compute_instance; };
struct field { unsigned id, scope; long long timestamp, latency; unsigned type; int result; union { double d; unsigned ui; number ull; } value; };

struct utilization { unsigned gpu, memory; };
struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char text[32]; };
struct memory { number total, free, used; };
struct memory_v2 { unsigned version; number total, reserved, free, used; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct world world;
static struct stat seen;
static char uuids[UUIDS][TEXT]; /* handles point here: a GPU keeps its handle when its index changes */
static int uuid_count, initialized;

static void rule(struct rules *rules, char what, const char *rest) {
    struct rule *new = &rules->list[rules->count];
    new->what = what;
    new->value = 0;
    if (rules->count < RULES && sscanf(rest, "%95s %d", new->function, &new->value) >= 1) rules->count++;
}

static void host_line(const char *key, const char *rest) {
    struct xid *xid = &world.xids[world.xid_count];
    if (!strcmp(key, "driver")) sscanf(rest, "%95s", world.driver);
    else if (!strcmp(key, "version")) sscanf(rest, "%95s", world.version);
    else if (!strcmp(key, "cuda")) world.cuda = atoi(rest);
    else if (!strcmp(key, "xid") && world.xid_count < XIDS && sscanf(rest, "%llu %95s %llu", &xid->sequence, xid->uuid, &xid->code) == 3) world.xid_count++;
}

static void gpu_line(struct device *gpu, const char *key, const char *rest) {
    struct process *process = &gpu->processes[gpu->process_count];
    number value = strtoull(rest, NULL, 10);
    struct { const char *key; unsigned *target; } small[] = {
        {"utilization", &gpu->utilization}, {"temperature", &gpu->temperature}, {"power", &gpu->power},
        {"power_limit", &gpu->power_limit}, {"sm_clock", &gpu->sm_clock}, {"memory_clock", &gpu->memory_clock},
        {"persistence", &gpu->persistence}, {"mig", &gpu->mig}, {"recovery", &gpu->recovery},
        {"minor", (unsigned *)&gpu->minor}, {"lost", (unsigned *)&gpu->lost}, {"reset_required", (unsigned *)&gpu->reset_required}};
    struct { const char *key; number *target; } large[] = {
        {"memory", &gpu->memory}, {"used", &gpu->used}, {"reserved", &gpu->reserved}, {"energy", &gpu->energy},
        {"reasons", &gpu->reasons}, {"ecc", &gpu->ecc}, {"events", &gpu->events}};
    for (size_t i = 0; i < sizeof small / sizeof *small; i++) if (!strcmp(key, small[i].key)) *small[i].target = value;
    for (size_t i = 0; i < sizeof large / sizeof *large; i++) if (!strcmp(key, large[i].key)) *large[i].target = value;
    if (!strcmp(key, "name")) snprintf(gpu->name, TEXT, "%s", rest);
    if (!strcmp(key, "pci")) snprintf(gpu->pci, sizeof gpu->pci, "%s", rest);
    if (!strcmp(key, "process") && gpu->process_count < PROCESSES && sscanf(rest, "%u %llu", &process->pid, &process->bytes) == 2) {
        process->gpu_instance = process->compute_instance = ~0u;
        gpu->process_count++;
    }
}

static struct device *add(const char *uuid, struct device *parent) {
    struct device *device = &world.devices[world.device_count++];
    snprintf(device->uuid, TEXT, "%s", uuid);
    device->index = parent ? parent->index : world.gpu_count++;
    if (parent) {
        snprintf(device->parent, TEXT, "%s", parent->uuid);
        snprintf(device->pci, sizeof device->pci, "%s", parent->pci);
        device->minor = parent->minor;
        device->mig_slot = parent->mig_count++;
    }
    return device;
}

/* A `mig UUID GPU-INSTANCE COMPUTE-INSTANCE` line begins a MIG device of the GPU before it. */
static void parse(FILE *file) {
    char line[512], key[64];
    struct device *gpu = NULL, *device = NULL;
    memset(&world, 0, sizeof world);
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

static int enter_device(const char *function, const char *handle, struct device **device) {
    int result = handle ? obey(function, handle) : enter(function);
    if (!handle) return result ? result : INVALID;
    *device = device_of(handle);
    if (!initialized) return UNINITIALIZED;
    if (!*device) return strncmp(handle, "MIG-", 4) ? LOST : INVALID;
    struct device *gpu = (*device)->parent[0] ? device_of((*device)->parent) : *device;
    if (gpu->lost) return LOST;
    if (gpu->reset_required && strcmp(function, "nvmlDeviceGetUUID")) return RESET_REQUIRED;
    return result;
}

#define DEVICE(function, handle) \
    struct device *device; \
    int entered = enter_device(function, handle, &device); \
    if (entered) return leave(entered)
#define NUMBER(function, type, member) \
    int function(char *handle, type *value) { DEVICE(#function, handle); *value = device->member; return leave(SUCCESS); }
#define TEXT_OF(function, member) \
    int function(char *handle, char *text, unsigned size) { DEVICE(#function, handle); snprintf(text, size, "%s", device->member); return leave(SUCCESS); }
#define HOST(function) \
    int entered = enter(function); \
    if (entered) return leave(entered)

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
        if (device->lost) return leave(LOST);
        *handle = handle_of(device->uuid);
        return leave(SUCCESS);
    }
    return leave(INVALID);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, char **handle) {
    HOST("nvmlDeviceGetHandleByUUID");
    struct device *device = device_of(uuid);
    if (!device || device->lost) return leave(device ? LOST : NOT_FOUND);
    *handle = handle_of(uuid);
    return leave(SUCCESS);
}

TEXT_OF(nvmlDeviceGetUUID, uuid)
TEXT_OF(nvmlDeviceGetName, name)
NUMBER(nvmlDeviceGetIndex, unsigned, index)
NUMBER(nvmlDeviceGetMinorNumber, unsigned, minor)
NUMBER(nvmlDeviceGetPowerUsage, unsigned, power)
NUMBER(nvmlDeviceGetEnforcedPowerLimit, unsigned, power_limit)
NUMBER(nvmlDeviceGetTotalEnergyConsumption, number, energy)
NUMBER(nvmlDeviceGetCurrentClocksEventReasons, number, reasons)
NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, number, reasons)
NUMBER(nvmlDeviceGetPersistenceMode, unsigned, persistence)
NUMBER(nvmlDeviceGetSupportedEventTypes, number, events)
NUMBER(nvmlDeviceGetGpuInstanceId, unsigned, gpu_instance)
NUMBER(nvmlDeviceGetComputeInstanceId, unsigned, compute_instance)

int nvmlDeviceGetTemperature(char *handle, int sensor, unsigned *value) { (void)sensor; DEVICE("nvmlDeviceGetTemperature", handle); *value = device->temperature; return leave(SUCCESS); }
int nvmlDeviceGetClockInfo(char *handle, int clock, unsigned *value) { DEVICE("nvmlDeviceGetClockInfo", handle); *value = clock == 2 ? device->memory_clock : device->sm_clock; return leave(SUCCESS); }
int nvmlDeviceGetTotalEccErrors(char *handle, int kind, int counter, number *value) { (void)counter; DEVICE("nvmlDeviceGetTotalEccErrors", handle); *value = kind == 1 ? device->ecc : 0; return leave(SUCCESS); }
int nvmlDeviceGetUtilizationRates(char *handle, struct utilization *value) { DEVICE("nvmlDeviceGetUtilizationRates", handle); value->gpu = device->utilization; value->memory = device->utilization / 2; return leave(SUCCESS); }

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
    value->total = device->memory;
    value->used = device->used + device->reserved;
    value->free = value->total - value->used;
    return leave(SUCCESS);
}

int nvmlDeviceGetMemoryInfo_v2(char *handle, struct memory_v2 *value) {
    DEVICE("nvmlDeviceGetMemoryInfo_v2", handle);
    value->total = device->memory;
    value->reserved = device->reserved;
    value->used = device->used;
    value->free = value->total - value->used - value->reserved;
    return leave(SUCCESS);
}

int nvmlDeviceGetMigMode(char *handle, unsigned *current, unsigned *pending) { DEVICE("nvmlDeviceGetMigMode", handle); *current = *pending = device->mig; return leave(SUCCESS); }
int nvmlDeviceGetMaxMigDeviceCount(char *handle, unsigned *count) { DEVICE("nvmlDeviceGetMaxMigDeviceCount", handle); *count = device->mig ? MIGS : 0; return leave(SUCCESS); }
int nvmlDeviceGetMigDeviceHandleByIndex(char *parent, unsigned slot, char **handle) {
    DEVICE("nvmlDeviceGetMigDeviceHandleByIndex", parent);
    for (int i = 0; i < world.device_count && device->mig; i++) {
        struct device *mig = &world.devices[i];
        if (strcmp(mig->parent, device->uuid) || mig->mig_slot != (int)slot) continue;
        *handle = handle_of(mig->uuid);
        return leave(SUCCESS);
    }
    return leave(NOT_FOUND);
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

static void fill(struct device *device, struct field *field) {
    char name[32];
    snprintf(name, sizeof name, "field:%u", field->id);
    const struct rule *error = found(&device->rules, 'e', name);
    field->latency = 1;
    field->result = error ? error->value : SUCCESS;
    field->type = 1;
    switch (field->id) {
    case 185: field->value.ui = device->power; break;
    case 190: field->value.ui = device->power_limit; break;
    case 230: field->value.ui = device->recovery; break;
    case 4: field->type = 3; field->value.ull = device->ecc; break;
    case 83: field->type = 3; field->value.ull = device->energy; break;
    default: field->result = NOT_SUPPORTED;
    }
}

int nvmlDeviceGetFieldValues(char *handle, int count, struct field *fields) {
    DEVICE("nvmlDeviceGetFieldValues", handle);
    for (int i = 0; i < count; i++) fill(device, &fields[i]);
    return leave(SUCCESS);
}

int nvmlEventSetCreate(struct event_set **set) {
    HOST("nvmlEventSetCreate");
    *set = calloc(1, sizeof **set);
    (*set)->seen = world.xid_count ? world.xids[world.xid_count - 1].sequence : 0;
    return leave(SUCCESS);
}
int nvmlEventSetFree(struct event_set *set) { free(set); return SUCCESS; }

int nvmlDeviceRegisterEvents(char *handle, number types, struct event_set *set) {
    DEVICE("nvmlDeviceRegisterEvents", handle);
    if (types & ~device->events) return leave(NOT_SUPPORTED);
    if (set->count < GPUS) set->registered[set->count++] = handle;
    return leave(SUCCESS);
}

static int next_event(struct event_set *set, struct event *event) {
    for (int i = 0; i < world.xid_count; i++) {
        struct xid *xid = &world.xids[i];
        if (xid->sequence <= set->seen) continue;
        set->seen = xid->sequence;
        for (int j = 0; j < set->count; j++)
            if (!strcmp(set->registered[j], xid->uuid)) {
                *event = (struct event){set->registered[j], 8, xid->code, ~0u, ~0u};
                return SUCCESS;
            }
    }
    /* A GPU that is lost must be registered anew when it returns. */
    for (int j = 0; j < set->count; j++) {
        struct device *device = device_of(set->registered[j]);
        if (!device || device->lost) set->registered[j--] = set->registered[--set->count];
    }
    return TIMEOUT;
}

int nvmlEventSetWait_v2(struct event_set *set, struct event *event, unsigned timeout_ms) {
    for (unsigned waited = 0;; waited += 20) {
        HOST("nvmlEventSetWait_v2");
        if (leave(next_event(set, event)) == SUCCESS) return SUCCESS;
        if (waited >= timeout_ms) return TIMEOUT;
        usleep(20000);
    }
}
int nvmlEventSetWait(struct event_set *set, struct event *event, unsigned timeout_ms) { return nvmlEventSetWait_v2(set, event, timeout_ms); }
