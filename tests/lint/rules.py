# SPDX-License-Identifier: Apache-2.0
"""The lint rules. A rule takes {path: text} and returns a list of `path:line: what is wrong`.

What a rule forbids is a table at its top; tests/lint/test_rules.py shows for every rule that it
can fail. Rules look at the whole tree, so that a new file is under them from the start.
"""
import posixpath
import re

from source import FUNCTIONS, blank_c, language

# Who may include whom inside libm2n/: only folders to the right, and the own one.
LAYERS = (('core',), ('route', 'bootstrap', 'backend'), ('wire', 'mem', 'kernel'), ('util',))
LEVEL = {folder: level for level, layer in enumerate(LAYERS) for folder in layer}
# Parts of backend/ that every backend may use.
BACKEND_SHARED = ('common',)
# Vendor headers, and the folders that own them.
VENDORS = (
    (r'(infiniband|rdma)/', ('libm2n/backend/verbs/',)),
    (r'(ucp|ucs|uct|ucm)/', ('libm2n/backend/ucx/', 'perftest/')),
    (r'nccl', ('libm2n/backend/nccl/', 'perftest/')),
    (r'(cuda|nvml|cupti)', ('libm2n/mem/', 'libm2n/kernel/', 'libm2n/backend/cuda_ipc/',
                            'perftest/', 'consumers/')),
    (r'(mpi|pmix|shmem)[^/]*\.h', ('perftest/', 'tests/')),
    (r'sodium', ('libm2n/bootstrap/',)),
)
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(["<])([^">]+)[">]', re.M)
GETENV = re.compile(r'\b(?:secure_)?getenv\s*\(|\benviron\b')
MAX_FUNCTION, LOOK_TWICE, MAX_FILE, MAX_LINE = 100, 60, 1000, 100
BANNED = (
    (re.compile(r'\b(?:v?printf|puts|putchar|perror)\s*\('), 'the library prints nothing'),
    (re.compile(r'\bv?fprintf\s*\(\s*std(?:out|err)\b'), 'the library prints nothing'),
    (re.compile(r'\bf(?:puts|putc|write)\s*\([^;]*\bstd(?:out|err)\b'),
     'the library prints nothing'),
    (re.compile(r'\b(?:abort|exit|_exit|_Exit|quick_exit|__builtin_trap)\s*\('),
     'the library never ends the process'),
    (re.compile(r'\bassert\s*\('), 'bytes and arguments are checked, not asserted'),
)
# Put together from parts, so that this file passes its own rule.
PLACES = re.compile('(?<![.~\\w])/(?:' + '|'.join(('work', 'root', 'home', 'Users')) + ')/\\w|'
                    + '/tmp/' + 'build')
NOTES = re.compile(r'\b(?:' + '|'.join(('TO' 'DO', 'FIX' 'ME', 'HA' 'CK')) + r')\b')
# Headers whose opening comment is a chapter: the model, and how each backend fits the contract.
CHAPTERS = ('include/m2n/m2n.h', 'libm2n/backend/backend.h')
MAX_OPENING = 20


def line_of(text, at):
    """The line number of an offset."""
    return text.count('\n', 0, at) + 1


def c_files(files, *folders):
    """(path, text) of the C files under the folders, all when there are none."""
    return [(path, text) for path, text in files.items() if language(path, text) == 'c'
            and (not folders or path.startswith(folders))]


def folder_of(path):
    """The folder of libm2n/ that a file belongs to."""
    parts = path.split('/')
    return parts[1] if len(parts) > 2 else None


def own_backend(path):
    """The backend that a file below backend/ belongs to, None for the contract itself."""
    parts = path.split('/')
    return parts[2] if len(parts) > 3 and parts[1] == 'backend' else None


def bad_include(path, name):
    """Why a file inside libm2n/ may not include "name", None when it may."""
    if '..' in name:
        return 'includes are named from libm2n/'
    if '/' not in name:
        name = posixpath.relpath(posixpath.join(posixpath.dirname(path), name), 'libm2n')
    mine, theirs = folder_of(path), name.split('/')[0]
    if theirs not in LEVEL:
        return f'{theirs}/ is no folder of the library'
    if mine is None or mine not in LEVEL:
        return None
    if theirs != mine and LEVEL[theirs] <= LEVEL[mine]:
        return f'{mine} knows nothing of {theirs}'
    backend, other = own_backend(path), own_backend('libm2n/' + name)
    if backend and other and other != backend and other not in BACKEND_SHARED:
        return f'backend {backend} knows nothing of backend {other}'
    if other and mine != 'backend':
        return f'{mine} knows the contract backend.h, not a backend'
    return None


def layering(files):
    """One direction inside libm2n/; nothing outside it looks in, but tests and perftest."""
    found = []
    for path, text in c_files(files, 'libm2n/', 'include/', 'consumers/'):
        for match in INCLUDE.finditer(blank_c(text, keep_strings=True)):
            kind, name = match.groups()
            why = None
            if kind == '"' and path.startswith('libm2n/'):
                why = bad_include(path, name)
            elif kind == '"' and (path.startswith('include/') or name.split('/')[0] in LEVEL):
                why = 'only <m2n/...> may be included here'
            if why:
                found.append(f'{path}:{line_of(text, match.start())}: "{name}": {why}')
    return found


def vendors(files):
    """A vendor's header appears only in the folder that owns it."""
    found = []
    for path, text in c_files(files):
        for match in INCLUDE.finditer(blank_c(text, keep_strings=True)):
            for pattern, owners in VENDORS:
                if match.group(1) == '<' and re.match(pattern, match.group(2)) \
                        and not path.startswith(owners):
                    found.append(f'{path}:{line_of(text, match.start())}: '
                                 f'<{match.group(2)}> belongs to {" ".join(owners)}')
    return found


def environment(files):
    """The environment is read in one place."""
    return [f'{path}:{line_of(text, match.start())}: core/option.c alone does that'
            for path, text in c_files(files, 'libm2n/') if path != 'libm2n/core/option.c'
            for match in GETENV.finditer(blank_c(text))]


def function_lengths(files):
    """([(length, path, line, name)], [path that cannot be measured])."""
    lengths, unknown = [], []
    for path, text in files.items():
        measure = FUNCTIONS.get(language(path, text))
        functions = measure(text) if measure else []
        if functions is None:
            unknown.append(path)
        lengths += [(length, path, line, name) for name, line, length in functions or []]
    return sorted(lengths, reverse=True), unknown


def sizes(files):
    """No function above 100 lines, no file above 1,000."""
    lengths, unknown = function_lengths(files)
    found = [f'{path}:{line}: {name} has {length} lines, at most {MAX_FUNCTION}'
             for length, path, line, name in lengths if length > MAX_FUNCTION]
    found += [f'{path}:1: braces or syntax that the scan cannot follow' for path in unknown]
    for path, text in files.items():
        n_lines = text.count('\n')
        if language(path, text) in FUNCTIONS and n_lines > MAX_FILE:
            found.append(f'{path}:{n_lines}: {n_lines} lines, at most {MAX_FILE}')
    return found


def module_comment(text, kind):
    """The lines of the comment that opens a file, without SPDX line and `#!`."""
    lines = [line for line in text.splitlines()
             if not line.startswith('#!') and 'SPDX-License-Identifier' not in line]
    rest = '\n'.join(lines).lstrip()
    if kind == 'c':
        match = re.match(r'/\*(.*?)\*/', rest, re.S)
    elif kind == 'py':
        match = re.match(r'"""(.*?)"""', rest, re.S)
    else:
        match = re.match(r'((?:#[^\n]*\n)+)', rest + '\n')
    comment = match.group(1) if match else ''
    return [line for line in comment.splitlines() if re.search(r'\w', line)]


def openings(files):
    """Every source file opens with its licence and a comment that says what it is for."""
    found = []
    for path, text in files.items():
        kind = language(path, text)
        if not kind:
            continue
        if not any('SPDX-License-Identifier: Apache-2.0' in line
                   for line in text.splitlines()[:2]):
            found.append(f'{path}:1: no SPDX line')
        comment = module_comment(text, kind)
        if kind != 'meson' and not comment:
            found.append(f'{path}:2: no module comment')
        if path not in CHAPTERS and len(comment) > MAX_OPENING:
            found.append(f'{path}:2: a module comment of {len(comment)} lines; docs/ is the place')
    return found


def calls(files):
    """Library code never prints, ends the process or asserts on data."""
    found = []
    for path, text in c_files(files, 'libm2n/'):
        code = blank_c(text)
        for pattern, why in BANNED:
            if 'prints' in why and path == 'libm2n/core/log.c':
                continue
            found += [f'{path}:{line_of(text, match.start())}: {match.group(0).strip()}: {why}'
                      for match in pattern.finditer(code)]
    return found


def places(files):
    """No path of somebody's machine, and no note to oneself."""
    found = []
    for path, text in files.items():
        found += [f'{path}:{line_of(text, match.start())}: a path of one machine: {match.group(0)}'
                  for match in PLACES.finditer(text)]
        if language(path, text):
            found += [f'{path}:{line_of(text, match.start())}: {match.group(0)}: do it or leave it'
                      for match in NOTES.finditer(text)]
    return found


def layout(files):
    """100 columns with tabs of 8 (fenced tables apart), tabs in C, no blanks at ends of lines."""
    found = []
    for path, text in files.items():
        kind = language(path, text)
        if not kind:
            continue
        fenced = False
        for number, line in enumerate(text.split('\n'), 1):
            if 'clang-format o' in line:
                fenced = 'clang-format off' in line
            if line != line.rstrip():
                found.append(f'{path}:{number}: blanks at the end')
            if len(line.expandtabs(8)) > MAX_LINE and not fenced:
                found.append(f'{path}:{number}: longer than {MAX_LINE} columns')
            if kind == 'c' and line.startswith('        '):
                found.append(f'{path}:{number}: indented with blanks')
        if not text.endswith('\n') or text.endswith('\n\n'):
            found.append(f'{path}:1: ends in no newline, or in an empty line')
    return found


def documented(files):
    """Every public function has a comment, its own or that of the group it stands in."""
    found = []
    for path, text in c_files(files, 'include/m2n/'):
        above = ''
        for number, line in enumerate(text.splitlines(), 1):
            if line.startswith('M2N_API') and not above.endswith(('*/', ';')) \
                    and not line.endswith('*/'):
                found.append(f'{path}:{number}: a public function without a comment')
            above = line.strip()
    return found


def built(files):
    """Every C file is named in the meson.build of its folder or of one above."""
    found = []
    for path in files:
        if not path.endswith('.c') or path.startswith('tests/abi/'):
            continue
        stem = posixpath.basename(path)[:-2]
        names = '|'.join({re.escape(stem) + r'(?:\.c)?', re.sub('^(?:test|fuzz)_', '', stem)})
        named, folder = re.compile(rf"['/](?:{names})'"), path
        while folder:
            folder = posixpath.dirname(folder)
            if named.search(files.get(posixpath.join(folder, 'meson.build'), '')):
                break
        else:
            found.append(f'{path}:1: no meson.build names it')
    return found


RULES = {rule.__name__: rule for rule in (
    layering, vendors, environment, sizes, openings, calls, places, layout, documented,
    built)}
