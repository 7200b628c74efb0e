#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of the manual from the lists in the source, or checks that they are current.

  docs/man/make_options.py            rewrite the tables
  docs/man/make_options.py --check    exit 1 when a page differs from the source

The options of m2n_options(7) are the rows of libm2n/util/option_list.h, the codes of m2n(7) those
of include/m2n/status.h. In a page a table stands between two comments, `begin X` and `end X`.
"""
import os
import re
import sys
import textwrap

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
WIDTH = 78
STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')


def rows(text, macro):
    """The rows X(...) of an X-macro list: lists of words and of strings without their quotes."""
    body = re.search(r'#define ' + macro + r'\(X\) \\\n((?:.*\\\n)*.*\n)', text).group(1)
    found = []
    for row in re.findall(r'\bX\(((?:"(?:[^"\\]|\\.)*"|[^")])*)\)', body.replace('\\\n', '\n')):
        strings = []

        def keep(match, strings=strings):
            strings.append(match.group(1))
            return f'@{len(strings) - 1}'
        fields = [field.split() for field in STRING.sub(keep, row).split(',')]
        found.append([''.join(strings[int(part[1:])] if part[0] == '@' else part
                              for part in field) for field in fields])
    return found


def roff(text):
    """Plain text as lines of a page, with functions marked up."""
    lines = []
    for i, part in enumerate(re.split(r'\b(\w+\(\)[,;.]?)', text.replace('\\', '\\e'))):
        if i % 2:
            name, end = part.split('()')
            lines.append(f'.Fn {name} {end}'.rstrip())
        else:
            lines += textwrap.wrap(part.strip(), WIDTH, break_on_hyphens=False)
    # A line of text must not look like a macro.
    return [line if line.startswith('.Fn ') else re.sub(r"^([.'])", r'\\&\1', line)
            for line in lines]


def option_lines(text):
    """The option table of m2n_options(7)."""
    lines = []
    for name, _, kind, default, accepted, unit, about in rows(text, 'M2N_OPTION_LIST'):
        unit = f' {unit}' if unit else ''
        lines += [f'.It Ev M2N_{name}', *roff(about), '.br',
                  *roff(f'{kind}: {accepted}{unit}; default {default or "empty"}')]
    return lines


def code_lines(text):
    """The codes of m2n(7)."""
    lines = []
    for name, code, about in rows(text, 'M2N_STATUS_LIST'):
        lines += [f'.It Dv M2N_ERR_{name}', *roff(f'-{code}: {about}.')]
    return lines


TABLES = (
    ('m2n_options.7', 'options', os.path.join('libm2n', 'util', 'option_list.h'), option_lines),
    ('m2n.7', 'codes', os.path.join('include', 'm2n', 'status.h'), code_lines),
)


def fill(page, what, lines):
    """The page with the lines between its two comments."""
    pattern = re.compile(r'(^\.\\" begin ' + what + r'\b.*\n)(?:.*\n)*?(\.\\" end ' + what + r'\n)',
                         re.M)
    assert len(pattern.findall(page)) == 1, f'no place for {what}'
    table = ''.join(line + '\n' for line in lines)
    return pattern.sub(lambda match: match.group(1) + table + match.group(2), page)


def self_test():
    """Rows in every form that the lists use."""
    text = ('#define L(X) \\\n\tX(A, a, int, "1", "0..2", "", \\\n\t  "One (1), two; " \\\n'
            '\t  "three.") \\\n\tX(B, 7, "b")\n#define OTHER(X) X(C, 8, "c")\n')
    assert rows(text, 'L') == [['A', 'a', 'int', '1', '0..2', '', 'One (1), two; three.'],
                               ['B', '7', 'b']], rows(text, 'L')
    page = 'x\n.\\" begin t, by\nold\n.\\" end t\ny\n'
    assert fill(page, 't', ['new\\e']) == 'x\n.\\" begin t, by\nnew\\e\n.\\" end t\ny\n'
    assert roff('.a\\b') == ['\\&.a\\eb']
    assert roff('of f_g(); and') == ['of', '.Fn f_g ;', 'and']


def main():
    self_test()
    status = 0
    for name, what, source, make in TABLES:
        with open(os.path.join(ROOT, source), encoding='utf-8') as text:
            lines = make(text.read())
        path = os.path.join(HERE, name)
        with open(path, encoding='utf-8') as text:
            page = text.read()
        filled = fill(page, what, lines)
        if filled == page:
            continue
        if '--check' in sys.argv[1:]:
            print(f'docs/man/{name} differs from {source}; docs/man/make_options.py writes it')
            status = 1
            continue
        with open(path, 'w', encoding='utf-8') as text:
            text.write(filled)
        print(f'docs/man/{name}: {len(lines)} lines of {what}')
    return status


if __name__ == '__main__':
    sys.exit(main())
