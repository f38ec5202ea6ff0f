/* A disk that fails when a test says so, put between SQLite and the kernel by LD_PRELOAD.
 *
 * The file that SAFEDB_TEST_FAULTS names is mapped by the test and by every process that it breaks: it holds rules, and
 * counts how often each was hit (`shim.py` knows the same layout). What is mapped by SQLite itself (the contents of
 * -shm) is not seen here; the single bytes by which it makes -shm longer are.
 *
 * Where SAFEDB_TEST_PLATTER names a folder, that folder holds what a power failure would leave: the pages of the
 * databases and their WALs that had been flushed. A flush that fails drops what it should have written, as Linux does:
 * the pages count as clean from then on, so that the next flush, which succeeds, does not write them either.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { WRITE = 1, SYNC = 2, TRUNCATE = 4, OPEN = 8 };
enum { RULES = 8, FILES = 512, PAGE = 4096, PAGES = 1 << 15 };

struct rule {
    uint32_t on;      /* set last of all, cleared first of all */
    uint32_t calls;   /* which */
    int32_t skip;     /* this many pass first */
    int32_t times;    /* this many are hit; all, if negative */
    int32_t error;    /* what the call fails with; 0: it does not */
    int32_t partial;  /* a write takes this many bytes at the most; no limit, if negative */
    uint32_t delay;   /* microseconds before anything else; UINT32_MAX: until the rule is taken away */
    uint32_t hits;
    char pattern[64]; /* of the file's name, as in a shell */
};

static struct rule *rules;

static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_write)(int, const void *, size_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_ftruncate)(int, off_t);
static int (*real_open)(const char *, int, ...);

static const char *name_of(int fd, char *buffer)
{
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, buffer, PATH_MAX - 1);
    buffer[length < 0 ? 0 : length] = 0;
    char *gone = strstr(buffer, " (deleted)"); /* SQLite's temporary files have no name any more */
    if (gone)
        *gone = 0;
    return buffer;
}

