#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Every lint rule can fail: each is fed text that it must reject and text that it must accept."""
import os
import sys

from rules import RULES, function_lengths
from source import blank_c, c_functions, py_functions, sh_functions

HEAD = '/* SPDX-License-Identifier: Apache-2.0 */\n/* What it is for. */\n'
LONG = 'int f(void)\n{\n' + '\tg();\n' * 98 + '}\n'

# rule: (path, text) that it must reject
BAD = {
    'layering': [
        ('libm2n/util/a.c', '#include "core/x.h"\n'),
        ('libm2n/util/a.c', '#include "wire/x.h"\n'),
        ('libm2n/mem/a.c', '#include "kernel/x.h"\n'),
        ('libm2n/route/a.c', '#include "backend/backend.h"\n'),
        ('libm2n/kernel/a.c', '  #  include "route/plan.h"\n'),
        ('libm2n/backend/a.c', '#include "core/x.h"\n'),
        ('libm2n/backend/shm/a.c', '#include "backend/verbs/x.h"\n'),
        ('libm2n/core/a.c', '#include "backend/shm/shm.h"\n'),
        ('libm2n/core/a.c', '#include "../util/list.h"\n'),
        ('libm2n/core/a.c', '#include "perftest/x.h"\n'),
        ('include/m2n/a.h', '#include "core/x.h"\n'),
        ('consumers/a/a.c', '#include "util/time.h"\n'),
    ],
    'vendors': [
        ('libm2n/core/a.c', '#include <infiniband/verbs.h>\n'),
        ('libm2n/backend/shm/a.c', '#include <rdma/rdma_cma.h>\n'),
        ('libm2n/backend/verbs/a.c', '#include <ucp/api/ucp.h>\n'),
        ('include/m2n/a.h', '#include <cuda.h>\n'),
        ('libm2n/core/a.c', '#include <cuda_runtime.h>\n'),
        ('libm2n/backend/ucx/a.c', '#include <nccl.h>\n'),
        ('libm2n/bootstrap/a.c', '#include <mpi.h>\n'),
        ('libm2n/bootstrap/a.c', '#include <pmix.h>\n'),
        ('libm2n/core/a.c', '#include <sodium.h>\n'),
    ],
    'environment': [
        ('libm2n/util/a.c', 'x = getenv("A");\n'),
        ('libm2n/core/log.c', 'x = secure_getenv ("A");\n'),
        ('libm2n/core/a.c', 'extern char **environ;\n'),
    ],
    'sizes': [
        ('libm2n/a.c', LONG),
        ('tests/a.c', 'int x;\n' * 1001),
        ('tests/a.c', 'int f(void)\n{\n'),
        ('a.py', 'def f():\n' + '    g()\n' * 100),
        ('a.py', 'def f(:\n'),
        ('a.sh', 'f()\n{\n' + '\tg\n' * 98 + '}\n'),
    ],
    'openings': [
        ('a.c', '/* What it is for. */\nint x;\n'),
        ('a.c', '/* SPDX-License-Identifier: Apache-2.0 */\nint x;\n'),
        ('a.c', '/* SPDX-License-Identifier: MIT */\n/* What. */\nint x;\n'),
        ('a.c', '/* SPDX-License-Identifier: Apache-2.0 */\n/*' + ' * word\n' * 21 + '*/\n'),
        ('a.sh', '#!/bin/sh\n# SPDX-License-Identifier: Apache-2.0\nset -eu\n'),
        ('a.py', '# SPDX-License-Identifier: Apache-2.0\nimport sys\n'),
        ('b/meson.build', 'x = 1\n'),
    ],
    'calls': [
        ('libm2n/a.c', 'printf("x");\n'),
        ('libm2n/a.c', 'fprintf(stderr, "x");\n'),
        ('libm2n/core/log.c', 'abort();\n'),
        ('libm2n/a.c', 'fputs("x", stdout);\n'),
        ('libm2n/a.c', 'puts("x");\n'),
        ('libm2n/a.c', 'perror("x");\n'),
        ('libm2n/a.c', 'exit(1);\n'),
        ('libm2n/a.c', '_exit(1);\n'),
        ('libm2n/a.c', 'assert(n > 0);\n'),
    ],
    'places': [
        ('a.md', 'see /wo' 'rk/x\n'),
        ('a.c', '/* in /tm' 'p/build-x */\n'),
        ('a.sh', 'cd /ho' 'me/me\n'),
        ('a.c', '/* TO' 'DO: later */\n'),
    ],
    'layout': [
        ('a.c', 'int x; \n'),
        ('a.c', 'int x;'),
        ('a.c', 'int x;\n\n'),
        ('a.c', '        int x;\n'),
        ('a.c', '/* ' + 'x' * 98 + ' */\n'),
        ('a.c', '\t' * 12 + 'int x;\n'),
        ('a.py', 'x = 1\t\n'),
    ],
    'built': [('libm2n/util/a.c', ''), ('tests/unit/test_a.c', '')],
    'documented': [
        ('include/m2n/a.h', 'struct m2n_a;\n\nM2N_API int m2n_a(void);\n'),
    ],
}

