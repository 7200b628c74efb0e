#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Host instructions of a steady round on `self`, counted by callgrind inside steady_round().

  test_instructions.py STEADY_ROUNDS

The bar is 2,000 + 150 per peer, routing apart (it is called outside of steady_round()), for a round
of one token with one small row: what a round costs before any payload. The row goes to the first of
8 local experts; what it costs more at the last one is printed, too: 7 cells that have no rows are
looked at. Exits 77 when valgrind is missing, except where CI is set: there it must work.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile

N_ROUNDS = 200
BAR = 2000 + 150


def skip(reason):
    print(reason)
    sys.exit(1 if os.environ.get('CI') else 77)


def instructions(program, tokens, top_k, row_bytes, first_expert=0):
    """Per round."""
    with tempfile.TemporaryDirectory() as folder:
        command = ['valgrind', '--tool=callgrind', '--collect-atstart=no',
                   '--toggle-collect=steady_round', f'--callgrind-out-file={folder}/out',
                   program, 'count', str(N_ROUNDS), str(tokens), str(top_k), str(row_bytes),
                   str(first_expert)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    match = re.search(r'Collected *: *(\d+)', run.stderr)
    if run.returncode or not match:
        sys.exit(f'{" ".join(command)}: {run.returncode}\n{run.stdout}{run.stderr}')
    return int(match.group(1)) / N_ROUNDS


def main():
    if not shutil.which('valgrind'):
        skip('valgrind is missing: apt install valgrind')
    bare = instructions(sys.argv[1], 1, 1, 64)
    last = instructions(sys.argv[1], 1, 1, 64, 7)
    more = instructions(sys.argv[1], 16, 4, 64)
    print(f'{bare:.0f} instructions per round of 1 row, bar {BAR} ({last:.0f} when it goes to the '
          f'last local expert); {more:.0f} of 64 rows '
          f'({(more - bare) / 63:.0f} per row of 64 bytes)')
    return 1 if not 0 < bare <= BAR else 0


if __name__ == '__main__':
    sys.exit(main())
