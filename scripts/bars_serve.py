#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Measures what megascale_infer promises.

  bars_serve.py BUILD OUT [--part NAME]... [--data DIR] [--runs N] [--quick] [--under COMMAND]

Parts: tokens, trace, pingpong, mpi, simulate, kill, plan, lines; all of them without --part. Makes
its models (fixed seeds) and its prompts in a temporary folder, and writes OUT/bars.md and
OUT/bars.json. Figures are medians of --runs runs; what is compared is run in turn. Ranks of timed
runs have a core each, so two cores are enough. Other load shows in all of them: where it cannot be
stopped, --under "chrt -r 1", as root, puts the runs before it. (Linux takes the processor from such
processes for 50 ms in each second that they fill, so runs are short.)

Exits 0 whatever the figures are; 1 when one could not be taken.
"""
import argparse
import importlib.util
import json
import os
import random
import re
import shlex
import statistics
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TRACE = 'serving/azure_2023_conv_first3000.csv'
EXAMPLE = os.path.join(ROOT, 'consumers/megascale_infer/example_trace.csv')
LENGTHS = ('--requests', 200, '--length-divisor', 16)

# Sizes with a core for each rank; 32 tokens for each of `batch` sequences of a micro-batch.
EVEN = {'layers': 8, 'hidden': 512, 'heads': 8, 'intermediate': 72, 'experts': 4}
SIMULATED = [(EVEN, 16, m) for m in (1, 2, 3, 4)] + [
    ({'layers': 4, 'hidden': 256, 'heads': 8, 'intermediate': 144, 'experts': 8}, 32, 2),
    ({'layers': 4, 'hidden': 256, 'heads': 8, 'intermediate': 144, 'experts': 8}, 32, 3),
    ({'layers': 6, 'hidden': 1024, 'heads': 8, 'intermediate': 128, 'experts': 4}, 32, 1),
    ({'layers': 6, 'hidden': 1024, 'heads': 8, 'intermediate': 128, 'experts': 4}, 32, 2),
    ({'layers': 3, 'hidden': 512, 'heads': 8, 'intermediate': 512, 'experts': 4}, 8, 2),
    ({'layers': 12, 'hidden': 384, 'heads': 6, 'intermediate': 64, 'experts': 8}, 24, 4),
]
WIDE = {'layers': 4, 'hidden': 2048, 'heads': 8, 'kv-heads': 1, 'intermediate': 64, 'experts': 4}
PAPER = {'Mixtral-8x22B': 'm 3 or 4',
         'DBRX': 'm 3 or 4 (n_a, to compare: 8)', 'Scaled-MoE': 'm 3 or 4'}


class Bars:
    """What is measured, and with which programs."""

    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.rows, self.details = [], {}
        self.runs = 1 if options.quick else options.runs
        self.serve_program = os.path.join(options.build,
                                          'consumers/megascale_infer/megascale_infer')
        path = os.path.join(options.data, TRACE)
        self.trace = path if os.path.exists(path) else EXAMPLE

    def command(self, command, timeout=600):
        """What it printed; ends the program where it fails."""
        command = [str(word) for word in command]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout,
                              check=False)
        if done.returncode:
            sys.exit(f'{" ".join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}')
        return done.stdout + done.stderr

    def row(self, what, figure, limit, met, command):
        self.rows.append({'what': what, 'figure': figure, 'limit': limit, 'met': met,
                          'command': command})
        print(f'{what}: {figure} ({limit}) {"" if met is None else "met" if met else "MISSED"}',
              flush=True)

    def path(self, name):
        return os.path.join(self.folder, name)

    def test(self, *parts):
        return os.path.join(ROOT, 'tests/consumers', *parts)

    def model(self, sizes):
        """The directory of a model of these sizes, made once, and how."""
        words = [w for k, v in sizes.items() for w in (f'--{k}', str(v))]
        words += ['--top-k', '2', '--seed', '1']
        path = self.path('model' + ''.join(words))
        if not os.path.exists(path):
            self.command([os.path.join(self.options.build, 'consumers/common/model/m2n_model'),
                          'make', *words, path])
        return path, 'm2n_model make ' + ' '.join(words) + ' model'

    def prompts(self, n, n_prompt, n_tokens):
        """A file of n prompts of that length, always the same."""
        path = self.path('prompts')
        rng = random.Random(1)
        with open(path, 'w', encoding='utf-8') as file:
            for _ in range(n):
                file.write(f'{n_tokens}\t' +
                           ' '.join(str(rng.randrange(256)) for _ in range(n_prompt)) + '\n')
        return path

    def serve(self, model, *words, launcher=()):
        """The report and the generated tokens of one run."""
        report, tokens = self.path('report'), self.path('tokens')
        program = launcher or (self.serve_program, 'serve')
        self.command([*shlex.split(self.options.under), *program, model, '-q', '--json', report,
                      '--tokens-out', tokens, *words])
        with open(report, encoding='utf-8') as file:
            found = json.load(file)
        with open(tokens, encoding='utf-8') as file:
            return found, {one['request']: one['tokens'] for one in map(json.loads, file)}

    def reference(self, model):
        """Tokens of the trace's requests, one alone after the other in one process."""
        text = self.command([os.path.join(self.options.build,
                                          'tests/consumers/serve/serve_reference'),
                             model, 'trace', self.trace, 'f32', LENGTHS[1], LENGTHS[3]])
        return {one['request']: one['tokens'] for one in map(json.loads, text.splitlines())}

    def write(self):
        os.makedirs(self.options.out, exist_ok=True)
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            name = re.search(r'model name\s*: (.*)', file.read())
        env = {'processor': name.group(1) if name else os.uname().machine,
               'cores': len(os.sched_getaffinity(0)), 'load': os.getloadavg()[0],
               'under': self.options.under,
               'runs': self.runs}
        with open(os.path.join(self.options.out, 'bars.md'), 'w', encoding='utf-8') as file:
            file.write(f'{env["processor"]}, {env["cores"]} cores; load {env["load"]:.1f} at the '
                       f'end{", under " + env["under"] if env["under"] else ""}; medians of '
                       f'{self.runs} runs.\n\n'
                       '| what | figure | limit | met | command |\n|---|---|---|---|---|\n')
            for row in self.rows:
                met = {True: 'yes', False: '**no**', None: '-'}[row['met']]
                file.write(f'| {row["what"]} | {row["figure"]} | {row["limit"]} | {met} | '
                           f'`{row["command"]}` |\n')
        with open(os.path.join(self.options.out, 'bars.json'), 'w', encoding='utf-8') as file:
            json.dump({'schema': 'm2n_bars/1', 'part': 'serve', 'env': env, 'rows': self.rows,
                       'details': self.details}, file, indent=1)
            file.write('\n')


