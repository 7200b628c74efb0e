#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""tests/run_count on logs written by hand: what it prints, and when it fails."""
import json
import os
import subprocess
import sys
import tempfile

RUN_COUNT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'run_count')
CMOCKA = '''[==========] Running 3 test(s).
[  SKIPPED ] two
[  FAILED  ] three
[  PASSED  ] 1 test(s).
[  SKIPPED ] 1 test(s), listed below:
[  SKIPPED ] two
[  FAILED  ] 1 test(s), listed below:
[  FAILED  ] three
'''
TAP = 'TAP version 13\nok 1 a # quick\nok 2 b # SKIP why\nnot ok 3 c\n1..3\n'
PLAIN = [('OK', ''), ('FAIL', ''), ('TIMEOUT', ''), ('SKIP', '')]
MAY_SKIP = '# a comment\nx 0/two: a reason: two words\nx 0/b: a reason\n'

# entries (result, output), arguments, the last line, exit status
CASES = (
    ([('OK', 'hello')], [], '1 passed, 0 failed, 0 skipped', 0),
    (PLAIN, [], '1 passed, 2 failed, 1 skipped', 1),
    ([('FAIL', CMOCKA)], [], '1 passed, 1 failed, 1 skipped', 1),
    ([('OK', CMOCKA.replace('FAILED', 'IGNORED'))], [], '1 passed, 0 failed, 1 skipped', 0),
    ([('OK', TAP)], [], '1 passed, 1 failed, 1 skipped', 1),
    # A crash after its cases, and one before any.
    ([('FAIL', '[  PASSED  ] 2 test(s).\n')], [], '2 passed, 1 failed, 0 skipped', 1),
    ([('ERROR', '[==========] Running 3 test(s).\n')], [], '0 passed, 1 failed, 0 skipped', 1),
    ([], [], '0 passed, 0 failed, 0 skipped', 1),
    (None, [], '0 passed, 1 failed, 0 skipped', 1),
    ([('OK', CMOCKA.replace('FAILED', 'IGNORED'))], ['--may-skip'],
     '1 passed, 0 failed, 1 skipped', 0),
    ([('OK', ''), ('SKIP', '')], ['--may-skip'], '1 passed, 1 failed, 0 skipped', 1),
    ([('OK', TAP.replace('not ', ''))], ['--may-skip'], '2 passed, 0 failed, 1 skipped', 0),
    ([('OK', '1..2\nok 1 - a: b # SKIP c\nok 2\n')], ['--may-skip'],
     '1 passed, 1 failed, 0 skipped', 1),
    ([('OK', '')], ['--suites', 'unit'], '1 passed, 0 failed, 0 skipped', 0),
    ([('OK', '')], ['--suites', 'unit,lint'], '1 passed, 1 failed, 0 skipped', 1),
)


def count(work, entries, args):
    """(last line, exit status) for one log."""
    log = os.path.join(work, 'meson-logs', 'testlog.json')
    if os.path.exists(log):
        os.unlink(log)
    if entries is not None:
        with open(log, 'w', encoding='utf-8') as out:
            for number, (result, output) in enumerate(entries):
                entry = {'name': f'p:unit / x {number}', 'result': result, 'stderr': output}
                out.write(json.dumps(entry) + '\n')
    if args == ['--may-skip']:
        args = args + [os.path.join(work, 'may_skip')]
    done = subprocess.run([sys.executable, RUN_COUNT] + args + [work], capture_output=True,
                          text=True, check=False)
    return done.stdout.splitlines()[-1], done.returncode


def main():
    wrong = 0
    with tempfile.TemporaryDirectory() as work:
        os.mkdir(os.path.join(work, 'meson-logs'))
        with open(os.path.join(work, 'may_skip'), 'w', encoding='utf-8') as out:
            out.write(MAY_SKIP)
        for entries, args, line, status in CASES:
            found = count(work, entries, args)
            if found != (line, status):
                print(f'{entries} {args}: {found}, not {(line, status)}')
                wrong += 1
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
