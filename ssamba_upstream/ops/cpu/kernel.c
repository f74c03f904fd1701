/* The selective scan and its causal convolution on CPUs, forward and backward. All arithmetic is float32; sequences are
 * read and written as float32 or bfloat16.
 *
 * ssamba_upstream/ops/reference.py defines the computation. This file processes vectors of neighbouring channels, TILE
 * steps at a time: first everything that does not depend on the state (step sizes), then the recurrence, then skip
 * connection and gate. A tile stays in the first-level cache, and every input is read once.
 *
 * The sequences of a batch are its entries, or are concatenated in a single entry; a Place locates each of them.
 *
 * The file has two parts. The first holds types, threads and the functions that Python calls. The second holds the
 * arithmetic and is compiled once per instruction set: at its end, the first part includes this file with LANES (floats
 * in a vector), SUFFIX and TARGET defined.
 */

#ifndef LANES

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <pthread.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define X86
#endif

enum {
    TILE = 32,          /* steps between two checkpoints of the state */
    GROUP = 64,         /* channels whose contributions to the gradients of B and C are summed first */
    WIDEST = 16,        /* floats in the widest vector; checkpoints are padded to a multiple of it */
    HELD = 4,           /* states processed at a time in the backward pass, to hide the recurrence's latency */
    MAX_DIRECTIONS = 2
};

static const double LOG2_E = 1.4426950408889634;

#ifdef X86
static const float ROOTS[] = { /* 2**(i / 16) */
    1.0f, 1.0442737824274138f, 1.0905077326652577f, 1.1387886347566916f, 1.1892071150027210f, 1.2418578120734840f,
    1.2968395546510096f, 1.3542555469368927f, 1.4142135623730951f, 1.4768261459394993f, 1.5422108254079407f,
    1.6104903319492543f, 1.6817928305074290f, 1.7562521603732995f, 1.8340080864093424f, 1.9152065613971474f,
};
#endif

/* Every field in the structs that Python passes is eight bytes wide, so Python can pass arrays of int64. */

typedef struct { /* a (batch, channels, length) tensor, strides in bytes; for B and C the channels are states */
    char *data;
    int64_t batch, channel, time;
    int64_t size; /* bytes per element: 4 for float32, 2 for bfloat16 */
} Sequence;

typedef struct { /* location of one sequence; sequences are processed separately */
    int64_t index, entry, start, length; /* its number, its batch entry, and its steps there */
    int64_t checkpoint, checkpoints;     /* its first checkpoint and their number: at least one per tile */
} Place;

typedef struct { /* the tensors' shape and its sequences: the batch entries, unless places are given */
    int64_t entries, channels, length, sequences;
    const Place *places; /* (sequences), optional: in processing order */
} Batch;

typedef struct { /* one direction of a scan; absent optional tensors are NULL */
    Sequence u, delta, B, C;
    const float *A, *D, *bias; /* (channels, states), (channels), (channels) */
    const float *step_weight;  /* (channels, rank), optional: projects delta, (batch, rank, length), to the steps */
    int64_t reverse;
    const float *initial_state; /* (sequences, channels, states), optional; default zero */
    float *last_state;          /* (sequences, channels, states), optional */
    float *checkpoints; /* (tiles, states, channels padded to WIDEST): state before each tile; optional */
    /* For the backward pass only: */
    const float *grad_last_state; /* optional */
    float *grad_initial_state;    /* only with an initial_state */
    Sequence grad_u, grad_delta;        /* grad_delta only without a step_weight */
    float *grad_A, *grad_D, *grad_bias; /* (sequences, channels, states), (sequences, channels) twice */
    float *grad_step_weight;            /* (sequences, channels, rank) */
    float *grad_low, *grad_B, *grad_C;  /* (groups of channels, entries, length, rank or states), see sum_width */
} Direction;

typedef struct { /* output = silu(z) * mean over the directions of (scan + D u) */
    int64_t threads;
    Batch batch;
    int64_t states, delta_softplus, directions;
    int64_t done, total;     /* directions already in the output, and all directions in the mean */
    int64_t rank;            /* rank of the steps' projection; 0 if delta needs no projection */
    int64_t logarithmic;     /* A stands for -exp(A) */
    int64_t sum_width;       /* floats from one time step to the next in grad_low, grad_B and grad_C */
    Sequence z, output;      /* z optional; in the backward pass, output is the output's gradient */
    Sequence grad_z;
    int64_t item_channels;   /* channels per work item; set by this file */
    Direction direction[MAX_DIRECTIONS];
} Scan;

typedef struct {
    const float *weight, *bias; /* (channels, width), (channels) */
    int64_t reverse;
    Sequence output; /* in the backward pass, the output's gradient */
    float *grad_weight, *grad_bias; /* (sequences, channels, width), (sequences, channels) */
} Taps;

typedef struct { /* output = silu(bias + causal depthwise convolution of x), in each direction */
    int64_t threads;
    Batch batch;
    int64_t width, directions;
    Sequence x, grad_x;
    Taps taps[MAX_DIRECTIONS];
} Convolution;

/* Number of fields in the structs that Python fills; it rejects a library built with other structs. */
const int64_t ssamba_layout[] = {sizeof(Scan) / 8, sizeof(Convolution) / 8};

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static Place find_place(const Batch *batch, int64_t number)
{
    if (batch->places)
        return batch->places[number];
    int64_t tiles = divide_up(batch->length, TILE);
    return (Place){number, number, 0, batch->length, number * tiles, tiles};
}

/* A tensor starting at a place and channel; if reversed, the last step comes first and time runs backwards. */
static Sequence from(Sequence s, Place place, int64_t channel, int64_t reverse)
{
    if (!s.data || !place.length)
        return s;
    s.data += place.entry * s.batch + place.start * s.time + channel * s.channel;
    if (reverse) {
        s.data += (place.length - 1) * s.time;
        s.time = -s.time;
    }
    return s;
}

typedef void Work(const void *job, int64_t item, float *scratch);

/* Our own threads live for one call only, so a process forked between calls inherits no locks. */

typedef struct {
    Work *work;
    const void *job;
    int64_t items, next, scratch_floats;
    int out_of_memory;
} Pool;

static void *take_items(void *argument)
{
    Pool *pool = argument;
    float *scratch;
    if (posix_memalign((void **)&scratch, 64, (pool->scratch_floats + WIDEST) * sizeof(float))) {
        __atomic_store_n(&pool->out_of_memory, 1, __ATOMIC_RELAXED);
        return NULL;
    }
    for (int64_t item; (item = __atomic_fetch_add(&pool->next, 1, __ATOMIC_RELAXED)) < pool->items;)
        pool->work(pool->job, item, scratch);
    free(scratch);
    return NULL;
}

/* torch's team of threads (its OpenMP runtime's entry for a parallel region), if Python has found it. Its threads keep
 * spinning after torch's last operation, so other threads would compete with them for the cores. */
