# SPDX-License-Identifier: Apache-2.0
"""megascale_infer's own communication fits in 600 lines: whatever needs more, the library lacks.

    test_lines.py ROOT

Counted are lines of code, without blank ones and comments, of all files in
consumers/megascale_infer that name a function, a type or a constant of libm2n.
"""
import glob
import os
import re
import sys

LIMIT = 600


def code(text):
    """Text without comments and strings."""
    return re.sub(r'/\*.*?\*/|"(\\.|[^"\\\n])*"', lambda m: '""' if m[0][0] == '"' else '', text,
                  flags=re.DOTALL)


def count(text):
    """Lines of code of a file that communicates; 0 of another."""
    text = code(text)
    if not re.search(r'\bm2n_\w+\s*\(|\bstruct m2n_\w|\bM2N_[A-Z]', text):
        return 0
    return sum(bool(line.strip()) for line in text.splitlines())


def main():
    assert count('/* m2n_x() */\nint a;\n') == 0
    assert count('/* a\nb */\nint f(void)\n{\n\n\treturn m2n_x(); /* c */\n}\n') == 4
    total = 0
    for path in sorted(glob.glob(os.path.join(sys.argv[1], 'consumers/megascale_infer/*.[ch]'))):
        with open(path, encoding='utf-8') as file:
            n = count(file.read())
        total += n
        if n:
            print(f'{os.path.basename(path)}: {n}')
    print(f'{total} lines, at most {LIMIT}')
    return not 0 < total <= LIMIT


if __name__ == '__main__':
    sys.exit(main())
