/*
 * From logits to a token (spec B9, B10) without sorting the vocabulary: top-k and top-p need only the place where a
 * running count or mass crosses a limit, so values are dropped into buckets by their leading bits and only the bucket
 * in which the crossing happens is sorted.
 */
#include "cpu/kernels/kernels.h"

#include <math.h>
#include <stdlib.h>

enum { BUCKET_BITS = 12, BUCKETS = 1 << BUCKET_BITS };

struct entry {
    float value;
    int32_t id;
};

/* One row's working memory. */
struct sampler {
    double mass[BUCKETS];
    int32_t count[BUCKETS];
    struct entry entries[]; /* V */
};

/* A key that orders as the float does. */
static uint32_t order_key(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

static uint32_t bucket_of(float x)
{
    return order_key(x) >> (32 - BUCKET_BITS);
}

/* Ascending; among equals the lower id counts as larger, as it does for a first maximum. */
static int entry_compare(const void *left, const void *right)
{
    const struct entry *a = left, *b = right;
    if (a->value != b->value) return a->value < b->value ? -1 : 1;
    return (a->id < b->id) - (a->id > b->id);
}

/* The entries of one bucket, in ascending order. */
static int32_t bucket_sort(struct sampler *s, const float *x, int64_t V, uint32_t bucket)
{
    int32_t n = 0;
    for (int64_t i = 0; i < V; i++)
        if (x[i] > -INFINITY && bucket_of(x[i]) == bucket) s->entries[n++] = (struct entry){x[i], (int32_t)i};
    qsort(s->entries, (size_t)n, sizeof s->entries[0], entry_compare);
    return n;
}

/* Every logit below the k-th largest becomes -inf; ties with it stay. */
static void keep_top_k(struct sampler *s, float *logits, int64_t V, int64_t k)
{
    if (k >= V) return;
    memset(s->count, 0, sizeof s->count);
    for (int64_t i = 0; i < V; i++) s->count[bucket_of(logits[i])]++;
    int32_t bucket = BUCKETS - 1;
    int64_t above = 0; /* values in higher buckets */
    while (above + s->count[bucket] < k) above += s->count[bucket--];
    int32_t n = bucket_sort(s, logits, V, (uint32_t)bucket);
    if (n == 0) return; /* the k-th largest is -inf already */
    float limit = s->entries[n - (k - above)].value;
    for (int64_t i = 0; i < V; i++)
        if (logits[i] < limit) logits[i] = -INFINITY;
}

/* In ascending order, every probability whose running sum stays within 1 - p becomes 0; the largest one stays, and the rest is
 * scaled back to a sum of 1. */
static void keep_top_p(struct sampler *s, float *probabilities, int64_t V, double p)
{
    memset(s->count, 0, sizeof s->count);
    memset(s->mass, 0, sizeof s->mass);
    uint32_t top = 0;
    for (int64_t i = 0; i < V; i++) {
        uint32_t b = bucket_of(probabilities[i]);
        s->count[b]++;
        s->mass[b] += (double)probabilities[i];
        top = b > top ? b : top;
    }
    double limit = 1.0 - p, sum = 0;
    uint32_t bucket = 0;
    while (bucket < top && sum + s->mass[bucket] <= limit) sum += s->mass[bucket++];
    int32_t n = bucket_sort(s, probabilities, V, bucket);
    for (int64_t i = 0; i < V; i++)
        if (bucket_of(probabilities[i]) < bucket) probabilities[i] = 0;
    for (int32_t j = 0; j < n && !(bucket == top && j == n - 1); j++) {
        sum += (double)s->entries[j].value;
        if (sum > limit) break;
        probabilities[s->entries[j].id] = 0;
    }
    double left = 0;
    for (int64_t i = 0; i < V; i++) left += (double)probabilities[i];
    float scale = (float)(1.0 / left);
    for (int64_t i = 0; i < V; i++) probabilities[i] *= scale;
}

/* In place: softmax; the sum is taken in double. False if a value is not a number. */
static bool softmax(float *x, int64_t V)
{
    float top = -INFINITY;
    for (int64_t i = 0; i < V; i++) top = x[i] > top ? x[i] : top;
    if (!(fabsf(top) < INFINITY)) return false;
    double sum = 0;
    for (int64_t i = 0; i < V; i += VLEN) {
        int64_t n = V - i < VLEN ? V - i : VLEN;
        vf e = n == VLEN ? vexp(vload(x + i) - top) : vexp(vload_part(x + i, n) - top);
        vstore_part(x + i, e, n);
        for (int64_t j = 0; j < n; j++) sum += (double)x[i + j];
    }
    if (!(sum < INFINITY)) return false;
    float scale = (float)(1.0 / sum);
    for (int64_t i = 0; i < V; i++) x[i] *= scale;
    return true;
}

/* The first token whose cumulative probability exceeds `uniform` of the whole. */
static int32_t draw(const float *probabilities, int64_t V, double uniform)
{
    double total = 0, sum = 0;
    for (int64_t i = 0; i < V; i++) total += (double)probabilities[i];
    double limit = uniform * total;
    int32_t last = 0;
    for (int64_t i = 0; i < V; i++) {
        if (!(probabilities[i] > 0)) continue;
        sum += (double)probabilities[i];
        last = (int32_t)i;
        if (sum > limit) break;
    }
    return last;
}

/* Temperature 0: all the mass on the first maximum. False if there is none. */
static bool greedy(float *x, int64_t V)
{
    int64_t best = 0;
    for (int64_t i = 1; i < V; i++)
        if (x[i] > x[best]) best = i;
    if (!(fabsf(x[best]) < INFINITY)) return false;
    for (int64_t i = 0; i < V; i++) x[i] = i == best;
    return true;
}

static bool filter(struct sampler *s, const struct sampling *how, const float *logits, const float *uncond, int64_t V, float *x)
{
    float cfg = (float)how->cfg, scale = how->temperature > 0 ? (float)(1.0 / how->temperature) : 1.0f;
    for (int64_t i = 0; i < V; i++) {
        x[i] = scale * (uncond ? uncond[i] + cfg * (logits[i] - uncond[i]) : logits[i]);
        if (isnan(x[i])) return false;
    }
    if (how->temperature == 0) return greedy(x, V);
    if (how->top_k > 0) keep_top_k(s, x, V, how->top_k);
    if (!softmax(x, V)) return false;
    if (how->top_p < 1) keep_top_p(s, x, V, how->top_p);
    return true;
}

aim_status KERNEL(sample)(struct backend *be, const struct tensor *logits, const struct tensor *uncond,
                          const struct sampling *how, const double *uniform, struct tensor *probabilities,
                          struct tensor *tokens)
{
    int64_t R = logits->shape[0], V = logits->shape[1];
    size_t work_bytes = (sizeof(struct sampler) + (size_t)V * sizeof(struct entry) + 63) & ~(size_t)63;
    char *work = mem_array(be->ctx, (size_t)be->threads, work_bytes, MEM_ACTIVATIONS);
    if (!work) return AIM_ERR_MEMORY;
    int failed = 0;
#pragma omp parallel for num_threads(be->threads) schedule(static) reduction(| : failed) if (R > 1)
    for (int64_t r = 0; r < R; r++) {
        struct sampler *s = (struct sampler *)(void *)(work + (size_t)omp_get_thread_num() * work_bytes);
        float *x = f32(probabilities) + r * V;
        if (filter(s, how, f32(logits) + r * V, uncond ? f32(uncond) + r * V : NULL, V, x))
            i32(tokens)[r] = draw(x, V, uniform[r]);
        else
            failed = 1;
    }
    mem_free(work);
    if (failed)
        return aim_fail(be->ctx, AIM_ERR_FORMAT, "the network's outputs are not finite numbers; are the weights damaged?");
    return AIM_OK;
}
