/* Runs kernels for the kernel tests on the machine that this is built for: aarch64 under qemu-user.
   Requests and replies are those of emulator.py. A kernel that faults ends the program. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define SLACK 1024

struct region {
    uint64_t address, size;
    char *memory, *here;
};

static void read_all(void *to, uint64_t n) {
    if (fread(to, 1, n, stdin) != n) exit(1);
}

static uint64_t number(void) {
    uint64_t n;
    read_all(&n, sizeof n);
    return n;
}

int main(void) {
    uint64_t n_code;
    while (fread(&n_code, sizeof n_code, 1, stdin) == 1) {
        void *code = mmap(NULL, n_code, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (code == MAP_FAILED) return 2;
        read_all(code, n_code);
        if (mprotect(code, n_code, PROT_READ | PROT_EXEC)) return 2;
        __builtin___clear_cache(code, (char *)code + n_code);

        uint64_t n_regions = number();
        struct region *regions = calloc(n_regions + 1, sizeof *regions);
        for (uint64_t i = 0; i < n_regions; i++) {
            struct region *r = &regions[i];
            r->address = number();
            r->size = number();
            r->memory = calloc(r->size + SLACK + 128, 1);
            if (!r->memory) return 2;
            /* As far behind a multiple of 64 as where it came from. */
            r->here = r->memory + (64 - (uintptr_t)r->memory % 64) + r->address % 64;
            read_all(r->here, r->size);
        }
        uint64_t n_arguments = number();
        uint64_t *arguments = calloc(n_arguments + 1, sizeof *arguments);
        read_all(arguments, n_arguments * sizeof *arguments);
        for (uint64_t i = 0; i < n_arguments; i++)
            /* From the last: the end of a region may be the start of the next. */
            for (uint64_t j = n_regions; j-- > 0;)
                if (arguments[i] - regions[j].address <= regions[j].size) {
                    arguments[i] = (uint64_t)(uintptr_t)(regions[j].here + (arguments[i] - regions[j].address));
                    break;
                }
        ((void (*)(const uint64_t *))code)(arguments);

        uint64_t status = 0;
        fwrite(&status, sizeof status, 1, stdout);
        for (uint64_t i = 0; i < n_regions; i++) {
            fwrite(regions[i].here, 1, regions[i].size, stdout);
            free(regions[i].memory);
        }
        fflush(stdout);
        free(regions);
        free(arguments);
        munmap(code, n_code);
    }
    return 0;
}