typedef void Team(void (*region)(void *), void *argument, unsigned threads, unsigned flags);
static Team *team;

void ssamba_use_team(Team *found) { team = found; }

static void region(void *pool) { take_items(pool); }

/* Threads take items in arbitrary order, so no result may depend on it. Returns nonzero if out of memory. */
static int run(Pool pool, int64_t threads)
{
    enum { MOST = 256 };
    pthread_t helpers[MOST];
    int64_t started = 0;
    threads = smaller(smaller(threads, pool.items), MOST);
    if (threads > 1 && team) {
        team(region, &pool, (unsigned)threads, 0);
        return pool.out_of_memory;
    }
    while (started < threads - 1 && !pthread_create(&helpers[started], NULL, take_items, &pool))
        started++; /* if a thread cannot be created, the others do its share */
    take_items(&pool);
    while (started > 0)
        pthread_join(helpers[--started], NULL);
    return pool.out_of_memory;
}

typedef void Elementary(const float *x, float *out, int64_t count);

typedef struct { /* what the second part provides for one instruction set */
    Elementary *elementary[3];
    Work *forward_scan, *backward_scan, *forward_convolution, *backward_convolution;
} Kernels;

/* Every name in the second part ends in the instruction set's SUFFIX. */
#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define NAME(name) PASTE(name, SUFFIX)
#define INLINE static inline __attribute__((always_inline)) TARGET
#define vector NAME(vector)
#define integers NAME(integers)
#define unaligned NAME(unaligned)
#define splat NAME(splat)
#define choose NAME(choose)
#define clamp NAME(clamp)
#define power_of_two NAME(power_of_two)
#define decay_of NAME(decay_of)
#define exponential NAME(exponential)
#define exp_minus_abs NAME(exp_minus_abs)
#define softplus NAME(softplus)
#define sigmoid NAME(sigmoid)
#define load NAME(load)
#define store NAME(store)
#define halves NAME(halves)
#define widen NAME(widen)
#define narrow NAME(narrow)
#define read_one NAME(read_one)
#define write_one NAME(write_one)
#define load_weights NAME(load_weights)
#define project_steps NAME(project_steps)
#define find_steps NAME(find_steps)
#define read_steps NAME(read_steps)
#define write_steps NAME(write_steps)
#define fold NAME(fold)
#define fold_pairs NAME(fold_pairs)
#define sum_lanes NAME(sum_lanes)
#define copy_states NAME(copy_states)
#define load_exponents NAME(load_exponents)
#define take NAME(take)
#define prefetch NAME(prefetch)
#define tile_memory NAME(tile_memory)
#define walk_states NAME(walk_states)
#define project_back NAME(project_back)
#define convolve NAME(convolve)
#define read_around NAME(read_around)
#define scan_forward NAME(scan_forward)
#define scan_backward NAME(scan_backward)
#define convolution_forward NAME(convolution_forward)
#define convolution_backward NAME(convolution_backward)
#define all_exponential NAME(all_exponential)
#define all_decays NAME(all_decays)
#define all_softplus NAME(all_softplus)
#define kernels_here NAME(kernels)

#ifdef X86
#define LANES 16
#define SUFFIX _avx512
#define TARGET __attribute__((target("avx512f,avx512dq,avx512vl,avx2,fma")))
#include "kernel.c"
#undef LANES
#undef SUFFIX
#undef TARGET

#define LANES 8
#define SUFFIX _avx2
#define TARGET __attribute__((target("avx2,fma")))
#include "kernel.c"
#undef LANES
#undef SUFFIX
#undef TARGET
#endif

#define LANES 4
#define SUFFIX _baseline
#define TARGET
#include "kernel.c"

static const Kernels *kernels;

