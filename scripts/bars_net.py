#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Measures what the network backends promise, each as a ratio in one run against its yardstick.

  bars_net.py BUILD OUT [--part verbs|ucx] [--runs N] [--quick]

Part ucx runs on any host, over each of UCX's transports tcp, posix, sysv and cma: bandwidth beside
`ucx_perftest -t ucp_put_bw`, latency beside a put, a fence and a put of a flag on UCX's own API
(what `ucx_perftest -t ucp_put_lat` times has no flag; it is shown too). Part verbs wants an RDMA
device, M2N_VERBS_DEVICES names it, or the guest of tests/vm:

  tests/vm/vm-verbs.sh -m 4G -t 1800 -o OUT -- python3 scripts/bars_net.py BUILD OUT

and runs beside ib_write_bw, ib_send_bw, ib_write_lat and ib_send_lat on the same device. Without
--part every part that can run does. A figure is the median of --runs runs of m2n_perf, each of
which alternates between ours and the yardstick. Writes OUT/bars_PART.md, OUT/bars_PART.json and
each run's JSON. Exits 0 whatever the figures are; 1 when one could not be taken.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile

TRANSPORTS = ('tcp', 'posix', 'sysv', 'cma')


class Part:
    """The rows of one part, and how its runs are made."""

    def __init__(self, name, options):
        self.name, self.options = name, options
        self.rows, self.env = [], {}

    def perf(self, name, arguments, environment):
        """The cases of one m2n_perf run, None when it failed."""
        path = os.path.join(self.options.out, name + '.json')
        program = os.path.join(self.options.build, 'perftest', 'm2n_perf')
        done = subprocess.run([program, *arguments, '--format', 'json', '--output', path],
                              capture_output=True, text=True, check=False,
                              env=dict(os.environ, **environment))
        if done.returncode:
            print(f'm2n_perf {" ".join(arguments)}: exit {done.returncode}: {done.stderr.strip()}',
                  file=sys.stderr, flush=True)
            return None
        with open(path, encoding='utf-8') as file:
            result = json.load(file)
        self.env = result['env']
        return result['cases']

    def cases(self, name, arguments, environment, max_runs=100):
        """[runs][cases] of the runs that went well."""
        n_runs = min(self.options.runs, max_runs)
        runs = [self.perf(f'{name}_{i}' if n_runs > 1 else name, arguments, environment)
                for i in range(n_runs)]
        return [run for run in runs if run is not None]

    def row(self, what, runs, case, yardstick, limit, higher, arguments, environment):
        """One bar: the ratio of ours to the yardstick as the limit has it, over the runs."""
        ratios, ours, theirs = [], [], []
        for run in runs:
            for compare in run[case]['compare']:
                if compare['name'] == yardstick:
                    ratios.append(compare['ratio'] if higher else 1 / compare['ratio'])
                    ours.append(run[case]['gbps' if higher else 'p50_us'])
                    theirs.append(compare['gbps' if higher else 'p50_us'])
        command = ' '.join([f'{k}={v}' for k, v in environment.items()] + ['m2n_perf', *arguments])
        unit = 'GB/s' if higher else 'us'
        row = {'what': what, 'yardstick': yardstick, 'limit': limit, 'higher_is_better': higher,
               'command': command, 'runs': ratios, 'unit': unit, 'ratio': None, 'met': None}
        self.rows.append(row)
        if ratios:
            row.update(ratio=statistics.median(ratios), ours=statistics.median(ours),
                       theirs=statistics.median(theirs))
            if limit is not None:
                row['met'] = row['ratio'] >= limit if higher else row['ratio'] <= limit
        print(' | '.join(self.cells(row)[:4]), flush=True)

    @staticmethod
    def cells(row):
        if row['ratio'] is None:
            figure = 'not measured'
        else:
            figure = (f'{row["ratio"]:.2f} ({min(row["runs"]):.2f} to {max(row["runs"]):.2f}; '
                      f'{row["ours"]:.3g} and {row["theirs"]:.3g} {row["unit"]})')
        limit = ('to compare' if row['limit'] is None else
                 f'{">=" if row["higher_is_better"] else "<="} {row["limit"]}')
        met = {True: 'yes', False: '**no**', None: '-'}[row['met']]
        return [row['what'], figure, limit, met, f'`{row["command"]}`']

    def write(self):
        base = os.path.join(self.options.out, 'bars_' + self.name)
        with open(base + '.md', 'w', encoding='utf-8') as file:
            file.write('| what | ratio (runs; ours and the yardstick) | limit | met | command |\n'
                       '|---|---|---|---|---|\n')
            for row in self.rows:
                file.write('| ' + ' | '.join(self.cells(row)) + ' |\n')
        with open(base + '.json', 'w', encoding='utf-8') as file:
            json.dump({'schema': 'm2n_bars/1', 'part': self.name, 'env': self.env,
                       'rows': self.rows}, file, indent=1)
            file.write('\n')


