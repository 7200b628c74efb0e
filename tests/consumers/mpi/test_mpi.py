# SPDX-License-Identifier: Apache-2.0
"""The same serving pipeline over MPI and over libm2n: equal tokens; with `compare`, rates and what
communication costs, side by side.

    test_mpi.py MPIRUN MEGASCALE_INFER_MPI M2N_MODEL [compare]
"""
import json
import os
import random
import subprocess
import sys
import tempfile

SMALL = '--layers', '2', '--hidden', '64', '--experts', '4', '--top-k', '2'
# Rows of 8 KB.
LARGE = ('--layers', '4', '--hidden', '2048', '--intermediate', '64', '--experts', '4', '--top-k',
         '2', '--heads', '8', '--kv-heads', '1')


def serve(mpirun, program, folder, n_ranks, *args):
    """Tokens, and the report."""
    tokens, report = os.path.join(folder, 'tokens'), os.path.join(folder, 'report')
    subprocess.run(
        [mpirun, '--allow-run-as-root', '--oversubscribe', '-n', str(n_ranks), program,
         os.path.join(folder, 'model'), '-P', os.path.join(folder, 'prompts'), '--launched',
         '--tokens-out', tokens, '--json', report, *map(str, args)],
        check=True, timeout=100, stdout=subprocess.DEVNULL)
    with open(tokens, encoding='utf-8') as file:
        found = sorted((one['request'], one['tokens']) for one in map(json.loads, file))
    with open(report, encoding='utf-8') as file:
        return found, json.load(file)


def make(model, folder, sizes, prompts):
    subprocess.run([model, 'make', *sizes, os.path.join(folder, 'model')], check=True, timeout=60)
    rng = random.Random(1)
    with open(os.path.join(folder, 'prompts'), 'w', encoding='utf-8') as file:
        for n_prompt, n_tokens in prompts:
            file.write(f'{n_tokens}\t' + ','.join(str(rng.randrange(256))
                                                  for _ in range(n_prompt)) + '\n')


def test(mpirun, program, model, folder):
    make(model, folder, SMALL, [(1 + i * 7 % 40, 1 + i * 5 % 20) for i in range(20)])
    for attention, experts, m, rows in (1, 1, 2, 'f32'), (2, 2, 3, 'f32'), (2, 1, 4, 'bf16'):
        args = '-M', attention, '-N', experts, '-m', m, '--batch', 16, '--rows', rows
        expected = serve(mpirun, program, folder, attention + experts, '--transport', 'm2n', *args)
        found = serve(mpirun, program, folder, attention + experts, '--transport', 'mpi', *args)
        assert len(expected[0]) == 20
        assert found[0] == expected[0], args


def compare(mpirun, program, model, folder):
    """Of an attention rank: what it hands over, and what a round costs beside computation."""
    make(model, folder, LARGE, [(8, 24)] * 64)
    print(f'{"transport":10} m {"tokens/s":>9} {"us a round: send":>17} {"wait":>9} '
          f'{"expert send":>12} {"exposed":>8}')
    for m in 1, 2, 3:
        for name in 'm2n', 'mpi':
            _, report = serve(mpirun, program, folder, 2, '--transport', name, '-m', m, '--batch',
                              64, '--timeline', os.path.join(folder, 'timeline'))
            attention, expert = report['ranks']
            rounds, answers = attention['spans']['send'], expert['spans']['send']
            print(f'{name:10} {m} {report["tokens_per_s"]:9.0f} '
                  f'{attention["ns"]["send"] / rounds / 1e3:17.1f} '
                  f'{attention["ns"]["wait"] / rounds / 1e3:9.1f} '
                  f'{expert["ns"]["send"] / answers / 1e3:12.1f} '
                  f'{100 * report["exposed_communication"]:7.1f}%')


with tempfile.TemporaryDirectory() as FOLDER:
    (compare if sys.argv[4:] == ['compare'] else test)(*sys.argv[1:4], FOLDER)
