"""Runs kernels on an emulated x86-64 CPU, for the kernel tests: AVX-512 and VNNI without such a machine.

    emulator.py [--cpu sapphire|icelake|tiger|skx|arrow|cnl|haswell]

Reads requests from standard input and answers on standard output, as mod.rs beside this file writes and reads them; all
numbers are little-endian u64:

    request: length of the code, code; number of regions; address, length and bytes of each; number of arguments, arguments
    reply:   0, or 1 + the number of the exception that ended the run; the bytes of each region after it

A kernel takes the address of its arguments. An argument that lies in a region, or at its end, is moved to where the region
is here. Needs the package bochscpu-python 0.4.0 and a C compiler for shim.c, which is built beside the interpreter.
"""

import argparse
import ctypes
import os
import struct
import subprocess
import sys

PAGE = 4096
CODE, CODE_BYTES = 0x1000_0000, 16 << 20
DATA, DATA_BYTES = 0x4000_0000, 32 << 20
STACK, STACK_BYTES = 0x7000_0000, 1 << 20
PAGE_TABLES = 0x1000_0000
HLT = b"\xf4"


def with_shim(cpu):
    """Starts this program again with the shim loaded and the CPU's model chosen."""
    here = os.path.dirname(os.path.abspath(__file__))
    library = os.path.join(sys.prefix, "liblancet-emulator-shim.so")
    source = os.path.join(here, "shim.c")
    if not os.path.exists(library) or os.path.getmtime(library) < os.path.getmtime(source):
        built = f"{library}.{os.getpid()}"
        subprocess.check_call(["cc", "-shared", "-fPIC", "-O1", "-std=gnu11", source, "-o", built, "-ldl"])
        os.replace(built, library)
    environment = dict(os.environ, LD_PRELOAD=library, BOCHS_CPU=cpu, LANCET_EMULATOR_SHIM="1")
    os.execve(sys.executable, [sys.executable, os.path.abspath(__file__), "--cpu", cpu], environment)


class Guest:
    """A flat long-mode guest whose code, data and stack are mapped once."""

    def __init__(self):
        import bochscpu
        import bochscpu.cpu
        import bochscpu.memory

        self.bochs = bochscpu
        self.session = bochscpu.Session()
        self.host = {}
        self.codes = {}
        self.next_code = CODE
        # It owns the pages of the tables: it must live as long as the session.
        self.tables = bochscpu.memory.PageMapLevel4Table()
        physical = 0x10_0000

        def missing(address):
            page = bochscpu.memory.allocate_host_page()
            bochscpu.memory.page_insert(address & ~(PAGE - 1), page)

        self.session.missing_page_handler = missing
        for start, size in ((CODE, CODE_BYTES), (DATA, DATA_BYTES), (STACK, STACK_BYTES)):
            for address in range(start, start + size, PAGE):
                page = bochscpu.memory.allocate_host_page()
                bochscpu.memory.page_insert(physical, page)
                self.tables.insert(address, physical, 7)
                self.host[address] = page
                physical += PAGE
        for page, address in self.tables.commit(PAGE_TABLES):
            bochscpu.memory.page_insert(address, page)

    def parts(self, address, size):
        """The host addresses and sizes of a guest range, page by page."""
        while size:
            inside = address % PAGE
            n = min(size, PAGE - inside)
            yield self.host[address - inside] + inside, n
            address, size = address + n, size - n

    def write(self, address, data):
        at = 0
        for host, n in self.parts(address, len(data)):
            ctypes.memmove(host, data[at : at + n], n)
            at += n

    def read(self, address, size):
        return b"".join(ctypes.string_at(host, n) for host, n in self.parts(address, size))

    def place_code(self, code):
        """Where the code is; code is written once, since the emulator keeps what it has decoded."""
        if code not in self.codes:
            address = self.next_code
            end = address + len(code) + 2 * len(HLT)
            if end > CODE + CODE_BYTES:
                raise MemoryError("too many kernels for one emulator")
            self.write(address, code + HLT)
            self.codes[code] = address
            self.next_code = (end + 63) // 64 * 64
        return self.codes[code]

    def run(self, code, arguments):
        """Calls the code with a pointer to the arguments; 0 or 1 + the exception's number."""
        entry = self.place_code(code)
        table = STACK
        self.write(table, struct.pack(f"<{len(arguments)}Q", *arguments))
        stack = STACK + STACK_BYTES - PAGE - 8
        self.write(stack, struct.pack("<Q", entry + len(code)))
        state = self.bochs.State()
        self.bochs.cpu.set_long_mode(state)
        # No emulation of the coprocessor, no alignment checks; OSFXSR, OSXMMEXCPT, PGE, OSXSAVE; x87 to AVX-512 state.
        state.cr0 = state.cr0 & ~(1 << 16) & ~(1 << 18)
        state.cr4 = state.cr4 | 1 << 18 | 1 << 9 | 1 << 10 | 1 << 7
        state.cr3 = PAGE_TABLES
        state.xcr0 = int(os.environ.get("BOCHS_XCR0", "0xE7"), 0)
        state.rflags, state.mxcsr, state.mxcsr_mask, state.fpcw = 2, 0x1F80, 0xFFFF, 0x37F
        for names, attributes in ((("cs",), 0x209B), (("ds", "es", "ss", "fs", "gs"), 0xC93)):
            segment = self.bochs.Segment()
            segment.present, segment.base, segment.limit = True, 0, 0xFFFFFFFF
            segment.selector, segment.attr = (8 if "cs" in names else 16), attributes
            for name in names:
                setattr(state, name, segment)
        state.rip, state.rsp, state.rdi = entry, stack, table
        self.session.cpu.state = state
        status = 0
        hook = self.bochs.Hook()

        def on_exception(session, cpu, vector, error):
            nonlocal status
            status = 1 + vector
            session.stop()

        hook.exception = on_exception
        hook.hlt = lambda session, cpu: session.stop()
        self.session.run([hook])
        return status


def serve(guest):
    source, sink = sys.stdin.buffer, sys.stdout.buffer

    def number():
        data = source.read(8)
        return struct.unpack("<Q", data)[0] if len(data) == 8 else None

    while (n_code := number()) is not None:
        code = source.read(n_code)
        placed, at = [], DATA
        for _ in range(number()):
            address, size = number(), number()
            here = at + address % 64
            at = (here + size + 1024) // 64 * 64
            if at > DATA + DATA_BYTES:
                raise MemoryError(f"regions of more than {DATA_BYTES} bytes")
            guest.write(here, source.read(size))
            placed.append((address, size, here))
        arguments = [number() for _ in range(number())]
        for i, value in enumerate(arguments):
            # From the last: the end of a region may be the start of the next.
            for address, size, here in reversed(placed):
                if address <= value <= address + size:
                    arguments[i] = value - address + here
                    break
        sink.write(struct.pack("<Q", guest.run(code, arguments)))
        for _, size, here in placed:
            sink.write(guest.read(here, size))
        sink.flush()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", default="sapphire")
    arguments = parser.parse_args()
    if "LANCET_EMULATOR_SHIM" not in os.environ:
        with_shim(arguments.cpu)
    serve(Guest())
    sys.stdout.flush()
    # The emulator does not survive an ordinary end of the interpreter.
    os._exit(0)


main()
