/* Painting whole sequences on the GPU: memory, the choice between the persistent kernel and the graph, the loop over tokens. */
#include "cuda/decode.cuh"

#include <math.h>

/* Tokens between two looks at the clock of progress: the host waits for the chunk before the last. */
enum { CHUNK = 64, ALIGN = 256, ALL_KINDS = (1 << STEP_KINDS) - 1 };

/* A captured step, and what it was captured for. */
struct decode_graph {
    cudaGraphExec_t run; /* NULL: none yet */
    int pictures, streams;
    struct sample_filter filter;
    struct decode_products products;
};

struct decoder {
    struct backend *be;
    bool is_bf16;
    int64_t capacity;
    struct decode_view view;     /* R and pictures are the job's */
    struct decode_layer *layers; /* the host's copy of view.layer */
    char *memory;
    size_t bytes;
    struct decode_graph graph;
    cudaEvent_t done[2];
};

/* ---------------------------------------------------------------------------------------------------------- memory */

/* Hands out parts of `memory`, or measures when it is NULL. */
struct arena {
    char *memory;
    size_t used;
};

template <typename T> static void part(struct arena *arena, T **out, int64_t count, size_t size)
{
    if (arena->memory) *out = (T *)(arena->memory + arena->used);
    arena->used += ((size_t)count * size + ALIGN - 1) / ALIGN * ALIGN;
}

static void set_sizes(struct decode_view *a, const struct decoder_sizes *s)
{
    a->d = (int)s->d;
    a->E = 2 * a->d;
    a->S = (int)s->state;
    a->C = a->E + 2 * a->S;
    a->H = a->E / HEADDIM;
    a->W = a->E + a->C + a->H;
    a->V = (int)s->vocabulary;
    a->T = (int)s->tokens;
    a->layers = (int)s->layers;
}

/* Lays out everything for R streams; pictures are as many when nobody guides. */
static void lay_out(struct arena *arena, struct decode_view *a, bool is_bf16, int64_t R)
{
    size_t x = is_bf16 ? sizeof(bf16) : sizeof(float), f = sizeof(float);
    int64_t layer_streams = a->layers * R;
    part(arena, (struct decode_layer **)&a->layer, a->layers, sizeof *a->layer);
    part(arena, (int32_t **)&a->row, R, sizeof *a->row);
    part(arena, (double **)&a->uniform, a->T * R, sizeof *a->uniform);
    part(arena, &a->logits, R * a->V, f);
    part(arena, &a->probabilities, R * a->V, f);
    part(arena, &a->tokens, a->T * R, sizeof *a->tokens);
    part(arena, &a->t, 1, sizeof *a->t);
    size_t start = arena->used;
    part(arena, &a->r[0], R * a->d, f);
    part(arena, &a->r[1], R * a->d, f);
    part(arena, (char **)&a->m, R * a->d, x);
    part(arena, (char **)&a->v, R * a->E, x);
    part(arena, &a->zxbcdt, R * a->W, f);
    part(arena, &a->h, DECODE_OUT_PARTS * R * a->d, f);
    part(arena, &a->squares, R * a->H, f);
    part(arena, &a->ring, layer_streams * RING * a->C, f);
    part(arena, (char **)&a->u, layer_streams * a->H * a->T * HEADDIM, x);
    part(arena, (char **)&a->b, layer_streams * a->T * a->S, x);
    part(arena, &a->decay, layer_streams * a->H * a->T, f);
    size_t end = arena->used; /* a job runs in one way or the other: the persistent kernel's memory lies over the graph's */
    arena->used = start;
    part(arena, (char **)&a->few, decode_persistent_bytes(a, is_bf16, R), 1);
    arena->used = arena->used > end ? arena->used : end;
}

static int64_t decoder_bytes(const struct decoder_sizes *size, bool is_bf16, int64_t streams)
{
    struct arena arena = {NULL, 0};
    struct decode_view view = {};
    set_sizes(&view, size);
    lay_out(&arena, &view, is_bf16, streams);
    return (int64_t)arena.used + PRODUCT_WORKSPACE;
}

/* --------------------------------------------------------------------------------------------------- creation */

