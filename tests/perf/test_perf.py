#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""m2n_perf: what it accepts, what it prints, how it fails.

  test_perf.py arguments|results|failures|launch|yardsticks M2N_PERF

Runs are tiny: what is tested is the tool, not the speed.
"""
import csv
import glob
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

TRACE = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'data', 'routing_small.csv')
SMALL = ['--tokens', '4', '--row-bytes', '64', '--top-k', '2', '--experts', '4', '--iters', '10',
         '--warmup', '2']
CASE_KEYS = {'test', 'backend', 'M', 'N', 'tokens', 'row_bytes', 'top_k', 'bytes', 'p50_us',
             'p90_us', 'p99_us', 'p999_us', 'max_us', 'gbps', 'verified', 'staged_bytes',
             'puts_per_round', 'staged_per_round'}
ENV_KEYS = {'cpu', 'cores', 'kernel', 'compiler', 'version', 'commit', 'date'}
SKIP = 77

PERF = ''


def clean_environment():
    """The environment without anything that a launcher or the library would read."""
    prefixes = ('M2N_', 'OMPI_', 'PMIX_', 'PMI_', 'SLURM_')
    names = {'RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT', 'LOCAL_RANK',
             'JOB_COMPLETION_INDEX'}
    return {k: v for k, v in os.environ.items() if not k.startswith(prefixes) and k not in names}


def run(*args, status=0, timeout=60):
    """Runs the tool; its standard output and standard error."""
    done = subprocess.run([PERF, *args], capture_output=True, text=True, timeout=timeout,
                          env=clean_environment(), check=False)
    assert done.returncode == status, (args, done.returncode, done.stdout, done.stderr)
    return done.stdout, done.stderr


def run_status(*args):
    """The exit status alone."""
    return subprocess.run([PERF, *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          timeout=60, env=clean_environment(), check=False).returncode


def run_json(*args, **kwargs):
    return json.loads(run(*args, '--format', 'json', **kwargs)[0])


def check_stats(case):
    times = [case[key] for key in ('min_us', 'p50_us', 'p90_us', 'p99_us', 'p999_us', 'max_us')]
    assert times == sorted(times) and times[0] >= 0, case


def test_arguments():
    """Each bad value: what, the accepted range, exit status 2, and nothing on standard output."""
    for args, words in [
            (['moe', '-M', '0'], ['-M', "'0'", '1 to 1024']),
            (['moe', '-N', 'two'], ['-N', "'two'", '1 to 1024']),
            (['moe', '--tokens', '-1'], ['--tokens', "'-1'", '0 to']),
            (['moe', '--tokens', 'nan'], ['--tokens', "'nan'", '0 to']),
            (['moe', '--row-bytes', '99999999999999999999999'], ['--row-bytes', '1 to']),
            (['moe', '--row-bytes', '7'], ['--row-bytes', '2', 'bf16']),
            (['moe', '--top-k', '65'], ['--top-k', '1 to 64']),
            (['moe', '--top-k', '8', '--experts', '4'], ['--top-k', '--experts']),
            (['moe', '-N', '4', '--experts', '2'], ['--experts', '4 expert ranks']),
            (['moe', '--iters', '0'], ['--iters', '1 to']),
            (['moe', '--iters', '10x'], ['--iters', "'10x'"]),
            (['moe', '--dtype', 'f64'], ['--dtype', 'f32, bf16, f16']),
            (['moe', '--cast', 'fp4'], ['--cast', 'fp8']),
            (['moe', '--cast', 'fp8', '--dtype', 'f32'], ['--cast', 'bf16']),
            (['moe', '--placement', 'x'], ['--placement', 'slot, exact']),
            (['moe', '--format', 'xml'], ['--format', 'table, csv, json']),
            (['moe', '--compare', 'memcpy,rdma'], ['--compare', "'rdma'", 'memcpy, mpi, ucx']),
            (['moe', '--compare', 'ucx'], ['--compare', 'moe has memcpy, mpi']),
            (['lat', '--compare', 'mpi'], ['--compare', 'lat has memcpy, ucx, ib_write_lat']),
            (['bw', '--compare', 'ib_write_lat'], ['--compare', 'bw has', 'ib_write_bw']),
            (['init', '--compare', 'memcpy'], ['--compare', 'init has ib_write_bw']),
            (['kernel', '--compare', 'ucx'], ['--compare', 'kernel has no yardstick']),
            (['lat', '-M', '2', '--compare', 'memcpy'], ['--compare', '-M 1 -N 1']),
            (['moe', '--reduce-at-expert'], ['--reduce-at-expert', '--dedup']),
            (['moe', '--routing', 'round'], ['--routing', "'round'", 'khot:K', 'zipf:S']),
            (['moe', '--routing', 'khot:0'], ['--routing', '1 <= K <= 16']),
            (['moe', '--routing', 'zipf:nan'], ['--routing', '0 < S']),
            (['moe', '--routing', 'trace:/no/file'], ['/no/file']),
            (['moe', '--routing', f'trace:{TRACE},layer=99'], ['no layer 99']),
            (['moe', '--routing', f'trace:{TRACE}', '--top-k', '1'], ['--top-k', 'the trace has']),
            (['lat', '--sizes', '8:4'], ['--sizes', '1 <= A <= B']),
            (['lat', '--sizes', '0'], ['--sizes']),
            (['lat', '--depth', '65'], ['--depth', '1 to 64']),
            (['lat', 'bw'], ["'bw' after 'lat'"]),
            (['fly'], ["'fly'", 'bw, lat, moe, init, kernel']),
            ([], ['bw, lat, moe, init, kernel']),
            (['lat', '--output', '/no/dir/file'], ['--output', '/no/dir/file']),
            (['lat', '--no-such-flag'], ['--no-such-flag'])]:
        out, err = run(*args, status=2)
        assert out == '', out
        for word in words:
            assert word in err, (args, word, err)
    assert run('--version')[0].startswith('m2n_perf ')
    help_text = run('--help')[0]
    for flag in ('-M', '-N', '--tokens', '--row-bytes', '--top-k', '--experts', '--backend',
                 '--iters', '--warmup', '--seed', '--routing', '--compare', '--format', '--output',
                 '--matrix'):
        assert flag in help_text, flag


def check_moe(args, n_pairs):
    result = run_json('moe', *SMALL, *args)
    assert [c['phase'] for c in result['cases']] == ['dispatch', 'combine']
    for case in result['cases']:
        assert CASE_KEYS <= set(case), CASE_KEYS - set(case)
        assert case['verified'] is True and case['staged_bytes'] == 0 and case['route_us'] >= 0
        assert case['bytes'] == n_pairs * case['row_bytes'], case
        check_stats(case)
        if case['p50_us'] > 0:
            want = case['bytes'] / case['p50_us'] / 1000
            assert abs(case['gbps'] - want) <= 0.02 * want + 0.001, case
    return result


def test_results():
    """The JSON object, CSV, table, the matrix, samples, memory, and the data check's count."""
    result = check_moe(['-M', '2', '-N', '3', '--seed', '7'], 2 * 4 * 2)
    assert result['schema'] == 'm2n_perf/1' and set(result['env']) == ENV_KEYS
    assert result['args']['seed'] == 7 and result['args']['iters'] == 10
    # Two check rounds: every pair at the experts, every token at the sinks.
    assert result['cases'][0]['checked'] == 2 * (2 * 4 * 2 + 2 * 4)
    for args in (['--placement', 'exact'], ['--dedup'], ['--dedup', '--reduce-at-expert'],
                 ['--dtype', 'f16'], ['--dtype', 'f32'], ['--routing', 'khot:1'],
                 ['--routing', 'zipf:1.5'], ['--depth', '1'], ['--no-pin']):
        check_moe(['-M', '2', '-N', '2', *args], 2 * 4 * 2)
    cast = run_json('moe', *SMALL, '--cast', 'fp8', '--row-bytes', '128')['cases']
    assert cast[0]['row_bytes'] == 128 and cast[1]['row_bytes'] == 256 and cast[0]['verified']

    trace = run_json('moe', '-M', '2', '-N', '2', '--row-bytes', '64', '--iters', '10',
                     '--routing', f'trace:{TRACE}')
    with open(TRACE, encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    top_k = sum(name.startswith('expert') for name in rows[0])
    # Every layer was checked twice: all pairs at the experts, all tokens at the sinks.
    assert trace['cases'][0]['checked'] == 2 * len(rows) * (top_k + 1), trace['cases'][0]

    both = run_json('moe', *SMALL, '-N', '2', '--round-trip', '--samples', '--matrix')
    assert [c['phase'] for c in both['cases']] == ['round_trip']
    assert len(both['cases'][0]['samples_us']) == 10
    received = [m for m in both['matrix'] if m['flow'] == 'dispatch_received']
    assert {(m['rank'], m['peer']) for m in received} == {(1, 0), (2, 0)}, received
    sent = {m['peer']: m['rows'] for m in both['matrix'] if m['flow'] == 'dispatch_sent'}
    assert sent == {m['rank']: m['rows'] for m in received}

    for name in ('lat', 'bw'):
        cases = run_json(name, '-M', '2', '-N', '2', '--sizes', '8:32', '--iters', '10')['cases']
        assert [c['row_bytes'] for c in cases] == [8, 16, 32]
        assert all(c['verified'] and CASE_KEYS <= set(c) for c in cases)
    init = run_json('init', *SMALL, '-M', '2', '-N', '2', '--iters', '2')
    assert CASE_KEYS <= set(init['cases'][0]) and init['cases'][0]['p50_us'] > 0
    assert [m['role'] for m in init['memory']] == ['source'] * 2 + ['expert'] * 2
    assert all(m['predicted_bytes'] > 0 for m in init['memory'])

    rows = list(csv.DictReader(io.StringIO(run('moe', *SMALL, '--format', 'csv')[0])))
    assert [r['phase'] for r in rows] == ['dispatch', 'combine'] and rows[0]['verified'] == '1'
    table = run('moe', *SMALL)[0]
    assert 'dispatch' in table and 'combine' in table and 'yes' in table
    assert '# who waited for whom' in run('moe', *SMALL, '--matrix')[0]
    unchecked = run_json('moe', *SMALL, '--no-check')
    assert unchecked['cases'][0]['verified'] is False
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'out.json')
        assert run('moe', *SMALL, '--format', 'json', '--output', path)[0] == ''
        with open(path, encoding='utf-8') as file:
            assert json.load(file)['schema'] == 'm2n_perf/1'
    # The same seed gives the same routing.
    again = [run_json('moe', *SMALL, '-N', '2', '--seed', seed, '--matrix')['matrix']
             for seed in ('3', '3')]
    rows = [[(m['rank'], m['peer'], m['flow'], m['rows']) for m in matrix] for matrix in again]
    assert rows[0] == rows[1]


