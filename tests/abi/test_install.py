#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The installed library serves a program that knows nothing but the installed tree.

  test_install.py BUILD_ROOT SOURCE_ROOT

Installs into an empty DESTDIR, then builds tests/abi/consumer.c and every C program of README.md
and docs/*.md (blocks fenced as c that have a main) with the flags of pkg-config and with CMake's
find_package, and runs them.
"""
import os
import re
import subprocess
import sys
import tempfile

CMAKE_LISTS = '''cmake_minimum_required(VERSION 3.10)
project(consumer C)
set(CMAKE_C_STANDARD 99)
find_package(m2n 99.0 QUIET)
if(m2n_FOUND)
  message(FATAL_ERROR "version 99 was found")
endif()
find_package(m2n @VERSION@ REQUIRED)
'''


def run(args, **options):
    """The output of a program that must end well."""
    done = subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          stdin=subprocess.DEVNULL, timeout=60, check=False, **options)
    if done.returncode:
        sys.exit(f'{" ".join(args)}: exit status {done.returncode}\n{done.stdout}')
    return done.stdout.strip()


def c_programs(text):
    """The C programs in a Markdown text, as (line number, code)."""
    programs = []
    for block in re.finditer(r'^```c\n(.*?)^```$', text, re.S | re.M):
        if re.search(r'^int main\(', block.group(1), re.M):
            programs.append((text.count('\n', 0, block.start()) + 1, block.group(1)))
    return programs


def write_programs(source_root, work):
    """Puts every program into `work`; returns the names without .c."""
    pages = [os.path.join(source_root, 'README.md')]
    docs = os.path.join(source_root, 'docs')
    pages += [os.path.join(docs, name) for name in sorted(os.listdir(docs)) if name.endswith('.md')]
    with open(os.path.join(source_root, 'tests', 'abi', 'consumer.c'), encoding='utf-8') as code:
        programs = {'consumer': code.read()}
    for page in filter(os.path.exists, pages):
        with open(page, encoding='utf-8') as text:
            for line, code in c_programs(text.read()):
                stem = os.path.splitext(os.path.basename(page))[0]
                programs[f'{stem}_line_{line}'] = code
    for name, code in programs.items():
        with open(os.path.join(work, name + '.c'), 'w', encoding='utf-8') as out:
            out.write(code)
    return sorted(programs)


def find_pc(dest):
    """The directory of m2n.pc, and the prefix as it would be on the machine."""
    for path, _, names in os.walk(dest):
        if 'm2n.pc' in names:
            with open(os.path.join(path, 'm2n.pc'), encoding='utf-8') as text:
                return path, re.search(r'^prefix=(.*)$', text.read(), re.M).group(1)
    sys.exit('m2n.pc is not installed')


def check_headers(source_root, prefix):
    """Every public header of the tree is installed."""
    have = set(os.listdir(os.path.join(prefix, 'include', 'm2n')))
    want = {name for name in os.listdir(os.path.join(source_root, 'include', 'm2n'))
            if name.endswith('.h')}
    if have != want:
        sys.exit(f'installed headers differ from include/m2n: {sorted(have ^ want)}')


def build_by_pkg_config(names, work, pc_dir, prefix):
    """Compiles, links and runs each program; returns the package's version."""
    env = dict(os.environ, PKG_CONFIG_PATH=pc_dir, LD_LIBRARY_PATH=os.path.dirname(pc_dir))
    query = ['pkg-config', '--define-variable=prefix=' + prefix]
    flags = run(query + ['--cflags', '--libs', 'm2n'], env=env).split()
    if prefix + '/include' not in ' '.join(flags):
        sys.exit(f'flags do not point into the installed tree: {flags}')
    for name in names:
        program = os.path.join(work, name)
        run(['cc', '-std=c99', '-D_POSIX_C_SOURCE=200809L', '-Wall', '-Wextra', '-Werror', '-o',
             program, program + '.c', '-pthread'] + flags)
        print(f'{name}: {run([program], env=env, cwd=work)}')
    return run(query + ['--modversion', 'm2n'], env=env)


def build_by_cmake(names, work, prefix, version):
    """The same with find_package."""
    lists = CMAKE_LISTS.replace('@VERSION@', '.'.join(version.split('.')[:2]))
    lists += ''.join(
        f'add_executable({name} {name}.c)\n'
        f'target_compile_definitions({name} PRIVATE _POSIX_C_SOURCE=200809L)\n'
        f'target_link_libraries({name} PRIVATE m2n::m2n pthread)\n' for name in names)
    with open(os.path.join(work, 'CMakeLists.txt'), 'w', encoding='utf-8') as out:
        out.write(lists)
    build = os.path.join(work, 'cmake')
    run(['cmake', '-S', work, '-B', build, '-DCMAKE_PREFIX_PATH=' + prefix])
    run(['cmake', '--build', build])
    if run([os.path.join(build, 'consumer')]) != version:
        sys.exit('the program built by CMake reports another version')


def main():
    build_root, source_root = sys.argv[1:]
    assert c_programs('a\n```c\nint x;\n```\n```c\nint main(void)\n```\n') == [
        (5, 'int main(void)\n')]
    with tempfile.TemporaryDirectory(prefix='m2n-install-') as dest:
        run(['meson', 'install', '-C', build_root, '--no-rebuild', '--quiet', '--destdir', dest])
        pc_dir, prefix = find_pc(dest)
        prefix = dest + prefix
        check_headers(source_root, prefix)
        work = os.path.join(dest, 'work')
        os.mkdir(work)
        names = write_programs(source_root, work)
        version = build_by_pkg_config(names, work, pc_dir, prefix)
        build_by_cmake(names, work, prefix, version)
    print(f'{len(names)} programs built and run against the installed tree')


if __name__ == '__main__':
    main()
