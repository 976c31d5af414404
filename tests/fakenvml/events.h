/* XIDs. A wait sleeps until the file changes: how much CPU the NVML process uses is measured over this library. */
#include <poll.h>
#include <sys/inotify.h>

struct event_set { number seen; int changes; char *registered[GPUS]; int count; };
struct event { char *device; number type, data; unsigned gpu_instance, compute_instance; };

/* The file is replaced as a whole, so its directory is watched. */
static int watch(void) {
    char directory[4096];
    snprintf(directory, sizeof directory, "%s", getenv("FAKE_NVML_FILE"));
    char *slash = strrchr(directory, '/');
    if (slash) *slash = 0;
    int changes = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    inotify_add_watch(changes, slash ? directory : ".", IN_MOVED_TO);
    return changes;
}

int nvmlEventSetCreate(struct event_set **set) {
    HOST("nvmlEventSetCreate");
    *set = calloc(1, sizeof **set);
    (*set)->changes = watch();
    (*set)->seen = world.xid_count ? world.xids[world.xid_count - 1].sequence : 0;
    return leave(SUCCESS);
}
int nvmlEventSetFree(struct event_set *set) { close(set->changes); free(set); return SUCCESS; }

int nvmlDeviceRegisterEvents(char *handle, number types, struct event_set *set) {
    DEVICE("nvmlDeviceRegisterEvents", handle);
    if (types & ~device->values[V_events]) return leave(NOT_SUPPORTED);
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
                *event = (struct event){set->registered[j], 8, xid->code, xid->gpu_instance, ~0u};
                return SUCCESS;
            }
    }
    /* A GPU that is lost must be registered anew when it returns. */
    for (int j = 0; j < set->count; j++) {
        struct device *device = device_of(set->registered[j]);
        if (!device || device->values[V_lost]) set->registered[j--] = set->registered[--set->count];
    }
    return TIMEOUT;
}

int nvmlEventSetWait_v2(struct event_set *set, struct event *event, unsigned timeout_ms) {
    char drained[4096];
    number until_us = now_us(CLOCK_MONOTONIC) + timeout_ms * 1000ULL;
    for (;;) {
        HOST("nvmlEventSetWait_v2");
        if (leave(next_event(set, event)) == SUCCESS) return SUCCESS;
        number time = now_us(CLOCK_MONOTONIC);
        if (time >= until_us) return TIMEOUT;
        struct pollfd wait = {set->changes, POLLIN, 0};
        poll(&wait, 1, (until_us - time + 999) / 1000);
        while (read(set->changes, drained, sizeof drained) > 0) checked_us = 0;
    }
}
int nvmlEventSetWait(struct event_set *set, struct event *event, unsigned timeout_ms) { return nvmlEventSetWait_v2(set, event, timeout_ms); }
