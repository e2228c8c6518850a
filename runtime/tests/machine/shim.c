/* Loaded before bochscpu-python 0.4.0, for two reasons.
   Its library wants names of a newer C library: they are given here, by the old ones.
   It builds one CPU model, without VNNI: its constructor is found before its own, and builds the model that BOCHS_CPU
   names, which is in the same library. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

unsigned long __isoc23_strtoul(const char *s, char **end, int base) { return strtoul(s, end, base); }
unsigned long long __isoc23_strtoull(const char *s, char **end, int base) { return strtoull(s, end, base); }
long __isoc23_strtol(const char *s, char **end, int base) { return strtol(s, end, base); }
long long __isoc23_strtoll(const char *s, char **end, int base) { return strtoll(s, end, base); }
int __isoc23_vsscanf(const char *s, const char *format, va_list list) { return vsscanf(s, format, list); }

int __isoc23_sscanf(const char *s, const char *format, ...) {
    va_list list;
    va_start(list, format);
    int n = vsscanf(s, format, list);
    va_end(list);
    return n;
}

int __isoc23_fscanf(FILE *file, const char *format, ...) {
    va_list list;
    va_start(list, format);
    int n = vfscanf(file, format, list);
    va_end(list);
    return n;
}

static const struct {
    const char *cpu, *constructor;
} MODELS[] = {
    {"sapphire", "_Z28create_sapphire_rapids_cpuidP8BX_CPU_C"},
    {"icelake", "_Z29create_corei7_icelake_u_cpuidP8BX_CPU_C"},
    {"tiger", "_Z22create_tigerlake_cpuidP8BX_CPU_C"},
    {"skx", "_Z29create_corei7_skylake_x_cpuidP8BX_CPU_C"},
    {"arrow", "_Z23create_arrow_lake_cpuidP8BX_CPU_C"},
    {"cnl", "_Z23create_corei3_cnl_cpuidP8BX_CPU_C"},
    {"haswell", "_Z32create_corei7_haswell_4770_cpuidP8BX_CPU_C"},
};

/* Named like the constructor that the library calls. */
void *_Z23create_corei3_cnl_cpuidP8BX_CPU_C(void *cpu) {
    const char *wanted = getenv("BOCHS_CPU");
    Dl_info caller;
    if (!wanted || !dladdr(__builtin_return_address(0), &caller)) abort();
    void *library = dlopen(caller.dli_fname, RTLD_NOLOAD | RTLD_NOW);
    for (size_t i = 0; library && i < sizeof MODELS / sizeof *MODELS; i++)
        if (!strcmp(wanted, MODELS[i].cpu)) {
            void *(*build)(void *) = (void *(*)(void *))dlsym(library, MODELS[i].constructor);
            if (build) return build(cpu);
        }
    fprintf(stderr, "no model of the CPU `%s`\n", wanted);
    abort();
}
