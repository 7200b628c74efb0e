#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A steady round makes no system call: strace shows none between the marks of steady_rounds.

  test_syscalls.py STEADY_ROUNDS N_RANKS

On `self` (1 rank) every batch of rounds must be free of them. Between two ranks a peer is prompt
only as long as the machine lets it run, so there one batch in ten must be free in each rank, in one
of three runs; a system call in every round would leave none. Exits 77 when strace is missing or may
not trace, except where CI is set: there it must work.
"""
import collections
import os
import re
import shutil
import subprocess
import sys
import tempfile

LINE = re.compile(r'^(\d+) +(\w+)\((.*)')
RESUMED = re.compile(r'^(\d+) +<\.\.\. ')


def skip(reason):
    print(reason)
    sys.exit(1 if os.environ.get('CI') else 77)


def trace(program, n_ranks):
    """The lines of a run under strace."""
    with tempfile.TemporaryDirectory() as folder:
        log = os.path.join(folder, 'trace')
        run = subprocess.run(['strace', '-f', '-o', log, program, 'marks', str(n_ranks)],
                             capture_output=True, text=True, timeout=100, check=False)
        if not os.path.exists(log) or os.path.getsize(log) == 0:
            skip(f'strace cannot trace here: {run.stderr.strip()}')
        if run.returncode:
            sys.exit(f'steady_rounds failed ({run.returncode}): {run.stdout}{run.stderr}')
        with open(log, encoding='utf-8', errors='replace') as lines:
            return lines.readlines()


def calls_per_batch(lines):
    """For each process the list of its batches, each a list of system calls."""
    batches = collections.defaultdict(list)
    inside = set()
    for line in lines:
        match = LINE.match(line)
        if not match or RESUMED.match(line):
            continue
        pid, call, rest = match.groups()
        if call == 'getpriority' and rest.startswith(('1001', '0x3e9')):
            inside.add(pid)
            batches[pid].append([])
        elif call == 'getpriority' and rest.startswith(('1002', '0x3ea')):
            inside.discard(pid)
        elif pid in inside:
            batches[pid][-1].append(call)
    return batches


def is_free(program, n_ranks):
    """Whether enough batches of one run have no system call."""
    batches = calls_per_batch(trace(program, n_ranks))
    if len(batches) != n_ranks:
        sys.exit(f'marks of {len(batches)} processes, not {n_ranks}')
    good = True
    for pid, lists in sorted(batches.items()):
        free = sum(not calls for calls in lists)
        seen = collections.Counter(call for calls in lists for call in calls)
        print(f'process {pid}: {free} of {len(lists)} batches without a system call; '
              f'in the others: {dict(seen)}')
        wanted = len(lists) if n_ranks == 1 else len(lists) // 10
        good &= free >= wanted and len(lists) >= 10
    return good


def main():
    program, n_ranks = sys.argv[1], int(sys.argv[2])
    if not shutil.which('strace'):
        skip('strace is missing: apt install strace')
    n_runs = 1 if n_ranks == 1 else 3
    return 0 if any(is_free(program, n_ranks) for _ in range(n_runs)) else 1


if __name__ == '__main__':
    sys.exit(main())
