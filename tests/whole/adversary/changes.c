// Log every change of the file system below one folder, in order: a library for LD_PRELOAD. changes.py reads the log.
//
// changes_begin(log, root) begins, changes_end() ends. An entry is a header (struct entry) with one or two absolute
// paths and the data. One lock covers a call and its entry, so that the log has the order of the calls. What a file
// descriptor means is asked of /proc each time, so no table of descriptors can be wrong.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { LONGEST = 2 * PATH_MAX };

struct entry {
  uint8_t what[8];  // the operation; only the first byte is used
  int64_t offset;
  uint64_t path, other, data;  // lengths
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int log_file = -1;
static char root[PATH_MAX];

void changes_begin(const char* log, const char* folder) {
  pthread_mutex_lock(&lock);
  snprintf(root, sizeof root, "%s", folder);
  log_file = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  pthread_mutex_unlock(&lock);
}

void changes_end(void) {
  pthread_mutex_lock(&lock);
  if (log_file >= 0) syscall(SYS_close, log_file);
  log_file = -1;
  pthread_mutex_unlock(&lock);
}

static int below_root(const char* path) {
  size_t length = strlen(root);
  return !strncmp(path, root, length) && (!path[length] || path[length] == '/');
}

static int path_of(int descriptor, char* path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, PATH_MAX - 1);
  path[length < 0 ? 0 : length] = 0;
  return length > 0;
}

static void absolute(int folder, const char* name, char* path) {
  if (name[0] == '/') {
    snprintf(path, LONGEST, "%s", name);
    return;
  }
  if (folder == AT_FDCWD) {
    if (!getcwd(path, PATH_MAX)) path[0] = 0;
  } else {
    path_of(folder, path);
  }
  size_t length = strlen(path);
  snprintf(path + length, LONGEST - length, "/%s", name);
}

static void put(const void* bytes, size_t length) {
  const char* left = bytes;
  while (length) {
    long written = syscall(SYS_write, log_file, left, length);
    if (written <= 0) abort();  // a log with a gap would prove nothing
    left += written;
    length -= (size_t)written;
  }
}

static void note(char what, int64_t offset, const char* path, const char* other, const void* data, size_t length) {
  struct entry entry = {{(uint8_t)what}, offset, strlen(path), strlen(other), length};
  int before = errno;
  put(&entry, sizeof entry);
  put(path, strlen(path));
  put(other, strlen(other));
  put(data, length);
  errno = before;
}

// Whether a descriptor is a file or a folder below the root; its path.
static int traced(int descriptor, char* path) {
  return log_file >= 0 && path_of(descriptor, path) && below_root(path);
}

