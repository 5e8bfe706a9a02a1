/* Records what a process asks the file system to make durable: an LD_PRELOAD library for tests/faults/test_f02_power_loss.py.
 *
 * For files below DAGSEAL_RECORD_ROOTS (absolute, separated by ':') every change of bytes or names and every fsync is appended
 * to DAGSEAL_RECORD_LOG as one record, in the order in which it happened: a call and its record are one critical section.
 * Whoever kills a recorded process holds the log's lock (flock) meanwhile: a system call that has begun ends also in a process
 * that is killed, and its record would be missing.
 * Files are named by inode, so that a record means the same whatever became of the name. Not recorded: *-shm, the memory that
 * SQLite's connections share and rebuild.
 *
 * Also recorded is the beginning of what is sent over sockets, where it says what was promised to somebody else.
 *
 * When the file DAGSEAL_RECORD_TRIGGER holds "p k", the process p kills itself just before the k-th fsync that it then makes.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CREATE = 1, MKDIR, WRITE, TRUNCATE, RENAME, LINK, UNLINK, FSYNC, SAY };

struct record {
    uint32_t kind, pid;
    uint64_t inode, folder, to_folder, offset;
    uint32_t name_bytes, to_name_bytes, data_bytes, zero;
};

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static int fsyncs;

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) real = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

static int log_fd(void) {
    static int fd = -1;
    static pid_t owner;
    const char *path = getenv("DAGSEAL_RECORD_LOG");
    if (!path) return -1;
    if (owner != getpid()) { /* at first, and after a fork that closed everything */
        fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_APPEND | O_CLOEXEC);
        if (fd >= 0 && fd < 100) { /* out of the way of descriptors with fixed numbers */
            int high = fcntl(fd, F_DUPFD_CLOEXEC, 500);
            syscall(SYS_close, fd);
            fd = high;
        }
        owner = getpid();
    }
    return fd;
}

/* From here to `end` nothing happens but one call and its record: no other thread's, and no kill. */
static void begin(void) {
    int kept = errno;
    pthread_mutex_lock(&turn);
    while (flock(log_fd(), LOCK_SH) && errno == EINTR) {}
    errno = kept;
}

static void end(void) {
    int kept = errno;
    flock(log_fd(), LOCK_UN);
    pthread_mutex_unlock(&turn);
    errno = kept;
}

static void put(int kind, uint64_t inode, uint64_t folder, const char *name, uint64_t to_folder, const char *to_name,
                uint64_t offset, const void *data, size_t count) {
    int fd = log_fd();
    struct record head = {kind, (uint32_t)getpid(), inode, folder, to_folder, offset,
                          (uint32_t)strlen(name), (uint32_t)strlen(to_name), (uint32_t)count, 0};
    struct iovec parts[] = {{&head, sizeof head},
                            {(void *)name, head.name_bytes},
                            {(void *)to_name, head.to_name_bytes},
                            {(void *)data, count}};
    ssize_t whole = (ssize_t)(sizeof head + head.name_bytes + head.to_name_bytes + count);
    if (fd >= 0 && syscall(SYS_writev, fd, parts, 4) != whole) abort(); /* an incomplete record would prove nothing */
}

static int below(const char *path) {
    const char *root = getenv("DAGSEAL_RECORD_ROOTS");
    size_t length = strlen(path);
    if (length > 4 && !strcmp(path + length - 4, "-shm")) return 0;
    while (root && *root) {
        size_t n = strcspn(root, ":");
        if (!strncmp(path, root, n) && (path[n] == '/' || path[n] == 0)) return 1;
        root += n + (root[n] == ':');
    }
    return 0;
}

static int path_of(int fd, char *path, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, size - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return 1;
}

/* The inode behind a descriptor that is below a root, or 0. */
static uint64_t watched(int fd) {
    char path[4096];
    struct stat found;
    int kept = errno;
    uint64_t inode = path_of(fd, path, sizeof path) && below(path) && !fstat(fd, &found) ? found.st_ino : 0;
    errno = kept;
    return inode;
}