/* Select the CPU's best instruction set, or the one named, and return its name; NULL if it is not supported. */
const char *ssamba_select(const char *name)
{
#ifdef X86
    __builtin_cpu_init();
#endif
    struct { const char *name; const Kernels *kernels; int supported; } choices[] = {
#ifdef X86
        {"avx512", &kernels_avx512, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                                    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma")},
        {"avx2", &kernels_avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#endif
        {"baseline", &kernels_baseline, 1},
    };
    for (size_t i = 0; i < sizeof choices / sizeof *choices; i++)
        if (choices[i].supported && (!name || !strcmp(name, choices[i].name))) {
            kernels = choices[i].kernels;
            return choices[i].name;
        }
    return NULL;
}

/* The elementary functions, for tests: 0 is exp(x), 1 is 2**x as for decays, 2 is softplus(x). */
void ssamba_elementary(int64_t which, const float *x, float *out, int64_t count)
{
    kernels->elementary[which](x, out, count);
}

/* Starting a thread costs some 20 microseconds and pays off only above this many exponentials per thread. */
static int64_t useful_threads(int64_t threads, int64_t exponentials)
{
    return smaller(threads, 1 + exponentials / 200000);
}

static int64_t elements(const Batch *batch) { return batch->entries * batch->channels * batch->length; }

/* Work items: blocks of the channels of a sequence. */
static int64_t count_items(const Batch *batch, int64_t item_channels)
{
    return batch->sequences * divide_up(batch->channels, item_channels);
}

static int64_t scan_threads(const Scan *scan)
{
    return useful_threads(scan->threads, elements(&scan->batch) * scan->states * scan->directions);
}

int ssamba_scan_forward(Scan *scan)
{
    int64_t threads = scan_threads(scan);
    scan->item_channels = GROUP;
    while (scan->item_channels > WIDEST && count_items(&scan->batch, scan->item_channels) < 3 * threads)
        scan->item_channels /= 2;
    Pool pool = {.work = kernels->forward_scan, .job = scan,
                 .items = count_items(&scan->batch, scan->item_channels),
                 .scratch_floats = 4 * TILE * WIDEST + 2 * (TILE + GROUP) * scan->states + (TILE + GROUP) * scan->rank};
    return run(pool, threads);
}

/* The items do not depend on the number of threads, because they determine the order in which gradients are summed. */
int ssamba_scan_backward(Scan *scan)
{
    scan->item_channels = GROUP;
    Pool pool = {.work = kernels->backward_scan, .job = scan,
                 .items = count_items(&scan->batch, GROUP),
                 .scratch_floats = (9 + 2 * HELD) * (TILE + 1) * WIDEST + 2 * GROUP +
                                   (2 * TILE + 3 * GROUP + 2 * TILE * WIDEST) * scan->states +
                                   (TILE + 2 * GROUP + TILE * WIDEST) * scan->rank};
    return run(pool, scan_threads(scan));
}

int ssamba_convolution_forward(Convolution *convolution)
{
    int64_t operations = elements(&convolution->batch) * convolution->directions;
    Pool pool = {.work = kernels->forward_convolution, .job = convolution,
                 .items = count_items(&convolution->batch, GROUP),
                 .scratch_floats = (2 * TILE + 3 * convolution->width) * WIDEST};
    return run(pool, useful_threads(convolution->threads, 2 * operations));
}

int ssamba_convolution_backward(Convolution *convolution)
{
    int64_t operations = elements(&convolution->batch) * convolution->directions;
    Pool pool = {.work = kernels->backward_convolution, .job = convolution,
                 .items = count_items(&convolution->batch, GROUP),
                 .scratch_floats = (3 * TILE + 3 * convolution->width) * WIDEST + (2 * convolution->width + 1) * GROUP};
    return run(pool, useful_threads(convolution->threads, 4 * operations));
}

typedef struct { const float *parts; float *sum; int64_t count, size; } Reduction;

static void sum_slice(const void *job, int64_t item, float *scratch)
{
    const Reduction *reduction = job;
    int64_t begin = item * 4096, end = smaller(begin + 4096, reduction->size);
    (void)scratch;
    memset(reduction->sum + begin, 0, (end - begin) * sizeof(float));
    for (int64_t part = 0; part < reduction->count; part++)
        for (int64_t i = begin; i < end; i++)
            reduction->sum[i] += reduction->parts[part * reduction->size + i];
}

/* sum[i] = parts[0][i] + parts[1][i] + ..., always in this order. */
int ssamba_sum(const float *parts, float *sum, int64_t count, int64_t size, int64_t threads)
{
    Reduction reduction = {parts, sum, count, size};
    Pool pool = {.work = sum_slice, .job = &reduction, .items = divide_up(size, 4096), .scratch_floats = 0};
    return run(pool, useful_threads(threads, count * size / 4));
}

#else /* The arithmetic, for vectors of LANES floats. */

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef float unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t integers __attribute__((vector_size(4 * LANES)));

INLINE vector splat(float value) { return (vector){0} + value; }
INLINE vector choose(integers mask, vector yes, vector no)
{
    return (vector)((mask & (integers)yes) | (~mask & (integers)no));
}

/* Both propagate a NaN in x. */
INLINE vector clamp(vector x, float low, float high)
{
#if defined(X86) && LANES == 16
    return (vector)_mm512_min_ps((__m512)splat(high), _mm512_max_ps((__m512)splat(low), (__m512)x));
#elif defined(X86) && LANES == 8
    return (vector)_mm256_min_ps((__m256)splat(high), _mm256_max_ps((__m256)splat(low), (__m256)x));
#else
    x = choose(x < splat(low), splat(low), x);
    return choose(x > splat(high), splat(high), x);
#endif
}

/* Powers of two. An exponent x is split into whole, a multiple of 1 / GRAIN, and part, at most half of that. Adding
 * MAGIC to x rounds it and leaves GRAIN * whole in the lowest bits; whole is passed in this form. If an instruction
 * can look up the fractions of whole, the polynomial in part is shorter. Either way the error is within 0.45 ulp. */
#if defined(X86) && LANES == 16
#define GRAIN 16
#elif defined(X86) && LANES == 8
#define GRAIN 8
#else
#define GRAIN 1
#endif
#define MAGIC (0x1.8p23f / GRAIN)

INLINE vector power_of_two(vector whole_magic, vector part)
{
#if GRAIN == 1
    vector slope = splat(0.00015353361959569156f) * part + splat(0.0013398875016719103f);
    slope = slope * part + splat(0.00961843691766262f);
    slope = slope * part + splat(0.055503323674201965f);
    slope = slope * part + splat(0.24022647738456726f);
    slope = slope * part + splat(0.6931471824645996f);
    vector power = slope * part + 1.0f;
#else
#if GRAIN == 16
    vector root = (vector)_mm512_permutexvar_ps((__m512i)whole_magic, _mm512_loadu_ps(ROOTS));
#else
    vector root = (vector)_mm256_permutevar8x32_ps(
        _mm256_setr_ps(ROOTS[0], ROOTS[2], ROOTS[4], ROOTS[6], ROOTS[8], ROOTS[10], ROOTS[12], ROOTS[14]),
        (__m256i)whole_magic);
#endif
    vector slope = (splat(0.0554962232708931f) * part + splat(0.2402576357126236f)) * part + splat(0.6931472420692444f);
    vector power = root * part * slope + root;
#endif
#if GRAIN == 16
    return (vector)_mm512_scalef_ps((__m512)power, (__m512)(whole_magic - MAGIC)); /* rounds the exponent down */
#else
    /* The integer below whole, from -151 to 129, may exceed the exponent's range: half of it is added there, and a
     * product applies the rest, so denormal results are rounded once and large results become infinite. */
    integers floor = (integers)whole_magic >> (GRAIN == 8 ? 3 : 0), half = floor << 23 >> 24;
    return (vector)((integers)power + (half << 23)) * (vector)((floor - half + 127) << 23);
#endif
}

/* 2**(step * exponent), the decay of a state: within 2 ulp of the exact value if both factors are within FARTHEST,
 * including denormal results and overflow to infinity; NaN stays NaN. The product is never rounded: a second fused
 * multiply-add computes its remainder after whole. Beyond 2**18, the part exceeds the polynomial's range but stays
 * finite: the result is 0 or infinite, of either sign. */
#define FARTHEST 1e13f
INLINE vector decay_of(vector step, vector exponent)
{
#if GRAIN == 16
    __m512 whole_magic = _mm512_fmadd_ps((__m512)step, (__m512)exponent, (__m512)splat(MAGIC));
    __m512 whole = whole_magic - (__m512)splat(MAGIC);
    return power_of_two((vector)whole_magic, (vector)_mm512_fmsub_ps((__m512)step, (__m512)exponent, whole));
#else
    vector x = clamp(step * exponent, -151.0f, 129.0f);
    vector whole_magic = x + MAGIC;
    return power_of_two(whole_magic, x - (whole_magic - MAGIC));
#endif
}

/* exp(x), with the same bound. log(2) is split into two parts, the first with zeros in its last bits, so that its
 * product with whole is exact and no digits are lost for large x. */
INLINE vector exponential(vector x)
{
    x = clamp(x, -104.0f, 89.0f);
    vector whole_magic = x * (float)LOG2_E + MAGIC, whole = whole_magic - MAGIC;
    vector part = (x - whole * 0x1.62ep-1f) - whole * 0x1.0bfbe8p-15f;
    return power_of_two(whole_magic, part * (float)LOG2_E);
}

/* The two below share small = exp(-|x|), in (0, 1]. */
INLINE vector exp_minus_abs(vector x) { return exponential((vector)((integers)x | INT32_MIN)); }

/* log(1 + exp(x)) = max(x, 0) + log1p(small), the logarithm as 2 atanh(small / (2 + small)): within a few ulp, even if
 * the result is far below the spacing of floats near 1. */
INLINE vector softplus(vector x, vector small)
{
    vector ratio = small / (small + 2.0f), square = ratio * ratio;
    vector series = splat(0.14012232422828674f) * square + splat(0.13999569416046143f);
    series = series * square + splat(0.20010849833488464f);
    series = series * square + splat(0.3333320617675781f);
    vector logarithm = 2.0f * ratio + 2.0f * ratio * (series * square);
    return choose(x > 0.0f, x, splat(0.0f)) + logarithm;
}

INLINE vector sigmoid(vector x, vector small)
{
    return choose(x < 0.0f, small, splat(1.0f)) / (small + 1.0f);
}

/* Load up to LANES channels from an address; lanes beyond count are zero. */
INLINE vector load(const float *address, int64_t stride, int64_t count)
{
    if (stride == 1 && count >= LANES)
        return *(const unaligned *)address;
    vector lanes = splat(0);
    if (count >= LANES) /* separate, because a loop of known length stays in registers */
        for (int i = 0; i < LANES; i++)
            lanes[i] = address[i * stride];
    else
        for (int64_t i = 0; i < count; i++)
            lanes[i] = address[i * stride];
    return lanes;
}

INLINE void store(vector value, float *address, int64_t stride, int64_t count)
{
    if (stride == 1 && count >= LANES) {
        *(unaligned *)address = value;
        return;
    }
    float lanes[LANES];
    *(unaligned *)lanes = value;
    for (int64_t i = 0; i < smaller(count, LANES); i++)
        address[i * stride] = lanes[i];
}

/* bfloat16 is the upper half of a float32; rounding is to nearest, ties to even, and NaN stays NaN. */
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

INLINE vector widen(const char *address)
{
    return (vector)(__builtin_convertvector(*(const halves *)address, integers) << 16);
}

INLINE void narrow(vector value, char *address)
{
    integers bits = (integers)value, rounded = bits + 0x7fff + ((bits >> 16) & 1);
    rounded = (integers)choose(value == value, (vector)rounded, (vector)(bits | 0x400000));
    *(halves *)address = __builtin_convertvector(rounded >> 16, halves);
}

INLINE float read_one(const char *address, int64_t size)
{
    if (size == sizeof(float))
        return *(const float *)address;
    uint32_t bits = (uint32_t)*(const uint16_t *)address << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE void write_one(float value, char *address, int64_t size)
{
    if (size == sizeof(float)) {
        *(float *)address = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits = value == value ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000;
    *(uint16_t *)address = (uint16_t)(bits >> 16);
}

/* Load and store steps [begin, begin + steps) of a vector of channels. Lanes beyond count are zero, and not written. */
INLINE void read_steps(Sequence s, int64_t channel, int64_t begin, int64_t steps, int64_t count, vector *tile)
{
    const char *address = s.data + channel * s.channel + begin * s.time;
    if (s.channel == s.size && count >= LANES && s.size == sizeof(float))
        for (int64_t t = 0; t < steps; t++)
            tile[t] = *(const unaligned *)(address + t * s.time);
    else if (s.channel == s.size && count >= LANES)
        for (int64_t t = 0; t < steps; t++)
            tile[t] = widen(address + t * s.time);
    else
        for (int64_t t = 0; t < steps; t++) {
            float lanes[LANES] = {0};
            for (int64_t i = 0; i < smaller(count, LANES); i++)
                lanes[i] = read_one(address + t * s.time + i * s.channel, s.size);
            tile[t] = *(const unaligned *)lanes;
        }
}

INLINE void write_steps(const vector *tile, Sequence s, int64_t channel, int64_t begin, int64_t steps, int64_t count)
{
    char *address = s.data + channel * s.channel + begin * s.time;
    if (s.channel == s.size && count >= LANES && s.size == sizeof(float))
        for (int64_t t = 0; t < steps; t++)
            *(unaligned *)(address + t * s.time) = tile[t];
    else if (s.channel == s.size && count >= LANES)
        for (int64_t t = 0; t < steps; t++)
            narrow(tile[t], address + t * s.time);
    else
        for (int64_t t = 0; t < steps; t++) {
            float lanes[LANES];
            *(unaligned *)lanes = tile[t];
            for (int64_t i = 0; i < smaller(count, LANES); i++)
                write_one(lanes[i], address + t * s.time + i * s.channel, s.size);
        }
}

/* Hint that one step of a vector of channels will be read soon. The address may lie outside the tensor. */
INLINE void prefetch(Sequence s, int64_t channel, int64_t time)
{
    __builtin_prefetch((const void *)((uintptr_t)s.data + channel * s.channel + time * s.time));
}

#if LANES == 16
#define COUNTING {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
#elif LANES == 8
#define COUNTING {0, 1, 2, 3, 4, 5, 6, 7}
#else
#define COUNTING {0, 1, 2, 3}
#endif

/* Fold two vectors into one: lanes whose index has the bit "half" hold sums of b, the others sums of a. */
INLINE vector fold(vector a, vector b, int half)
{
#ifdef __clang__ /* clang cannot shuffle by a variable, but turns this loop into shuffles */
    vector sums = a;
    for (int i = 0; i < LANES; i++)
        sums[i] = i & half ? b[i] + b[i ^ half] : a[i] + a[i ^ half];
    return sums;
#else
    const integers lane = COUNTING, of_b = ((lane & half) != 0) & LANES;
    return __builtin_shuffle(a, b, lane + of_b) + __builtin_shuffle(a, b, (lane ^ half) + of_b);
#endif
}
#undef COUNTING

INLINE void fold_pairs(vector *rows, int half)
{
    for (int i = 0; i < half; i++)
        rows[i] = fold(rows[i], rows[i + half], half);
}

/* sums[n] = sum over the lanes of rows[n * TILE], computed for LANES rows at once, one result per lane. */
INLINE void sum_lanes(const vector *rows, int64_t count, float *sums)
{
    for (int64_t n = 0; n < count; n += LANES) {
        vector folded[LANES];
        for (int i = 0; i < LANES; i++)
            folded[i] = n + i < count ? rows[(n + i) * TILE] : splat(0);
        if (LANES == 16)
            fold_pairs(folded, 8);
        if (LANES >= 8)
            fold_pairs(folded, 4);
        fold_pairs(folded, 2);
        fold_pairs(folded, 1);
        store(folded[0], sums + n, 1, count - n);
    }
}

/* Load steps [begin, begin + steps) of B, C or the low-rank steps, as (steps, states). */
INLINE void copy_states(Sequence s, int64_t begin, int64_t steps, int64_t states, float *copy)
{
    enum { AT_ONCE = 4 };
    int64_t neighbours = s.size == sizeof(float) && s.channel == s.size ? states - states % AT_ONCE : 0;
    for (int64_t t = 0; t < steps; t++) {
        const char *row = s.data + (begin + t) * s.time;
        for (int64_t n = 0; n < neighbours; n += AT_ONCE)
            memcpy(copy + t * states + n, row + n * s.channel, AT_ONCE * sizeof(float));
        for (int64_t n = neighbours; n < states; n++)
            copy[t * states + n] = read_one(row + n * s.channel, s.size);
    }
}

/* A in units of log(2), so that decays are powers of two; one vector per state. */
INLINE void load_exponents(const float *A, int64_t logarithmic, int64_t states, int64_t count, vector *exponents)
{
    for (int64_t n = 0; n < states; n++) {
        vector rate = load(A + n, states, count);
        rate = (logarithmic ? -exponential(rate) : rate) * (float)LOG2_E;
        for (int64_t i = count; i < LANES; i++) /* spare lanes hold no state */
            rate[i] = 0.0f;
        exponents[n] = clamp(rate, -FARTHEST, FARTHEST);
    }
}

/* (channels, rank) -> rank vectors of channels. */
INLINE void load_weights(const float *weight, int64_t rank, int64_t count, vector *weights)
{
    for (int64_t r = 0; r < rank; r++)
        weights[r] = load(weight + r, rank, count);
}

/* step[t] = shift + weights . low[t], for low (steps, rank): four steps at a time, so that each weight is read once for
 * four independent sums. */
INLINE void project_steps(const float *low, const vector *weights, int64_t rank, int64_t steps, vector shift,
                          vector *step)
{
    int64_t t = 0;
    for (; t + 4 <= steps; t += 4) {
        vector sum0 = shift, sum1 = shift, sum2 = shift, sum3 = shift;
        const float *at = low + t * rank;
        for (int64_t r = 0; r < rank; r++) {
            vector weight = weights[r];
            sum0 += weight * at[r];
            sum1 += weight * at[rank + r];
            sum2 += weight * at[2 * rank + r];
            sum3 += weight * at[3 * rank + r];
        }
        step[t] = sum0, step[t + 1] = sum1, step[t + 2] = sum2, step[t + 3] = sum3;
    }
    for (; t < steps; t++) {
        step[t] = shift;
        for (int64_t r = 0; r < rank; r++)
            step[t] += weights[r] * low[t * rank + r];
    }
}

/* The softplus's input: projected from low, or read, plus the bias. */
INLINE void find_steps(const Scan *scan, Sequence delta, const float *low, const vector *weights, int64_t channel,
                       int64_t begin, int64_t steps, int64_t count, vector shift, vector *step)
{
    if (scan->rank) {
        project_steps(low, weights, scan->rank, steps, shift, step);
        return;
    }
    read_steps(delta, channel, begin, steps, count, step);
    for (int64_t t = 0; t < steps; t++)
        step[t] += shift;
}

/* Reserve scratch for at least WIDEST * size floats, of which LANES of each WIDEST are used. */
INLINE vector *take(float **scratch, int64_t vectors)
{
    vector *taken = (vector *)*scratch;
    *scratch += vectors * LANES;
    return taken;
}

static TARGET void scan_forward(const void *job, int64_t item, float *scratch)
{
    const Scan *scan = job;
    int64_t all_channels = scan->batch.channels, items = divide_up(all_channels, scan->item_channels);
    Place place = find_place(&scan->batch, item / items);
    int64_t states = scan->states, length = place.length, first = item % items * scan->item_channels;
    int64_t channels = smaller(scan->item_channels, all_channels - first);
    int64_t vectors = divide_up(channels, LANES), padded = divide_up(all_channels, WIDEST) * WIDEST;
    vector *input = take(&scratch, TILE), *step = take(&scratch, TILE);
    vector *impulse = take(&scratch, TILE), *y = take(&scratch, TILE);
    vector *state = take(&scratch, vectors * states), *exponents = take(&scratch, vectors * states);
    vector *weights = take(&scratch, vectors * scan->rank);
    float *B = scratch, *C = B + TILE * states, *low = C + TILE * states;

    for (int64_t d = 0; d < scan->directions; d++) {
        const Direction *direction = &scan->direction[d];
        int64_t reverse = direction->reverse;
        int64_t before = scan->done + d;
        int is_last = before == scan->total - 1;
        Sequence u = from(direction->u, place, first, reverse);
        Sequence delta = from(direction->delta, place, scan->rank ? 0 : first, reverse);
        Sequence z = from(scan->z, place, first, reverse);
        Sequence output = from(scan->output, place, first, reverse);
        for (int64_t v = 0; v < vectors; v++) {
            int64_t offset = (place.index * all_channels + first + v * LANES) * states;
            int64_t count = channels - v * LANES;
            load_exponents(direction->A + (first + v * LANES) * states, scan->logarithmic, states, count,
                           exponents + v * states);
            load_weights(direction->step_weight + (first + v * LANES) * scan->rank, scan->rank, count,
                         weights + v * scan->rank);
            for (int64_t n = 0; n < states; n++)
                state[v * states + n] = direction->initial_state
                    ? load(direction->initial_state + offset + n, states, count) : splat(0);
        }

        for (int64_t begin = 0; begin < length; begin += TILE) {
            int64_t steps = smaller(TILE, length - begin);
            copy_states(from(direction->B, place, 0, reverse), begin, steps, states, B);
            copy_states(from(direction->C, place, 0, reverse), begin, steps, states, C);
            copy_states(delta, begin, steps, scan->rank, low);
            for (int64_t v = 0; v < vectors; v++) {
                int64_t channel = v * LANES, count = channels - channel;
                const float *D = direction->D, *bias = direction->bias;
                vector skip = D ? load(D + first + channel, 1, count) : splat(0);
                vector shift = bias ? load(bias + first + channel, 1, count) : splat(0);
                int64_t next_channel = v + 1 < vectors ? channel + LANES : 0;
                int64_t next_begin = v + 1 < vectors ? begin : begin + TILE;
                const vector *exponent = exponents + v * states;
                vector *s = state + v * states;
                if (direction->checkpoints)
                    for (int64_t n = 0; n < states; n++)
                        store(s[n], direction->checkpoints + first + channel +
                              ((place.checkpoint + begin / TILE) * states + n) * padded, 1, LANES);

                read_steps(u, channel, begin, steps, count, input);
                find_steps(scan, delta, low, weights + v * scan->rank, channel, begin, steps, count, shift, step);
                for (int64_t t = 0; t < steps; t++) {
                    if (scan->delta_softplus)
                        step[t] = softplus(step[t], exp_minus_abs(step[t]));
                    impulse[t] = step[t] * input[t];
                    step[t] = clamp(step[t], -FARTHEST, FARTHEST);
                }
                for (int64_t t = 0; t < steps; t++) {
                    vector sum = skip * input[t], now = step[t], push = impulse[t];
                    prefetch(u, next_channel, next_begin + t);
                    if (!scan->rank)
                        prefetch(delta, next_channel, next_begin + t);
                    prefetch(z, next_channel, next_begin + t);
                    prefetch(output, next_channel, next_begin + t);
                    #pragma GCC unroll 4
                    for (int64_t n = 0; n < states; n++) {
                        s[n] = decay_of(now, exponent[n]) * s[n] + push * B[t * states + n];
                        sum += s[n] * C[t * states + n];
                    }
                    y[t] = sum;
                }
                if (before > 0) {
                    read_steps(output, channel, begin, steps, count, input);
                    for (int64_t t = 0; t < steps; t++)
                        y[t] = (y[t] + input[t]) * (1.0f / MAX_DIRECTIONS);
                }
                if (is_last && z.data) {
                    read_steps(z, channel, begin, steps, count, input);
                    for (int64_t t = 0; t < steps; t++)
                        y[t] *= input[t] * sigmoid(input[t], exp_minus_abs(input[t]));
                }
                write_steps(y, output, channel, begin, steps, count);
            }
        }
        if (direction->checkpoints) /* zero the spare ones, so that the result is reproducible */
            for (int64_t tile = divide_up(length, TILE); tile < place.checkpoints; tile++)
                for (int64_t n = 0; n < states; n++)
                    memset(direction->checkpoints + first + ((place.checkpoint + tile) * states + n) * padded, 0,
                           vectors * sizeof(vector));
        if (direction->last_state)
            for (int64_t v = 0; v < vectors; v++)
                for (int64_t n = 0; n < states; n++)
                    store(state[v * states + n], direction->last_state + n +
                          (place.index * all_channels + first + v * LANES) * states, states, channels - v * LANES);
    }
}

/* The backward pass processes the tiles from last to first. Within a tile, it runs over time twice, forwards from the
 * checkpoint and then backwards, for HELD states at once. */

typedef struct { /* for one vector of channels, one element per step of the tile */
    vector input[TILE], step[TILE], slope[TILE], impulse[TILE], y[TILE];
    vector grad_y[TILE], grad_z[TILE], grad_impulse[TILE], grad_exponent[TILE];
    vector decay[HELD][TILE], state[HELD][TILE + 1];
} tile_memory;

INLINE void walk_states(tile_memory *tile, int64_t steps, int64_t states, int held, const float *B, const float *C,
                        const vector *exponents, vector *grad_states, vector *grad_A, vector *grad_B, vector *grad_C)
{
    vector exponent[HELD], state[HELD], grad_state[HELD], sum[HELD];
    for (int i = 0; i < held; i++) {
        exponent[i] = exponents[i];
        state[i] = tile->state[i][0];
        grad_state[i] = grad_states[i];
        sum[i] = splat(0);
    }
    for (int64_t t = 0; t < steps; t++) {
        vector step = tile->step[t], impulse = tile->impulse[t], grad_y = tile->grad_y[t], y = tile->y[t];
        for (int i = 0; i < held; i++) {
            vector decay = decay_of(step, exponent[i]);
            state[i] = decay * state[i] + impulse * B[t * states + i];
            y += state[i] * C[t * states + i];
            grad_C[i * TILE + t] += grad_y * state[i];
            tile->decay[i][t] = decay;
            tile->state[i][t + 1] = state[i];
        }
        tile->y[t] = y;
    }
    for (int64_t t = steps - 1; t >= 0; t--) {
        vector step = tile->step[t], impulse = tile->impulse[t], grad_y = tile->grad_y[t];
        vector grad_impulse = tile->grad_impulse[t], grad_exponent = tile->grad_exponent[t];
        for (int i = 0; i < held; i++) {
            vector grad = grad_state[i] + grad_y * C[t * states + i];
            grad_B[i * TILE + t] += grad * impulse;
            grad_impulse += grad * B[t * states + i];
            grad_state[i] = grad * tile->decay[i][t];
            vector product = grad_state[i] * tile->state[i][t];
            grad_exponent += product * exponent[i];
            sum[i] += product * step;
        }
        tile->grad_impulse[t] = grad_impulse;
        tile->grad_exponent[t] = grad_exponent;
    }
    for (int i = 0; i < held; i++) {
        grad_states[i] = grad_state[i];
        grad_A[i] += sum[i];
    }
}

/* Add the contributions of the gradient before softplus to those of low, (rank, TILE), and of the weights. */
INLINE void project_back(const vector *grad_step, const float *low, const vector *weights, int64_t rank, int64_t steps,
                         vector *grad_low, vector *grad_weights)
{
    for (int64_t r = 0; r < rank; r++) {
        vector weight = weights[r], even = splat(0), odd = splat(0);
        int64_t t = 0;
        for (; t + 2 <= steps; t += 2) {
            grad_low[r * TILE + t] += weight * grad_step[t];
            grad_low[r * TILE + t + 1] += weight * grad_step[t + 1];
            even += grad_step[t] * low[t * rank + r];
            odd += grad_step[t + 1] * low[(t + 1) * rank + r];
        }
        if (t < steps) {
            grad_low[r * TILE + t] += weight * grad_step[t];
            even += grad_step[t] * low[t * rank + r];
        }
        grad_weights[r] += even + odd;
    }
}

static TARGET void scan_backward(const void *job, int64_t item, float *scratch)
{
    const Scan *scan = job;
    int64_t all_channels = scan->batch.channels, items = divide_up(all_channels, GROUP);
    Place place = find_place(&scan->batch, item / items);
    int64_t states = scan->states, rank = scan->rank, length = place.length;
    int64_t group = item % items, first = group * GROUP, channels = smaller(GROUP, all_channels - first);
    int64_t vectors = divide_up(channels, LANES), padded = divide_up(all_channels, WIDEST) * WIDEST;
    int64_t sums = (group * scan->batch.entries + place.entry) * scan->batch.length + place.start;
    tile_memory *tile = (tile_memory *)take(&scratch, sizeof *tile / sizeof(vector));
    vector *exponents = take(&scratch, vectors * states), *grad_states = take(&scratch, vectors * states);
    vector *grad_A = take(&scratch, vectors * states);
    vector *grad_D = take(&scratch, vectors), *grad_bias = take(&scratch, vectors);
    vector *grad_B = take(&scratch, TILE * states), *grad_C = take(&scratch, TILE * states);
    vector *weights = take(&scratch, vectors * rank), *grad_weights = take(&scratch, vectors * rank);
    vector *grad_low = take(&scratch, TILE * rank);
    float *B = scratch, *C = B + TILE * states, *low = C + TILE * states;

    for (int64_t d = 0; d < scan->directions; d++) {
        const Direction *direction = &scan->direction[d];
        int64_t reverse = direction->reverse;
        Sequence u = from(direction->u, place, first, reverse);
        Sequence delta = from(direction->delta, place, rank ? 0 : first, reverse);
        Sequence z = from(scan->z, place, first, reverse);
        Sequence grad_output = from(scan->output, place, first, reverse);
        Sequence grad_u = from(direction->grad_u, place, first, reverse);
        Sequence grad_delta = from(direction->grad_delta, place, first, reverse);
        Sequence grad_z = from(scan->grad_z, place, first, reverse);
        const Sequence streams[] = {u, z, grad_output, grad_u, grad_z, delta, grad_delta};
        size_t prefetched = sizeof streams / sizeof *streams - (rank ? 2 : 0);
        for (int64_t v = 0; v < vectors; v++) {
            int64_t offset = (place.index * all_channels + first + v * LANES) * states;
            int64_t count = channels - v * LANES;
            load_exponents(direction->A + (first + v * LANES) * states, scan->logarithmic, states, count,
                           exponents + v * states);
            load_weights(direction->step_weight + (first + v * LANES) * rank, rank, count, weights + v * rank);
            for (int64_t n = 0; n < states; n++)
                grad_states[v * states + n] = direction->grad_last_state
                    ? load(direction->grad_last_state + offset + n, states, count) : splat(0);
        }
        memset(grad_A, 0, vectors * states * sizeof(vector));
        memset(grad_D, 0, vectors * sizeof(vector));
        memset(grad_bias, 0, vectors * sizeof(vector));
        memset(grad_weights, 0, vectors * rank * sizeof(vector));

        for (int64_t begin = (length - 1) / TILE * TILE; begin >= 0 && length; begin -= TILE) {
            int64_t steps = smaller(TILE, length - begin);
            copy_states(from(direction->B, place, 0, reverse), begin, steps, states, B);
            copy_states(from(direction->C, place, 0, reverse), begin, steps, states, C);
            copy_states(delta, begin, steps, rank, low);
            memset(grad_B, 0, TILE * states * sizeof(vector));
            memset(grad_C, 0, TILE * states * sizeof(vector));
            memset(grad_low, 0, TILE * rank * sizeof(vector));
            for (int64_t v = 0; v < vectors; v++) {
                int64_t channel = v * LANES, count = channels - channel;
                const float *D = direction->D, *bias = direction->bias;
                vector skip = D ? load(D + first + channel, 1, count) : splat(0);
                vector shift = bias ? load(bias + first + channel, 1, count) : splat(0);
                int64_t next_channel = v + 1 < vectors ? channel + LANES : 0;
                int64_t next_begin = v + 1 < vectors ? begin : begin - TILE;

                read_steps(u, channel, begin, steps, count, tile->input);
                find_steps(scan, delta, low, weights + v * rank, channel, begin, steps, count, shift, tile->step);
                read_steps(grad_output, channel, begin, steps, count, tile->grad_y);
                for (int64_t t = 0; t < steps; t++) {
                    vector raw = tile->step[t], small = exp_minus_abs(raw);
                    tile->step[t] = scan->delta_softplus ? softplus(raw, small) : raw;
                    tile->slope[t] = scan->delta_softplus ? sigmoid(raw, small) : splat(1);
                    tile->impulse[t] = tile->step[t] * tile->input[t];
                    tile->step[t] = clamp(tile->step[t], -FARTHEST, FARTHEST);
                    tile->grad_y[t] *= 1.0f / scan->total;
                    tile->y[t] = skip * tile->input[t];
                    tile->grad_impulse[t] = tile->grad_exponent[t] = splat(0);
                    for (size_t i = 0; i < prefetched; i++)
                        prefetch(streams[i], next_channel, next_begin + t);
                }
                if (z.data) {
                    read_steps(z, channel, begin, steps, count, tile->grad_z);
                    for (int64_t t = 0; t < steps; t++) {
                        vector gate = tile->grad_z[t], open = sigmoid(gate, exp_minus_abs(gate));
                        tile->grad_z[t] = tile->grad_y[t] * open * (1.0f + gate * (1.0f - open));
                        tile->grad_y[t] *= gate * open;
                    }
                }
                for (int64_t n = 0, held; n < states; n += held) {
                    int64_t at = v * states + n;
                    held = states - n < HELD ? 1 : HELD;
                    for (int64_t i = 0; i < held; i++)
                        tile->state[i][0] = load(direction->checkpoints + first + channel +
                            ((place.checkpoint + begin / TILE) * states + n + i) * padded, 1, LANES);
                    if (held == HELD)
                        walk_states(tile, steps, states, HELD, B + n, C + n, exponents + at, grad_states + at,
                                    grad_A + at, grad_B + n * TILE, grad_C + n * TILE);
                    else
                        walk_states(tile, steps, states, 1, B + n, C + n, exponents + at, grad_states + at,
                                    grad_A + at, grad_B + n * TILE, grad_C + n * TILE);
                }
                for (int64_t t = 0; t < steps; t++) {
                    vector grad_step = tile->grad_impulse[t] * tile->input[t] +
                                       tile->grad_exponent[t] * (float)(1 / LOG2_E);
                    tile->slope[t] *= grad_step;
                    grad_bias[v] += tile->slope[t];
                    grad_D[v] += tile->grad_y[t] * tile->input[t];
                    tile->grad_impulse[t] = tile->grad_impulse[t] * tile->step[t] + tile->grad_y[t] * skip;
                }
                if (rank)
                    project_back(tile->slope, low, weights + v * rank, rank, steps, grad_low, grad_weights + v * rank);
                else
                    write_steps(tile->slope, grad_delta, channel, begin, steps, count);
                write_steps(tile->grad_impulse, grad_u, channel, begin, steps, count);
                if (z.data) {
                    for (int64_t t = 0; t < steps; t++)
                        tile->grad_z[t] *= tile->y[t];
                    if (d > 0) {
                        read_steps(grad_z, channel, begin, steps, count, tile->step);
                        for (int64_t t = 0; t < steps; t++)
                            tile->grad_z[t] += tile->step[t];
                    }
                    write_steps(tile->grad_z, grad_z, channel, begin, steps, count);
                }
            }
            for (int64_t t = 0; t < steps; t++) {
                int64_t at = (sums + (reverse ? length - 1 - begin - t : begin + t)) * scan->sum_width;
                sum_lanes(grad_B + t, states, direction->grad_B + at);
                sum_lanes(grad_C + t, states, direction->grad_C + at);
                sum_lanes(grad_low + t, rank, direction->grad_low + at);
            }
        }
        for (int64_t v = 0; v < vectors; v++) {
            int64_t at = place.index * all_channels + first + v * LANES, count = channels - v * LANES;
            for (int64_t n = 0; n < states; n++) {
                vector rate = scan->logarithmic ? exponents[v * states + n] * (float)(1 / LOG2_E) : splat(1);
                store(grad_A[v * states + n] * rate, direction->grad_A + at * states + n, states, count);
            }
            for (int64_t n = 0; direction->initial_state && n < states; n++)
                store(grad_states[v * states + n], direction->grad_initial_state + at * states + n, states, count);
            for (int64_t r = 0; r < rank; r++)
                store(grad_weights[v * rank + r], direction->grad_step_weight + at * rank + r, rank, count);
            if (direction->D)
                store(grad_D[v], direction->grad_D + at, 1, count);
            if (direction->bias)
                store(grad_bias[v], direction->grad_bias + at, 1, count);
        }
    }
}

/* Load steps [begin, end); those outside the sequence are zero. */
INLINE void read_around(Sequence s, int64_t channel, int64_t begin, int64_t end, int64_t length, int64_t count,
                        vector *tile)
{
    int64_t before = begin < 0 ? -begin : 0, steps = smaller(end, length) - (begin + before);
    memset(tile, 0, (end - begin) * sizeof(vector));
    read_steps(s, channel, begin + before, steps, count, tile + before);
}

/* The convolution at the window's last step. */
INLINE vector convolve(const vector *window, const vector *weight, int64_t width, vector bias)
{
    for (int64_t k = 0; k < width; k++)
        bias += window[k] * weight[k];
    return bias;
}

static TARGET void convolution_forward(const void *job, int64_t item, float *scratch)
{
    const Convolution *convolution = job;
    int64_t all_channels = convolution->batch.channels, items = divide_up(all_channels, GROUP);
    Place place = find_place(&convolution->batch, item / items);
    int64_t length = place.length, first = item % items * GROUP, width = convolution->width, past = width - 1;
    int64_t channels = smaller(GROUP, all_channels - first);
    vector *x = take(&scratch, TILE + 2 * past), *weight = take(&scratch, width);
    vector *y = take(&scratch, TILE);
    Sequence input = from(convolution->x, place, first, 0);

    for (int64_t begin = 0; begin < length; begin += TILE)
        for (int64_t channel = 0; channel < channels; channel += LANES) {
            int64_t steps = smaller(TILE, length - begin), count = channels - channel;
            int64_t next_channel = channel + LANES < channels ? channel + LANES : 0;
            int64_t next_begin = next_channel ? begin : begin + TILE;
            read_around(input, channel, begin - past, begin + steps + past, length, count, x);
            for (int64_t d = 0; d < convolution->directions; d++) {
                const Taps *taps = &convolution->taps[d];
                Sequence output = from(taps->output, place, first, 0);
                vector bias = load(taps->bias + first + channel, 1, count);
                for (int64_t k = 0; k < width; k++)
                    weight[taps->reverse ? past - k : k] = load(taps->weight + (first + channel) * width + k, width,
                                                                count);
                for (int64_t t = 0; t < steps; t++) {
                    vector sum = convolve(x + t + (taps->reverse ? past : 0), weight, width, bias);
                    y[t] = sum * sigmoid(sum, exp_minus_abs(sum));
                    prefetch(output, next_channel, next_begin + t);
                    if (d == 0)
                        prefetch(input, next_channel, next_begin + t + past);
                }
                write_steps(y, output, channel, begin, steps, count);
            }
        }
}

static TARGET void convolution_backward(const void *job, int64_t item, float *scratch)
{
    const Convolution *convolution = job;
    int64_t all_channels = convolution->batch.channels, items = divide_up(all_channels, GROUP);
    Place place = find_place(&convolution->batch, item / items);
    int64_t length = place.length, first = item % items * GROUP, width = convolution->width, past = width - 1;
    int64_t channels = smaller(GROUP, all_channels - first), vectors = divide_up(channels, LANES);
    vector *x = take(&scratch, TILE + 2 * past), *grad_sum = take(&scratch, TILE + past);
    vector *grad_x = take(&scratch, TILE);
    vector *weights = take(&scratch, vectors * width), *grad_weights = take(&scratch, vectors * width);
    vector *grad_bias = take(&scratch, vectors);

    for (int64_t d = 0; d < convolution->directions; d++) {
        const Taps *taps = &convolution->taps[d];
        int64_t reverse = taps->reverse, at = place.index * all_channels + first;
        Sequence input = from(convolution->x, place, first, reverse);
        Sequence grad_input = from(convolution->grad_x, place, first, reverse);
        Sequence grad_output = from(taps->output, place, first, reverse);
        for (int64_t v = 0; v < vectors; v++)
            for (int64_t k = 0; k < width; k++)
                weights[v * width + k] = load(taps->weight + (first + v * LANES) * width + k, width,
                                              channels - v * LANES);
        memset(grad_weights, 0, vectors * width * sizeof(vector));
        memset(grad_bias, 0, vectors * sizeof(vector));

        for (int64_t begin = 0; begin < length; begin += TILE)
            for (int64_t v = 0; v < vectors; v++) {
                int64_t steps = smaller(TILE, length - begin), channel = v * LANES, count = channels - channel;
                const vector *weight = weights + v * width;
                vector bias = load(taps->bias + first + channel, 1, count);
                read_around(input, channel, begin - past, begin + steps + past, length, count, x);
                read_around(grad_output, channel, begin, begin + steps + past, length, count, grad_sum);
                for (int64_t t = 0; t < steps + past; t++) {
                    vector sum = convolve(x + t, weight, width, bias), open = sigmoid(sum, exp_minus_abs(sum));
                    grad_sum[t] *= open * (1.0f + sum * (1.0f - open));
                }
                if (d > 0)
                    read_steps(grad_input, channel, begin, steps, count, grad_x);
                else
                    memset(grad_x, 0, steps * sizeof(vector));
                for (int64_t t = 0; t < steps; t++) {
                    grad_bias[v] += grad_sum[t];
                    for (int64_t k = 0; k < width; k++) {
                        grad_x[t] += weight[k] * grad_sum[t + past - k];
                        grad_weights[v * width + k] += grad_sum[t] * x[t + k];
                    }
                }
                write_steps(grad_x, grad_input, channel, begin, steps, count);
            }
        for (int64_t v = 0; v < vectors; v++) {
            int64_t channel = v * LANES, count = channels - channel;
            for (int64_t k = 0; k < width; k++)
                store(grad_weights[v * width + k], taps->grad_weight + (at + channel) * width + k, width, count);
            store(grad_bias[v], taps->grad_bias + at + channel, 1, count);
        }
    }
}

#define ELEMENTARY(name, expression)                                            \
    static TARGET void name(const float *x, float *out, int64_t count)          \
    {                                                                           \
        for (int64_t i = 0; i < count; i += LANES) {                            \
            vector value = load(x + i, 1, count - i);                           \
            store(expression, out + i, 1, count - i);                           \
        }                                                                       \
    }
ELEMENTARY(all_exponential, exponential(value))
ELEMENTARY(all_decays, decay_of(clamp(value, -FARTHEST, FARTHEST), splat(1.0f)))
ELEMENTARY(all_softplus, softplus(value, exp_minus_abs(value)))
#undef ELEMENTARY
#undef FARTHEST
#undef GRAIN
#undef MAGIC

static const Kernels kernels_here = {
    {all_exponential, all_decays, all_softplus},
    scan_forward, scan_backward, convolution_forward, convolution_backward,
};

#endif
