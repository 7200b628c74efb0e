#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Runs one lint rule over the tree, or all of them.

  tests/lint/lint.py RULE|all [ROOT]

Prints `path:line: what is wrong` and exits 1 when there is something. The rule `sizes` also
lists, for information, the functions that are worth a second look.
"""
import os
import sys

from rules import LOOK_TWICE, RULES, function_lengths
from source import read_tree


def main():
    rule = sys.argv[1] if len(sys.argv) > 1 else 'all'
    if rule != 'all' and rule not in RULES:
        sys.exit(f'usage: lint.py all|{"|".join(RULES)} [ROOT]')
    here = os.path.dirname(os.path.abspath(__file__))
    root = sys.argv[2] if len(sys.argv) > 2 else os.path.join(here, '..', '..')
    files = read_tree(root)
    if not any(path.startswith('libm2n/') for path in files):
        sys.exit(f'{root} does not look like the source tree')
    found = []
    for name in RULES if rule == 'all' else (rule,):
        found += RULES[name](files)
    if rule in ('all', 'sizes'):
        for length, path, line, name in function_lengths(files)[0]:
            if length > LOOK_TWICE:
                print(f'for information: {path}:{line}: {name} has {length} lines')
    print('\n'.join(found))
    return 1 if found else 0


if __name__ == '__main__':
    sys.exit(main())