/* Where a name is: the inode of its folder, or 0 when that is not below a root. `base` is its last part. */
static uint64_t place(int folder, const char *path, char base[256]) {
    char full[8192] = "";
    struct stat found;
    int kept = errno;
    uint64_t inode = 0;
    if (path[0] != '/') {
        if (folder == AT_FDCWD ? !getcwd(full, 4096) : !path_of(folder, full, 4096)) goto out;
        strcat(full, "/");
    }
    if (strlen(full) + strlen(path) >= sizeof full) goto out;
    strcat(full, path);
    if (!below(full)) goto out;
    char *slash = strrchr(full, '/');
    snprintf(base, 256, "%s", slash + 1);
    *slash = 0;
    if (*base && below(full) && !stat(full, &found)) inode = found.st_ino;
out:
    errno = kept;
    return inode;
}

static uint64_t inode_at(int folder, const char *path) {
    struct stat found;
    int kept = errno;
    uint64_t inode = fstatat(folder, path, &found, AT_SYMLINK_NOFOLLOW) ? 0 : found.st_ino;
    errno = kept;
    return inode;
}

static int opened(int (*really)(int, const char *, int, mode_t), int folder, const char *path, int flags, mode_t mode) {
    char base[256];
    if (!(flags & (O_CREAT | O_TRUNC))) return really(folder, path, flags, mode);
    uint64_t in = place(folder, path, base);
    if (!in) return really(folder, path, flags, mode);
    begin();
    uint64_t before = inode_at(folder, path);
    int fd = really(folder, path, flags, mode);
    if (fd >= 0) {
        if (!before) put(CREATE, inode_at(folder, path), in, base, 0, "", 0, "", 0);
        else if (flags & O_TRUNC) put(TRUNCATE, before, 0, "", 0, "", 0, "", 0);
    }
    end();
    return fd;
}

static int real_openat(int folder, const char *path, int flags, mode_t mode) {
    REAL(int, openat64, int, const char *, int, ...);
    return real(folder, path, flags, mode);
}

#define MODE(flags, mode) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }

