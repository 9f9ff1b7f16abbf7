/* Keeps what a disk would hold after a power cut: a file or folder as it was when it was last synced.

   Loaded before the C library. The folder $CAI_TEST_DISK receives one file per inode: the content of a file, or the
   names in a folder as lines of "inode kind name". Nothing is synced really, which saves the wait. */

#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

static void keep_names(const char *from, FILE *out) {
    DIR *folder = opendir(from);
    struct dirent *entry;
    struct stat about;
    if (folder == NULL) abort();
    while ((entry = readdir(folder)) != NULL)
        if (fstatat(dirfd(folder), entry->d_name, &about, AT_SYMLINK_NOFOLLOW) == 0)
            fprintf(out, "%lu %d %s\n", (unsigned long)about.st_ino, S_ISDIR(about.st_mode) ? 1 : 0, entry->d_name);
    closedir(folder);
}

static void keep_content(int fd, const char *from, FILE *out) {
    static char piece[1 << 16];
    ssize_t size;
    off_t at = 0;
    /* A second descriptor of a database would drop its locks when closed. */
    int is_mine = (fcntl(fd, F_GETFL) & O_ACCMODE) == O_WRONLY;
    int in = is_mine ? open(from, O_RDONLY) : fd;
    while ((size = pread(in, piece, sizeof piece, at)) > 0) {
        fwrite(piece, 1, (size_t)size, out);
        at += size;
    }
    if (size < 0) abort();
    if (is_mine) close(in);
}

static int keep(int fd) {
    const char *disk = getenv("CAI_TEST_DISK");
    struct stat about;
    char from[64], to[4096], fresh[4104];
    FILE *out;
    if (disk == NULL || fstat(fd, &about) != 0) return 0;
    snprintf(from, sizeof from, "/proc/self/fd/%d", fd);
    snprintf(to, sizeof to, "%s/%lu", disk, (unsigned long)about.st_ino);
    snprintf(fresh, sizeof fresh, "%s.new", to);
    pthread_mutex_lock(&one_at_a_time);
    if ((out = fopen(fresh, "w")) == NULL) abort();
    if (S_ISDIR(about.st_mode)) keep_names(from, out);
    else keep_content(fd, from, out);
    if (fclose(out) != 0 || rename(fresh, to) != 0) abort();
    pthread_mutex_unlock(&one_at_a_time);
    return 0;
}

int fsync(int fd) { return keep(fd); }
int fdatasync(int fd) { return keep(fd); }
