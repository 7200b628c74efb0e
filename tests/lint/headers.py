#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Every public header stands alone, in C99 and in C++11, and its comments satisfy Clang.

  headers.py INCLUDE_DIR

A header is included twice in an otherwise empty file. Clang reads all comments as documentation,
so that a comment that names a parameter which does not exist is an error.
"""
import os
import shutil
import subprocess
import sys
import tempfile

STRICT = ['-pedantic', '-Wall', '-Wextra', '-Wundef', '-Werror', '-fsyntax-only']
COMPILERS = (
    ['gcc', '-x', 'c', '-std=c99', '-Wstrict-prototypes'] + STRICT,
    ['g++', '-x', 'c++', '-std=c++11'] + STRICT,
    ['clang', '-x', 'c', '-std=c99', '-Wdocumentation', '-fparse-all-comments'] + STRICT,
)


def complaints(include_dir, name):
    """What the compilers say about one header."""
    text = f'#include <{name}>\n#include <{name}>\ntypedef int lint_not_empty;\n'
    out = ''
    for compiler in COMPILERS:
        done = subprocess.run(compiler + ['-I', include_dir, '-'], input=text, text=True,
                              capture_output=True, timeout=60, check=False)
        if done.returncode:
            out += f'{compiler[0]} on {name}:\n{done.stderr}'
    return out


def self_test():
    """Each compiler rejects what it is there for, and a good header passes."""
    guard = '#ifndef A_H\n#define A_H\n{}\n#endif\n'
    snippets = (
        ('good.h', guard.format('/* f. \\param x a number */ int f(int x);'), ()),
        ('type.h', guard.format('size_t f(void);'), ('gcc', 'g++', 'clang')),
        ('twice.h', 'enum e { A };\n', ('gcc', 'g++', 'clang')),
        ('word.h', guard.format('struct s { int new; };'), ('g++',)),
        ('doc.h', guard.format('/* \\param y a number */\nint f(int x);'), ('clang',)),
        ('gnu.h', guard.format('struct s { int a[0]; };'), ('gcc', 'g++', 'clang')),
    )
    with tempfile.TemporaryDirectory() as work:
        for name, text, rejected_by in snippets:
            with open(os.path.join(work, name), 'w', encoding='utf-8') as header:
                header.write(text)
            said = complaints(work, name)
            for compiler in COMPILERS:
                rejected = f'{compiler[0]} on {name}:' in said
                assert rejected == (compiler[0] in rejected_by), (name, compiler[0], said)


def main():
    for compiler in COMPILERS:
        if not shutil.which(compiler[0]):
            print(f'skipped: there is no {compiler[0]}')
            return 77
    self_test()
    folder = os.path.join(sys.argv[1], 'm2n')
    names = [f'm2n/{name}' for name in sorted(os.listdir(folder)) if name.endswith('.h')]
    said = ''.join(complaints(sys.argv[1], name) for name in names)
    print(said or f'{len(names)} headers')
    return 1 if said else 0


if __name__ == '__main__':
    sys.exit(main())