def tokens(bars):
    """The test's own matrix, and parity with the other implementation."""
    build = bars.options.build
    program = [sys.executable, bars.test('serve/test_serve.py'), bars.serve_program,
               os.path.join(build, 'consumers/common/model/m2n_model'),
               os.path.join(build, 'tests/consumers/serve/serve_reference'), 'ucx']
    for name, what in (('test_shapes', 'shm'), ('test_shapes_ucx', 'UCX')):
        text = bars.command([*program, 'Serve.' + name])
        done = 'OK' in text and 'skipped' not in text
        bars.row('tokens equal the reference: 1x1, 2x2, 3x2, 1x4 ranks, m 1 to 4, with and without '
                 f'chunks and replicas, over {what}',
                 '56 of 56 runs' if done else 'not run', 'all', done,
                 f'test_serve.py Serve.{name}')
    if importlib.util.find_spec('numpy') is None:
        print('no numpy: parity left out')
        return
    text = bars.command([sys.executable, bars.test('test_parity.py'),
                         os.path.join(build, 'consumers/common/model/m2n_model')])
    errors = [float(e) for e in re.findall(r'^ok - .*: (\S+)$', text, re.MULTILINE)]
    bars.row(f'logits beside the oracle in numpy, {len(errors)} checkpoints',
             f'{max(errors):.0e} of the largest', '<= 1e-4', max(errors) <= 1e-4, 'test_parity.py')