/* Take one from a counter that other threads and processes take from too; tell whether there was one. */
static int take_one(int32_t *counter)
{
    int32_t left = __atomic_load_n(counter, __ATOMIC_SEQ_CST);
    while (left > 0)
        if (__atomic_compare_exchange_n(counter, &left, left - 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            return 1;
    return 0;
}

/* Apply the rules to one call: return the errno it fails with, or 0; `count` is what may be written. */
static int hit(uint32_t call, int fd, const char *path, size_t *count)
{
    char buffer[PATH_MAX];
    int error = 0;
    for (int i = 0; rules && i < RULES; i++) {
        struct rule *rule = &rules[i];
        if (!__atomic_load_n(&rule->on, __ATOMIC_SEQ_CST) || !(rule->calls & call))
            continue;
        if (!path)
            path = name_of(fd, buffer);
        if (fnmatch(rule->pattern, path, 0) || take_one(&rule->skip))
            continue;
        if (rule->times >= 0 && !take_one(&rule->times))
            continue;
        __atomic_add_fetch(&rule->hits, 1, __ATOMIC_SEQ_CST);
        if (rule->delay != UINT32_MAX)
            usleep(rule->delay);
        while (rule->delay == UINT32_MAX && __atomic_load_n(&rule->on, __ATOMIC_SEQ_CST))
            usleep(500);
        if (count && rule->partial >= 0 && *count > (size_t)rule->partial)
            *count = (size_t)rule->partial;
        if (rule->error)
            error = rule->error;
    }
    return error;
}

/* -- what a power failure would leave ------------------------------------------------------------------------------ */

struct file {
    char path[PATH_MAX];
    dev_t device;
    ino_t inode;
    int platter;
    off_t shortest; /* it was cut to this since the last flush */
    off_t pages;    /* no page behind this one is dirty */
    unsigned char dirty[PAGES];
};

static const char *platters;
static struct file *files[FILES];
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;

/* Find what is known of a file; a new one takes the place of an older one of its name. The guard is held. */
static struct file *find(int fd)
{
    char buffer[PATH_MAX], copy[PATH_MAX + 256];
    struct stat found;
    const char *path = name_of(fd, buffer);
    if (fnmatch("*.db", path, 0) && fnmatch("*.db-wal", path, 0))
        return NULL;
    if (fstat(fd, &found))
        abort();
    for (int i = 0; i < FILES; i++) {
        if (!files[i]) {
            files[i] = calloc(1, sizeof **files);
            strcpy(files[i]->path, path);
            files[i]->device = found.st_dev;
            files[i]->inode = found.st_ino;
            files[i]->shortest = LLONG_MAX;
            snprintf(copy, sizeof copy, "%s/%s", platters, strrchr(path, '/') + 1);
            files[i]->platter = real_open(copy, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
            if (files[i]->platter < 0)
                abort();
        }
        if (files[i]->device == found.st_dev && files[i]->inode == found.st_ino && !strcmp(files[i]->path, path))
            return files[i];
    }
    abort();
}

static void written(int fd, off_t from, off_t to)
{
    pthread_mutex_lock(&guard);
    struct file *file = find(fd);
    for (off_t page = from / PAGE; file && page * PAGE < to; page++) {
        if (page >= PAGES)
            abort();
        file->dirty[page] = 1;
        if (page >= file->pages)
            file->pages = page + 1;
    }
    pthread_mutex_unlock(&guard);
}

static void cut(int fd, off_t size)
{
    pthread_mutex_lock(&guard);
    struct file *file = find(fd);
    if (file && size < file->shortest)
        file->shortest = size;
    pthread_mutex_unlock(&guard);
}

static void flushed(int fd, int failed)
{
    char page[PAGE];
    struct stat found;
    pthread_mutex_lock(&guard);
    struct file *file = find(fd);
    if (file && !failed) {
        if (fstat(fd, &found) || (file->shortest < LLONG_MAX && real_ftruncate(file->platter, file->shortest)) ||
            real_ftruncate(file->platter, found.st_size))
            abort();
        file->shortest = LLONG_MAX;
    }
    for (off_t i = 0; file && i < file->pages; i++) {
        if (!file->dirty[i])
            continue;
        file->dirty[i] = 0;
        ssize_t count = failed ? 0 : pread(fd, page, PAGE, i * PAGE);
        if (count < 0 || real_pwrite(file->platter, page, (size_t)count, i * PAGE) != count)
            abort();
    }
    if (file)
        file->pages = 0;
    pthread_mutex_unlock(&guard);
}

/* -- the calls ----------------------------------------------------------------------------------------------------- */

__attribute__((constructor)) static void begin(void)
{
    real_pwrite = (ssize_t(*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite64");
    real_write = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    real_fsync = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    real_ftruncate = (int (*)(int, off_t))dlsym(RTLD_NEXT, "ftruncate64");
    real_open = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open64");
    platters = getenv("SAFEDB_TEST_PLATTER");
    const char *path = getenv("SAFEDB_TEST_FAULTS");
    int fd = path ? real_open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    rules = mmap(NULL, RULES * sizeof *rules, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (rules == MAP_FAILED)
        abort();
}

ssize_t pwrite64(int fd, const void *data, size_t count, off64_t offset)
{
    int error = rules ? hit(WRITE, fd, NULL, &count) : 0;
    if (error) {
        errno = error;
        return -1;
    }
    ssize_t done = real_pwrite(fd, data, count, offset);
    if (platters && done > 0)
        written(fd, offset, offset + done);
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t count, off_t offset)
{
    return pwrite64(fd, data, count, offset);
}

ssize_t write(int fd, const void *data, size_t count)
{
    int error = rules ? hit(WRITE, fd, NULL, &count) : 0;
    if (error) {
        errno = error;
        return -1;
    }
    return real_write(fd, data, count);
}

static int flush(int fd, int (*real)(int))
{
    int error = rules ? hit(SYNC, fd, NULL, NULL) : 0;
    int result = error ? -1 : real(fd);
    if (platters)
        flushed(fd, result);
    if (error)
        errno = error;
    return result;
}

int fsync(int fd)
{
    return flush(fd, real_fsync);
}

int fdatasync(int fd)
{
    return flush(fd, real_fdatasync);
}

int ftruncate64(int fd, off64_t size)
{
    int error = rules ? hit(TRUNCATE, fd, NULL, NULL) : 0;
    if (error) {
        errno = error;
        return -1;
    }
    int result = real_ftruncate(fd, size);
    if (platters && !result)
        cut(fd, size);
    return result;
}

int ftruncate(int fd, off_t size)
{
    return ftruncate64(fd, size);
}

int open64(const char *path, int flags, ...)
{
    va_list more;
    va_start(more, flags);
    mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(more, mode_t) : 0;
    va_end(more);
    int error = rules ? hit(OPEN, -1, path, NULL) : 0;
    if (error) {
        errno = error;
        return -1;
    }
    return real_open(path, flags, mode);
}

int open(const char *path, int flags, ...)
{
    va_list more;
    va_start(more, flags);
    mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(more, mode_t) : 0;
    va_end(more);
    return open64(path, flags, mode);
}