/* Whether the kernels' shared memory and 16-byte accesses suit the network; all matrices must be of one type. */
static bool suits(const struct decoder_network *n, enum tensor_type type)
{
    const struct decoder_sizes *s = &n->size;
    bool suits = s->d % 32 == 0 && s->d <= DECODE_WIDTH && s->state % 4 == 0 && s->state <= DECODE_STATE &&
                 s->tokens <= DECODE_TOKENS && (type == T_BF16_PACKED || type == T_F32_PACKED);
    for (int64_t l = 0; l < s->layers; l++) suits &= n->layers[l].in_proj->type == type && n->layers[l].out_proj->type == type;
    return suits;
}

static struct decode_layer layer_of(const struct decoder_layer *l)
{
    struct decode_layer layer = {f32(l->norm), f32(l->conv_w),     f32(l->conv_b),   f32(l->dt_bias),  f32(l->A_log),
                                 f32(l->D),    f32(l->mixer_norm), l->in_proj->data, l->out_proj->data};
    return layer;
}

static aim_status decoder_create(struct backend *be, const struct decoder_network *n, const struct decoder_classes *classes,
                                 int64_t streams, struct decoder **out)
{
    *out = NULL;
    if (!suits(n, n->words->type)) return aim_fail(be->ctx, AIM_ERR_UNSUPPORTED, "decoding networks of this shape in one go");
    struct decoder *d = *out = (struct decoder *)mem_zero(be->ctx, 1, sizeof *d, MEM_CACHE);
    if (!d) return AIM_ERR_MEMORY;
    d->be = be;
    d->is_bf16 = n->words->type == T_BF16_PACKED;
    d->capacity = streams;
    struct decode_view *a = &d->view;
    set_sizes(a, &n->size);
    d->layers = (struct decode_layer *)mem_array(be->ctx, (size_t)a->layers, sizeof *d->layers, MEM_CACHE);
    if (!d->layers) return AIM_ERR_MEMORY;
    for (int l = 0; l < a->layers; l++) d->layers[l] = layer_of(&n->layers[l]);
    d->bytes = (size_t)decoder_bytes(&n->size, d->is_bf16, streams);
    d->memory = (char *)be->memory.take(be, d->bytes, MEM_CACHE);
    if (!d->memory) return AIM_ERR_MEMORY;
    d->graph.products.workspace = d->memory;
    struct arena arena = {d->memory + PRODUCT_WORKSPACE, 0};
    lay_out(&arena, a, d->is_bf16, streams);
    a->pos_offset = n->pos_offset;
    a->words = n->words->data;
    a->positions = f32(n->positions);
    a->norm_f = f32(n->norm_f);
    a->norm_final = f32(n->norm_final);
    a->classes = *classes;
    for (int i = 0; i < 2; i++) CUDA_TRY(be, cudaEventCreateWithFlags(&d->done[i], cudaEventDisableTiming));
    return be->memory.upload(be, (void *)a->layer, d->layers, (size_t)a->layers * sizeof *d->layers);
}

static void graph_clear(struct decode_graph *g)
{
    if (g->run) cudaGraphExecDestroy(g->run);
    g->run = NULL;
    product_free(&g->products.in);
    product_free(&g->products.out);
    product_free(&g->products.head);
}

static void decoder_free(struct decoder *d)
{
    if (!d) return;
    struct backend *be = d->be;
    cudaStreamSynchronize(cuda_of(be)->stream);
    graph_clear(&d->graph);
    for (int i = 0; i < 2; i++)
        if (d->done[i]) cudaEventDestroy(d->done[i]);
    if (d->memory) be->memory.give(be, d->memory, d->bytes);
    mem_free(d->layers);
    mem_free(d);
}

/* ------------------------------------------------------------------------------------------------------- the graph */

static bool same_filter(const struct sample_filter *a, const struct sample_filter *b)
{
    return a->cfg == b->cfg && a->scale == b->scale && a->greedy == b->greedy && a->top_k == b->top_k && a->top_p == b->top_p;
}

