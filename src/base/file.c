#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

aim_status file_map_open(aim_context *ctx, const char *path, struct file_map *map)
{
    *map = (struct file_map){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hang */
    if (fd < 0) return aim_fail_errno(ctx, "cannot open %s", path);
    struct stat st;
    aim_status status = AIM_OK;
    if (fstat(fd, &st) != 0) {
        status = aim_fail_errno(ctx, "cannot read %s", path);
    } else if (!S_ISREG(st.st_mode)) {
        status = aim_fail(ctx, AIM_ERR_IO, "cannot read %s: not a regular file", path);
    } else if (st.st_size > 0) {
        void *data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED)
            status = aim_fail_errno(ctx, "cannot map %s", path);
        else
            *map = (struct file_map){.data = data, .size = (size_t)st.st_size};
    }
    close(fd);
    return status;
}

void file_map_close(struct file_map *map)
{
    if (map->data) munmap((void *)(uintptr_t)map->data, map->size);
    *map = (struct file_map){0};
}

bool file_is_directory(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

bool file_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

char *file_join(aim_context *ctx, const char *directory, const char *name)
{
    size_t n = strlen(directory);
    size_t bytes = n + strlen(name) + 2;
    char *path = mem_new(ctx, bytes, MEM_MISC);
    if (path) snprintf(path, bytes, "%s%s%s", directory, n && directory[n - 1] == '/' ? "" : "/", name);
    return path;
}

aim_status file_make_directory(aim_context *ctx, const char *path)
{
    char *partial = mem_string(ctx, path, MEM_MISC);
    if (!partial) return AIM_ERR_MEMORY;
    aim_status status = AIM_OK;
    for (char *c = partial + 1;; c++) {
        if (*c != '/' && *c != '\0') continue;
        bool last = *c == '\0';
        *c = '\0';
        if (mkdir(partial, 0777) != 0 && !file_is_directory(partial)) {
            status = aim_fail_errno(ctx, "cannot make the directory %s", partial);
            break;
        }
        if (last) break;
        *c = '/';
    }
    mem_free(partial);
    return status;
}

static aim_status open_temporary(struct file_writer *w)
{
    aim_context *ctx = w->ctx;
    enum { ATTEMPTS = 1000 };
    size_t bytes = strlen(w->path) + 48;
    char *name = mem_new(ctx, bytes, MEM_MISC);
    if (!name) return AIM_ERR_MEMORY;
    int fd = -1;
    for (int i = 0; i < ATTEMPTS && fd < 0; i++) {
        snprintf(name, bytes, "%s.tmp-%ld-%d", w->path, (long)getpid(), i);
        fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd < 0 && errno != EEXIST) break;
    }
    if (fd >= 0) w->temporary = name; /* from here on closing the writer removes it */
    if (fd < 0 || !(w->stream = fdopen(fd, "wb"))) {
        aim_status status = aim_fail_errno(ctx, "cannot write %s", w->path);
        if (fd >= 0)
            close(fd);
        else
            mem_free(name);
        return status;
    }
    return AIM_OK;
}

aim_status file_writer_open(aim_context *ctx, const char *path, struct file_writer *w)
{
    *w = (struct file_writer){.ctx = ctx, .path = mem_string(ctx, path, MEM_MISC)};
    if (!w->path) return AIM_ERR_MEMORY;
    aim_status status = AIM_OK;
    struct stat st;
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) {
        status = aim_fail(ctx, AIM_ERR_IO, "cannot write %s: it is a directory", path);
    } else if (stat(path, &st) == 0 && !S_ISREG(st.st_mode)) {
        w->stream = fopen(path, "wb");
        if (!w->stream) status = aim_fail_errno(ctx, "cannot write %s", path);
    } else {
        status = open_temporary(w);
    }
    if (status != AIM_OK) file_writer_close(w, false);
    return status;
}

aim_status file_writer_write(struct file_writer *w, const void *data, size_t bytes)
{
    if (bytes && fwrite(data, 1, bytes, w->stream) != bytes) return aim_fail_errno(w->ctx, "cannot write %s", w->path);
    return AIM_OK;
}

/* Makes the rename itself durable; a file system that cannot sync a directory is no reason to fail. */
static void sync_parent(const char *path)
{
    const char *slash = strrchr(path, '/');
    char parent[4096] = ".";
    if (slash && (size_t)(slash - path) < sizeof parent - 1) {
        size_t n = slash == path ? 1 : (size_t)(slash - path);
        memcpy(parent, path, n);
        parent[n] = '\0';
    }
    int fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    fsync(fd);
    close(fd);
}

aim_status file_writer_close(struct file_writer *w, bool keep)
{
    aim_status status = AIM_OK;
    if (w->stream) {
        if (keep && (fflush(w->stream) != 0 || (w->temporary && fsync(fileno(w->stream)) != 0)))
            status = aim_fail_errno(w->ctx, "cannot write %s", w->path);
        if (fclose(w->stream) != 0 && keep && status == AIM_OK) status = aim_fail_errno(w->ctx, "cannot write %s", w->path);
    }
    if (w->temporary) {
        if (keep && status == AIM_OK && rename(w->temporary, w->path) != 0)
            status = aim_fail_errno(w->ctx, "cannot write %s", w->path);
        if (!keep || status != AIM_OK)
            unlink(w->temporary);
        else
            sync_parent(w->path);
    }
    mem_free(w->temporary);
    mem_free(w->path);
    *w = (struct file_writer){0};
    return status;
}
