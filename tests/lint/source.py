# SPDX-License-Identifier: Apache-2.0
"""Reading source for the lint rules: the tree's files, C without comments and strings, and the
functions of C, Python and shell files with their lengths.

Lines keep their numbers through every transformation. Functions are found by braces at the outer
level after a parameter list, which is all that kernel style needs; no preprocessor is run.
"""
import ast
import os
import re

SKIP_DIRS = re.compile(r'^(\.git|build.*|__pycache__|subprojects|corpus)$')
C_NAME = re.compile(r'\.(c|h|cu|cuh)$')


def read_tree(root):
    """{path relative to root: text} of every text file; build directories are left out."""
    files = {}
    for folder, dirs, names in os.walk(root):
        dirs[:] = sorted(name for name in dirs if not SKIP_DIRS.match(name))
        for name in sorted(names):
            path = os.path.join(folder, name)
            if os.path.islink(path):
                continue
            with open(path, 'rb') as data:
                content = data.read()
            if b'\0' not in content:
                files[os.path.relpath(path, root)] = content.decode('utf-8', 'replace')
    return files


def language(path, text):
    """'c', 'py', 'sh', 'meson', 'cmake' or None."""
    if C_NAME.search(path):
        return 'c'
    if path.endswith('.py') or re.match(r'#!.*python', text):
        return 'py'
    if path.endswith('.sh') or re.match(r'#!.*\b(ba|da)?sh\b', text):
        return 'sh'
    if os.path.basename(path) in ('meson.build', 'meson_options.txt'):
        return 'meson'
    return 'cmake' if path.endswith('.cmake.in') else None


def _blank(match):
    return re.sub(r'[^\n]', ' ', match.group(0))


C_TOKEN = re.compile(r'''/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*\'''', re.S)


def blank_c(text, keep_strings=False):
    """C with comments (and the insides of literals) as blanks."""
    def blank(match):
        token = match.group(0)
        if token[0] == '/':
            return _blank(match)
        return token if keep_strings else token[0] + ' ' * (len(token) - 2) + token[0]
    return C_TOKEN.sub(blank, text)


def _blank_preprocessor(text):
    return re.sub(r'^[ \t]*#(?:[^\n]*\\\n)*[^\n]*', _blank, text, flags=re.M)


def _c_head_name(head):
    """The function's name in the text before its body, None when it is no function."""
    if '=' in head:
        return None
    head = re.sub(r'__attribute__\s*\(\(.*?\)\)', ' ', head, flags=re.S).rstrip()
    while head and re.match(r'\w', head[-1]):
        head = re.sub(r'\b\w+$', '', head).rstrip()
    if not head.endswith(')'):
        return None
    match = re.search(r'(\w+)\s*\(', head)
    return match.group(1) if match else '(unnamed)'


def c_functions(text):
    """[(name, first line, length)], or None when the braces do not match."""
    code = _blank_preprocessor(blank_c(text))
    code = re.sub(r'extern\s+"C?\s*"\s*\{', _blank, code)
    found, depth, head_start, name, start = [], 0, 0, None, 0
    for match in re.finditer(r'[{};]', code):
        mark, at = match.group(0), match.start()
        if mark == '{':
            if depth == 0:
                head = code[head_start:at]
                name = _c_head_name(head)
                start = head_start + len(head) - len(head.lstrip())
            depth += 1
        elif mark == '}':
            # An extra one at the outer level closes extern "C".
            depth = max(depth - 1, 0)
            if depth == 0 and name:
                first = code.count('\n', 0, start) + 1
                found.append((name, first, code.count('\n', 0, at) + 2 - first))
                name = None
        if depth == 0:
            head_start = at + 1
    return None if depth else found


def py_functions(text):
    """The same for Python; None when it does not parse."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return None
    return [(node.name, node.lineno, node.end_lineno - node.lineno + 1)
            for node in ast.walk(tree)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def sh_functions(text):
    """The same for shell: `name()`, braces in column 0 or behind the name."""
    found, name, first = [], None, 0
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r'(?:function\s+)?([\w-]+)\s*\(\)', line)
        if match and not name and not re.search(r'\}\s*$', line):
            name, first = match.group(1), number
        elif name and re.match(r'\}', line):
            found.append((name, first, number - first + 1))
            name = None
    return None if name else found


FUNCTIONS = {'c': c_functions, 'py': py_functions, 'sh': sh_functions}
