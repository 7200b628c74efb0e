#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""run_in_vm on a guest that is none: what it makes of programs that end well, badly or not at all.

A stand-in for vm-verbs.sh runs the command on the host, or ends with the status that a broken,
late or impossible guest has.
"""
import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
# STAND_IN=STATUS: ends with it after the command's first AFTER lines; with ONCE=FILE only the
# first time. -u: there is no such engine.
STAND_IN = r'''#!/bin/bash
while [ "$1" != -- ]; do
	[ "$1" != -u ] || { echo "no -u here" >&2; exit 125; }
	shift
done
shift
[ -z "${ONCE:-}" ] || [ ! -e "$ONCE" ] || unset STAND_IN
[ -n "${STAND_IN:-}" ] || exec "$@"
[ -z "${ONCE:-}" ] || touch "$ONCE"
"$@" | head -n "$AFTER"
echo "the last words" >&2
exit "$STAND_IN"
'''
TAP = 'echo 1..2; echo ok 1 - a; echo "ok 2 - b # SKIP why"'

# words behind `--`, environment, exit status, what is printed (all of it but comments)
CASES = (
    (['true'], {}, 0, ['ok 1 - exit status 0', '1..1']),
    (['false'], {}, 1, ['not ok 1 - exit status 1', '1..1']),
    (['sh', '-c', TAP], {}, 0, ['ok 1 - a', 'ok 2 - b # SKIP why', '1..2']),
    (['true', '--', 'false', '--', 'true'], {}, 1,
     ['ok 1 - true: exit status 0', 'not ok 2 - false: exit status 1',
      'ok 3 - true: exit status 0', '1..3']),
    # Cases that are told but do not come, a crash after good cases, a bad case and a bad status.
    (['sh', '-c', 'echo 1..2; echo ok 1 - a'], {}, 1,
     ['ok 1 - a', 'not ok 2 - 1 cases of 2', '1..2']),
    (['sh', '-c', 'echo 1..1; echo ok 1 - a; kill -9 $$'], {}, 1,
     ['ok 1 - a', 'not ok 2 - exit status 137', '1..2']),
    (['sh', '-c', 'echo 1..1; echo not ok 1 - a; exit 1'], {}, 1, ['not ok 1 - a', '1..1']),
    # Skipped as a whole, in either way.
    (['sh', '-c', 'echo "1..0 # SKIP none"; exit 77'], {}, 0, ['ok 1 - all # SKIP none', '1..1']),
    (['sh', '-c', 'exit 77'], {}, 0, ['ok 1 - all # SKIP see above', '1..1']),
    # Guests that time out, break, or cannot be.
    (['true', '--', 'sh', '-c', 'echo ok 1 - a', '--', 'true'],
     {'STAND_IN': '124', 'AFTER': '7'}, 1,
     ['ok 1 - true: exit status 0', 'ok 2 - sh x: a', 'not ok 3 - sh x: timed out after 9 s',
      'not ok 4 - true: not run, timed out after 9 s', '1..4']),
    (['true'], {'STAND_IN': '125', 'AFTER': '0'}, 1,
     ['not ok 1 - not run, the guest broke', '1..1']),
    (['true'], {'STAND_IN': '126', 'AFTER': '0'}, 0, ['1..0 # SKIP the last words']),
    # QEMU itself crashes: once is forgiven, and what had ended is not run again.
    (['true', '--', 'sh', '-c', 'echo 1..1; echo ok 1 - a'],
     {'STAND_IN': '123', 'AFTER': '6', 'ONCE': 'crashed'}, 0,
     ['ok 1 - true: exit status 0', 'ok 2 - sh x: a', '1..2']),
    (['true'], {'STAND_IN': '123', 'AFTER': '0'}, 1,
     ['not ok 1 - not run, QEMU crashed twice', '1..1']),
    # The engine that does not start gives way to the other; not when it was asked for.
    (['true'], {'M2N_VM_UML': '/nowhere'}, 0, ['ok 1 - exit status 0', '1..1']),
    (['true'], {'M2N_VM_UML': '/nowhere', 'ENGINE': 'uml'}, 1,
     ['not ok 1 - not run, the guest broke', '1..1']),
    # A kernel that lacks what is needed gives way before it is started.
    (['true'], {'M2N_VM_UML': 'KERNEL', 'NEEDS': 'netem'}, 0, ['ok 1 - exit status 0', '1..1']),
    (['true'], {'M2N_VM_UML': 'KERNEL', 'NEEDS': 'veth', 'WANTED': '1'}, 0,
     ['# user-mode Linux does not run here (125); QEMU instead', 'ok 1 - exit status 0', '1..1']),
    (['true'], {'M2N_VM_UML': 'KERNEL', 'NEEDS': 'netem', 'WANTED': '1'}, 0,
     ['# user-mode Linux without netem; QEMU instead', 'ok 1 - exit status 0', '1..1']),
)


def run(work, words, env):
    """(exit status, lines that are no comment), with the programs' long labels as `sh x`; WANTED:
    also the line that says why it is QEMU."""
    env = dict({'M2N_VM_UML': ''}, **env)
    if 'ONCE' in env:
        env['ONCE'] = os.path.join(work, env['ONCE'])
    if env['M2N_VM_UML'] == 'KERNEL':
        env['M2N_VM_UML'] = os.path.join(work, 'kernel')
        with open(env['M2N_VM_UML'], 'w', encoding='utf-8') as kernel:
            kernel.write('CONFIG_VETH=y veth')
    needs = ['--needs', env['NEEDS']] if 'NEEDS' in env else []
    done = subprocess.run(
        [sys.executable, os.path.join(work, 'run_in_vm'), '--engine', env.get('ENGINE', 'auto'),
         '-t', '9'] + needs + ['--'] + words,
        env=dict(os.environ, **env), capture_output=True, text=True, timeout=60, check=False)
    lines = [line for line in done.stdout.splitlines() if not line.startswith('#') or
             'WANTED' in env and 'instead' in line]
    for word in words:
        lines = [line.replace('-c ' + word + ': ', 'x: ') for line in lines]
    return done.returncode, lines


def main():
    wrong = 0
    with tempfile.TemporaryDirectory() as work:
        shutil.copy(os.path.join(HERE, 'run_in_vm'), work)
        with open(os.path.join(work, 'vm-verbs.sh'), 'w', encoding='utf-8') as out:
            out.write(STAND_IN)
        for words, env, status, lines in CASES:
            found = run(work, words, env)
            if found != (status, lines):
                print(f'{words} {env}: {found}, not {(status, lines)}')
                wrong += 1
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
