/*
 * A backend that only plans: its ops do nothing, and its memory is counted but never there. Code that runs on it takes the
 * memory, in the order and at the time, that it would take on a device, so one training step tells what training needs.
 */
#ifndef AIM_TENSOR_PLAN_H
#define AIM_TENSOR_PLAN_H

#include "tensor/backend.h"

/*
 * A backend for `ctx` that plans for `like`, whose precision and number of threads it has; be->memory.used and .peak count.
 * What tensor_read gives is zero; nothing may look at a tensor's data itself, even where `like` has the host's memory. The
 * caller frees it with backend_free.
 */
aim_status plan_create(aim_context *ctx, const struct backend *like, struct backend **out);

#endif
