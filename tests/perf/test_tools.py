#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""m2n_perf and yardsticks that are programs: what it makes of their output, how it calls them,
and what it says when they are missing, fail or hang.

  test_tools.py M2N_PERF

The programs are fakes in a folder at the front of PATH that print recorded output; the figures
that are expected were worked out from it by hand.
"""
import json
import os
import subprocess
import sys
import tempfile
import time

import test_perf

HERE = os.path.dirname(os.path.abspath(__file__))
BW = ['bw', '--sizes', '64K:64K', '--iters', '10', '--reps', '2', '--compare', 'ib_write_bw']
LAT = ['lat', '--sizes', '64', '--iters', '10', '--reps', '2', '--compare', 'ib_write_lat']


class Fakes:
    """A folder with the fakes; runs the tool with it in PATH."""

    def __init__(self, folder):
        self.folder = folder
        self.log = os.path.join(folder, 'log')
        for name in ('ib_write_bw', 'ib_send_bw', 'ib_write_lat', 'ib_send_lat', 'ucx_perftest'):
            os.symlink(os.path.join(HERE, 'fake_tool.py'), os.path.join(folder, name))

    def environment(self, output, **more):
        return dict(test_perf.clean_environment(), FAKE_LOG=self.log,
                    FAKE_OUTPUT=os.path.join(HERE, 'tool_output', output + '.txt'),
                    PATH=self.folder + ':' + os.environ['PATH'], **more)

    def run(self, arguments, output, status=0, **more):
        """The JSON object, standard error, and the calls of this run."""
        open(self.log, 'w', encoding='utf-8').close()
        done = subprocess.run([test_perf.PERF, *arguments, '--format', 'json'],
                              capture_output=True, text=True, timeout=60, check=False,
                              env=self.environment(output, **more))
        assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
        with open(self.log, encoding='utf-8') as log:
            calls = [line.split(maxsplit=1) for line in log.read().splitlines()]
        return json.loads(done.stdout), done.stderr, calls


def close_to(value, want):
    return abs(value - want) <= 1e-3 * want


def only_case(result):
    assert len(result['cases']) == 1
    return result['cases'][0]


def only_yardstick(result, name, how):
    compare = only_case(result)['compare']
    assert [(c['name'], c['how']) for c in compare] == [(name, how)], compare
    return compare[0]


def check_figures(fakes):
    """Each program's table becomes the same units: GB/s of payload, one-way microseconds."""
    case = only_case(fakes.run(BW, 'ib_write_bw')[0])
    # 0.001978 million messages of 65536 bytes a second: more digits than 1.04 Gb/s.
    assert close_to(case['compare'][0]['p50_us'], 1 / 0.001978), case
    assert close_to(case['compare'][0]['ratio'] * case['p50_us'], 1 / 0.001978) or \
        case['compare'][0]['ratio_min'] < case['compare'][0]['ratio_max'], case
    both = only_case(fakes.run([*BW[:-1], 'ib_send_bw,ib_write_bw'], 'ib_write_bw')[0])['compare']
    assert [(c['name'], c['p50_us']) for c in both] == [
        (name, both[0]['p50_us']) for name in ('ib_write_bw', 'ib_send_bw')], both
    one = only_yardstick(fakes.run(LAT, 'ib_write_lat')[0], 'ib_write_lat', None)
    assert one['p50_us'] == 17.46 and one['p99_us'] == 99.1, one
    both = fakes.run([*LAT[:-1], 'ib_write_lat,ib_send_lat'], 'ib_send_lat')[0]
    assert [(c['name'], c['p50_us'], c['p99_us']) for c in only_case(both)['compare']] == [
        ('ib_write_lat', 9.73, 19710.31), ('ib_send_lat', 9.73, 19710.31)], both
    ucx = [*BW[:-1], 'ucx_perftest']
    one = only_yardstick(fakes.run(ucx, 'ucx_perftest_bw')[0], 'ucx_perftest', 'ucp_put_bw')
    assert close_to(one['p50_us'], 65536 / (460.62 * 1.048576)) and one['p99_us'] is None, one
    ucx = [*LAT[:-1], 'ucx_perftest']
    one = only_yardstick(fakes.run(ucx, 'ucx_perftest_lat')[0], 'ucx_perftest', 'ucp_put_lat')
    assert one['p50_us'] == 40.006, one
    # A tool that could not tell the clock's frequency printed zeros: no figure, said once.
    result, err, _ = fakes.run(BW, 'ib_write_bw_zero', status=1)
    assert only_case(result)['compare'] == [] and err.count('ib_write_bw') == 1, err
    assert 'reported 0' in err, err


