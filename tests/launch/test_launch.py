#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Ranks as launchers start them: Open MPI's mpirun itself, and the variables that torchrun, srun,
PMIx and Kubernetes set, given to plain processes.

  test_launch.py LAUNCH_RANK KIND

Four ranks join by what they find in the environment and run a verified job, two sources and two
expert ranks. Exits 77 when mpirun is missing, except where CI is set: there it must be there.
"""
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile

N_RANKS = 4
DEADLINE_S = 60
FOREIGN = re.compile(r'^(M2N|OMPI|PMIX|PMI|SLURM|TORCHELASTIC)_|^(RANK|WORLD_SIZE|LOCAL_RANK|'
                     r'LOCAL_WORLD_SIZE|MASTER_ADDR|MASTER_PORT|JOB_COMPLETION_INDEX)$')


def skip(reason):
    print(reason)
    sys.exit(1 if os.environ.get('CI') else 77)


def clean_environment():
    """Ours without what a launcher around this test may have set."""
    return {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}


def free_port():
    """A port that was free a moment ago; the next one too, for torchrun's rule."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(('127.0.0.1', 0))
            port = first.getsockname()[1]
            try:
                second.bind(('127.0.0.1', port + 1))
            except OSError:
                continue
            return port


def torchrun(rank, _folder, port):
    return {'RANK': rank, 'WORLD_SIZE': N_RANKS, 'LOCAL_RANK': rank, 'LOCAL_WORLD_SIZE': N_RANKS,
            'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port, 'TORCHELASTIC_RUN_ID': 'none'}


def srun(rank, folder, _port):
    return {'SLURM_PROCID': rank, 'SLURM_NTASKS': N_RANKS, 'SLURM_LOCALID': rank,
            'SLURM_JOB_ID': '4711', 'SLURM_STEP_ID': '0', 'SLURM_NODEID': '0',
            'SLURM_STEP_TASKS_PER_NODE': N_RANKS, 'M2N_STORE': f'dir:{folder}'}


def pmix(rank, folder, _port):
    return {'PMIX_RANK': rank, 'PMIX_NAMESPACE': 'prterun-1', 'M2N_SIZE': N_RANKS,
            'M2N_STORE': f'dir:{folder}'}


def kubernetes(rank, folder, _port):
    return {'JOB_COMPLETION_INDEX': rank, 'M2N_SIZE': N_RANKS, 'M2N_STORE': f'dir:{folder}'}


def m2n(rank, _folder, port):
    return {'M2N_RANK': rank, 'M2N_SIZE': N_RANKS, 'M2N_STORE': f'tcp://127.0.0.1:{port}'}


KINDS = {'torchrun': torchrun, 'srun': srun, 'pmix': pmix, 'kubernetes': kubernetes, 'm2n': m2n}


def run_by_environment(program, variables, folder):
    """Starts the ranks, the last one first: nobody may depend on the order. Their outputs."""
    port = free_port()
    ranks = []
    for rank in reversed(range(N_RANKS)):
        own = {name: str(value) for name, value in variables(rank, folder, port).items()}
        ranks.append(subprocess.Popen([program], env=clean_environment() | own, text=True,
                                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    outputs = []
    try:
        for process in ranks:
            outputs.append(process.communicate(timeout=DEADLINE_S)[0])
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    return ''.join(outputs)


def run_by_mpirun(program, folder):
    if not shutil.which('mpirun'):
        skip('mpirun is missing: apt install openmpi-bin')
    command = ['mpirun', '-n', str(N_RANKS), '--oversubscribe', '-x', f'M2N_STORE=dir:{folder}']
    if os.geteuid() == 0:
        command.append('--allow-run-as-root')
    run = subprocess.run(command + [program], env=clean_environment(), capture_output=True,
                         text=True, timeout=DEADLINE_S, check=False)
    return run.stdout + run.stderr


def main():
    program, kind = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix='m2n-launch-') as folder:
        if kind == 'mpirun':
            output = run_by_mpirun(program, folder)
        else:
            output = run_by_environment(program, KINDS[kind], folder)
    good = {int(rank) for rank in re.findall(rf'rank (\d+) of {N_RANKS}: good', output)}
    print(output)
    return 0 if good == set(range(N_RANKS)) else 1


if __name__ == '__main__':
    sys.exit(main())