def children_of(pid):
    with open(f'/proc/{pid}/task/{pid}/children', encoding='ascii') as file:
        return [int(word) for word in file.read().split()]


def start_endless(*args):
    """A run that only ends when something happens to it, and its ranks."""
    tool = subprocess.Popen([PERF, 'moe', *SMALL, '-M', '2', '-N', '2', '--iters', '10000000',
                             *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=clean_environment())
    until = time.monotonic() + 30
    while len(children_of(tool.pid)) < 4:
        assert time.monotonic() < until and tool.poll() is None
    return tool, children_of(tool.pid)


def gone(pid):
    try:
        with open(f'/proc/{pid}/stat', encoding='ascii') as file:
            return file.read().rsplit(')', 1)[1].split()[0] == 'Z'
    except FileNotFoundError:
        return True


def stores_of(pid):
    return glob.glob(f'/dev/shm/m2n_perf.{pid}.*') + glob.glob(f'/tmp/m2n_perf.{pid}.*')


def end_of(tool, ranks, status):
    """The tool ends by itself, with all its ranks and its store."""
    _, err = tool.communicate(timeout=60)
    assert tool.returncode == status, (tool.returncode, err)
    assert all(gone(pid) for pid in ranks), ranks
    assert not stores_of(tool.pid)
    return err


def test_failures():
    """A rank that dies or stops, and an interrupt: named, everything gone, never a hang."""
    tool, ranks = start_endless()
    os.kill(ranks[2], signal.SIGKILL)
    err = end_of(tool, ranks, 1)
    assert 'rank 2 (expert rank): killed by signal 9' in err, err

    tool, ranks = start_endless('--timeout', '1')
    os.kill(ranks[1], signal.SIGSTOP)
    err = end_of(tool, ranks, 1)
    assert 'no progress for 1 s' in err or 'rank' in err, err

    tool, ranks = start_endless()
    tool.send_signal(signal.SIGTERM)
    end_of(tool, ranks, 128 + signal.SIGTERM)

    tool, ranks = start_endless()
    tool.kill()
    tool.communicate(timeout=60)
    until = time.monotonic() + 30
    while not all(gone(pid) for pid in ranks):
        assert time.monotonic() < until, 'ranks outlive their parent'
    # A run whose parent was killed leaves its store, named by the parent.
    for path in stores_of(tool.pid):
        shutil.rmtree(path)

    err = run('moe', *SMALL, '--backend', 'no_such_backend', status=1)[1]
    assert 'no_such_backend' in err, err
    # Rows beyond the capacity: the rank and the library's text.
    err = run('moe', *SMALL, '--capacity', '1', status=1)[1]
    assert 'rank 0 (source)' in err and 'capacity' in err, err


def launch(ranks, store):
    """The tool as ranks of a launcher's job: [arguments of each]; their outcomes."""
    tools = []
    for rank, args in enumerate(ranks):
        env = dict(clean_environment(), M2N_RANK=str(rank), M2N_SIZE=str(len(ranks)),
                   M2N_STORE='dir:' + store, M2N_TIMEOUT='10s')
        tools.append(subprocess.Popen([PERF, *args], stdout=subprocess.PIPE,
                                      stderr=subprocess.PIPE, text=True, env=env))
    outcomes = []
    for tool in tools:
        out, err = tool.communicate(timeout=60)
        outcomes.append((tool.returncode, out, err))
    return outcomes


def test_launch():
    """As ranks that a launcher started: rank 0 alone reports, and a wrong byte is found."""
    with tempfile.TemporaryDirectory() as store:
        args = ['moe', *SMALL, '-M', '2', '-N', '1', '--format', 'json']
        outcomes = launch([args] * 3, store)
        assert [status for status, _, _ in outcomes] == [0, 0, 0], outcomes
        assert outcomes[1][1] == outcomes[2][1] == ''
        cases = json.loads(outcomes[0][1])['cases']
        assert [c['phase'] for c in cases] == ['dispatch', 'combine'] and cases[0]['verified']
        assert all(c['p50_us'] > 0 for c in cases)
    with tempfile.TemporaryDirectory() as store:
        outcomes = launch([['lat', '--sizes', '8:64', '--iters', '10']] * 2, store)
        assert [status for status, _, _ in outcomes] == [0, 0], outcomes
    # Every token goes to every expert, so that only the seed's data differ.
    with tempfile.TemporaryDirectory() as store:
        args = ['moe', '--tokens', '4', '--row-bytes', '64', '--top-k', '2', '--experts', '2']
        outcomes = launch([[*args, '--seed', '1'], [*args, '--seed', '2']], store)
        assert outcomes[1][0] == 1 and 'data check: wrong row' in outcomes[1][2], outcomes
        assert outcomes[0][0] == 1, outcomes
    with tempfile.TemporaryDirectory() as store:
        outcomes = launch([['lat'], ['lat'], ['lat']], store)
        assert all(status == 2 and 'started 3 ranks' in err for status, _, err in outcomes), \
            outcomes
    with tempfile.TemporaryDirectory() as store:
        outcomes = launch([['lat', '--compare', 'memcpy']] * 2, store)
        assert all(status == 2 for status, _, _ in outcomes), outcomes
        assert '--local' in outcomes[0][2]


def check_yardsticks(result, names):
    for case in result['cases']:
        assert [c['name'] for c in case['compare']] == names, case
        for yardstick in case['compare']:
            assert yardstick['p50_us'] > 0 and yardstick['p99_us'] >= yardstick['p50_us']
            assert yardstick['ratio_min'] <= yardstick['ratio'] <= yardstick['ratio_max']


def test_yardsticks():
    """Each yardstick runs beside ours; one that was not built says so."""
    check_yardsticks(run_json('moe', *SMALL, '-M', '2', '-N', '2', '--compare', 'memcpy'),
                     ['memcpy'])
    check_yardsticks(run_json('moe', '-N', '2', '--row-bytes', '64', '--iters', '10', '--routing',
                              f'trace:{TRACE}', '--compare', 'memcpy'), ['memcpy'])
    for name in ('lat', 'bw'):
        check_yardsticks(run_json(name, '--sizes', '64:256', '--iters', '10', '--compare',
                                  'memcpy'), ['memcpy'])
    if os.path.exists(PERF + '_mpi'):
        result = run_json('moe', *SMALL, '-M', '2', '-N', '2', '--compare', 'memcpy,mpi',
                          timeout=100)
        check_yardsticks(result, ['memcpy', 'mpi'])
    else:
        assert 'built without MPI' in run('moe', *SMALL, '--compare', 'mpi', status=2)[1]
    # Over TCP one side's bytes move only while the other one looks.
    for name, transports in (('lat', 'posix,self'), ('lat', 'tcp'), ('bw', 'tcp')):
        done = subprocess.run([PERF, name, '--sizes', '64K', '--iters', '10', '--compare', 'ucx',
                               '--format', 'json'], capture_output=True, text=True, timeout=90,
                              env=dict(clean_environment(), UCX_TLS=transports), check=False)
        if done.returncode == 2:
            assert 'built without UCX' in done.stderr
        else:
            assert done.returncode == 0, done.stderr
            check_yardsticks(json.loads(done.stdout), ['ucx'])


def main():
    global PERF
    PERF = sys.argv[2]
    globals()['test_' + sys.argv[1]]()
    return 0


if __name__ == '__main__':
    sys.exit(main())