int open(const char *path, int flags, ...) { MODE(flags, mode) return opened(real_openat, AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags, mode) return opened(real_openat, AT_FDCWD, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE(flags, mode) return opened(real_openat, folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE(flags, mode) return opened(real_openat, folder, path, flags, mode); }

static uint64_t position(int fd) {
    struct stat found;
    if (fcntl(fd, F_GETFL) & O_APPEND) return fstat(fd, &found) ? 0 : (uint64_t)found.st_size;
    return (uint64_t)lseek(fd, 0, SEEK_CUR);
}

ssize_t write(int fd, const void *data, size_t count) {
    REAL(ssize_t, write, int, const void *, size_t);
    uint64_t inode = watched(fd);
    if (!inode) return real(fd, data, count);
    begin();
    uint64_t at = position(fd);
    ssize_t done = real(fd, data, count);
    if (done > 0) put(WRITE, inode, 0, "", 0, "", at, data, (size_t)done);
    end();
    return done;
}

static ssize_t placed(int fd, const void *data, size_t count, off64_t at) {
    REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    uint64_t inode = watched(fd);
    if (!inode) return real(fd, data, count, at);
    begin();
    ssize_t done = real(fd, data, count, at);
    if (done > 0) put(WRITE, inode, 0, "", 0, "", (uint64_t)at, data, (size_t)done);
    end();
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t count, off_t at) { return placed(fd, data, count, at); }
ssize_t pwrite64(int fd, const void *data, size_t count, off64_t at) { return placed(fd, data, count, at); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    uint64_t inode = watched(fd);
    if (!inode) return real(fd, parts, count);
    begin();
    uint64_t at = position(fd);
    ssize_t done = real(fd, parts, count), left = done;
    for (int i = 0; i < count && left > 0; i++) {
        size_t n = parts[i].iov_len < (size_t)left ? parts[i].iov_len : (size_t)left;
        put(WRITE, inode, 0, "", 0, "", at, parts[i].iov_base, n);
        at += n;
        left -= (ssize_t)n;
    }
    end();
    return done;
}

static int shortened(int fd, off64_t size) {
    REAL(int, ftruncate64, int, off64_t);
    uint64_t inode = watched(fd);
    if (!inode) return real(fd, size);
    begin();
    int failed = real(fd, size);
    if (!failed) put(TRUNCATE, inode, 0, "", 0, "", (uint64_t)size, "", 0);
    end();
    return failed;
}

int ftruncate(int fd, off_t size) { return shortened(fd, size); }
int ftruncate64(int fd, off64_t size) { return shortened(fd, size); }

int renameat(int from, const char *old, int to, const char *new) {
    REAL(int, renameat, int, const char *, int, const char *);
    char old_base[256], new_base[256];
    uint64_t in = place(from, old, old_base), into = place(to, new, new_base);
    if (!in && !into) return real(from, old, to, new);
    begin();
    uint64_t inode = inode_at(from, old);
    int failed = real(from, old, to, new);
    if (!failed) put(RENAME, inode, in, old_base, into, new_base, 0, "", 0);
    end();
    return failed;
}

int rename(const char *old, const char *new) { return renameat(AT_FDCWD, old, AT_FDCWD, new); }

int linkat(int from, const char *old, int to, const char *new, int flags) {
    REAL(int, linkat, int, const char *, int, const char *, int);
    char old_base[256], new_base[256];
    uint64_t in = place(from, old, old_base), into = place(to, new, new_base);
    if (!into) return real(from, old, to, new, flags);
    begin();
    int failed = real(from, old, to, new, flags);
    if (!failed) put(LINK, inode_at(to, new), in, old_base, into, new_base, 0, "", 0);
    end();
    return failed;
}

int link(const char *old, const char *new) { return linkat(AT_FDCWD, old, AT_FDCWD, new, 0); }

int unlinkat(int folder, const char *path, int flags) {
    REAL(int, unlinkat, int, const char *, int);
    char base[256];
    uint64_t in = place(folder, path, base);
    if (!in) return real(folder, path, flags);
    begin();
    int failed = real(folder, path, flags);
    if (!failed) put(UNLINK, 0, in, base, 0, "", 0, "", 0);
    end();
    return failed;
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int folder, const char *path, mode_t mode) {
    REAL(int, mkdirat, int, const char *, mode_t);
    char base[256];
    uint64_t in = place(folder, path, base);
    if (!in) return real(folder, path, mode);
    begin();
    int failed = real(folder, path, mode);
    if (!failed) put(MKDIR, inode_at(folder, path), in, base, 0, "", 0, "", 0);
    end();
    return failed;
}

int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

static void perhaps_die(void) {
    const char *path = getenv("DAGSEAL_RECORD_TRIGGER");
    char text[32] = "";
    int pid, wanted;
    int fd = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    ssize_t n = read(fd, text, sizeof text - 1);
    syscall(SYS_close, fd);
    if (n > 0 && sscanf(text, "%d %d", &pid, &wanted) == 2 && pid == getpid() && ++fsyncs == wanted) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
}

static int synced(int (*really)(int), int fd) {
    uint64_t inode = watched(fd);
    if (!inode) return really(fd);
    begin();
    perhaps_die();
    int failed = really(fd);
    if (!failed) put(FSYNC, inode, 0, "", 0, "", 0, "", 0);
    end();
    return failed;
}

int fsync(int fd) { REAL(int, fsync, int); return synced(real, fd); }
int fdatasync(int fd) { REAL(int, fdatasync, int); return synced(real, fd); }

static void said(const void *data, size_t count) {
    size_t some = count < 600 ? count : 600;
    if (!getenv("DAGSEAL_RECORD_LOG") || some < 8) return;
    const char *kind = memmem(data, count, "\"kind\":\"", 8);
    int kept = errno;
    begin();
    if (!memcmp(data, "POST /v1", 8)) put(SAY, 0, 0, "", 0, "", 0, data, some);
    else if (kind) put(SAY, 0, 0, memmem(data, count, "\"job\":\"run\"", 11) ? "run" : "", 0, "", 0, kind + 8,
                       strcspn(kind + 8, "\""));
    end();
    errno = kept;
}

ssize_t send(int fd, const void *data, size_t count, int flags) {
    REAL(ssize_t, send, int, const void *, size_t, int);
    said(data, count);
    return real(fd, data, count, flags);
}

ssize_t sendto(int fd, const void *data, size_t count, int flags, const struct sockaddr *to, socklen_t size) {
    REAL(ssize_t, sendto, int, const void *, size_t, int, const struct sockaddr *, socklen_t);
    said(data, count);
    return real(fd, data, count, flags, to, size);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    REAL(ssize_t, sendmsg, int, const struct msghdr *, int);
    if (message->msg_iovlen) said(message->msg_iov[0].iov_base, message->msg_iov[0].iov_len);
    return real(fd, message, flags);
}