def trace(bars):
    model, made = bars.model({'layers': 4, 'hidden': 128, 'experts': 8})
    expected = bars.reference(model)
    words = ['-M', 2, '-N', 2, '-m', 3, '--chunk', 24]
    report, found = bars.serve(model, '-t', bars.trace, *LENGTHS, *words)
    n_equal = sum(found.get(k) == v for k, v in expected.items())
    bars.row(f'first 200 requests of {os.path.basename(bars.trace)}, lengths divided by 16',
             f'{n_equal} of {len(expected)} equal the reference, {report["tokens"]} tokens, '
             f'{report["tokens_per_s"]:.0f} tokens/s', 'all',
             n_equal == len(expected) == len(found),
             f'{made}; megascale_infer serve model -t {os.path.basename(bars.trace)} '
             f'{text_of(LENGTHS)} {text_of(words)}')


def text_of(words):
    return ' '.join(map(str, words))


def spread(values, form='{:.2f}'):
    """Median and range."""
    text = form.format(statistics.median(values))
    if len(values) > 1:
        text += f' ({form.format(min(values))} to {form.format(max(values))})'
    return text


def pingpong(bars):
    model, made = bars.model(EVEN)
    runs = {m: [] for m in (1, 2, 3)}
    path = bars.prompts(96, 16, 32)
    words = ['--batch', 16]
    for _ in range(bars.runs):
        for m, reports in runs.items():
            reports.append(bars.serve(model, '-P', path, '-m', m, *words, '--timeline',
                                      bars.path('timeline'))[0])
    command = f'{made}; megascale_infer serve model -P prompts {text_of(words)} --timeline DIR -m '
    for m, reports in runs.items():
        bars.row(f'm = {m}: tokens/s; T_a, T_e in us',
                 f'{spread([r["tokens_per_s"] for r in reports], "{:.0f}")}; '
                 f'{statistics.median(r["t_a_us"] for r in reports):.0f}, '
                 f'{statistics.median(r["t_e_us"] for r in reports):.0f}', 'to compare', None,
                 command + str(m))
    ratios = [b['tokens_per_s'] / a['tokens_per_s'] for a, b in zip(runs[1], runs[2])]
    bars.row('tokens/s, m = 2 over m = 1', spread(ratios), '>= 1.7',
             statistics.median(ratios) >= 1.7, command + '1, -m 2')
    shares = [100 * r['exposed_communication'] for r in runs[3]]
    bars.row('exposed communication at m = 3', spread(shares, '{:.1f}') + ' %', '<= 5 %',
             statistics.median(shares) <= 5, command + '3')


def mpi(bars):
    """Both from one binary that mpirun starts, m x 64 sequences, so that micro-batches are full."""
    program = os.path.join(bars.options.build, 'tests/consumers/mpi/megascale_infer_mpi')
    if not os.path.exists(program):
        print('built without MPI: left out')
        return
    model, made = bars.model(WIDE)
    launcher = ['mpirun', '--allow-run-as-root', '-n', 2, program]
    for m in 1, 2, 3:
        path = bars.prompts(64 * m, 8, 24)
        runs = {'m2n': [], 'mpi': []}
        for _ in range(bars.runs):
            for name, reports in runs.items():
                reports.append(bars.serve(
                    model, '-P', path, '--launched', '--transport', name, '-m', m, '--batch', 64,
                    '--timeline', bars.path('timeline'), launcher=launcher)[0])
        compare_mpi(bars, m, runs, f'{made}; mpirun -n 2 megascale_infer_mpi model -P prompts '
                    f'--launched --batch 64 -m {m} --timeline DIR --transport m2n, mpi')


