#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The numbers of docs/wire.md are those of the headers.

  test_wire.py PRINT_WIRE

Compares the table of the slot head row by row, frame types by name, magics and versions.
"""
import os
import re
import subprocess
import sys

PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..', 'docs', 'wire.md')


def section(text, title):
    """The text under a heading, up to the next one."""
    return re.search(rf'^## {title}\n(.*?)(?=^## |\Z)', text, re.S | re.M).group(1)


def numbers_of(text):
    """What the page says, in the form of print_wire's lines."""
    found = set()
    block = re.search(r'<!-- slot head -->(.*?)<!-- end slot head -->', text, re.S).group(1)
    for offset, size, name in re.findall(r'^\| (\d+) \| (\d+) \| (\w+) \|', block, re.M):
        found.add(f'head {name} {offset} {size}')
    for number, name in re.findall(r'^\| (\d+) \| ([A-Z]+)', section(text, 'Store frames'), re.M):
        found.add(f'store {name} {number}')
    for number, name in re.findall(r'^\| (\d+) ([A-Z]+) ', section(text, 'Control frames'), re.M):
        found.add(f'control {name} {number}')
    letters = {'M2NS': 'STORE', 'M2NC': 'FRAME', 'M2NP': 'PLAN'}
    for name, value in re.findall(r'magic "(M2N\w)" \((0x\w+)\)', text):
        assert int(value, 16).to_bytes(4, 'little').decode() == name
        found.add(f'number {letters[name]}_MAGIC {int(value, 16)}')
    for name, pattern in (
            ('RECORD_BYTES_MAX', r'in HELLO and in CHALLENGE; at most ([\d,]+) bytes'),
            ('ADDRESS_BYTES', r'each: name, address \| text up to 15, blob up to ([\d,]+)'),
            ('KEY_BYTES', r'a key of at most ([\d,]+) bytes'),
            ('GREETING_BYTES', r"backend's greeting, at most ([\d,]+) bytes")):
        value = re.search(pattern, text).group(1)
        found.add(f'number {name} {value.replace(",", "")}')
    versions = section(text, 'Versions')
    found.add('number WIRE_VERSION ' + re.search(r'^\| wire \| (\d+) ', versions, re.M).group(1))
    found.add('number PLAN_VERSION ' +
              re.search(r'^\| packed plan \| (\d+) ', versions, re.M).group(1))
    return found


def main():
    """0, or 1 after naming what differs."""
    printed = subprocess.run([sys.argv[1]], stdout=subprocess.PIPE, text=True, check=True).stdout
    real = set(printed.splitlines())
    with open(PAGE, encoding='utf-8') as page:
        said = numbers_of(page.read())
    for line in sorted(real - said):
        print(f'docs/wire.md lacks: {line}')
    for line in sorted(said - real):
        print(f'docs/wire.md says what the headers do not: {line}')
    print(f'{len(real)} numbers')
    return 1 if real != said else 0


if __name__ == '__main__':
    sys.exit(main())
