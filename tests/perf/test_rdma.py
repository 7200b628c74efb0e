#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""m2n_perf on an RDMA device beside perftest's real tools: their output of this version is
understood, their figures are there.

  test_rdma.py M2N_PERF

Skipped (77) without a device or without the tools; meant for the guest of tests/vm.
"""
import json
import os
import shutil
import subprocess
import sys

import test_perf

sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..', 'scripts'))
import bars_net  # noqa: E402, found by the line above


def compare(name, *arguments):
    """The yardstick's entry of each case. None: a tool that began while the machine was busy does
    not know its clock, says 0, and is left out with that reason."""
    env = dict(test_perf.clean_environment(), M2N_VERBS_DEVICES=bars_net.first_device())
    done = subprocess.run([test_perf.PERF, *arguments, '--backend', 'verbs', '--compare', name,
                           '--format', 'json'], capture_output=True, text=True, check=False,
                          timeout=200, env=env)
    print(done.stderr, file=sys.stderr)
    if done.returncode == 1 and 'reported 0 in every alternation' in done.stderr:
        return None
    assert done.returncode == 0, done
    cases = json.loads(done.stdout)['cases']
    assert all(c['backend'] == 'verbs' and len(c['compare']) == 1 for c in cases), cases
    for case in cases:
        one = case['compare'][0]
        assert one['name'] == name and one['p50_us'] > 0 and one['ratio'] > 0, case
        assert '-d ' + bars_net.first_device().split(':')[0] in one['command'], case
    return cases


def main():
    test_perf.PERF = sys.argv[1]
    if not bars_net.rdma_devices() or not shutil.which('ib_write_bw'):
        print('skip: no RDMA device, or no perftest')
        return test_perf.SKIP
    bars_net.name_clock()
    cases = compare('ib_write_bw', 'bw', '--sizes', '64K', '--iters', '10', '--reps', '2')
    if cases is not None:
        assert cases[0]['puts_per_round'] >= 1 and cases[0]['compare'][0]['gbps'] > 0, cases
    cases = compare('ib_write_lat', 'lat', '--sizes', '64', '--iters', '200', '--reps', '2')
    if cases is not None:
        assert cases[0]['compare'][0]['p99_us'] >= cases[0]['compare'][0]['p50_us'], cases
    cases = compare('ib_send_lat', 'lat', '--sizes', '64', '--iters', '200', '--reps', '2')
    assert cases is None or cases[0]['compare'][0]['p50_us'] > 0, cases
    # These two do not depend on its clock.
    cases = compare('ib_write_bw', 'bw', '-M', '2', '-N', '2', '--sizes', '64K', '--iters', '5',
                    '--reps', '1')
    assert cases is not None and cases[0]['compare'][0]['gbps'] > 0
    cases = compare('ib_send_bw', 'bw', '-M', '2', '-N', '2', '--sizes', '64K', '--iters', '5',
                    '--reps', '1')
    assert cases is not None and cases[0]['compare'][0]['gbps'] > 0
    cases = compare('ib_write_bw', 'init', *test_perf.SMALL[:-4], '-M', '2', '-N', '2', '--iters',
                    '1')
    assert cases is not None and '-q 4 ' in cases[0]['compare'][0]['command'], cases
    return 0


if __name__ == '__main__':
    sys.exit(main())