def bars_ucx(part):
    quick = part.options.quick
    for transport in TRANSPORTS:
        # cma moves bulk data only; what is small needs a transport beside it.
        env = {'UCX_TLS': 'cma,posix' if transport == 'cma' else transport}
        arguments = ['bw', '--backend', 'ucx', '--sizes', '64K:1M', '--iters',
                     '20' if quick else '100', '--compare', 'ucx,ucx_perftest']
        runs = part.cases(f'ucx_{transport}_bw', arguments, env)
        for case, size in enumerate(('64K', '128K', '256K', '512K', '1M')):
            part.row(f'ucx over {transport}, bandwidth at {size} over ucp_put_bw', runs, case,
                     'ucx_perftest', 0.95, True, arguments, env)
            part.row(f'ucx over {transport}, bandwidth at {size} over puts with flags into as many '
                     'slots, which a receiver reads', runs, case, 'ucx', None, True, arguments, env)
        for size in ('64', '4096'):
            arguments = ['lat', '--backend', 'ucx', '--sizes', size, '--iters',
                         '1000' if quick else '5000', '--compare', 'ucx,ucx_perftest']
            runs = part.cases(f'ucx_{transport}_lat_{size}', arguments, env)
            part.row(f'ucx over {transport}, latency at {size} B over put and flag', runs, 0, 'ucx',
                     1.25, False, arguments, env)
            part.row(f'ucx over {transport}, latency at {size} B over ucp_put_lat without a flag',
                     runs, 0, 'ucx_perftest', None, False, arguments, env)


def bars_verbs(part):
    quick = part.options.quick
    env = {'M2N_VERBS_DEVICES': os.environ.get('M2N_VERBS_DEVICES') or first_device()}
    base = ['--backend', 'verbs']
    for size in ('256K', '1M'):
        arguments = ['bw', *base, '--sizes', size, '--iters', '25' if quick else '100', '--compare',
                     'ib_write_bw']
        part.row(f'verbs, bandwidth at {size} over ib_write_bw',
                 part.cases(f'verbs_bw_{size}', arguments, env), 0, 'ib_write_bw', 0.95, True,
                 arguments, env)
    arguments = ['lat', *base, '--sizes', '64', '--iters', '2000' if quick else '10000',
                 '--compare', 'ib_write_lat,ib_send_lat']
    runs = part.cases('verbs_lat_64', arguments, env)
    part.row('verbs, one-way latency at 64 B over ib_write_lat', runs, 0, 'ib_write_lat', 1.2,
             False, arguments, env)
    part.row('verbs, the same over ib_send_lat, which takes completions as ours does', runs, 0,
             'ib_send_lat', None, False, arguments, env)
    # The tool has 128 messages on their way to a peer that sleeps; with three, ours waits for
    # eight ranks to have had their turn on the guest's processors.
    for depth, limit in (('16', 0.9), ('3', None)):
        arguments = ['bw', *base, '-M', '4', '-N', '4', '--sizes', '64K', '--depth', depth,
                     '--iters', '10' if quick else '40', '--reps', '3', '--compare',
                     'ib_write_bw,ib_send_bw']
        runs = part.cases('verbs_bw_4x4_' + depth, arguments, env)
        part.row(f'verbs, M=N=4 at 64K, depth {depth}, over sixteen ib_write_bw at once',
                 runs, 0, 'ib_write_bw', limit, True, arguments, env)
        part.row(f'verbs, M=N=4 at 64K, depth {depth}, over sixteen ib_send_bw, whose servers take '
                 'each message', runs, 0, 'ib_send_bw', None, True, arguments, env)
    # The tool exchanges addresses itself, and makes queues for its five messages.
    env = dict(env, M2N_VERBS_CONNECT='exchange', M2N_VERBS_SQ='8', M2N_TIMEOUT='240s')
    ranks = '16' if quick else '64'
    arguments = ['init', *base, '-M', ranks, '-N', ranks, '--tokens', '1', '--row-bytes', '64',
                 '--top-k', '1', '--experts', ranks, '--capacity', '1', '--iters', '1', '--reps',
                 '1', '--compare', 'ib_write_bw', '--timeout', '240']
    runs = part.cases('verbs_init', arguments, env, 3)
    part.row(f'verbs, {ranks} x {ranks} connections over as many queue pairs of ib_write_bw', runs,
             1, 'ib_write_bw', 1.2, False, arguments, env)
    part.row(f'verbs, all of start-up of {ranks} x {ranks} over the same', runs, 0, 'ib_write_bw',
             None, False, arguments, env)


def rdma_devices():
    folder = '/sys/class/infiniband'
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def first_device():
    return rdma_devices()[0] + ':1'


def name_clock():
    """perftest takes the clock's frequency from /proc/cpuinfo, which a user-mode Linux lacks, and
    then prints zeros. In the guest a copy with a line takes its place; the tools measure the
    frequency and want only that there is one."""
    with open('/proc/cpuinfo', encoding='ascii', errors='replace') as file:
        text = file.read()
    if 'cpu MHz' in text or os.environ.get('VM_VERBS') != '1':
        return
    with tempfile.NamedTemporaryFile('w', delete=False, encoding='ascii') as file:
        file.write(text + 'cpu MHz\t\t: 1000.000\n')
    subprocess.run(['mount', '--bind', file.name, '/proc/cpuinfo'], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('build')
    parser.add_argument('out')
    parser.add_argument('--part', choices=('verbs', 'ucx'))
    parser.add_argument('--runs', type=int, default=5)
    parser.add_argument('--quick', action='store_true', help='fewer iterations and ranks')
    options = parser.parse_args()
    os.makedirs(options.out, exist_ok=True)
    parts = []
    if options.part == 'verbs' or (options.part is None and rdma_devices()):
        if not rdma_devices():
            sys.exit('no RDMA device here: run me in the guest of tests/vm, or with --part ucx')
        name_clock()
        parts.append((Part('verbs', options), bars_verbs))
    if options.part == 'ucx' or (options.part is None and not rdma_devices()):
        if shutil.which('ucx_perftest') is None:
            sys.exit('ucx_perftest is missing: install the Debian package ucx-utils')
        parts.append((Part('ucx', options), bars_ucx))
    for part, measure in parts:
        measure(part)
        part.write()
    return 1 if any(row['ratio'] is None for part, _ in parts for row in part.rows) else 0


if __name__ == '__main__':
    sys.exit(main())
