# SPDX-License-Identifier: Apache-2.0
"""The page that scripts/gpu-check.sh writes about its results: what was found, the bars of
docs/perf.md with figure and limit, every measurement, and what failed or was skipped.

  gpu_summary.py RESULTS.JSON    prints the page of results written before
"""
import json
import sys

LARGE = 64 << 20


def phases(results, name):
    """The cases of one m2n_perf run by phase, and its command; ({}, '') when it did not run."""
    for case in results['cases']:
        if case['kind'] == 'perf' and case['name'] == name and 'result' in case:
            return ({row.get('phase') or row.get('kernel'): row
                     for row in case['result']['cases']}, case['command'])
    return {}, ''


def yardstick(case, name):
    return next((row for row in case.get('compare', []) if row['name'] == name), None)


def kernel_bars(results):
    command, rows = '', []
    for case in results['cases']:
        if case['kind'] == 'perf' and case['name'] == 'kernel' and 'result' in case:
            command, rows = case['command'], case['result']['cases']
    for kernel in ('dispatch', 'combine'):
        large = [row for row in rows if row['kernel'] == kernel and row['bytes'] >= LARGE]
        if large:
            worst = min(large, key=lambda row: row['ratio'])
            yield (f'{kernel} over a copy of the same bytes, >= 64 MB, worst of {len(large)} sizes',
                   f'{worst["ratio"]:.2f} ({worst["gbps"]:.0f} of {worst["copy_gbps"]:.0f} GB/s at '
                   f'{worst["bytes"] / 1e6:.0f} MB)', '>= 0.85', worst['ratio'] >= 0.85, command)
    for row in rows:
        if row['kernel'] == 'plan':
            yield (f'plan of {row["tokens"]} tokens x top-{row["top_k"]} x {row["experts"]} '
                   'experts', f'{row["p50_us"]:.1f} us', '<= 15 us', row['p50_us'] <= 15, command)


def limit_us(device, unpack):
    """1.3 x what the bytes take at the rate of the copy beside it, + 15 us; None without one."""
    copy = yardstick(device, 'memcpy')
    if copy is None:
        return None
    share = device.get('bytes_unpacked', device['bytes']) / device['bytes'] if unpack else 1
    return 1.3 * copy['p50_us'] * share + 15


def round_bars(results):
    cases, command = phases(results, 'moe_threads')
    graph, graph_command = phases(results, 'moe_threads_graph')
    if cases:
        for phase, what in (('device', 'between events'), ('round_trip', 'on the host\'s clock')):
            for unpack in (False, True):
                limit = limit_us(cases['device'], unpack)
                if limit is None:
                    continue
                p50 = cases[phase]['p50_us']
                yield (f'round trip of 8 ranks on one GPU, {what}, '
                       f'{"with" if unpack else "without"} the bytes of unpacking in the limit',
                       f'{p50:.1f} us', f'<= {limit:.1f} us', p50 <= limit, command)
        for phase in ('device', 'round_trip'):
            spread = cases[phase]['p99_us'] / max(cases[phase]['p50_us'], 1e-9)
            yield (f'the same, P99/P50, {phase}', f'{spread:.2f}', '<= 1.3', spread <= 1.3, command)
        calls = cases['host_calls']
        yield ('host time of the four calls, 8 peers',
               f'{calls["p50_us"]:.1f} us (P99 {calls["p99_us"]:.1f})', '<= 20 us',
               calls['p50_us'] <= 20, command)
    if graph and cases:
        for phase in ('device', 'round_trip'):
            more = graph[phase]['p50_us'] - cases[phase]['p50_us']
            yield (f'the same by graph replay, {phase}, beyond the calls',
                   f'{more:+.1f} us ({graph[phase]["p50_us"]:.1f} us)', '<= + 5 us', more <= 5,
                   graph_command)
    if graph:
        launch = graph['launch']
        yield ('host time of a graph launch',
               f'{launch["p50_us"]:.1f} us (P99 {launch["p99_us"]:.1f})', '<= 5 us',
               launch['p50_us'] <= 5, graph_command)


def nccl_bars(results):
    for name in ('moe_threads', 'moe_processes'):
        cases, command = phases(results, name)
        nccl = yardstick(cases.get('round_trip', {}), 'nccl')
        if nccl:
            yield (f'{name}: grouped ncclSend/ncclRecv over ours ({nccl["how"]})',
                   f'{nccl["ratio"]:.1f} ({nccl["p50_us"]:.0f} us)', '> 1', nccl['ratio'] > 1,
                   command)


