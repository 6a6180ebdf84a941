"""Exported C code on an Arm Cortex-M4, emulated by QEMU: bare metal, no library but `libm`.

`arm-none-eabi-gcc` compiles it and `qemu-system-arm` runs it. QEMU is no model of the core's
timing: what is counted are instructions, of which a Cortex-M4 takes one to two cycles each.
"""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np

import srigl_jax as sx
from srigl_jax.export.c_text import number

COMPILER, EMULATOR = "arm-none-eabi-gcc", "qemu-system-arm"
TARGET = ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16")
_NS_PER_TICK = 40  # SysTick counts at 25 MHz; with -icount shift=0 an instruction takes 1 ns
_CALLS = 20  # timed together

_LINKER = """
MEMORY { FLASH (rx) : ORIGIN = 0, LENGTH = 4M   RAM (rw) : ORIGIN = 0x20000000, LENGTH = 4M }
ENTRY(reset)
SECTIONS {
  .text : { KEEP(*(.vectors)) *(.text*) *(.rodata*) *(.ARM.exidx*) } > FLASH
  .data : { *(.data*) } > RAM
  .bss : { *(.bss*) *(COMMON) } > RAM
}
"""
_MAIN = """
#include <stdint.h>
#include "NAME.h"
/* Semihosting: 4 writes a string, 0x18 ends the emulation. */
static void host(int32_t operation, const void *argument) {
  register int32_t r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
}
static void print(uint32_t x) {
  char text[10] = {0};
  for (int i = 0; i < 8; i++) text[i] = "0123456789abcdef"[(x >> (28 - 4 * i)) & 15];
  text[8] = '\\n';
  host(4, text);
}
static const INPUT x[COUNT][UPPER_INPUTS] = {VALUES};
void reset(void) {
  static OUTPUT y[UPPER_OUTPUTS];
  *(volatile uint32_t *)0xe000ed88 |= 0xf << 20; /* the floating point unit on */
  __asm__ volatile("dsb\\n isb");
  for (int i = 0; i < COUNT; i++) {
    NAME_run(x[i], y);
    for (int k = 0; k < UPPER_OUTPUTS; k++) {
      union { float f; uint32_t u; } bits;
      if (IS_FLOAT) bits.f = (float)y[k]; else bits.u = (uint32_t)(int32_t)y[k];
      print(bits.u);
    }
  }
  volatile uint32_t *systick = (volatile uint32_t *)0xe000e010;
  systick[1] = 0xffffff;
  systick[2] = 0;
  systick[0] = 5;
  const uint32_t begin = systick[2];
  for (int i = 0; i < CALLS; i++) NAME_run(x[0], y);
  print((begin - systick[2]) & 0xffffff);
  host(0x18, (void *)0x20026);
  for (;;) {}
}
__attribute__((section(".vectors"), used)) void *const vectors[2] = {
  (void *)0x20400000, (void *)reset};
"""


def is_available() -> bool:
  """Whether compiler and emulator are installed."""
  return bool(shutil.which(COMPILER) and shutil.which(EMULATOR))


def run_on_cortex_m(exported: sx.CExport, x: np.ndarray, folder: Path) -> tuple[np.ndarray, int]:
  """Runs an exported network.

  Args:
    exported: the network.
    x: `[B, *input_shape]` real inputs, few.
    folder: for the files.

  Returns:
    What the function returns, `[B, *output_shape]` as it is in C; and instructions of a call.
  """
  exported.write(folder, overwrite=True)
  given, result = exported.plan.formats[0], exported.plan.formats[-1]
  is_float = exported.plan.softmax or result is None
  dtype = np.dtype(np.float32) if is_float or result is None else result.dtype
  q = exported.quantize(x).reshape(len(x), -1)
  literal = lambda v: number(v, "float" if given is None else "int32_t")
  rows = ["{" + ", ".join(map(literal, row)) + "}" for row in q]
  words = {
    "INPUT": "float" if given is None else f"{given.dtype.name}_t",
    "OUTPUT": "float" if dtype == np.float32 else f"{dtype.name}_t",
    "UPPER_": f"{exported.name.upper()}_",
    "NAME": exported.name,
    "IS_FLOAT": str(int(is_float)),
    "COUNT": str(len(x)),
    "CALLS": str(_CALLS),
    "VALUES": ", ".join(rows),
  }
  text = re.sub(r"UPPER_|\b(INPUT|OUTPUT|IS_FLOAT|COUNT|CALLS|VALUES)\b|NAME", _word(words), _MAIN)
  (folder / "bare.c").write_text(text)
  (folder / "bare.ld").write_text(_LINKER)
  program = folder / f"{exported.name}.elf"
  sources = [str(folder / "bare.c"), str(folder / f"{exported.name}.c")]
  compile_flags = [*TARGET, "-std=gnu99", "-O2", "-nostartfiles", "-specs=nosys.specs"]
  link = ["-T", str(folder / "bare.ld"), "-o", str(program), "-lm"]
  subprocess.run([COMPILER, *compile_flags, *sources, *link], check=True)
  machine = ["-M", "mps2-an386", "-cpu", "cortex-m4", "-nographic", "-icount", "shift=0"]
  machine += ["-semihosting-config", "enable=on,target=native", "-kernel", str(program)]
  done = subprocess.run(
    [EMULATOR, *machine], check=True, capture_output=True, text=True, timeout=60
  )
  words_out = np.array([int(w, 16) for w in (done.stdout + done.stderr).split()], np.uint32)
  values, ticks = words_out[:-1], int(words_out[-1])
  y = values.view(np.float32) if is_float else values.view(np.int32).astype(dtype)
  return y.reshape(len(x), *exported.plan.network.output_shape), ticks * _NS_PER_TICK // _CALLS


def _word(words):
  return lambda match: words[match[0]]
