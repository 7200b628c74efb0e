#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""m2n_perf over two hosts, whose clocks it must not compare, and a yardstick between them.

  test_hosts.py M2N_PERF

Hosts are namespaces (tests/net/hosts.py), the second with a boot id of its own. Skipped (77) where
there are no namespaces, or no backend that joins hosts.
"""
import json
import os
import subprocess
import sys
import tempfile

import test_perf
import test_tools

sys.path.insert(1, os.path.join(test_tools.HERE, '..', 'net'))
import hosts  # noqa: E402, found by the line above


def launch(net, fakes, arguments):
    """The tool as a rank on each host: the JSON of rank 0, and the yardstick's calls."""
    open(fakes.log, 'w', encoding='utf-8').close()
    # The second host was switched on earlier.
    clock = ['unshare', '--time', '--monotonic', '5000', '--fork']
    if subprocess.run([*clock, 'true'], stderr=subprocess.DEVNULL, check=False).returncode:
        clock = []
    ranks = []
    for rank, host in enumerate(net.hosts):
        env = dict(fakes.environment('ib_write_bw'), M2N_RANK=str(rank), M2N_SIZE='2',
                   M2N_STORE=f'tcp://{net.hosts[0].address}:7000', M2N_TIMEOUT='20s',
                   UCX_TLS='tcp')
        command = host.enter() + (clock if rank == 1 else [])
        command += [test_perf.PERF, *arguments, '--backend', 'ucx', '--format', 'json']
        ranks.append(subprocess.Popen(command, env=env, text=True, stdin=subprocess.DEVNULL,
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    outcomes = [rank.communicate(timeout=100) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outcomes
    assert outcomes[1][0] == '', outcomes
    with open(fakes.log, encoding='utf-8') as log:
        calls = [line.split(maxsplit=1)[1] for line in log.read().splitlines()]
    return json.loads(outcomes[0][0]), calls


def check(net, fakes):
    result, calls = launch(net, fakes, [*test_tools.BW, '--samples'])
    case = test_tools.only_case(result)
    assert case['backend'] == 'ucx' and case['verified'], case
    # No sample has the difference of the clocks in it.
    assert 0 < case['min_us'] and case['max_us'] < 1e7, case
    assert case['puts_per_round'] >= 1 and case['staged_per_round'] == 0, case
    # The client on the first host calls the second one's address.
    clients = [call for call in calls if call.endswith(' ' + net.hosts[1].address)]
    assert len(calls) == 4 and len(clients) == 2, calls
    one = test_tools.only_yardstick(result, 'ib_write_bw', None)
    assert test_tools.close_to(one['p50_us'], 1 / 0.001978), one
    # A round is timed at the sinks as a whole.
    result, _ = launch(net, fakes, ['moe', *test_perf.SMALL])
    assert [c['phase'] for c in result['cases']] == ['round_trip'], result['cases']
    assert result['cases'][0]['puts_per_round'] > 0, result['cases']


def main():
    test_perf.PERF = os.path.abspath(sys.argv[1])
    why = hosts.why_no_hosts()
    if why is None and test_perf.run_status('lat', '--sizes', '64', '--iters', '1', '--backend',
                                            'ucx') != 0:
        why = 'backend ucx cannot be used here'
    if why is not None:
        print('skip: ' + why)
        return test_perf.SKIP
    with tempfile.TemporaryDirectory() as folder, hosts.Net(2) as net:
        boot_id = os.path.join(folder, 'boot_id')
        with open(boot_id, 'w', encoding='ascii') as file:
            file.write('01234567-89ab-cdef-0123-456789abcdef\n')
        subprocess.run(net.hosts[1].enter() + ['mount', '--bind', boot_id,
                                               '/proc/sys/kernel/random/boot_id'], check=True)
        check(net, test_tools.Fakes(folder))
    return 0


if __name__ == '__main__':
    sys.exit(main())
