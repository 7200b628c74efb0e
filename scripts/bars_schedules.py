#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Measures disagmoe_train's schedules on this machine's first two cores, one attention and one FFN
rank or two ranks of both kinds, at sizes where attention and experts take equally long.

  scripts/bars_schedules.py BUILD OUT TEXT [--runs N] [--realtime]

Writes OUT/schedules.md and OUT/schedules.json: steps of AF-Pipe over `sequential` and `1f1b`, what
shows of communication, the warm-up bubble over its formula, and measured steps over those that the
scheduler's simulation gives with the measured times of operations. Runs of the configurations take
turns; figures are medians. --realtime (as root) keeps other work off the cores.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

SIZES = ['--intermediate', '144', '--sequences', '32', '-m', '8']
# name: options. The first four are compared with each other.
CONFIGS = {
    'afpipe': [],
    'sequential': ['-s', 'sequential'],
    '1f1b, 2 groups of 1': ['-s', '1f1b', '-p', '2', '-N', '0'],
    '1f1b, 1 group of 2': ['-s', '1f1b'],
    'afpipe, joined weights': ['--join-weights'],
    'afpipe, 2 in flight': ['--in-flight', '2'],
    'afpipe, m 16': ['-m', '16', '--sequences', '64'],
    'afpipe, experts twice as wide': ['--intermediate', '288'],
    'afpipe, 2 layers': ['--layers', '2'],
    'sequential, m 16': ['-s', 'sequential', '-m', '16', '--sequences', '64'],
    '1f1b, 2 groups of 1, joined weights': ['-s', '1f1b', '-p', '2', '-N', '0', '--join-weights'],
}
STEPS, FIRST = 12, 3


def be_realtime():
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))


def run(program, text, options, folder, realtime):
    """The report of one run."""
    path = os.path.join(folder, 'report.json')
    command = [program, 'run', text, '-q', '-n', str(STEPS), '-e', '100000',
               '--evaluate-sequences', '1', '--timeline', folder, '--timeline-step', str(FIRST),
               '--aligned', str(STEPS - FIRST), '-j', path] + SIZES + options
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL,
                   preexec_fn=be_realtime if realtime else None)
    with open(path, encoding='utf-8') as file:
        return json.load(file)


def median(reports, value):
    return statistics.median(value(report) for report in reports)


def spread(reports, value):
    values = sorted(value(report) for report in reports)
    return f'{values[0]:.3g} to {values[-1]:.3g}'


def table(results):
    """Lines of Markdown, and the figures that the bars ask for."""
    step = {name: median(reports, lambda r: r['step_ms']) for name, reports in results.items()}
    lines = ['| configuration | step, ms | T_a, T_f, us | exposed | span, ms | simulated, ms | '
             'measured over simulated |', '|---|---|---|---|---|---|---|']
    ratios = {}
    for name, reports in results.items():
        span = median(reports, lambda r: r['bubble']['span_us'] / 1e3)
        simulated = median(reports, lambda r: r['bubble']['simulated_us'] / 1e3)
        ratios[name] = median(
            reports, lambda r: r['bubble']['span_us'] / r['bubble']['simulated_us'])
        lines.append(
            f"| {name} | {step[name]:.1f} ({spread(reports, lambda r: r['step_ms'])}) | "
            f"{median(reports, lambda r: r['bubble']['t_a_us']):.0f}, "
            f"{median(reports, lambda r: r['bubble']['t_f_us']):.0f} | "
            f"{100 * median(reports, lambda r: r['exposed_communication']):.1f} % | "
            f'{span:.1f} | {simulated:.1f} | {ratios[name]:.3f} |')
    afpipe = results['afpipe']
    within = sum(abs(ratio - 1) <= 0.1 for ratio in ratios.values())
    warm_up = median(afpipe, lambda r: r['bubble']['warm_up_us'] / r['bubble']['formula_us'])
    bars = {
        'AF-Pipe over sequential, steps per second': step['sequential'] / step['afpipe'],
        'AF-Pipe over 1f1b, the better of both forms':
            min(step['1f1b, 2 groups of 1'], step['1f1b, 1 group of 2']) / step['afpipe'],
        'exposed communication of AF-Pipe': median(
            afpipe, lambda r: r['exposed_communication']),
        'warm-up over (2p - 1) (max(T_a, T_f) + T_m2n)': warm_up,
        f'configurations of {len(ratios)} within 10 % of the simulation': within,
    }
    return lines, bars


def main():
    parser = argparse.ArgumentParser(description='Measures schedules of disagmoe_train')
    parser.add_argument('build')
    parser.add_argument('out')
    parser.add_argument('text')
    parser.add_argument('--runs', type=int, default=5)
    parser.add_argument('--realtime', action='store_true')
    args = parser.parse_args()
    program = os.path.join(args.build, 'consumers', 'disagmoe_train', 'disagmoe_train')
    results = {name: [] for name in CONFIGS}
    os.makedirs(args.out, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.runs):
            for name, options in CONFIGS.items():
                results[name].append(run(program, args.text, options, folder, args.realtime))
    lines, bars = table(results)
    lines += ['', f'Medians of {args.runs} runs of {STEPS} steps, interleaved.', '',
              '| what | figure |', '|---|---|']
    lines += [f'| {what} | {figure:.3g} |' for what, figure in bars.items()]
    with open(os.path.join(args.out, 'schedules.md'), 'w', encoding='utf-8') as file:
        file.write('\n'.join(lines) + '\n')
    with open(os.path.join(args.out, 'schedules.json'), 'w', encoding='utf-8') as file:
        json.dump({'sizes': SIZES, 'bars': bars, 'runs': results}, file, indent=1)
    print('\n'.join(lines))
    return 0


if __name__ == '__main__':
    sys.exit(main())