def shown_us(report):
    """Communication that no computation hides, for a micro-batch in a layer."""
    rounds = report['ranks'][0]['spans']['send']
    whole = sum(report['ranks'][0]['ns'].values())
    return report['exposed_communication'] * whole / rounds / 1e3


def compare_mpi(bars, m, runs, command):
    shown = {name: [shown_us(r) for r in reports] for name, reports in runs.items()}
    rates = {name: [r['tokens_per_s'] for r in reports] for name, reports in runs.items()}
    ratios = [a / b for a, b in zip(shown['m2n'], shown['mpi'])]
    bars.row(f'8 KB rows, batch 64, m = {m}: communication time over that of MPI',
             f'{spread(ratios)}; {statistics.median(shown["m2n"]):.0f} and '
             f'{statistics.median(shown["mpi"]):.0f} us', '<= 1/3',
             statistics.median(ratios) <= 1 / 3, command)
    ratios = [a / b for a, b in zip(rates['m2n'], rates['mpi'])]
    bars.row(f'8 KB rows, batch 64, m = {m}: tokens/s over MPI',
             f'{spread(ratios)}; {statistics.median(rates["m2n"]):.0f} and '
             f'{statistics.median(rates["mpi"]):.0f}', '> 1', statistics.median(ratios) > 1,
             command)


def step_times(folder):
    """us of a micro-batch in a layer on each side, one way between them, and sampling, of a run.

    Ranks of one machine copy and sum rows themselves, so that is time of theirs: T_a is attention,
    handing rows over and what the combine does once replies are there; T_e the experts and handing
    replies over. T_c is what is left: from the end of a send to the receiver's start.
    """
    with open(os.path.join(folder, 'timeline.json'), encoding='utf-8') as file:
        events = [e for e in json.load(file)['traceEvents'] if e['ph'] == 'X' and e['tid'] == 0]
    spans = {}
    for e in events:
        spans.setdefault(e['name'], []).append((e['ts'], e['ts'] + e['dur']))
    n = len(spans['dispatch'])

    def mean(*names):
        return sum(end - begin for name in names for begin, end in spans[name]) / n

    def after(sent, received):
        return statistics.median(r[1] - max(r[0], s[1])
                                 for s, r in zip(spans[sent], spans[received]))

    t_c = max(0, after('dispatch', 'rows'))
    t_a = mean('attention', 'dispatch') + max(0, after('replies', 'combine') - t_c)
    sample = mean('sample') * n / len(spans['sample'])
    return t_a, mean('experts', 'replies'), t_c, sample


