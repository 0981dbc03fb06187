/* The program at the start of a bundle. It is linked statically and needs no other file.

   It finds the code in its own file, unpacks the code into a folder named after the file's hash
   unless an earlier start did so, and becomes the unpacked program. matryo/store/bundle.py
   describes the format; both files must agree.

   Beside each folder is a lock file with the path of the bundle that was unpacked. The process that
   unpacks or removes the folder locks that file. A running program has a shared lock of the folder
   itself, so that no other bundle removes the folder. */

#define _GNU_SOURCE
#include <dirent.h>
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
    uint64_t file_bytes, code_offset, code_bytes, unpacked_bytes, index_offset, index_bytes;
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
        if (mkdir(part, 0755) && errno != EEXIST) {
            int reason = errno;
            if (access(part, F_OK)) {
                errno = reason;
                return -1;
            }
        }
    }
    return mkdir(path, 0700) && errno != EEXIST ? -1 : 0;
}

/* Write the path of a folder that this user may write and nobody else; 0, or -1 and errno. In a
   parent that all users share, the folder may be no link, which its owner could turn elsewhere. */
static int usable(char *out, const char *parent, const char *child, int is_shared) {
    struct stat status;
    if (snprintf(out, PATH_BYTES, "%s/%s", parent, child) >= PATH_BYTES / 2) {
        errno = ENAMETOOLONG;
        return -1;
    }
    if (make_folders(out) || (is_shared ? lstat : stat)(out, &status)) return -1;
    if (status.st_uid != geteuid() || status.st_mode & 022 || !S_ISDIR(status.st_mode)) {
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

/* --- inflate, RFC 1951 */

#define CODE_BITS 15

struct stream {
    const uint8_t *in, *in_end;
    uint8_t *out, *out_begin, *out_end;
    uint64_t held; /* bits that were read from `in`, the next one lowest */
    int n_held, failed;
};

static void hold(struct stream *s) {
    while (s->n_held <= 48) { /* zeros follow the end; a code that uses them is found below */
        s->held |= (uint64_t)(s->in < s->in_end ? *s->in : 0) << s->n_held;
        s->in++;
        s->n_held += 8;
    }
}

static unsigned take(struct stream *s, int n_bits) {
    unsigned value = (unsigned)(s->held & ((1u << n_bits) - 1));
    s->held >>= n_bits;
    s->n_held -= n_bits;
    return value;
}

/* Fill a table from the next CODE_BITS bits to 16 * symbol + length of the code; 0 for no code. */
static void make_table(uint16_t *table, const uint8_t *lengths, int n_symbols) {
    unsigned code = 0;
    memset(table, 0, sizeof *table << CODE_BITS);
    for (int length = 1; length <= CODE_BITS; length++, code <<= 1)
        for (int symbol = 0; symbol < n_symbols; symbol++) {
            if (lengths[symbol] != length) continue;
            unsigned reversed = 0;
            for (int i = 0; i < length; i++) reversed |= (code >> i & 1) << (length - 1 - i);
            for (unsigned at = reversed; at < 1u << CODE_BITS; at += 1u << length)
                table[at] = (uint16_t)(symbol << 4 | length);
            code++;
        }
}

static unsigned decode(struct stream *s, const uint16_t *table) {
    unsigned entry = table[s->held & ((1u << CODE_BITS) - 1)];
    if (!entry) s->failed = 1;
    take(s, entry & 15);
    return entry >> 4;
}

static void inflate_stored(struct stream *s) {
    take(s, s->n_held % 8);
    s->in -= s->n_held / 8;
    s->held = 0;
    s->n_held = 0;
    if (s->in_end - s->in < 4) {
        s->failed = 1;
        return;
    }
    long n = s->in[0] | s->in[1] << 8;
    s->in += 4;
    if (n > s->in_end - s->in || n > s->out_end - s->out) {
        s->failed = 1;
        return;
    }
    memcpy(s->out, s->in, (size_t)n);
    s->in += n;
    s->out += n;
}

static void inflate_coded(struct stream *s, int fixed) {
    static const uint16_t base[] = {3,  4,  5,  6,  7,  8,  9,  10,  11,  13,  15,  17,  19, 23, 27,
                                    31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
    static const uint8_t extra[] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2,
                                    2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
    static const uint8_t order[] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    static uint16_t literals[1 << CODE_BITS], distances[1 << CODE_BITS];
    uint8_t lengths[320] = {0};
    int n_literals = 288, n_distances = 30;
    if (fixed) {
        for (int i = 0; i < 288; i++) lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
        memset(lengths + 288, 5, 30);
    } else {
        uint8_t short_lengths[19] = {0};
        hold(s);
        n_literals = (int)take(s, 5) + 257;
        n_distances = (int)take(s, 5) + 1;
        for (int i = 0, n = (int)take(s, 4) + 4; i < n; i++) {
            hold(s);
            short_lengths[order[i]] = (uint8_t)take(s, 3);
        }
        make_table(literals, short_lengths, 19);
        for (int at = 0; at < n_literals + n_distances && !s->failed;) {
            hold(s);
            unsigned symbol = decode(s, literals);
            if (symbol < 16) {
                lengths[at++] = (uint8_t)symbol;
                continue;
            }
            uint8_t repeated = symbol == 16 && at ? lengths[at - 1] : 0;
            int n = symbol == 16 ? 3 + (int)take(s, 2)
                                 : symbol == 17 ? 3 + (int)take(s, 3) : 11 + (int)take(s, 7);
            if (at + n > n_literals + n_distances) s->failed = 1;
            while (n-- && !s->failed) lengths[at++] = repeated;
        }
    }
    make_table(literals, lengths, n_literals);
    make_table(distances, lengths + n_literals, n_distances);
    while (!s->failed) {
        hold(s);
        unsigned symbol = decode(s, literals);
        if (symbol == 256) return;
        if (symbol < 256) {
            if (s->out == s->out_end) s->failed = 1;
            else *s->out++ = (uint8_t)symbol;
            continue;
        }
        if (symbol > 285) break;
        long length = base[symbol - 257] + (long)take(s, extra[symbol - 257]);
        unsigned slot = decode(s, distances);
        if (slot > 29) break;
        hold(s);
        int n_more = slot < 2 ? 0 : (int)slot / 2 - 1;
        long distance = slot < 2 ? (long)slot + 1 : ((2L + (slot & 1)) << n_more) + 1;
        distance += (long)take(s, n_more);
        if (distance > s->out - s->out_begin || length > s->out_end - s->out) break;
        for (; length; length--, s->out++) *s->out = s->out[-distance];
        continue;
    }
    s->failed = 1;
}

/* Whether `in` was inflated to exactly `n_out` bytes. */
static int inflate(const uint8_t *in, uint64_t n_in, uint8_t *out, uint64_t n_out) {
    struct stream s = {.in = in, .in_end = in + n_in, .out = out, .out_begin = out};
    s.out_end = out + n_out;
    for (int last = 0; !last && !s.failed;) {
        hold(&s);
        last = (int)take(&s, 1);
        switch (take(&s, 2)) {
            case 0: inflate_stored(&s); break;
            case 1: inflate_coded(&s, 1); break;
            case 2: inflate_coded(&s, 0); break;
            default: s.failed = 1;
        }
    }
    return !s.failed && s.out == s.out_end;
}

/* --- the archive: a zip file, APPNOTE.TXT 4.3; the archive's sha256 was checked before */

static uint32_t number(const uint8_t *at, int n_bytes) {
    uint32_t value = 0;
    for (int i = 0; i < n_bytes; i++) value |= (uint32_t)at[i] << 8 * i;
    return value;
}

static int unpack_entry(const uint8_t *zip, const uint8_t *entry, const char *folder) {
    char path[PATH_BYTES];
    const uint8_t *local = zip + number(entry + 42, 4);
    const uint8_t *data = local + 30 + number(local + 26, 2) + number(local + 28, 2);
    uint32_t n_packed = number(entry + 20, 4), n_bytes = number(entry + 24, 4);
    unsigned mode = number(entry + 38, 4) >> 16;
    snprintf(path, sizeof path, "%s/%.*s", folder, (int)number(entry + 28, 2),
             (const char *)entry + 46);
    if (S_ISDIR(mode)) return mkdir(path, 0755);
    uint8_t *content = malloc(n_bytes + 1);
    if (!content) return -1;
    if (number(entry + 10, 2)) {
        if (!inflate(data, n_packed, content, n_bytes)) damaged("its code cannot be unpacked");
    } else {
        memcpy(content, data, n_bytes);
    }
    content[n_bytes] = 0;
    int failed = S_ISLNK(mode) ? symlink((char *)content, path)
                               : write_file(path, (int)mode & 0755, content, n_bytes);
    free(content);
    return failed;
}

/* Unpack an archive, which zeros may follow; 0, or -1 and errno. */
static int unpack(const uint8_t *zip, uint64_t n_bytes, const char *folder) {
    if (n_bytes < 22) damaged("its code is no archive");
    const uint8_t *end = zip + n_bytes - 22;
    while (end > zip && memcmp(end, "PK\5\6", 4)) end--;
    if (end == zip) damaged("its code is no archive");
    const uint8_t *entry = zip + number(end + 16, 4);
    for (unsigned i = number(end + 10, 2); i; i--) {
        if (unpack_entry(zip, entry, folder)) return -1;
        entry += 46 + number(entry + 28, 2) + number(entry + 30, 2) + number(entry + 32, 2);
    }
    return 0;
}

/* --- the cache: for each key a folder and a lock file */

#define KEY_CHARS 32

struct names {
    char final[PATH_BYTES], part[PATH_BYTES], lock[PATH_BYTES];
};

static struct names names_of(const char *parent, const char *key) {
    struct names names;
    snprintf(names.final, sizeof names.final, "%s/%s", parent, key);
    snprintf(names.part, sizeof names.part, "%s/%s.part", parent, key);
    snprintf(names.lock, sizeof names.lock, "%s/%s.lock", parent, key);
    return names;
}

/* Open and lock a file or a folder; a descriptor, or -1 and errno. `how` is for flock(2). */
static int open_locked(const char *path, int flags, int how) {
    struct stat held, named;
    for (;;) {
        int any = open(path, flags | O_CLOEXEC, 0600);
        if (any < 0) return -1;
        int lock = fcntl(any, F_DUPFD, 3); /* 0 to 2 are closed on purpose if they are free */
        close(any);
        if (lock < 0) return -1;
        if (flock(lock, how)) {
            int reason = errno;
            close(lock);
            errno = reason;
            return -1;
        }
        /* Who held the lock before may have removed what has the lock. */
        if (!fstat(lock, &held) && !stat(path, &named) && held.st_ino == named.st_ino &&
            held.st_dev == named.st_dev)
            return lock;
        close(lock);
    }
}

/* Unpack the code into its folder; 0, or -1 and errno. */
static int make_code(int file, const struct footer *footer, const struct names *names) {
    uint8_t found[32];
    if (footer->code_offset % (uint64_t)sysconf(_SC_PAGESIZE)) damaged("its code is not aligned");
    void *code = mmap(NULL, footer->code_bytes, PROT_READ, MAP_PRIVATE | MAP_POPULATE, file,
                      (off_t)footer->code_offset);
    if (code == MAP_FAILED) return -1;
    sha256(code, footer->code_bytes, found);
    if (memcmp(found, footer->code_sha256, 32)) damaged("the sha256 of its code is wrong");
    remove_folder(names->part);
    int folder = -1;
    int failed = mkdir(names->part, 0700) || unpack(code, footer->code_bytes, names->part) ||
                 (folder = open(names->part, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0 ||
                 syncfs(folder) || rename(names->part, names->final);
    int reason = errno;
    if (failed) remove_folder(names->part);
    if (folder >= 0) close(folder);
    munmap(code, footer->code_bytes);
    errno = reason;
    return failed ? -1 : 0;
}

/* Remove the folder of a bundle that is gone, or that this bundle has replaced, unless a program
   uses the folder. What cannot be removed stays. */
static void remove_other(const struct names *names) {
    char path[PATH_BYTES];
    int lock = open_locked(names->lock, O_RDWR, LOCK_EX | LOCK_NB);
    if (lock < 0) return;
    ssize_t n = pread(lock, path, sizeof path - 1, 0);
    path[n > 0 ? n : 0] = 0;
    if (*path && (!strcmp(path, program) || (access(path, F_OK) && errno == ENOENT))) {
        int folder = open_locked(names->final, O_RDONLY | O_DIRECTORY, LOCK_EX | LOCK_NB);
        if (folder >= 0 || errno == ENOENT) {
            remove_folder(names->part);
            rename(names->final, names->part); /* after a crash no half of it has its name */
            remove_folder(names->part);
            unlink(names->lock);
        }
        if (folder >= 0) close(folder);
    }
    close(lock);
}

static void remove_others(const char *parent, const char *own) {
    DIR *folder = opendir(parent);
    struct dirent *entry;
    while (folder && (entry = readdir(folder))) {
        char key[KEY_CHARS + 1];
        const char *name = entry->d_name;
        if (strlen(name) < KEY_CHARS || strcmp(name + KEY_CHARS, ".lock")) continue;
        snprintf(key, sizeof key, "%s", name);
        struct names names = names_of(parent, key);
        if (strcmp(key, own)) remove_other(&names);
    }
    if (folder) closedir(folder);
}

/* Give `<parent>/<key>` the code unless it has the code; 0, or -1 and errno. This process then has
   a shared lock of the folder, which the unpacked program keeps until it ends. */
static int provide(int file, const struct footer *footer, const char *parent, const char *key) {
    struct names names = names_of(parent, key);
    for (;;) {
        if (open_locked(names.final, O_RDONLY | O_DIRECTORY, LOCK_SH) >= 0) return 0;
        if (errno != ENOENT && !access(names.final, F_OK)) return 0; /* a disk without locks */
        int lock = open_locked(names.lock, O_RDWR | O_CREAT, LOCK_EX);
        if (lock < 0) return -1;
        int failed = access(names.final, F_OK) && /* no other process was faster */
                     (ftruncate(lock, 0) || pwrite(lock, program, strlen(program), 0) < 0 ||
                      make_code(file, footer, &names));
        int reason = errno;
        close(lock);
        errno = reason;
        if (failed) return -1;
        remove_others(parent, key);
    }
}

/* Become the unpacked program; returns only if that fails. */
static void become(const char *folder, const char *key, char *run, char **argv) {
    char libraries[2 * PATH_BYTES];
    const char *given = getenv("LD_LIBRARY_PATH");
    int is_given = given && *given;
    snprintf(run, PATH_BYTES, "%s/%s/matryo", folder, key);
    /* PyInstaller's program needs libz itself, before it can say where its libraries are. */
    snprintf(libraries, sizeof libraries, "%s/%s/_internal%s%s", folder, key, is_given ? ":" : "",
             is_given ? given : "");
    setenv("LD_LIBRARY_PATH", libraries, 1);
    setenv("_MATRYO_BUNDLE", program, 1);
    execv(run, argv);
}

/* What errno means for a folder whose program, if it was unpacked there, is `run`. */
static const char *reason_of(const char *folder, const char *run) {
    int reason = errno;
    if (reason == EACCES && !access(folder, W_OK)) return "programs may not run there (noexec)";
    if (reason == ENOENT && !access(run, F_OK)) return "this system has no glibc";
    return strerror(reason);
}

int main(int argc, char **argv) {
    (void)argc;
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    if (n < 0) fail("/proc/self/exe cannot be read: %s. Mount /proc.", strerror(errno));
    int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (file < 0) fail("%s cannot be read: %s. Allow reading it.", program, strerror(errno));
    struct footer footer = read_footer(file);

    char key[KEY_CHARS + 1], own[64], folder[PATH_BYTES], run[PATH_BYTES];
    char tried[3 * PATH_BYTES] = "";
    for (int i = 0; i < KEY_CHARS / 2; i++) sprintf(key + 2 * i, "%02x", footer.index_sha256[i]);
    snprintf(own, sizeof own, "matryo-bundles-%u", (unsigned)geteuid());
    const char *home = getenv("MATRYO_HOME"), *user = getenv("HOME"), *temporary = getenv("TMPDIR");
    /* A folder that the operator names is the only one; else the first that can be used. */
    int named = home && *home;
    const char *choices[][2] = {
        {named ? home : user, named ? "bundles" : ".cache/matryo/bundles"},
        {named ? NULL : temporary && *temporary ? temporary : "/tmp", own},
    };
    for (int i = 0; i < 2; i++) {
        if (!choices[i][0] || !*choices[i][0]) continue;
        *run = 0;
        if (!usable(folder, choices[i][0], choices[i][1], i == 1) &&
            !provide(file, &footer, folder, key))
            become(folder, key, run, argv);
        size_t n_said = strlen(tried);
        snprintf(tried + n_said, sizeof tried - n_said, "%s%s: %s", n_said ? "; " : "", folder,
                 reason_of(folder, run));
    }
    fail("%s needs a folder for its code (%llu MB), where files may be written and programs may "
         "run: %s. Set MATRYO_HOME to such a folder, for instance a tmpfs mounted with exec.",
         program, (unsigned long long)(footer.unpacked_bytes / 1000000 + 1), tried);
}