#define NEXT(name)                            \
  static __typeof__(&name) next;              \
  if (!next) *(void**)&next = dlsym(RTLD_NEXT, #name)
#define LOCKED(type, call)        \
  pthread_mutex_lock(&lock);      \
  type result = (call)
#define UNLOCKED               \
  pthread_mutex_unlock(&lock); \
  return result

// ---- opening

// The paths by which files were created. Rust's libraries rename by a system call of their own, past libc; close then
// finds the file under another name.
static char* created[4096];

static void note_opened(int descriptor, const char* path, int existed, int flags) {
  if (descriptor < 0 || log_file < 0 || !below_root(path)) return;
  if ((flags & O_CREAT) && descriptor < 4096) {
    free(created[descriptor]);
    created[descriptor] = strdup(path);
  }
  if ((flags & O_CREAT) && !existed)
    note('c', 0, path, "", "", 0);
  else if (flags & O_TRUNC)
    note('t', 0, path, "", "", 0);
}

static int exists(const char* path) {
  struct stat about;
  int before = errno, found = !lstat(path, &about);
  errno = before;
  return found;
}

#define OPENED(folder, name, flags, call)   \
  char path[LONGEST];                       \
  absolute(folder, name, path);             \
  int existed = exists(path);               \
  LOCKED(int, call);                        \
  note_opened(result, path, existed, flags); \
  UNLOCKED
#define MODE(flags)                               \
  mode_t mode = 0;                                \
  if ((flags) & (O_CREAT | __O_TMPFILE)) {        \
    va_list more;                                 \
    va_start(more, flags);                        \
    mode = va_arg(more, mode_t);                  \
    va_end(more);                                 \
  }
#define OPEN(function)                                             \
  int function(const char* name, int flags, ...) {                 \
    NEXT(function);                                                \
    MODE(flags)                                                    \
    OPENED(AT_FDCWD, name, flags, next(name, flags, mode));        \
  }
#define OPENAT(function)                                           \
  int function(int folder, const char* name, int flags, ...) {     \
    NEXT(function);                                                \
    MODE(flags)                                                    \
    OPENED(folder, name, flags, next(folder, name, flags, mode));  \
  }
#define FOPEN(function)                                                              \
  FILE* function(const char* name, const char* how) {                                \
    NEXT(function);                                                                  \
    char path[LONGEST];                                                              \
    absolute(AT_FDCWD, name, path);                                                  \
    int existed = exists(path);                                                      \
    LOCKED(FILE*, next(name, how));                                                  \
    int flags = how[0] == 'w' ? O_CREAT | O_TRUNC : how[0] == 'a' ? O_CREAT : 0;     \
    if (result) note_opened(fileno(result), path, existed, flags);                   \
    UNLOCKED;                                                                        \
  }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
FOPEN(fopen)
FOPEN(fopen64)

int creat(const char* name, mode_t mode) { return open(name, O_WRONLY | O_CREAT | O_TRUNC, mode); }
int creat64(const char* name, mode_t mode) { return creat(name, mode); }
int __open_2(const char* name, int flags) { return open(name, flags); }
int __open64_2(const char* name, int flags) { return open(name, flags); }
int __openat_2(int folder, const char* name, int flags) { return openat(folder, name, flags); }
int __openat64_2(int folder, const char* name, int flags) { return openat(folder, name, flags); }

int close(int descriptor) {
  NEXT(close);
  char path[LONGEST];
  pthread_mutex_lock(&lock);
  if (descriptor >= 0 && descriptor < 4096 && created[descriptor]) {
    if (traced(descriptor, path) && strcmp(path, created[descriptor])) note('r', 0, created[descriptor], path, "", 0);
    free(created[descriptor]);
    created[descriptor] = NULL;
  }
  int result = next(descriptor);
  UNLOCKED;
}

// ---- content

// The bytes that were just written, read back: calls that copy from file to file do not show them.
static void note_copied(int descriptor, const char* path, int64_t offset, ssize_t length) {
  char link[64], *data = malloc((size_t)length);
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  int again = (int)syscall(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC);
  if (!data || again < 0 || pread(again, data, (size_t)length, offset) != length) abort();
  syscall(SYS_close, again);
  note('w', offset, path, "", data, (size_t)length);
  free(data);
}

// `at` is the offset of the call, or -1 where the file's own position counts, which is now behind the bytes.
static void note_written(int descriptor, const void* data, ssize_t length, int64_t at) {
  char path[LONGEST];
  if (length <= 0 || !traced(descriptor, path)) return;
  int64_t offset = at >= 0 ? at : lseek(descriptor, 0, SEEK_CUR) - length;
  if (data)
    note('w', offset, path, "", data, (size_t)length);
  else
    note_copied(descriptor, path, offset, length);
}

#define WRITING(function, parameters, arguments, descriptor, data, at) \
  ssize_t function parameters {                                        \
    NEXT(function);                                                    \
    if (log_file < 0) return next arguments;                           \
    LOCKED(ssize_t, next arguments);                                   \
    note_written(descriptor, data, result, at);                        \
    UNLOCKED;                                                          \
  }
WRITING(write, (int file, const void* data, size_t length), (file, data, length), file, data, -1)
WRITING(pwrite, (int file, const void* data, size_t length, off_t at), (file, data, length, at), file, data, at)
WRITING(pwrite64, (int file, const void* data, size_t length, off64_t at), (file, data, length, at), file, data, at)
WRITING(writev, (int file, const struct iovec* parts, int n), (file, parts, n), file, NULL, -1)
WRITING(pwritev, (int file, const struct iovec* parts, int n, off_t at), (file, parts, n, at), file, NULL, at)
WRITING(pwritev64, (int file, const struct iovec* parts, int n, off64_t at), (file, parts, n, at), file, NULL, at)
ssize_t sendfile(int, int, off_t*, size_t);
ssize_t sendfile64(int, int, off64_t*, size_t);
WRITING(sendfile, (int to, int from, off_t* at, size_t length), (to, from, at, length), to, NULL, -1)
WRITING(sendfile64, (int to, int from, off64_t* at, size_t length), (to, from, at, length), to, NULL, -1)

ssize_t copy_file_range(int from, off64_t* at, int to, off64_t* into, size_t length, unsigned flags) {
  NEXT(copy_file_range);
  int64_t offset = into ? *into : -1;
  LOCKED(ssize_t, next(from, at, to, into, length, flags));
  note_written(to, NULL, result, offset);
  UNLOCKED;
}

static void note_size(int failed, int descriptor) {
  char path[LONGEST];
  struct stat about;
  if (!failed && traced(descriptor, path) && !fstat(descriptor, &about))
    note('t', about.st_size, path, "", "", 0);
}

#define SIZING(function, parameters, arguments) \
  int function parameters {                     \
    NEXT(function);                             \
    LOCKED(int, next arguments);                \
    note_size(result, file);                    \
    UNLOCKED;                                   \
  }
SIZING(ftruncate, (int file, off_t size), (file, size))
SIZING(ftruncate64, (int file, off64_t size), (file, size))
SIZING(fallocate, (int file, int mode, off_t at, off_t length), (file, mode, at, length))
SIZING(fallocate64, (int file, int mode, off64_t at, off64_t length), (file, mode, at, length))
SIZING(posix_fallocate, (int file, off_t at, off_t length), (file, at, length))
SIZING(posix_fallocate64, (int file, off64_t at, off64_t length), (file, at, length))

#define MAPPING(function, offset_type)                                                                   \
  void* function(void* where, size_t length, int protection, int flags, int file, offset_type at) {      \
    NEXT(function);                                                                                      \
    char path[LONGEST];                                                                                  \
    if (log_file >= 0 && file >= 0 && (protection & PROT_WRITE) && (flags & MAP_SHARED)) {               \
      pthread_mutex_lock(&lock);                                                                         \
      if (traced(file, path)) note('x', 0, path, "", "mapped", 6);                       \
      pthread_mutex_unlock(&lock);                                                                       \
    }                                                                                                    \
    return next(where, length, protection, flags, file, at);                                             \
  }
MAPPING(mmap, off_t)
MAPPING(mmap64, off64_t)

// ---- flushing

#define FLUSHING(function)                                                       \
  int function(int file) {                                                       \
    NEXT(function);                                                              \
    char path[LONGEST];                                                          \
    LOCKED(int, next(file));                                                     \
    if (!result && traced(file, path)) note('s', 0, path, "", "", 0); \
    UNLOCKED;                                                                    \
  }
FLUSHING(fsync)
FLUSHING(fdatasync)

// ---- names

static void note_names(int failed, char what, int folder, const char* name, int other_folder, const char* other) {
  char path[LONGEST], other_path[LONGEST] = "";
  if (failed || log_file < 0) return;
  absolute(folder, name, path);
  if (other) absolute(other_folder, other, other_path);
  if (below_root(path) || below_root(other_path))
    note(what, 0, path, other_path, "", 0);
}

#define NAMING(function, parameters, arguments, what, folder, name, other_folder, other) \
  int function parameters {                                                              \
    NEXT(function);                                                                      \
    LOCKED(int, next arguments);                                                         \
    note_names(result, what, folder, name, other_folder, other);                         \
    UNLOCKED;                                                                            \
  }
#define HERE AT_FDCWD
NAMING(rename, (const char* a, const char* b), (a, b), 'r', HERE, a, HERE, b)
NAMING(renameat, (int at, const char* a, int bt, const char* b), (at, a, bt, b), 'r', at, a, bt, b)
NAMING(renameat2, (int at, const char* a, int bt, const char* b, unsigned f), (at, a, bt, b, f), f > 1 ? 'x' : 'r', at, a, bt, b)
NAMING(link, (const char* a, const char* b), (a, b), 'l', HERE, a, HERE, b)
NAMING(linkat, (int at, const char* a, int bt, const char* b, int f), (at, a, bt, b, f), 'l', at, a, bt, b)
NAMING(symlink, (const char* a, const char* b), (a, b), 'x', HERE, b, HERE, NULL)
NAMING(symlinkat, (const char* a, int bt, const char* b), (a, bt, b), 'x', bt, b, HERE, NULL)
NAMING(unlink, (const char* a), (a), 'u', HERE, a, HERE, NULL)
NAMING(unlinkat, (int at, const char* a, int f), (at, a, f), 'u', at, a, HERE, NULL)
NAMING(rmdir, (const char* a), (a), 'u', HERE, a, HERE, NULL)
NAMING(remove, (const char* a), (a), 'u', HERE, a, HERE, NULL)
NAMING(mkdir, (const char* a, mode_t m), (a, m), 'm', HERE, a, HERE, NULL)
NAMING(mkdirat, (int at, const char* a, mode_t m), (at, a, m), 'm', at, a, HERE, NULL)
NAMING(truncate, (const char* a, off_t s), (a, s), 'x', HERE, a, HERE, NULL)
NAMING(truncate64, (const char* a, off64_t s), (a, s), 'x', HERE, a, HERE, NULL)