def check_pairs(fakes):
    """All pairs run at once, for a time, and their bandwidths are summed."""
    many = [*BW, '-M', '2', '-N', '3']
    result, _, calls = fakes.run(many, 'ib_write_bw')
    one = only_yardstick(result, 'ib_write_bw', None)
    bytes_of_a_sample = 65536 * 6
    assert close_to(one['p50_us'], bytes_of_a_sample / (6 * 0.001978 * 65536)), one
    assert len(calls) == 2 * 6 * 2, calls  # alternations, pairs, sides
    assert all('-D 6 -f 2' in call for _, call in calls), calls
    # Zeros, but so many messages in two seconds.
    one = only_yardstick(fakes.run(many, 'ib_write_bw_zero')[0], 'ib_write_bw', None)
    assert close_to(one['p50_us'], bytes_of_a_sample / (6 * 632 * 65536 / 1e6)), one
    err = test_perf.run('bw', '-M', '2', '--compare', 'ucx_perftest', status=2)[1]
    assert '-M 1 -N 1 only, but for ib_write_bw and ib_send_bw' in err, err
    err = test_perf.run('bw', '-M', '2', '-N', '65', '--compare', 'ib_write_bw', status=2)[1]
    assert 'at most 64 others' in err, err


def check_calls(fakes):
    """The same size and the options of the library's own network; a port each; command shown."""
    result, _, calls = fakes.run([*BW, '--iters', '40', '--reps', '1'], 'ib_write_bw',
                                 FAKE_MODE='late')
    server, client = calls[0][1], calls[1][1]
    # 40 samples of 64 messages.
    assert '-s 65536' in server and '-n 2560' in server and '--report_gbits' in client, calls
    assert client.startswith(server + ' '), calls
    assert only_yardstick(result, 'ib_write_bw', None)['command'] == client, client
    # init: as many queue pairs as connections, timed as a whole.
    arguments = ['init', '-M', '2', '-N', '3', '--iters', '2', '--reps', '2', '--tokens', '4',
                 '--row-bytes', '64', '--compare', 'ib_write_bw']
    result, _, calls = fakes.run(arguments, 'ib_write_bw_zero')
    assert all('-q 6 -s 64 -n 5' in call for _, call in calls) and len(calls) == 4, calls
    assert [case['phase'] for case in result['cases'][1:]] == ['connect'], result['cases']
    for case in result['cases']:
        assert case['compare'][0]['p50_us'] > 1000, case  # an interpreter's start at least
    assert result['cases'][1]['p50_us'] <= result['cases'][0]['p50_us'], result['cases']


def check_options(fakes):
    """Devices and the rest as the library has them; bandwidth over both rails is summed."""
    options = {'M2N_VERBS_DEVICES': 'dev0:2,dev1', 'M2N_VERBS_GID_INDEX': '3',
               'M2N_VERBS_MTU': '1024', 'M2N_VERBS_SL': '4', 'M2N_VERBS_QPS': '2'}
    result, _, calls = fakes.run([*BW, '--reps', '1', '--backend', 'shm'], 'ib_write_bw', **options)
    clients = [call for _, call in calls if call.split()[-2] != '-p']
    assert len(calls) == 4 and len(clients) == 2, calls
    for words in ('-d dev0 -i 2 -x 3 -m 1024 --sl=4 ', '-d dev1 -x 3 -m 1024 --sl=4 '):
        assert sum(words in call and '-q 2' in call for call in clients) == 1, calls
    one = only_yardstick(result, 'ib_write_bw', None)
    assert close_to(one['p50_us'], 1 / 0.001978 / 2), one
    result, _, calls = fakes.run([*LAT, '--reps', '1', '--backend', 'shm'], 'ib_write_lat',
                                 **options)
    assert len(calls) == 2 and all('dev0' in call for _, call in calls), calls


