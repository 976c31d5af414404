/* What is counted or sampled: fields, utilisation samples, and GPM's pairs of samples. */

struct field { unsigned id, scope; long long timestamp, latency; unsigned type; int result; union { double d; unsigned ui; number ull; } value; };
enum { UINT = 1, ULONGLONG = 3, ALL_LINKS = -1 };

static const struct { int id, value, type, per_link; } fields[] = {
    {185, V_power, UINT}, {190, V_power_limit, UINT}, {230, V_recovery, UINT}, {82, V_memory_temperature, UINT},
    {3, V_ecc_corrected, ULONGLONG}, {4, V_ecc, ULONGLONG}, {5, V_ecc_corrected_lifetime, ULONGLONG}, {6, V_ecc_lifetime, ULONGLONG},
    {74, V_sw_power_cap, ULONGLONG}, {75, V_thermal_policy, ULONGLONG}, {76, V_sync_boost, ULONGLONG}, {269, V_sw_thermal, ULONGLONG},
    {270, V_hw_thermal, ULONGLONG}, {271, V_hw_power_brake, ULONGLONG}, {83, V_energy, ULONGLONG}, {94, V_pcie_replays, UINT},
    {197, V_pcie_transmit, ULONGLONG}, {198, V_pcie_receive, ULONGLONG}, {138, V_nvlink_transmit, ULONGLONG, 1},
    {139, V_nvlink_receive, ULONGLONG, 1}, {45, V_nvlink_crc, ULONGLONG}, {52, V_nvlink_replay, ULONGLONG}, {59, V_nvlink_recovery, ULONGLONG},
    {161, V_nvlink_replay, ULONGLONG, 1}, {162, V_nvlink_recovery, ULONGLONG, 1}, {163, V_nvlink_crc, ULONGLONG, 1}};

static void fill(struct device *device, struct field *field) {
    char name[32];
    snprintf(name, sizeof name, "field:%u", field->id);
    const struct rule *error = found(&device->rules, 'e', name);
    field->latency = 1;
    field->result = NOT_SUPPORTED;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        if (fields[i].id != (int)field->id) continue;
        number value = device->values[fields[i].value];
        int wraps = field->id == 197 || field->id == 198;
        int narrow = fields[i].type == UINT || (wraps && device->values[V_pcie_bits] == 32);
        field->type = narrow ? UINT : ULONGLONG;
        if (narrow) field->value.ui = value; /* as a driver does: the upper half keeps what was there */
        else field->value.ull = value;
        field->result = error ? error->value : fields[i].per_link && (int)field->scope != ALL_LINKS ? INVALID : SUCCESS;
    }
}

int nvmlDeviceGetFieldValues(char *handle, int count, struct field *wanted) {
    DEVICE("nvmlDeviceGetFieldValues", handle);
    for (int i = 0; i < count; i++) fill(device, &wanted[i]);
    return leave(SUCCESS);
}

/* Those that the file lists, or one each sixth of a second with the utilisation of now. */
static int samples_of(struct device *device, number after, unsigned room, struct sample *list) {
    enum { STEP = 166667, KEPT = 100 };
    unsigned count = 0;
    for (int i = 0; i < device->sample_count; i++)
        if (device->samples[i].time > after && count++ < room) list[count - 1] = device->samples[i];
    if (!device->values[V_generates_samples]) return count;
    number newest = now_us(CLOCK_REALTIME) / STEP * STEP, first = newest - KEPT * (number)STEP;
    for (number time = first > after ? first : after / STEP * STEP + STEP; time <= newest; time += STEP)
        if (count++ < room) list[count - 1] = (struct sample){time, {device->values[V_utilization]}};
    return count;
}

int nvmlDeviceGetSamples(char *handle, int kind, number after, int *type, unsigned *count, struct sample *list) {
    DEVICE("nvmlDeviceGetSamples", handle);
    if (kind != 1) return leave(INVALID);
    unsigned room = list ? *count : 0;
    *type = UINT;
    *count = samples_of(device, after, room, list);
    return leave(!*count ? NOT_FOUND : list && *count > room ? TOO_SMALL : SUCCESS);
}

struct gpm_sample { char uuid[TEXT]; number taken, sm, tensor, dram, more, graphics, transmit, receive; };
struct gpm_metric { unsigned id; int result; double value; char *info[3]; };
struct gpm_result { unsigned version, count; struct gpm_sample *first, *second; struct gpm_metric metrics[]; };
struct gpm_support { unsigned version, is_supported; };
static number gpm_taken;

int nvmlGpmQueryDeviceSupport(char *handle, struct gpm_support *support) {
    DEVICE("nvmlGpmQueryDeviceSupport", handle);
    support->is_supported = device->values[V_gpm];
    return leave(SUCCESS);
}
int nvmlGpmSampleAlloc(struct gpm_sample **sample) { *sample = calloc(1, sizeof **sample); return SUCCESS; }
int nvmlGpmSampleFree(struct gpm_sample *sample) { free(sample); return SUCCESS; }

static int take(struct device *device, struct gpm_sample *sample) {
    struct gpm_sample taken = {"", ++gpm_taken, device->values[V_gpm_sm], device->values[V_gpm_tensor], device->values[V_gpm_dram],
        device->values[V_gpm_more], device->values[V_gpm_graphics], device->values[V_gpm_transmit], device->values[V_gpm_receive]};
    memcpy(taken.uuid, device->uuid, TEXT);
    *sample = taken;
    return SUCCESS;
}

int nvmlGpmSampleGet(char *handle, struct gpm_sample *sample) {
    DEVICE("nvmlGpmSampleGet", handle);
    return leave(device->values[V_mig] || !device->values[V_gpm] ? NOT_SUPPORTED : take(device, sample));
}

int nvmlGpmMigSampleGet(char *handle, unsigned gpu_instance, struct gpm_sample *sample) {
    DEVICE("nvmlGpmMigSampleGet", handle);
    for (int i = 0; i < world.device_count; i++)
        if (!strcmp(world.devices[i].parent, device->uuid) && world.devices[i].gpu_instance == gpu_instance) return leave(take(&world.devices[i], sample));
    return leave(INVALID);
}

static number gpm_sum(struct gpm_sample *first, struct gpm_sample *second, unsigned id) {
    switch (id) {
        case 1: return first->graphics + second->graphics;
        case 2: return first->sm + second->sm;
        case 5: return first->tensor + second->tensor;
        case 10: return first->dram + second->dram;
        case 20: return first->transmit + second->transmit;
        default: return first->receive + second->receive;
    }
}

/* Here a metric is the mean of both samples, in hundredths of a percent or of a MiB a second. */
int nvmlGpmMetricsGet(struct gpm_result *result) {
    HOST("nvmlGpmMetricsGet");
    struct gpm_sample *first = result->first, *second = result->second;
    if (result->version != 1 || !first->taken || first->taken >= second->taken || strcmp(first->uuid, second->uuid)) return leave(INVALID);
    for (unsigned i = 0; i < result->count; i++) {
        struct gpm_metric *metric = &result->metrics[i];
        int is_more = metric->id == 1 || metric->id == 20 || metric->id == 21;
        metric->result = metric->id == 2 || metric->id == 5 || metric->id == 10 || (is_more && second->more) ? SUCCESS : NOT_SUPPORTED;
        metric->value = gpm_sum(first, second, metric->id) / 200.0;
    }
    return leave(SUCCESS);
}
