#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Writes libm2n/m2n.map from the public headers, or checks that it is up to date.

  tests/abi/make_map.py            rewrite the map
  tests/abi/make_map.py --check    exit 1 when headers and map differ

The headers are the source of truth: a function is public when a header declares it with M2N_API.
The map names every one of them, so that a change of the ABI shows as a change of that file.
"""
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HEADERS = os.path.join(ROOT, 'include', 'm2n')
MAP = os.path.join(ROOT, 'libm2n', 'm2n.map')


def strip(text):
    """C without comments and preprocessor lines."""
    text = re.sub(r'/\*.*?\*/|//[^\n]*', ' ', text, flags=re.S)
    return re.sub(r'^[ \t]*#(?:[^\n]*\\\n)*[^\n]*', '', text, flags=re.M)


def statements(text):
    """The declarations outside braces, without their semicolon; bodies are left out."""
    depth, out = 0, ''
    for token in re.findall(r'[{};]|[^{};]+', re.sub(r'extern\s+"C"\s*\{', ' ', strip(text))):
        if token == '{':
            depth += 1
        elif token == '}':
            # The brace that closes extern "C" opened nothing.
            depth = max(depth - 1, 0)
        elif token == ';' and depth == 0:
            yield ' '.join(out.split())
            out = ''
        elif depth == 0:
            out += token


def declared(text):
    """(public names, declarations that are neither public, inline nor a type) of one header."""
    names, strays = [], []
    for statement in statements(text):
        match = re.search(r'\bM2N_API\b[^(]*?\b(\w+)\s*\(', statement)
        if match:
            names.append(match.group(1))
        elif re.search(r'\bm2n_\w+\s*\(', statement) and not re.search(
                r'\b(typedef|static|struct \w+ \w+ =)\b', statement):
            strays.append(statement)
    return names, strays


def names_in_headers(headers=HEADERS):
    """Sorted names that the headers declare public."""
    names = []
    for name in sorted(os.listdir(headers)):
        if name.endswith('.h'):
            with open(os.path.join(headers, name), encoding='utf-8') as header:
                found, strays = declared(header.read())
            if strays:
                sys.exit(f'{name}: declared without M2N_API: {strays[0]}')
            names += found
    doubles = {name for name in names if names.count(name) > 1}
    if doubles:
        sys.exit(f'declared twice: {" ".join(sorted(doubles))}')
    return sorted(names)


def names_in_map(text):
    """Names between `global:` and `local:`."""
    section = re.search(r'global:(.*?)local:', text, re.S)
    return sorted(re.findall(r'([^\s;]+);', section.group(1))) if section else []


def render(names):
    """The text of the version script."""
    lines = ''.join(f'\t\t{name};\n' for name in names)
    return f'M2N_0 {{\n\tglobal:\n{lines}\tlocal:\n\t\t*;\n}};\n'


def main():
    wanted = render(names_in_headers())
    with open(MAP, encoding='utf-8') as current:
        if current.read() == wanted:
            return 0
    if '--check' in sys.argv[1:]:
        print('libm2n/m2n.map is not what the headers declare: run tests/abi/make_map.py')
        return 1
    with open(MAP, 'w', encoding='utf-8') as out:
        out.write(wanted)
    return 0


if __name__ == '__main__':
    sys.exit(main())