def check_failures(fakes):
    """Missing, failing, hanging: named once, left out, the rest is reported, nothing stays."""
    with tempfile.TemporaryDirectory() as empty:
        for name, package in (('ib_write_bw', 'perftest'), ('ucx_perftest', 'ucx-utils')):
            done = subprocess.run([test_perf.PERF, *BW[:-1], name, '--format', 'json'],
                                  capture_output=True, text=True, timeout=60, check=False,
                                  env=dict(test_perf.clean_environment(), PATH=empty))
            assert done.returncode == 2, done
            assert done.stderr.count(f'{name} is not installed (Debian package {package})') == 1
            case = only_case(json.loads(done.stdout))
            assert case['compare'] == [] and case['verified'] and case['p50_us'] > 0, case
    result, err, _ = fakes.run(BW, 'ib_no_device', status=1, FAKE_MODE='fail')
    assert only_case(result)['compare'] == []
    assert err.count('IB device nodev not found; Unable to find') == 1, err
    result, err, calls = fakes.run([*BW, '-M', '2', '-N', '3'], 'ib_no_device', status=1,
                                   FAKE_MODE='fail')
    assert only_case(result)['compare'] == [] and only_case(result)['verified']
    assert len(calls) == 6 * 3, calls  # servers, tried again in case the port was taken
    result, err, calls = fakes.run([*BW, '--timeout', '2'], 'ib_write_bw', status=1,
                                   FAKE_MODE='hang')
    assert only_case(result)['compare'] == [] and 'client of source 0 and expert rank 0' in err, err
    assert len(calls) == 2 and all(test_perf.gone(int(pid)) for pid, _ in calls), calls


def check_kill(fakes):
    """Programs end with the ranks that started them."""
    open(fakes.log, 'w', encoding='utf-8').close()
    tool = subprocess.Popen([test_perf.PERF, *BW], stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL,
                            env=fakes.environment('ib_write_bw', FAKE_MODE='hang'))
    until = time.monotonic() + 30
    calls = []
    while len(calls) < 2:
        assert time.monotonic() < until and tool.poll() is None
        with open(fakes.log, encoding='utf-8') as log:
            calls = log.read().splitlines()
    tool.kill()
    tool.wait(timeout=60)
    while not all(test_perf.gone(int(call.split()[0])) for call in calls):
        assert time.monotonic() < until, calls
    for path in test_perf.stores_of(tool.pid):
        test_perf.shutil.rmtree(path)


def check_launch(fakes):
    """Under a launcher the server runs at the peer rank, the client at rank 0."""
    with tempfile.TemporaryDirectory() as store:
        environment = fakes.environment('ib_write_lat')
        tools = []
        for rank in range(2):
            env = dict(environment, M2N_RANK=str(rank), M2N_SIZE='2', M2N_STORE='dir:' + store,
                       M2N_TIMEOUT='20s')
            tools.append(subprocess.Popen([test_perf.PERF, *LAT, '--format', 'json'], text=True,
                                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env))
        outcomes = [tool.communicate(timeout=60) for tool in tools]
        assert [tool.returncode for tool in tools] == [0, 0], outcomes
        assert outcomes[1][0] == '', outcomes
        assert only_yardstick(json.loads(outcomes[0][0]), 'ib_write_lat', None)['p50_us'] == 17.46


def main():
    test_perf.PERF = sys.argv[1]
    for check in (check_figures, check_pairs, check_calls, check_options, check_failures,
                  check_kill, check_launch):
        with tempfile.TemporaryDirectory() as folder:
            check(Fakes(folder))
    return 0


if __name__ == '__main__':
    sys.exit(main())