static aim_status capture_step(struct decoder *d, unsigned kinds, cudaGraph_t *graph)
{
    struct backend *be = d->be;
    cudaStream_t stream = cuda_of(be)->stream;
    CUDA_TRY(be, cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    aim_status status = decode_graph_step(be, &d->view, d->is_bf16, &d->graph.products, d->layers, kinds, stream);
    cudaError_t ended = cudaStreamEndCapture(stream, graph); /* in any case: the stream must not stay in capture */
    return status == AIM_OK ? cuda_check(be->ctx, ended, "capturing a decoding step") : status;
}

/* The graph of a step's kernels of `kinds`. */
static aim_status graph_make(struct decoder *d, unsigned kinds, cudaGraphExec_t *run)
{
    struct backend *be = d->be;
    cudaGraph_t graph = NULL;
    aim_status status = capture_step(d, kinds, &graph);
    if (status == AIM_OK) status = cuda_check(be->ctx, cudaGraphInstantiate(run, graph, 0), "cudaGraphInstantiate");
    if (graph) cudaGraphDestroy(graph);
    return status;
}

/* Makes d->graph that of the view's streams and filter. */
static aim_status graph_prepare(struct decoder *d)
{
    struct backend *be = d->be;
    struct decode_graph *g = &d->graph;
    const struct decode_view *a = &d->view;
    if (g->run && g->streams == a->R && g->pictures == a->pictures && same_filter(&g->filter, &a->filter)) return AIM_OK;
    graph_clear(g);
    TRY(product_create(be, d->is_bf16, a->R, a->W, a->d, PRODUCT_ALIGNMENT, &g->products.in));
    TRY(product_create(be, d->is_bf16, a->R, a->d, a->E, PRODUCT_ALIGNMENT, &g->products.out));
    TRY(product_create(be, d->is_bf16, a->R, a->V, a->d, PRODUCT_ALIGNMENT, &g->products.head));
    /* Once without capture: what loads on first use does so now. Its token is drawn again. */
    TRY(decode_graph_step(be, a, d->is_bf16, &g->products, d->layers, ALL_KINDS, cuda_of(be)->stream));
    aim_status status = graph_make(d, ALL_KINDS, &g->run);
    g->streams = a->R;
    g->pictures = a->pictures;
    g->filter = a->filter;
    return status;
}

/* -------------------------------------------------------------------------------------------------------- painting */

static aim_status run_chunk(struct decoder *d, bool persistent, int from, int to)
{
    struct backend *be = d->be;
    if (persistent) return decode_persistent_run(be, &d->view, from, to);
    for (int t = from; t < to; t++) CUDA_TRY(be, cudaGraphLaunch(d->graph.run, cuda_of(be)->stream));
    return AIM_OK;
}

/* The device works on one chunk while the next one waits in its queue; the host hears of those that are done. */
static aim_status run_tokens(struct decoder *d, const struct decoder_job *job, bool persistent)
{
    struct backend *be = d->be;
    int T = d->view.T, chunk = 0;
    for (int from = 0; from < T; from += CHUNK, chunk++) {
        TRY(run_chunk(d, persistent, from, from + CHUNK < T ? from + CHUNK : T));
        CUDA_TRY(be, cudaEventRecord(d->done[chunk % 2], cuda_of(be)->stream));
        if (chunk == 0) continue;
        CUDA_TRY(be, cudaEventSynchronize(d->done[(chunk - 1) % 2]));
        TRY(job->progress(job->user, from));
    }
    return AIM_OK;
}

static aim_status decoder_paint(struct decoder *d, const struct decoder_job *job)
{
    struct backend *be = d->be;
    struct decode_view *a = &d->view;
    struct device_memory *m = &be->memory;
    a->R = (int)job->streams;
    a->pictures = (int)job->pictures;
    a->filter = sample_filter_of(&job->how);
    size_t tokens = (size_t)(a->T * job->pictures);
    TRY(m->upload(be, (void *)a->row, job->classes, (size_t)job->streams * sizeof *job->classes));
    TRY(m->upload(be, (void *)a->uniform, job->uniform, tokens * sizeof *job->uniform));
    TRY(m->zero(be, a->t, sizeof *a->t));
    bool persistent = decode_persistent_fits(cuda_of(be), a, d->is_bf16);
    if (!persistent) TRY(graph_prepare(d));
    TRY(m->zero(be, a->t, sizeof *a->t)); /* preparing a graph runs a step */
    TRY(run_tokens(d, job, persistent));
    TRY(m->download(be, job->codes, a->tokens, tokens * sizeof *job->codes));
    return job->progress(job->user, a->T);
}

/* ----------------------------------------------------------------------------------------------------------- probes */

aim_status cuda_decode_logits(struct decoder *d, float *logits)
{
    const struct decode_view *a = &d->view;
    struct device_memory *m = &d->be->memory;
    size_t count = (size_t)(a->pictures * a->V);
    TRY(m->download(d->be, logits, a->logits, count * sizeof *logits));
    if (decode_persistent_fits(cuda_of(d->be), a, d->is_bf16)) return AIM_OK; /* its logits are guided already */
    float *uncond = (float *)mem_array(d->be->ctx, count, sizeof *uncond, MEM_MISC);
    if (!uncond) return AIM_ERR_MEMORY;
    bool guided = a->R == 2 * a->pictures;
    aim_status status = guided ? m->download(d->be, uncond, a->logits + count, count * sizeof *logits) : AIM_OK;
    for (size_t i = 0; i < count && status == AIM_OK; i++) {
        float guide = guided ? uncond[i] + a->filter.cfg * (logits[i] - uncond[i]) : logits[i];
        logits[i] = guide * a->filter.scale;
    }
    mem_free(uncond);
    return status;
}

/* A graph's run at position t between two events. */
static aim_status timed_run(struct decoder *d, int t, cudaGraphExec_t run, const cudaEvent_t *between)
{
    struct backend *be = d->be;
    cudaStream_t stream = cuda_of(be)->stream;
    TRY(be->memory.upload(be, d->view.t, &t, sizeof t));
    CUDA_TRY(be, cudaEventRecord(between[0], stream));
    CUDA_TRY(be, cudaGraphLaunch(run, stream));
    CUDA_TRY(be, cudaEventRecord(between[1], stream));
    return cuda_check(be->ctx, cudaEventSynchronize(between[1]), "a timed step");
}

/* The fastest of a few. */
static aim_status time_graph(struct decoder *d, int t, cudaGraphExec_t run, const cudaEvent_t *between, double *seconds)
{
    const int rounds = 5;
    *seconds = INFINITY;
    for (int i = 0; i < rounds; i++) {
        float ms = 0;
        TRY(timed_run(d, t, run, between));
        CUDA_TRY(d->be, cudaEventElapsedTime(&ms, between[0], between[1]));
        *seconds = fmin(*seconds, 1e-3 * ms);
    }
    return AIM_OK;
}

static aim_status time_kind(struct decoder *d, int t, int kind, const cudaEvent_t *between, double *seconds)
{
    cudaGraphExec_t run = NULL;
    aim_status status = graph_make(d, 1u << kind, &run);
    if (status == AIM_OK) status = time_graph(d, t, run, between, seconds);
    if (run) cudaGraphExecDestroy(run);
    return status;
}

aim_status cuda_decode_times(struct decoder *d, int t, double *whole, double kinds[STEP_KINDS])
{
    struct backend *be = d->be;
    cudaEvent_t between[2] = {};
    if (!d->graph.run || d->graph.streams != d->view.R)
        return aim_fail(be->ctx, AIM_ERR_UNSUPPORTED, "the decoder did not paint with a graph");
    aim_status status = AIM_OK;
    for (int i = 0; i < 2 && status == AIM_OK; i++)
        status = cuda_check(be->ctx, cudaEventCreate(&between[i]), "cudaEventCreate");
    if (status == AIM_OK) status = time_graph(d, t, d->graph.run, between, whole);
    for (int k = 0; k < STEP_KINDS && status == AIM_OK; k++) status = time_kind(d, t, k, between, &kinds[k]);
    for (int i = 0; i < 2; i++)
        if (between[i]) cudaEventDestroy(between[i]);
    return status;
}

const struct decoder_ops cuda_decoder = {decoder_bytes, decoder_create, decoder_paint, decoder_free};
