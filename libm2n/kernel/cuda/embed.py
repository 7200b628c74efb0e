# SPDX-License-Identifier: Apache-2.0
"""Writes a file as a C array with the name that libm2n/kernel/gpu.h declares: embed.py IN OUT."""
import sys


def main():
    """The whole of it."""
    with open(sys.argv[1], 'rb') as data:
        image = data.read()
    image += bytes(-len(image) % 8)
    words = [int.from_bytes(image[at:at + 8], 'little') for at in range(0, len(image), 8)]
    with open(sys.argv[2], 'w', encoding='ascii') as out:
        out.write('#include "kernel/gpu.h"\n\nstatic const uint64_t image[] = {\n')
        for at in range(0, len(words), 4):
            out.write('\t' + ' '.join(f'0x{word:016x},' for word in words[at:at + 4]) + '\n')
        out.write('};\nconst void *const m2n__gpu_image = image;\n')


if __name__ == '__main__':
    main()
