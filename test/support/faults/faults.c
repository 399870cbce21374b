/*
 * Calls on files that fail or hang, for tests of the journal. A VM has it preloaded.
 *
 * FAULTS_UNDER is a directory: only calls on files below it are of interest. FAULTS is a directory with
 * the faults: a file with the name of a call, whose text is `fail 5`, with a number of an error; `once 5`,
 * for the next call alone; or `hang`, as long as the file is there. Each call that is not a read adds a
 * line to FAULTS/calls: its name, its file, and 0 or the error.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* The work below is done by system calls, so that it does not come here again. */
static long open_raw(const char *path, int flags) { return syscall(SYS_openat, AT_FDCWD, path, flags, 0600); }

static int is_below(const char *path) {
  const char *under = getenv("FAULTS_UNDER");
  return under != NULL && strncmp(path, under, strlen(under)) == 0;
}

/* The path of an open file; empty if it has none. */
static const char *path_of(int file, char *path, size_t size) {
  char link[32];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, size - 1);
  path[length < 0 ? 0 : length] = 0;
  return path;
}

static void note(const char *call, const char *path, int error) {
  char name[4096], line[4200];
  snprintf(name, sizeof name, "%s/calls", getenv("FAULTS"));
  int length = snprintf(line, sizeof line, "%s %s %d\n", call, path, error);
  long calls = open_raw(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC);
  if (calls >= 0) {
    syscall(SYS_write, calls, line, length);
    syscall(SYS_close, calls);
  }
}

/* The error that a call on a file is to have, or 0. */
static int fault(const char *call, const char *path) {
  char name[4096], text[32];
  int error = 0;
  if (getenv("FAULTS") == NULL || !is_below(path)) return 0;
  snprintf(name, sizeof name, "%s/%s", getenv("FAULTS"), call);
  for (;;) {
    long file = open_raw(name, O_RDONLY | O_CLOEXEC);
    if (file < 0) break;
    long length = syscall(SYS_read, file, text, sizeof text - 1);
    syscall(SYS_close, file);
    text[length < 0 ? 0 : length] = 0;
    if (strncmp(text, "hang", 4) != 0) {
      if (sscanf(text, "once %d", &error) == 1) syscall(SYS_unlinkat, AT_FDCWD, name, 0);
      else sscanf(text, "fail %d", &error);
      break;
    }
    usleep(1000);
  }
  if (strcmp(call, "read") != 0) note(call, path, error);
  return error;
}

#define FAIL_IF(call, path)              \
  do {                                   \
    int error = fault(call, path);       \
    if (error != 0) {                    \
      errno = error;                     \
      return -1;                         \
    }                                    \
  } while (0)

#define NEXT(type, name, ...)                                              \
  static type (*next)(__VA_ARGS__);                                        \
  if (next == NULL) next = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

ssize_t writev(int file, const struct iovec *parts, int count) {
  char path[4096];
  NEXT(ssize_t, "writev", int, const struct iovec *, int);
  FAIL_IF("write", path_of(file, path, sizeof path));
  return next(file, parts, count);
}

ssize_t write(int file, const void *bytes, size_t length) {
  char path[4096];
  NEXT(ssize_t, "write", int, const void *, size_t);
  FAIL_IF("write", path_of(file, path, sizeof path));
  return next(file, bytes, length);
}

ssize_t read(int file, void *bytes, size_t length) {
  char path[4096];
  NEXT(ssize_t, "read", int, void *, size_t);
  FAIL_IF("read", path_of(file, path, sizeof path));
  return next(file, bytes, length);
}

int fdatasync(int file) {
  char path[4096];
  NEXT(int, "fdatasync", int);
  FAIL_IF("fdatasync", path_of(file, path, sizeof path));
  return next(file);
}

static int open_mode(va_list arguments, int flags) { return flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, int) : 0; }

int open(const char *path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  int mode = open_mode(arguments, flags);
  va_end(arguments);
  NEXT(int, "open", const char *, int, ...);
  FAIL_IF("open", path);
  return next(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  int mode = open_mode(arguments, flags);
  va_end(arguments);
  NEXT(int, "open64", const char *, int, ...);
  FAIL_IF("open", path);
  return next(path, flags, mode);
}

int unlink(const char *path) {
  NEXT(int, "unlink", const char *);
  FAIL_IF("unlink", path);
  return next(path);
}
