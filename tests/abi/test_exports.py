#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Exported symbols == names in the map == functions declared with M2N_API.

  test_exports.py LIBRARY

The three lists are read independently: from the shared library by nm, from libm2n/m2n.map, from
include/m2n. The self-test shows that each difference is seen.
"""
import subprocess
import sys

import make_map


def exported(library):
    """Names of the dynamic symbols that the library defines, with their version."""
    out = subprocess.run(['nm', '-D', '--defined-only', library], check=True,
                         capture_output=True, text=True).stdout
    names = [line.split()[-1] for line in out.splitlines() if line.split()[-2] != 'A']
    return sorted(names)


def differences(symbols, in_map, in_headers):
    """One line for each name that is not in all three lists."""
    wanted = {f'{name}@@M2N_0' for name in in_headers}
    lines = [f'exported, but not declared public: {name}' for name in set(symbols) - wanted]
    lines += [f'declared, but not exported: {name}' for name in wanted - set(symbols)]
    lines += [f'in m2n.map, but not declared: {name}' for name in set(in_map) - set(in_headers)]
    lines += [f'declared, but not in m2n.map: {name}' for name in set(in_headers) - set(in_map)]
    return sorted(lines)


def self_test():
    """Each kind of difference is found, and a clean set gives none."""
    assert not differences(['m2n_a@@M2N_0'], ['m2n_a'], ['m2n_a'])
    assert len(differences(['m2n_a@@M2N_0', 'x'], ['m2n_a'], ['m2n_a'])) == 1
    assert len(differences(['m2n_a'], ['m2n_a'], ['m2n_a'])) == 2
    assert len(differences([], ['m2n_a'], ['m2n_a'])) == 1
    assert len(differences(['m2n_a@@M2N_0'], ['m2n_*'], ['m2n_a'])) == 2
    header = ('#define M2N_API x\n/* M2N_API int m2n_no(void); */\nextern "C" {\n'
              'struct m2n_s { int (*m2n_f)(int); };\nM2N_API const char *m2n_a(int (*f)(int));\n'
              'static inline int m2n_i(void) { return m2n_a(0) != 0; }\n'
              'typedef void (*m2n_fn)(void *m2n_x);\nM2N_API\nvoid m2n_b(struct m2n_s *s);\n}\n')
    assert make_map.declared(header) == (['m2n_a', 'm2n_b'], []), make_map.declared(header)
    assert make_map.declared('int m2n_c(void);')[1] == ['int m2n_c(void)']
    assert make_map.names_in_map(make_map.render(['m2n_b', 'm2n_a'])) == ['m2n_a', 'm2n_b']


def main():
    self_test()
    with open(make_map.MAP, encoding='utf-8') as text:
        in_map = make_map.names_in_map(text.read())
    lines = differences(exported(sys.argv[1]), in_map, make_map.names_in_headers())
    print('\n'.join(lines))
    if lines:
        print('A public function is declared with M2N_API and defined in libm2n/;'
              ' tests/abi/make_map.py writes the map.')
    return 1 if lines else 0


if __name__ == '__main__':
    sys.exit(main())