def staged_bars(results):
    rows = [row for case in results['cases'] if 'result' in case
            for row in case['result']['cases'] if 'staged_bytes' in row]
    if rows:
        worst = max(row['staged_bytes'] for row in rows)
        yield ('bytes staged, of all runs', str(worst), '0', worst == 0, '')


def write_machine(results, file):
    machine = results['machine']
    gpu = machine.get('gpu', {})
    for row in gpu.get('devices', []):
        if not row.get('error'):
            print(f'* GPU {row["ordinal"]}: {row["name"]}, compute capability '
                  f'{row["compute_capability"]}, {row["multiprocessors"]} multiprocessors, '
                  f'{row["memory_bytes"] >> 20} MiB', file=file)
    print(f'* driver for CUDA {gpu.get("driver_version")}; kernels '
          f'{"built" if gpu.get("kernels_built") else "not built"}; {machine.get("cores")} cores',
          file=file)
    if gpu.get('error'):
        print(f'* no GPU: {gpu["error"]}', file=file)
    if machine.get('nvidia_smi'):
        print(f'* nvidia-smi: {machine["nvidia_smi"]}', file=file)
    for row in machine.get('backends', []):
        if row['name'] in ('cuda_ipc', 'nccl', 'verbs', 'ucx'):
            print(f'* backend {row["name"]}: {"usable" if row["usable"] else row["reason"]}',
                  file=file)


def write_bars(results, file):
    bars = [bar for make in (kernel_bars, round_bars, nccl_bars, staged_bars)
            for bar in make(results)]
    print('\n## Bars\n', file=file)
    if not bars:
        print('Nothing was measured.', file=file)
        return
    if results['doubles']:
        print('On the stand-ins: the figures mean nothing.\n', file=file)
    print('| what | figure | limit | met | command |\n|---|---|---|---|---|', file=file)
    for what, figure, limit, met, command in bars:
        word = '-' if results['doubles'] else 'yes' if met else '**no**'
        code = f'`{command}`' if command else ''
        print(f'| {what} | {figure} | {limit} | {word} | {code} |', file=file)


def write_measurements(results, file):
    print('\n## Measurements\n\n| run | case | bytes | p50 us | p99 us | GB/s | beside it |\n'
          '|---|---|---|---|---|---|---|', file=file)
    for case in results['cases']:
        for row in case.get('result', {}).get('cases', []):
            beside = '; '.join(f'{c["name"]} {c["p50_us"]:.1f} us, ratio {c["ratio"]:.2f}'
                               for c in row.get('compare', []))
            if row['test'] == 'kernel' and row['ratio']:
                beside = f'copy {row["copy_gbps"]:.0f} GB/s, ratio {row["ratio"]:.2f}'
            name = row.get('phase') or f'{row["kernel"]}, {row["tokens"]} tokens'
            print(f'| {case["name"]} | {name} | {row["bytes"]} | {row["p50_us"]:.2f} | '
                  f'{row["p99_us"]:.2f} | {row["gbps"]:.1f} | {beside} |', file=file)
        for what, reason in case.get('result', {}).get('left_out', {}).items():
            print(f'| {case["name"]} | {what} left out: {reason} | | | | | |', file=file)


def write_tests(results, file):
    print('\n## Builds, tests, runs\n\n| what | result | seconds | passed, failed, skipped | why '
          '|\n|---|---|---|---|---|', file=file)
    for case in results['cases']:
        status = '**failed**' if case['status'] == 'failed' else case['status']
        reason = case.get('reason', '').replace('|', '\\|')
        print(f'| {case["kind"]}: {case["name"]} | {status} | {case["seconds"]} | '
              f'{", ".join(map(str, case["counts"]))} | {reason} |', file=file)


def write_summary(results, file):
    passed, failed, skipped = results['total']
    print(f'# libm2n on a GPU{" that is not there" if results["doubles"] else ""}\n', file=file)
    print(f'`bash scripts/gpu-check.sh{" --doubles" if results["doubles"] else ""} OUT`, commit '
          f'{results["commit"]}, {results["date"]}, {results["seconds"]} s: {passed} passed, '
          f'{failed} failed, {skipped} skipped.\n', file=file)
    write_machine(results, file)
    print('\nMissing: ' + ('nothing.' if not results['missing'] else ''), file=file)
    for line in results['missing']:
        print(f'* {line}', file=file)
    write_bars(results, file)
    write_measurements(results, file)
    write_tests(results, file)


if __name__ == '__main__':
    with open(sys.argv[1], encoding='utf-8') as source:
        write_summary(json.load(source), sys.stdout)
