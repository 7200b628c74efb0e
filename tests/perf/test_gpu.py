#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""m2n_perf in CUDA memory, on the stand-ins of the driver and of NCCL: what it accepts, what it
checks and prints, how it fails. The same on a GPU when LD_LIBRARY_PATH has no stand-ins.

  test_gpu.py M2N_PERF
"""
import json
import os
import subprocess
import sys

SMALL = ['--tokens', '5', '--row-bytes', '80', '--top-k', '2', '--experts', '5', '--iters', '4',
         '--warmup', '1', '--reps', '2', '--no-pin', '--timeout', '40']
MOE = ['moe', '--memory', 'cuda', *SMALL]
PHASES = ['round_trip', 'device', 'host_calls', 'plan']


def run(*args, status=0, **env):
    """Standard output and standard error."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(('M2N_', 'NCCL_'))}
    done = subprocess.run([PERF, *args], capture_output=True, text=True, timeout=90,
                          env=dict(clean, **env), check=False)
    assert done.returncode == status, (args, done.returncode, done.stdout, done.stderr)
    return done.stdout, done.stderr


def run_json(*args, **env):
    return json.loads(run(*args, '--format', 'json', **env)[0])


def check_moe(n_checked, *args, **env):
    result = run_json(*MOE, *args, **env)
    phases = [case['phase'] for case in result['cases']]
    assert phases == [('launch' if '--graph' in args and p == 'host_calls' else p)
                      for p in PHASES], phases
    for case in result['cases']:
        assert case['verified'] and case['checked'] == n_checked, case
        assert case['staged_bytes'] == 0 and 0 < case['p50_us'] <= case['p99_us'], case
    assert result['env']['gpu'].count('compute capability') == 1, result['env']
    return result


def test_rounds():
    """Every row and every sum is looked at before and after, also after launches of a graph."""
    per_rank = 2 * 5 * (1 + 2)  # two rounds of 5 tokens: their sums, and 2 rows of each
    for ranks in ([], ['--threads']):
        for graph in ([], ['--graph']):
            check_moe(2 * per_rank, '-M', '2', '-N', '1', *ranks, *graph)
            check_moe(2 * per_rank, '-M', '2', '-N', '2', '--classic', *ranks, *graph)
    check_moe(per_rank, '-M', '1', '-N', '1', '--classic')
    check_moe(per_rank, '-M', '1', '-N', '2', '--cast', 'fp8')
    check_moe(2 * per_rank, '-M', '2', '-N', '2', '--dedup', '--reduce-at-expert', '--graph')


def test_yardsticks():
    """A copy of the bytes that the round has to move, and NCCL where it can run."""
    result = check_moe(60, '-M', '2', '-N', '2', '--classic', '--threads', '--compare', 'memcpy')
    device = result['cases'][1]
    # Rows read once and written twice, answers read and written, sums the other way round.
    moved = 2 * 5 * 80 * ((1 + 2) + (2 + 2) + (2 + 1))
    assert device['bytes'] == moved and device['bytes_unpacked'] == moved + 2 * 5 * 80 * 4, device
    assert [c['name'] for c in device['compare']] == ['memcpy'], device
    result = check_moe(30, '-M', '1', '-N', '1', '--compare', 'nccl,memcpy')
    names = [c['name'] for c in result['cases'][0]['compare']]
    assert names == ['memcpy', 'nccl'] or (names == ['memcpy'] and result['left_out']['nccl'])


def test_kernels():
    result = run_json('kernel', '--memory', 'cuda', *SMALL)
    names = [case['kernel'] for case in result['cases']]
    assert names == ['plan', 'copy', 'dispatch', 'receive', 'reply', 'combine'], names
    for case in result['cases'][1:]:
        assert case['bytes'] == 5 * 80 * (4 if case['kernel'] in ('receive', 'reply') else 3), case
        assert case['gbps'] > 0 and case['ratio'] > 0, case


def test_arguments():
    for words, args in (
            ('host memory only', ['bw', '--memory', 'cuda']),
            ('need --memory cuda', ['moe', '--graph']),
            ('same ranks', [*MOE, '--classic', '-M', '2', '-N', '1']),
            ('--placement slot', [*MOE, '--placement', 'exact']),
            ('mpi is for', [*MOE, '--compare', 'mpi']),
            ('nccl is for', ['moe', '--compare', 'nccl']),
            ('--threads', ['bw', '--threads'])):
        assert words in run(*args, status=2)[1], (words, args)


def test_failures():
    """No such device, no memory: the rank, the reason, status 1; nothing hangs."""
    err = run(*MOE, status=1, M2N_CUDA_DEVICE='99')[1]
    assert 'rank' in err and '99' in err, err
    err = run(*MOE, status=1, M2N_CUDA_DEVICE='none')[1]
    assert 'CUDA_DEVICE' in err, err
    err = run(*MOE[:3], '--threads', '--tokens', '1000000', '--row-bytes', str(8 << 20),
              '--no-check', status=1)[1]
    assert 'memory' in err, err


if __name__ == '__main__':
    PERF = sys.argv[1]
    test_arguments()
    test_rounds()
    test_yardsticks()
    test_kernels()
    test_failures()
