/*
 * A backend: a table with one kernel for every op of ops.def, and what those kernels share.
 */
#ifndef AIM_TENSOR_BACKEND_H
#define AIM_TENSOR_BACKEND_H

#include "tensor/tensor.h"

struct decoder_ops;
struct profile;
struct ssd_cache;

/* Stage-2 sampling, spec B10 (temperature is honoured; 0 = the first maximum). */
struct sampling {
    double cfg; /* logits = uncond + cfg (logits - uncond) */
    double temperature;
    double top_p;
    int top_k;
};

/* A two-dimensional convolution. Zero padding; the output size follows from the input's. */
struct conv2d {
    int stride;
    int pad_before, pad_after; /* rows above and below, columns left and right */
    bool upsample;             /* x is enlarged twofold (nearest) before the convolution */
};

/* Dropout of one half: element i (row-major) stays, doubled, when bit i % 128 of philox(seed; i / 128, position,
 * PHILOX_DROPOUT), counted from the lowest bit of v[0], is set. */
struct dropout {
    uint64_t seed;
    uint32_t position;
};

/* The terms of adversarial losses. */
enum mean_map {
    MAP_IDENTITY,
    MAP_HINGE_REAL,    /* relu(1 - x) */
    MAP_HINGE_FAKE,    /* relu(1 + x) */
    MAP_SOFTPLUS,      /* ln(1 + e^x) */
    MAP_SOFTPLUS_MINUS /* ln(1 + e^-x) */
};

/*
 * AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019). With g = dw min(1, clip / (norm + 1e-6)):
 * w -= lr decay w where the slot decays; m += (1 - beta1) (g - m); v += (1 - beta2) (g² - v);
 * w -= lr m / (1 - beta1^step) / (√(v / (1 - beta2^step)) + eps); ema += (1 - ema_decay) (w - ema).
 */
struct adamw {
    double lr, beta1, beta2, eps, decay;
    double clip;      /* largest norm of the gradient; 0: as it is */
    double ema_decay; /* for slots with an ema */
    int64_t step;     /* from 1 */
};

/* All of one size, f32, and of a lifetime in which no address changes; ema may be NULL. */
struct adamw_slot {
    struct tensor *w, *dw, *m, *v, *ema;
    bool decays;
};

struct backend;

#define OP(name, parameters) aim_status(*name) parameters;
struct ops {
#include "tensor/ops.def"
};
#undef OP

/*
 * Where the data of tensors lies. On the CPU that is plain memory, and moving data is memcpy. `take` returns NULL with the
 * message set; `give` wants the size that was taken. Transfers are in order with the ops: an upload has read the
 * host's memory, and a download written it, when the call returns.
 */
struct device_memory {
    bool host; /* it is the host's own */
    void *(*take)(struct backend *be, size_t bytes, enum memory_tag tag);
    void (*give)(struct backend *be, void *data, size_t bytes);
    aim_status (*upload)(struct backend *be, void *to, const void *host, size_t bytes);
    aim_status (*download)(struct backend *be, void *host, const void *from, size_t bytes);
    aim_status (*copy)(struct backend *be, void *to, const void *from, size_t bytes);
    aim_status (*zero)(struct backend *be, void *data, size_t bytes);
    int64_t (*available)(struct backend *be); /* bytes that could still be taken */
    /* Bytes taken from a device of its own, where threads may share it in atomic steps; the host's are the context's account.
     */
    int64_t used, peak;
};

/* Marks in the stream of ops of a device that works behind the host, for a profile; NULL where the host's clock will do. */
struct device_clock {
    aim_status (*mark)(struct backend *be, int64_t i); /* puts mark i = 0, 1, ... behind what was asked for so far */
    aim_status (*between)(struct backend *be, int64_t from, int64_t to, double *seconds); /* waits until both are reached */
};

struct backend {
    aim_context *ctx;
    int threads;
    bool bf16; /* products round their inputs to bf16 and accumulate in float32 (training); parameters stay float32 */
    enum tensor_type activation; /* of activations while bf16 is set: T_BF16 where kernels work on such tensors, else T_F32 */
    bool overwrites;             /* its kernels know fresh gradients (tape_grad_fresh) */
    struct ops op;
    struct profile *profile; /* what stands in front of op and memory now (tensor/profile.h), or NULL */
    struct device_clock clock;
    const struct decoder_ops *decoder; /* paints whole sequences (tensor/decoder.h); NULL: nothing beyond the ops */
    struct device_memory memory;
    /*
     * Another backend of the same device, whose work runs at the same time as this one's and whose memory stands in this one's
     * account; for the context of a worker, freed with backend_free, also after a failure. NULL: two would only share the same
     * cores.
     */
    aim_status (*twin)(struct backend *be, aim_context *worker, struct backend **out);
    /* A thread that did not make the backend calls this before anything else of it. NULL: no need. */
    aim_status (*enter)(struct backend *be);
    void *state; /* the dense library's, or the device's; freed by state_free */
    void (*state_free)(void *state);
};

/* The type that activations have now. */
static inline enum tensor_type backend_activation(const struct backend *be)
{
    return be->bf16 ? be->activation : T_F32;
}

/* The backend that the options ask for: device, CPU tier. Describes itself in ctx->device. */
aim_status backend_create(aim_context *ctx, const aim_context_options *options, struct backend **out);
void backend_free(struct backend *be);

/* Tensors in plain memory: for the CPU, and for op tables that are put together by hand. */
void backend_use_host_memory(struct backend *be);

/* AIM_ERR_UNSUPPORTED where bf16 would have to be emulated; ask before setting be->bf16. */
aim_status backend_check_bf16(const struct backend *be);

#endif
