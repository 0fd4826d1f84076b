#include "train/codebook.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/philox.h"

/* Uniform in [0, 1), for draw i of a purpose. */
static double draw(uint64_t seed, int64_t i, uint32_t purpose)
{
    struct philox4 r = philox(seed, (uint64_t)i, purpose, PHILOX_CODEBOOK);
    return philox_double(r.v[0], r.v[1]);
}

static int64_t draw_below(uint64_t seed, int64_t i, uint32_t purpose, int64_t n)
{
    int64_t at = (int64_t)(draw(seed, i, purpose) * (double)n);
    return at < n ? at : n - 1;
}

enum { DRAW_FIRST, DRAW_SPREAD, DRAW_NOISE, DRAW_REVIVE }; /* purposes; the last and all above it are steps of revival */

/* Moves a row by up to 1% in every coordinate, and back to unit length. */
static void disturb(float *row, int64_t D, uint64_t seed, int64_t j)
{
    double squares = 0;
    for (int64_t d = 0; d < D; d++) {
        row[d] += 0.01f * (float)(2 * draw(seed, j * D + d, DRAW_NOISE) - 1);
        squares += (double)row[d] * (double)row[d];
    }
    float scale = (float)(1 / sqrt(squares > 1e-24 ? squares : 1e-24));
    for (int64_t d = 0; d < D; d++) row[d] *= scale;
}

/* The first V of the latents in a random order. */
static aim_status start_sampled(aim_context *ctx, const float *latents, int64_t M, int64_t D, uint64_t seed, float *codes,
                                int64_t V)
{
    int64_t *order = mem_array(ctx, (size_t)M, sizeof *order, MEM_MISC);
    if (!order) return AIM_ERR_MEMORY;
    for (int64_t i = 0; i < M; i++) order[i] = i;
    for (int64_t j = 0; j < V && j < M; j++) { /* Fisher and Yates, as far as needed */
        int64_t other = j + draw_below(seed, j, DRAW_FIRST, M - j), at = order[other];
        order[other] = order[j];
        order[j] = at;
        memcpy(codes + j * D, latents + at * D, (size_t)D * sizeof(float));
    }
    mem_free(order);
    return AIM_OK;
}

/* Lowers each latent's squared distance from the nearest code by the new one; returns their sum. */
static double nearer(const float *latents, int64_t M, int64_t D, const float *code, float *distance)
{
    double sum = 0;
    for (int64_t m = 0; m < M; m++) {
        float squares = 0;
        for (int64_t d = 0; d < D; d++) {
            float gap = latents[m * D + d] - code[d];
            squares += gap * gap;
        }
        if (squares < distance[m]) distance[m] = squares;
        sum += (double)distance[m];
    }
    return sum;
}

/* Arthur and Vassilvitskii, "k-means++: The Advantages of Careful Seeding", 2007. When all latents are codes already, the
 * last one goes on. */
static aim_status start_spread(aim_context *ctx, const float *latents, int64_t M, int64_t D, uint64_t seed, float *codes,
                               int64_t V)
{
    float *distance = mem_array(ctx, (size_t)M, sizeof *distance, MEM_MISC);
    if (!distance) return AIM_ERR_MEMORY;
    for (int64_t m = 0; m < M; m++) distance[m] = INFINITY;
    int64_t at = draw_below(seed, 0, DRAW_FIRST, M);
    for (int64_t j = 0; j < V && j < M; j++) {
        memcpy(codes + j * D, latents + at * D, (size_t)D * sizeof(float));
        double left = draw(seed, j, DRAW_SPREAD) * nearer(latents, M, D, codes + j * D, distance);
        for (at = 0; at < M - 1 && left >= (double)distance[at]; at++) left -= (double)distance[at];
    }
    mem_free(distance);
    return AIM_OK;
}

aim_status codebook_start_from(aim_context *ctx, enum codebook_start how, const float *latents, int64_t M, int64_t D,
                               uint64_t seed, float *codes, int64_t V)
{
    if (how == CODEBOOK_RANDOM) return AIM_OK;
    if (how == CODEBOOK_SAMPLED) TRY(start_sampled(ctx, latents, M, D, seed, codes, V));
    if (how == CODEBOOK_SPREAD) TRY(start_spread(ctx, latents, M, D, seed, codes, V));
    for (int64_t j = M; j < V; j++) {
        memcpy(codes + j * D, latents + j % M * D, (size_t)D * sizeof(float));
        disturb(codes + j * D, D, seed, j);
    }
    return AIM_OK;
}

int64_t codebook_revive(const int64_t *counts, int64_t least, const float *latents, int64_t M, int64_t D, uint64_t seed,
                        uint32_t step, float *codes, int64_t V, bool *revived)
{
    int64_t dead = 0;
    for (int64_t j = 0; j < V; j++) {
        if (revived) revived[j] = counts[j] < least;
        if (counts[j] >= least) continue;
        int64_t at = draw_below(seed, j, DRAW_REVIVE + step, M);
        memcpy(codes + j * D, latents + at * D, (size_t)D * sizeof(float));
        dead++;
    }
    return dead;
}

aim_status codebook_usage_init(aim_context *ctx, int64_t V, struct codebook_usage *u)
{
    *u = (struct codebook_usage){.V = V};
    u->counts = mem_zero(ctx, (size_t)V, sizeof *u->counts, MEM_MISC);
    u->queue = mem_zero(ctx, CODEBOOK_QUEUE, sizeof *u->queue, MEM_MISC);
    if (u->counts && u->queue) return AIM_OK;
    codebook_usage_free(u);
    return AIM_ERR_MEMORY;
}

void codebook_usage_free(struct codebook_usage *u)
{
    mem_free(u->counts);
    mem_free(u->queue);
    *u = (struct codebook_usage){0};
}

void codebook_usage_add(struct codebook_usage *u, const int32_t *ids, int64_t count)
{
    for (int64_t i = 0; i < count; i++) u->counts[ids[i]]++;
    u->chosen += count;
    if (count > CODEBOOK_QUEUE) { /* LlamaGen would crash; the last ones fit */
        ids += count - CODEBOOK_QUEUE;
        count = CODEBOOK_QUEUE;
    }
    memmove(u->queue, u->queue + count, (size_t)(CODEBOOK_QUEUE - count) * sizeof *u->queue);
    for (int64_t i = 0; i < count; i++) u->queue[CODEBOOK_QUEUE - count + i] = (float)ids[i];
}

void codebook_usage_reset(struct codebook_usage *u)
{
    memset(u->counts, 0, (size_t)u->V * sizeof *u->counts);
    u->chosen = 0;
}

double codebook_usage_share(const struct codebook_usage *u)
{
    int64_t used = 0;
    for (int64_t j = 0; j < u->V; j++) used += u->counts[j] > 0;
    return (double)used / (double)u->V;
}

double codebook_usage_perplexity(const struct codebook_usage *u)
{
    double entropy = 0;
    if (u->chosen == 0) return 0;
    for (int64_t j = 0; j < u->V; j++) {
        double p = (double)u->counts[j] / (double)u->chosen;
        if (p > 0) entropy -= p * log(p);
    }
    return exp(entropy);
}
