/* The program at the start of a bundle. It is linked statically and needs no other file.

   It finds the code in its own file, unpacks the code into a folder named after the file's hash
   unless an earlier start did so, and becomes the unpacked program. matryo/store/bundle.py
   describes the format; both files must agree. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define MAGIC "matryo bundle 1\n"
#define PATH_BYTES 4096

struct footer { /* little-endian, as every processor that a bundle is made for */
    char magic[16];
    uint64_t file_bytes, code_offset, code_bytes, index_offset, index_bytes;
    uint8_t code_sha256[32], index_sha256[32];
    uint8_t sha256[32]; /* of all bytes of the footer before these */
};

static char program[PATH_BYTES]; /* path of the bundle */

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("error: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

/* --- SHA-256, FIPS 180-4 */

static const uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t turn(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void sha256_block(uint32_t state[8], const uint8_t *block) {
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)block[4 * i] << 24 | block[4 * i + 1] << 16 | block[4 * i + 2] << 8 |
               block[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        uint32_t a = turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t b = turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + a + w[i - 7] + b;
    }
    memcpy(s, state, sizeof s);
    for (int i = 0; i < 64; i++) {
        uint32_t a = s[7] + (turn(s[4], 6) ^ turn(s[4], 11) ^ turn(s[4], 25)) +
                     ((s[4] & s[5]) ^ (~s[4] & s[6])) + K[i] + w[i];
        uint32_t b = (turn(s[0], 2) ^ turn(s[0], 13) ^ turn(s[0], 22)) +
                     ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, 7 * sizeof *s);
        s[4] += a;
        s[0] = a + b;
    }
    for (int i = 0; i < 8; i++) state[i] += s[i];
}

static void sha256(const uint8_t *data, uint64_t n_bytes, uint8_t out[32]) {
    uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    uint8_t last[128] = {0};
    uint64_t n_whole = n_bytes / 64 * 64, n_rest = n_bytes - n_whole;
    uint64_t n_last = n_rest < 56 ? 64 : 128;
    for (uint64_t at = 0; at < n_whole; at += 64) sha256_block(state, data + at);
    memcpy(last, data + n_whole, n_rest);
    last[n_rest] = 0x80;
    for (int i = 0; i < 8; i++) last[n_last - 1 - i] = (uint8_t)(n_bytes * 8 >> 8 * i);
    for (uint64_t at = 0; at < n_last; at += 64) sha256_block(state, last + at);
    for (int i = 0; i < 32; i++) out[i] = (uint8_t)(state[i / 4] >> (24 - 8 * (i % 4)));
}

/* --- the file */

static void damaged(const char *what) {
    fail("%s is damaged: %s. Copy the file again.", program, what);
}

static struct footer read_footer(int file) {
    struct footer footer;
    struct stat status;
    uint8_t found[32];
    if (fstat(file, &status) || status.st_size < (off_t)sizeof footer ||
        pread(file, &footer, sizeof footer, status.st_size - (off_t)sizeof footer) !=
            (ssize_t)sizeof footer ||
        memcmp(footer.magic, MAGIC, sizeof footer.magic))
        damaged("it does not end with the footer of a bundle");
    sha256((uint8_t *)&footer, offsetof(struct footer, sha256), found);
    if (memcmp(found, footer.sha256, sizeof found)) damaged("the sha256 of its footer is wrong");
    if (footer.file_bytes != (uint64_t)status.st_size) damaged("it has another size");
    return footer;
}

/* --- the folder that the code is unpacked into */

static int make_folders(const char *path) {
    char part[PATH_BYTES];
    for (const char *slash = path; (slash = strchr(slash + 1, '/'));) {
        snprintf(part, sizeof part, "%.*s", (int)(slash - path), path);
        if (mkdir(part, 0755) && errno != EEXIST && access(part, F_OK)) return -1;
    }
    return mkdir(path, 0700) && errno != EEXIST ? -1 : 0;
}

/* Write the path of a folder that this user may write and nobody else; 0, or -1 and errno. */
static int usable(char *out, const char *parent, const char *child) {
    struct stat status;
    if (snprintf(out, PATH_BYTES, "%s/%s", parent, child) >= PATH_BYTES / 2) {
        errno = ENAMETOOLONG;
        return -1;
    }
    if (make_folders(out) || stat(out, &status)) return -1;
    if (status.st_uid != geteuid() || status.st_mode & 022) {
        errno = EPERM; /* another user could change the code */
        return -1;
    }
    return 0;
}

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *ftw) {
    (void)status, (void)kind, (void)ftw;
    return remove(path);
}

static void remove_folder(const char *path) { nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS); }

static int write_file(const char *path, int mode, const uint8_t *data, uint64_t n_bytes) {
    int file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    if (file < 0) return -1;
    while (n_bytes) {
        ssize_t n = write(file, data, n_bytes > 1 << 30 ? 1 << 30 : n_bytes);
        if (n < 0) {
            close(file);
            return -1;
        }
        data += n;
        n_bytes -= (uint64_t)n;
    }
    return close(file);
}