def simulate(bars):
    """Times of a run's parts put together by the simulator, beside the run's iterations."""
    details = bars.details['simulate'] = []
    for sizes, batch, m in SIMULATED:
        model, made = bars.model(sizes)
        path = bars.prompts(batch * m, 1, 32)
        pairs = []
        for _ in range(bars.runs):
            report, _ = bars.serve(model, '-P', path, '-m', m, '--batch', batch, '--timeline',
                                   bars.path('timeline'))
            times = step_times(bars.path('timeline'))
            words = [w for name, us in zip(('t-a', 't-e', 't-c', 'sample'), times)
                     for w in (f'--{name}-us', f'{us:.1f}')]
            words = [*words, '--micro-batches', m, '--layers', sizes['layers'], '--iterations', 32]
            text = bars.command([bars.serve_program, 'simulate', '--json', *words])
            pairs.append((json.loads(text)['tpot_ms'], report['iteration_us'] / 1e3, words))
        ratios = [simulated / measured for simulated, measured, _ in pairs]
        middle = sorted(pairs, key=lambda p: p[0] / p[1])[len(pairs) // 2]
        value = statistics.median(ratios)
        details.append({'sizes': sizes, 'batch': batch, 'm': m, 'runs': pairs})
        bars.row(f'simulated over measured time of an iteration: hidden {sizes["hidden"]}, '
                 f'{sizes["layers"]} layers, {sizes["experts"]} experts of '
                 f'{sizes["intermediate"]}, batch {batch}, m = {m}',
                 f'{spread(ratios, "{:.3f}")}; {middle[0]:.2f} and {middle[1]:.2f} ms',
                 '0.9 to 1.1', .9 <= value <= 1.1,
                 f'{made}; megascale_infer serve model -P prompts --batch {batch} -m {m} '
                 f'--timeline DIR; megascale_infer simulate {text_of(middle[2])}')


def kill(bars):
    model, made = bars.model({'layers': 4, 'hidden': 128, 'experts': 8})
    expected = bars.reference(model)
    stalls, wrong, n_runs = [], 0, 2 if bars.options.quick else 10
    for i in range(n_runs):
        report, found = bars.serve(model, '-t', bars.trace, *LENGTHS, '-M', 2, '-N', 2, '-m', 3,
                                   '-r', 2, '--kill-rank', 2 + i % 2, '--kill-after',
                                   .05 + .03 * i)
        wrong += found != expected
        stats = [r['transport'] for r in report['ranks'] if r['role'] == 'attention']
        if any(s['lost'] for s in stats):
            stalls.append(max(s['stall_ms'] for s in stats))
    command = (f'{made}; megascale_infer serve model -t {os.path.basename(bars.trace)} '
               f'{text_of(LENGTHS)} -M 2 -N 2 -m 3 -r 2 --kill-rank 2, 3 --kill-after .05 to .32')
    bars.row(f'kill -9 of one of two expert ranks with replicas, {n_runs} runs: other tokens',
             f'{wrong} runs; the loss was seen in {len(stalls)}', '0', wrong == 0, command)
    if not stalls:
        sys.exit('no run saw the loss')
    bars.row('the longest stall of each of them', spread(stalls, '{:.1f}') + ' ms', '<= 200 ms',
             max(stalls) <= 200, command)


def plan(bars):
    for model, paper in PAPER.items():
        def best(*words, model=model):
            text = bars.command([bars.serve_program, 'plan', '--json', '-m', model, *words])
            return json.loads(text)['plans'][0]
        pair, alone = best(), best('-g', 'H20')
        ratio = pair['tokens_per_s_cost'] / alone['tokens_per_s_cost']
        good = (pair['gpu_a'], pair['gpu_e']) == ('H20', 'L40S') and pair['m'] in (3, 4)
        bars.row(f'{model}: best pair, tp_a, tp_e, n_a, m; T_a / T_e; per cost over H20 alone',
                 f'{pair["gpu_a"]} + {pair["gpu_e"]}, {pair["tp_a"]}, {pair["tp_e"]}, '
                 f'{pair["n_a"]}, {pair["m"]}; {pair["t_a_us"] / pair["t_e_us"]:.2f}; {ratio:.2f}',
                 f'H20 + L40S, {paper}', good, f'megascale_infer plan -m {model}')


def lines(bars):
    text = bars.command([sys.executable, os.path.join(ROOT, 'tests/consumers/test_lines.py'),
                         ROOT])
    count = int(re.search(r'(\d+) lines', text).group(1))
    bars.row('lines of code that communicate: files that call libm2n', f'{count}', '<= 600',
             count <= 600, 'test_lines.py')


PARTS = {f.__name__: f for f in (tokens, trace, pingpong, mpi, simulate, kill, plan, lines)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('build')
    parser.add_argument('out')
    parser.add_argument('--part', choices=PARTS, action='append')
    parser.add_argument('--data', default=os.path.join(ROOT, '../shared/data'))
    parser.add_argument('--runs', type=int, default=5)
    parser.add_argument('--under', default='', help='a command that runs the timed ones')
    parser.add_argument('--quick', action='store_true', help='one run of each')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bars = Bars(options, folder)
        for name in options.part or PARTS:
            PARTS[name](bars)
        bars.write()


if __name__ == '__main__':
    main()
