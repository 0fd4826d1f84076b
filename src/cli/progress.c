#include "cli/progress.h"

#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t stop_signal;
static sigset_t awaited;

/*
 * Signals are taken by a thread that waits for them and never by a handler: a handler's frame is written below the stack
 * pointer of the thread that it interrupts, and in the midst of oneDNN's products that register may point into a block of
 * memory.
 */
static void *wait_for_signals(void *unused)
{
    int number;
    (void)unused;
    for (;;) {
        if (sigwait(&awaited, &number) != 0) continue;
        if (stop_signal) break;
        stop_signal = number;
    }
    signal(number, SIG_DFL); /* the work does not stop by itself: the second time the default action ends the process */
    pthread_sigmask(SIG_UNBLOCK, &awaited, NULL);
    raise(number);
    return NULL;
}

void progress_catch_signals(void)
{
    const int numbers[] = {SIGINT, SIGTERM};
    pthread_t thread;
    sigemptyset(&awaited);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        struct sigaction old;
        if (sigaction(numbers[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN) sigaddset(&awaited, numbers[i]);
    }
    pthread_sigmask(SIG_BLOCK, &awaited, NULL); /* threads that start later inherit it */
    if (pthread_create(&thread, NULL, wait_for_signals, NULL) == 0)
        pthread_detach(thread);
    else
        pthread_sigmask(SIG_UNBLOCK, &awaited, NULL); /* then a signal ends the process as it does any other */
    signal(SIGPIPE, SIG_IGN); /* a closed pipe and a file at its limit are errors of the write, reported like any other */
    signal(SIGXFSZ, SIG_IGN);
}

int progress_signal(void)
{
    return (int)stop_signal;
}

double progress_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int terminal_width(void)
{
    struct winsize size;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col >= 20) return size.ws_col;
    return 80;
}

static void clear_line(struct progress *p)
{
    if (!p->drawn) return;
    fputs("\r\033[K", stderr);
    p->drawn = false;
}

/* "12:34" or "1:02:03"; dashes while nothing is known. */
static void format_time(char *out, size_t size, double seconds)
{
    if (!(seconds >= 0 && seconds < 1e6)) {
        snprintf(out, size, "--:--");
        return;
    }
    int s = (int)(seconds + 0.5);
    if (s >= 3600)
        snprintf(out, size, "%d:%02d:%02d", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(out, size, "%d:%02d", s / 60, s % 60);
}

static void draw(struct progress *p, double now)
{
    enum { MAX_BAR = 40 };
    double fraction = p->total > 0 ? (double)p->done / (double)p->total : 0, elapsed = now - p->began;
    if (fraction > 1) fraction = 1;
    double scale = p->pictures > 0 && p->total > 0 ? (double)p->pictures / (double)p->total : 1;
    double rate = elapsed > 0 ? (double)(p->done - p->first) / elapsed : 0;
    char eta[24], numbers[128], bar[MAX_BAR + 1];
    format_time(eta, sizeof eta, rate > 0 ? (double)(p->total - p->done) / rate : -1);
    snprintf(numbers, sizeof numbers, " %3d%%  %.0f/%.0f  %.*f/s  %s left", (int)(100 * fraction),
             floor((double)p->done * scale + 1e-6), floor((double)p->total * scale + 1e-6), rate * scale < 10 ? 2 : 0,
             rate * scale, eta);
    int width = terminal_width() - 1, space = width - (int)strlen(numbers) - (int)strlen(p->what) - 3;
    int length = space > MAX_BAR ? MAX_BAR : space;
    if (length >= 5) {
        int full = (int)(fraction * length);
        memset(bar, '.', sizeof bar);
        memset(bar, '#', (size_t)full);
        fprintf(stderr, "\r%s [%.*s]%s\033[K", p->what, length, bar, numbers);
    } else {
        fprintf(stderr, "\r%.*s\033[K", width, numbers + 1);
    }
    fflush(stderr);
    p->drawn = true;
    p->redrawn = now;
}

/* "training, loss 6.2" is still the phase "training". */
static bool same_phase(const char *a, const char *b)
{
    size_t length = strcspn(a, ",");
    return length == strcspn(b, ",") && strncmp(a, b, length) == 0;
}

/* Takes over the numbers; a phase of another name starts its own clock. */
static void show(struct progress *p, const char *what, int64_t done, int64_t total)
{
    double now = progress_now();
    if (!same_phase(p->what, what) || total != p->total || done < p->done) {
        p->first = done;
        p->began = now;
    }
    if (what != p->what) snprintf(p->what, sizeof p->what, "%s", what);
    p->done = done;
    p->total = total;
    if (p->bar && now - p->redrawn >= 0.1) draw(p, now);
}

int progress_update(void *user, const char *what, int64_t done, int64_t total)
{
    struct progress *p = user;
    if (stop_signal) return 1;
    if (!p->own)
        show(p, what, done, total);
    else
        show(p, p->what, p->done, p->total);
    return 0;
}

void progress_begin(struct progress *p, const char *what, int64_t total)
{
    p->own = true;
    p->total = -1; /* a phase of its own, whatever the last one was called */
    show(p, what, 0, total);
}

void progress_step(struct progress *p, int64_t done)
{
    show(p, p->what, done, p->total);
}

void progress_end(struct progress *p)
{
    clear_line(p);
    fflush(stderr);
    p->own = false;
}

void progress_say(struct progress *p, const char *prefix, const char *message, const char *suffix)
{
    clear_line(p);
    fputs(prefix, stderr);
    for (const char *c = message; *c; c++) fputc((unsigned char)*c < 0x20 || *c == 0x7f ? '?' : *c, stderr);
    fprintf(stderr, "%s\n", suffix);
    fflush(stderr);
}

void progress_log(void *user, aim_log_level level, const char *message)
{
    struct progress *p = user;
    if (level == AIM_LOG_WARNING)
        progress_say(p, "aim: warning: ", message, "");
    else if (level == AIM_LOG_INFO && !p->quiet)
        progress_say(p, "aim: note: ", message, "");
}