/* Unpack a tar archive in the ustar format; 0, or -1 and errno. */
static int unpack(const uint8_t *tar, uint64_t n_bytes, const char *folder) {
    char path[PATH_BYTES];
    for (uint64_t at = 0; at + 512 <= n_bytes && tar[at];) {
        const char *head = (const char *)tar + at;
        uint64_t size = strtoull(head + 124, NULL, 8);
        int mode = (int)strtol(head + 100, NULL, 8) & 0755, failed;
        snprintf(path, sizeof path, "%s/%.155s%s%.100s", folder, head + 345, head[345] ? "/" : "",
                 head);
        at += 512;
        switch (head[156]) {
            case '5': failed = mkdir(path, 0755); break;
            case '2': {
                char target[101];
                snprintf(target, sizeof target, "%.100s", head + 157);
                failed = symlink(target, path);
                break;
            }
            default: failed = write_file(path, mode, tar + at, size);
        }
        if (failed) return -1;
        at += (size + 511) / 512 * 512;
    }
    return 0;
}

/* Give `<parent>/<key>` the code unless it has the code; 0, or -1 and errno. */
static int provide(int file, const struct footer *footer, const char *parent, const char *key) {
    char final[PATH_BYTES], part[PATH_BYTES], lock_name[PATH_BYTES];
    uint8_t found[32];
    snprintf(final, sizeof final, "%s/%s", parent, key);
    if (!access(final, F_OK)) return 0;
    snprintf(part, sizeof part, "%s/%s.part", parent, key);
    snprintf(lock_name, sizeof lock_name, "%s/%s.lock", parent, key);
    int lock = open(lock_name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (lock < 0 || flock(lock, LOCK_EX)) return -1;
    if (access(final, F_OK)) { /* no other process was faster */
        long page = sysconf(_SC_PAGESIZE);
        if (footer->code_offset % (uint64_t)page) damaged("its code is not aligned");
        void *code = mmap(NULL, footer->code_bytes, PROT_READ, MAP_PRIVATE | MAP_POPULATE, file,
                          (off_t)footer->code_offset);
        if (code == MAP_FAILED) return -1;
        sha256(code, footer->code_bytes, found);
        if (memcmp(found, footer->code_sha256, sizeof found))
            damaged("the sha256 of its code is wrong");
        remove_folder(part);
        int folder = -1;
        if (mkdir(part, 0700) || unpack(code, footer->code_bytes, part) ||
            (folder = open(part, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0 || syncfs(folder) ||
            rename(part, final)) {
            int reason = errno;
            remove_folder(part);
            errno = reason;
            return -1;
        }
        close(folder);
        munmap(code, footer->code_bytes);
    }
    close(lock);
    return 0;
}

int main(int argc, char **argv) {
    (void)argc;
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    if (n < 0) fail("/proc/self/exe cannot be read: %s. Mount /proc.", strerror(errno));
    int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (file < 0) fail("%s cannot be read: %s. Allow reading it.", program, strerror(errno));
    struct footer footer = read_footer(file);

    char key[33], own[64], folder[PATH_BYTES], run[PATH_BYTES], tried[3 * PATH_BYTES] = "";
    for (int i = 0; i < 16; i++) sprintf(key + 2 * i, "%02x", footer.index_sha256[i]);
    snprintf(own, sizeof own, "matryo-%u/bundles", (unsigned)geteuid());
    const char *home = getenv("MATRYO_HOME"), *user = getenv("HOME"), *temporary = getenv("TMPDIR");
    /* A folder that the operator names is the only one; else the first that can be used. */
    const char *choices[][2] = {{home && *home ? home : user, home && *home ? "bundles" : ".cache/matryo/bundles"},
                                {home && *home ? NULL : temporary && *temporary ? temporary : "/tmp", own}};
    for (int i = 0; i < 2; i++) {
        if (!choices[i][0] || !*choices[i][0]) continue;
        if (!usable(folder, choices[i][0], choices[i][1]) &&
            !provide(file, &footer, folder, key)) {
            snprintf(run, sizeof run, "%s/%s/matryo", folder, key);
            setenv("_MATRYO_BUNDLE", program, 1);
            execv(run, argv);
        }
        snprintf(tried + strlen(tried), sizeof tried - strlen(tried), "%s%s: %s", *tried ? "; " : "",
                 folder, errno == EACCES && !access(folder, W_OK)
                     ? "programs may not run there (noexec)" : strerror(errno));
    }
    fail("%s needs a folder for its code (%llu MB), where files may be written and programs may "
         "run: %s. Set MATRYO_HOME to such a folder, for instance a tmpfs mounted with exec.",
         program, (unsigned long long)(footer.code_bytes / 1000000), *tried ? tried : "none is named");
}
