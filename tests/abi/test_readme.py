#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What README.md tells the reader to type exists, and the quick start's job runs.

  test_readme.py commands BUILD_ROOT SOURCE_ROOT    every command of a block fenced as sh exists
  test_readme.py job BUILD_ROOT SOURCE_ROOT         runs the job of scripts/quickstart.sh

The two commands themselves build and test, so the tests cannot run them; .ci/run does. Exits 77
(skipped) when there is no README.md or no m2n_perf yet.
"""
import os
import re
import subprocess
import sys

THE_TWO = ('sh scripts/quickstart.sh', 'sh scripts/check.sh')
NAMED_PATH = re.compile(r'(?<![\w/.-])((?:scripts|build|tests|perftest)/[\w./-]+)')


def commands(text):
    """The command lines in the blocks of a Markdown text fenced as sh."""
    blocks = re.findall(r'^```sh\n(.*?)^```$', text, re.S | re.M)
    lines = ''.join(blocks).replace('\\\n', ' ').splitlines()
    return [line.split(' #')[0].strip() for line in lines if line.strip() and line[0] != '#']


def problems(text, exists):
    """One line for each thing that is wrong; `exists` says whether a named path is there."""
    found = commands(text)
    lines = [f'the command "{command}" is not there' for command in THE_TWO
             if command not in found]
    for command in found:
        lines += [f'"{command}": there is no {path}' for path in NAMED_PATH.findall(command)
                  if not exists(path)]
    return lines


def check_commands(build_root, source_root):
    """The commands of README.md, against the tree."""
    readme = os.path.join(source_root, 'README.md')
    if not os.path.exists(readme):
        print('skipped: there is no README.md')
        return 77
    made = re.compile(r'^build/')

    def exists(path):
        place = build_root if made.match(path) else source_root
        return os.path.exists(os.path.join(place, made.sub('', path)))

    with open(readme, encoding='utf-8') as text:
        lines = problems(text.read(), exists)
    print('\n'.join(lines))
    return 1 if lines else 0


def run_job(build_root, source_root):
    """The tables of the quick start, with the programs that are built."""
    if not os.path.exists(os.path.join(build_root, 'perftest', 'm2n_perf')):
        print('skipped: m2n_perf is not built')
        return 77
    script = os.path.join(source_root, 'scripts', 'quickstart.sh')
    return subprocess.run(['sh', script, '--job', build_root], stdin=subprocess.DEVNULL,
                          timeout=100, check=False).returncode


def self_test():
    """A missing command and a missing path are both seen."""
    good = '```sh\nsh scripts/quickstart.sh\n```\n\n```sh\nsh scripts/check.sh # all\n```\n'
    assert not problems(good, lambda path: True)
    assert len(problems(good.replace('check', 'chek'), lambda path: 'chek' not in path)) == 2
    assert len(problems(good + '```sh\nbuild/perftest/m2n_pref bw\n```\n',
                        lambda path: path != 'build/perftest/m2n_pref')) == 1


if __name__ == '__main__':
    self_test()
    sys.exit({'commands': check_commands, 'job': run_job}[sys.argv[1]](*sys.argv[2:]))
