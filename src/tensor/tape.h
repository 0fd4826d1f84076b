/*
 * The tape: reverse-mode differentiation of ops that have already run.
 *
 * While an exec has a tape, an op whose inputs need gradients appends a node: its output, its inputs, what its backward
 * function needs, and that function. tape_backward walks the nodes from the last to the first. Every backward kernel ADDS
 * to the gradients it computes; a gradient is zeroed when it is first asked for, so that a tensor used twice receives both
 * contributions without special care.
 *
 * Ownership: nodes keep their tensors alive; a node is dropped as soon as its backward has run, so activations are freed
 * while the walk goes on. Gradients of parameters stay with the parameter (tensor->grad) until tensor_clear_grad.
 */
#ifndef AIM_TENSOR_TAPE_H
#define AIM_TENSOR_TAPE_H

#include "tensor/backend.h"

enum { NODE_INPUTS = 8, NODE_OUTPUTS = 2 };

/*
 * A part of a network as tape_checkpoint runs it: from in[] (BLOCK_INPUTS of them, NULL where there is none) to out[]
 * (NODE_OUTPUTS), which the caller drops. A pure function of its inputs and of `user`, whose parameters it may use.
 */
typedef void (*tape_block)(struct exec *ex, const void *user, struct tensor *const *in, struct tensor **out);

struct node {
    /* Reads the gradients of out[], adds to those of in[]; see tape_grad. */
    aim_status (*backward)(struct exec *ex, struct node *n);
    struct tensor *out[NODE_OUTPUTS]; /* kept */
    struct tensor *in[NODE_INPUTS];   /* kept; NULL where an op was called without that input */
    union {
        struct conv2d conv;
        int64_t from; /* slice_add */
        float weight; /* mean_square, mean_absolute, scale */
        float slope;  /* leaky_relu */
        struct {
            int groups;
            bool silu;
        } norm; /* group_norm_silu */
        struct {
            enum mean_map map;
            float weight;
        } mean;
        struct {
            bool on;
            struct dropout how;
        } dropout; /* lpips_distance */
        struct {
            float temperature, weight;
        } entropy;
        struct {
            tape_block run;
            const void *user;
        } block; /* tape_checkpoint */
    } how;
};

struct tape {
    struct exec *ex;
    size_t count, capacity;
    struct node *nodes;
    float scale; /* of the walk back that is going on */
};

/* Starts recording the ops that run on `ex`. */
void tape_start(struct tape *tape, struct exec *ex);

/* Stops recording and drops what is left. */
void tape_stop(struct tape *tape);

/*
 * Gradients of the sum of `loss` (any shape) times `scale` with respect to every tensor that needs one; the nodes are used
 * up. Recording goes on afterwards.
 */
aim_status tape_backward(struct tape *tape, struct tensor *loss, float scale);

/*
 * Runs a block that keeps nothing but its inputs: the backward pass runs it again, with a tape of its own, and gives the
 * gradients that recording it would have given, bit for bit. `user` and the parameters must not change before that. At
 * least one input must need a gradient for the parameters to get theirs. in[]: BLOCK_INPUTS tensors, borrowed.
 */
enum { BLOCK_INPUTS = 4 };
void tape_checkpoint(struct exec *ex, tape_block run, const void *user, struct tensor *const *in, struct tensor **out);

/* For ops: records a node if the exec has a tape and an input needs a gradient; marks the outputs as needing one. On
 * failure the exec's status is set. */
void tape_record(struct exec *ex, const struct node *node);

/* An op's input as a node holds it: ops take const tensors, and only the gradient hanging on one changes. */
static inline struct tensor *tape_input(const struct tensor *t)
{
    return (struct tensor *)(uintptr_t)t;
}

/* For backward functions: where to add the gradient of `t`, zeroed on first use; NULL when `t` is NULL or needs none, or
 * memory is out (the exec's status is set then). */
struct tensor *tape_grad(struct exec *ex, struct tensor *t);

/*
 * The same for kernels that know fresh columns: if the backend's do, the first use leaves the gradient undefined and all
 * its columns fresh. A kernel overwrites the fresh ones of the columns that it writes and takes the mark off them; what is
 * still fresh when something else wants the gradient is zeroed then.
 */
struct tensor *tape_grad_fresh(struct exec *ex, struct tensor *t);

/*
 * Where an output's gradient is all that an input, which needs one, has got so far: `grad` becomes the gradient of `t`, without
 * a copy; several tensors may hold it, and whoever asks for it by the functions above gets one of its own. False: the input has
 * one, or another shape; nothing is done.
 */
bool tape_pass(struct tensor *t, struct tensor *grad);

/* The gradient that has arrived at an output; NULL if none has. */
static inline struct tensor *tape_arrived(const struct tensor *t)
{
    return t ? t->grad : NULL;
}

/* Forgets a parameter's gradient. */
void tensor_clear_grad(struct tensor *t);

#endif