# rule: (path, text) that it must accept
GOOD = {
    'layering': [
        ('libm2n/core/a.c', '#include "backend/backend.h"\n#include "util/x.h"\n'),
        ('libm2n/backend/shm/a.c', '#include "backend/common/x.h"\n#include "shm.h"\n'),
        ('libm2n/backend/registry.c', '#include "backend/shm/shm.h"\n'),
        ('libm2n/util/a.c', '/*\n#include "core/x.h"\n*/\n'),
        ('tests/unit/a.c', '#include "core/x.h"\n'),
    ],
    'vendors': [
        ('libm2n/backend/verbs/a.c', '#include <infiniband/verbs.h>\n'),
        ('perftest/a.c', '#include <mpi.h>\n#include <ucp/api/ucp.h>\n'),
        ('libm2n/bootstrap/a.c', '#include <sodium.h>\n// #include <mpi.h>\n'),
    ],
    'environment': [
        ('libm2n/core/option.c', 'x = getenv("A");\n'),
        ('libm2n/core/a.c', '/* getenv() */ m2n__getenv_fn get; s = "getenv(";\n'),
        ('tests/a.c', 'x = getenv("A");\n'),
    ],
    'sizes': [
        ('libm2n/a.c', LONG.replace('\tg();\n', '', 1)),
        ('libm2n/a.c', 'struct x y[] = {\n' + '\t{1},\n' * 200 + '};\n'),
    ],
    'openings': [
        ('a.c', HEAD),
        ('a.sh', '#!/bin/sh\n# SPDX-License-Identifier: Apache-2.0\n#\n# What.\nset -eu\n'),
        ('a.py', '#!/usr/bin/python3\n# SPDX-License-Identifier: Apache-2.0\n"""What."""\n'),
        ('b/meson.build', '# SPDX-License-Identifier: Apache-2.0\n'),
    ],
    'calls': [
        ('libm2n/core/log.c', 'fprintf(stderr, "x");\n'),
        ('libm2n/a.c', 'snprintf(x); static_assert(1, ""); _Static_assert(1, ""); /* exit(1) */\n'),
        ('tests/a.c', 'printf("x"); exit(1);\n'),
    ],
    'places': [('a.md', '../shared/data, /dev/shm, network/x, ~/work/x, /tmp/x\n')],
    'layout': [
        ('a.c', '\tint x;\n'),
        ('a.c', '/* clang-format off */\n' + 'x' * 120 + '\n/* clang-format on */\n'),
    ],
    'built': [('tests/abi/consumer.c', ''), ('include/m2n/a.h', '')],
    'documented': [
        ('include/m2n/a.h', '/* A. */\nM2N_API int m2n_a(void);\nM2N_API int m2n_b(void);\n'),
        ('include/m2n/a.h', 'struct x;\n\nM2N_API int m2n_a(void); /* A. */\n'),
    ],
}

SCANNED = '''#define M(x) \\
\tdo { \\
\t} while (0)
extern "C" {
static const char brace[] = "{ \\" {", quote = '"', other = '{'; /* { */
enum e { A, B };
struct s {
\tint (*op)(int);
};
static int __attribute__((format(printf, 1, 2))) one(const char *format, ...)
{
\tif (brace[0] == '}') {
\t}
\treturn 0;
}

struct s *two(struct s *s,
\tint n) { return s; }
static const struct s table = {
\t.op = NULL,
};
}
'''


def check_scanners():
    """Functions are found with their names, lines and lengths."""
    assert c_functions(SCANNED) == [('one', 10, 6), ('two', 17, 2)], c_functions(SCANNED)
    assert c_functions('int f(void)\n{\n') is None
    assert py_functions('class A:\n    def f(self):\n        return 1\n') == [('f', 2, 2)]
    assert sh_functions('f()\n{\n\tx\n}\ng() { y; }\n') == [('f', 1, 4)]
    assert sh_functions('f() {\n') is None
    assert blank_c('a /* b\n */ "c" // d\n') == 'a     \n    " "     \n'
    meson = {'a/meson.build': "x += files('one.c', 'b/two.c')\nt += ['three']\n"}
    for path in ('a/one.c', 'a/b/two.c', 'a/test_three.c', 'a/fuzz_three.c'):
        assert not RULES['built']({path: '', **meson}), path
    assert RULES['built']({'a/wo.c': '', **meson})
    assert function_lengths({'libm2n/a.c': LONG})[0] == [(101, 'libm2n/a.c', 1, 'f')]


def main():
    check_scanners()
    with open(os.path.join(os.path.dirname(__file__), 'meson.build'), encoding='utf-8') as text:
        registered = text.read()
    wrong = [f'meson.build does not run {name}' for name in RULES if f"'{name}'" not in registered]
    wrong += [f'{name} has no example' for name in RULES if name not in BAD or name not in GOOD]
    for name, examples in BAD.items():
        wrong += [f'{name} accepts {path}: {text[:60]!r}' for path, text in examples
                  if not RULES[name]({path: text})]
    for name, examples in GOOD.items():
        for path, text in examples:
            found = RULES[name]({path: text})
            wrong += [f'{name} rejects {path}: {text[:60]!r}: {found[0]}'] if found else []
    print('\n'.join(wrong))
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
