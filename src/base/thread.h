/* Threads of the library. */
#ifndef AIM_BASE_THREAD_H
#define AIM_BASE_THREAD_H

#include <pthread.h>

/* pthread_create with every signal blocked in the new thread: signals are for the program's own threads. Returns 0, or the
 * error's number. */
int thread_start(pthread_t *thread, void *(*run)(void *), void *user);

#endif
