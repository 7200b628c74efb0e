#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Bars of disagmoe_train, each with the figure, the limit and the command.

  bars_train.py BUILD OUT [--part simulate] [--part foretell] [--part run] [--data DIR] [--rounds N]

Part simulate: splits and schedules of a cluster by the simulator, beside the figures of DisagMoE,
and how they hang on the assumptions. It computes, so any machine will do.

Part foretell: steps of runs on this machine, as `simulate --profile` has them and measured; wants
a quiet machine. Each round measures the profile and all runs once; medians of the rounds count.

Part run: what runs learn, serve and take; bars_run.py.

A part writes OUT/PART.md and OUT/PART.json. Exits 0 whatever the figures are.
"""
import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile

from bars_run import part_run

MODELS = ('DeepSeek-MoE', 'GPT-OSS-120B', 'Qwen3-235B')
SEQS = (4096, 8192, 16384, 32768)
TOP_KS = (2, 4, 8, 16)
PAIR = ('--attention-gpus', 16, '--ffn-gpus', '4-16', '--attention-nics', 16, '--ffn-nics', 16)


class Report:
    """Rows of bars, tables, and the programs' JSON by name."""

    def __init__(self, program):
        self.program, self.lines, self.raw = program, [], {}

    def run(self, name, command, *args):
        words = [self.program, command, *map(str, args), '--json']
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=1200)
        if done.returncode:
            sys.exit(f'{" ".join(words)}: exit {done.returncode}\n{done.stderr}')
        self.raw[name] = json.loads(done.stdout)
        print(name, flush=True)
        return self.raw[name]

    def table(self, title, head, rows):
        self.lines += ['', title, ''] if title else ['']
        self.lines += ['| ' + ' | '.join(head) + ' |', '|---' * len(head) + '|']
        self.lines += ['| ' + ' | '.join(map(str, row)) + ' |' for row in rows]

    def write(self, out, name):
        with open(os.path.join(out, name + '.md'), 'w', encoding='utf-8') as file:
            file.write('\n'.join(self.lines).lstrip('\n') + '\n')
        with open(os.path.join(out, name + '.json'), 'w', encoding='utf-8') as file:
            file.write('{\n' + ',\n'.join(f'{json.dumps(key)}: {json.dumps(short(value))}'
                                         for key, value in self.raw.items()) + '\n}\n')


def short(value):
    """The same with six digits, and of a plan's splits only the best."""
    if isinstance(value, dict):
        return {key: short(part[:1] if key == 'plans' else part) for key, part in value.items()}
    if isinstance(value, list):
        return [short(part) for part in value]
    return float(f'{value:.6g}') if isinstance(value, float) else value


def met(good):
    return 'yes' if good else '**no**'


def rate_of(plans, n_ffn):
    """tokens/s/GPU of the plan with so many FFN GPUs; None where the search did not go."""
    return next((p['step']['tokens_per_s_gpu'] for p in plans if p['ffn_gpus'] == n_ffn), None)


def splits(report, bars):
    rows = []
    for seq in SEQS:
        found = report.run(f'split {seq}', 'plan', '--any-memory', '--seq', seq, '--top', 99, *PAIR)
        best = found['plans'][0]
        rates = {n: report.run(f'split {seq} 16:{n}', 'simulate', '--seq', seq, *PAIR[:3], n,
                               *PAIR[4:], '--schedule', '1f1b')['schedules'] for n in (8, 16)}
        rate = best['step']['tokens_per_s_gpu']
        megatron = rates[16]['1f1b']['tokens_per_s_gpu']
        ratios = [rate / megatron, rate / rates[16]['afpipe']['tokens_per_s_gpu'],
                  rates[8]['afpipe']['tokens_per_s_gpu'] / megatron]
        rows.append([seq, f'16:{found["seed"]["ffn_gpus"]}', f'16:{best["ffn_gpus"]}',
                     f'{best["roofline"]["t_a_us"]:.0f}, {best["roofline"]["t_f_us"]:.0f}',
                     f'{best["step"]["mfu"] * 100:.1f} %', *(f'{r:.2f}' for r in ratios)])
        if seq in (4096, 16384):
            wanted = (16,) if seq == 4096 else (9, 10, 11)
            bars.append([f'best split at {seq} tokens', f'16:{best["ffn_gpus"]}',
                         '16:16' if seq == 4096 else 'about 16:10',
                         met(best['ffn_gpus'] in wanted),
                         f'plan --any-memory --seq {seq} ' + ' '.join(map(str, PAIR))])
    report.table('Qwen3-235B, 16 attention GPUs, 16:16 NICs. The paper: 16:16 best at 4K; 16:10 at '
                 '16K, 1.56x over Megatron-LM, 1.29x over 16:16; 16:8 about 1x.',
                 ['tokens', 'phases 1, 2', 'best simulated', 'T_a, T_f us', 'MFU',
                  'over 1F1B on 32 GPUs', 'over 16:16', '16:8 over 1F1B'], rows)


def schedules(report, bars):
    rows = []
    for model in MODELS:
        for seq in SEQS:
            got = report.run(f'{model} {seq}', 'simulate', '-m', model, '--seq', seq)
            steps = got['schedules']
            ups = {name: step['afpipe_speed_up'] for name, step in steps.items()}
            rows.append([model, seq, f'{got["attention_gpus"]}:{got["ffn_gpus"]}',
                         f'{steps["afpipe"]["mfu"] * 100:.1f} %', *(
                             f'{ups[n]:.2f}' for n in ('1f1b', 'chunks-2', 'chunks-16',
                                                       'dualpipe')),
                         *(f'{steps[n]["exposed"] * 100:.1f} %' for n in (
                             'afpipe', '1f1b', 'chunks-2', 'chunks-16', 'dualpipe')),
                         *(f'{steps[n]["bubble"] * 100:.1f} %' for n in ('afpipe', '1f1b',
                                                                        'dualpipe')),
                         f'{steps["afpipe"]["bytes_attention"] / 1e9:.0f}, '
                         f'{steps["afpipe"]["bytes_ffn"] / 1e9:.0f}',
                         *(f'{steps[n]["bytes_ffn"] / 1e9:.0f}' for n in ('1f1b', 'dualpipe'))])
            if seq == 4096:
                for name, low, high in (('1f1b', 1.4, 2.), ('dualpipe', 1., 1.2)):
                    bars.append([f'{model}, AF-Pipe over {name}, 4K', f'{ups[name]:.3f}',
                                 f'{low} to {high}', met(low <= ups[name] <= high),
                                 f'simulate -m {model}'])
    report.table('Schedules on 128 H800, A:F as the plan has it. The paper: 1.59 to 1.81x over '
                 'interleaved 1F1B, 1.2 to 1.5x over Tutel and Comet (chunks), 1.05 to 1.13x over '
                 'DualPipe. Exposed and bubble are shares of the step, memory is GB of a GPU.',
                 ['model', 'tokens', 'A:F', 'MFU', 'over 1F1B', 'over chunks-2', 'over chunks-16',
                  'over DualPipe', 'exposed', '1F1B', 'chunks-2', 'chunks-16', 'DualPipe',
                  'bubble', '1F1B', 'DualPipe', 'A, F GB', '1F1B GB', 'DualPipe GB'], rows)


def assumptions(report, data):
    """The same at 4K with one assumption changed."""
    changes = [('as above', ()), ('products at 0.4 of the peak', ('--efficiency', .4)),
               ('products at 0.6', ('--efficiency', .6)),
               ('attention at 0.3', ('--attention-efficiency', .3)),
               ('a row travels once per rank', ('--copies', 'rank')),
               ('a row travels top-k times', ('--copies', 'expert')),
               ('6 SMs for communication, not 20', ('--sm-share', 6 / 132)),
               ('all-to-all at the rate of M2N', ('--a2a-util', .965)),
               ('256 sequences a step', ('--batch', 256)),
               ('1024 sequences a step', ('--batch', 1024)),
               ('at most 8 micro-batches under way', ('--in-flight', 8)),
               ('forward again in the backward', ('--recompute',)),
               ('head on the last group alone', ('--head', 'last')),
               ('residual by NIC', ('--residual', 'nic'))]
    trace = os.path.join(data, 'routing', 'flame290m_iter5473_e64_top6.csv')
    if os.path.exists(trace):
        changes.append(('skew of FLAME-MoE-290M', ('--trace', trace)))
    rows = []
    for what, args in changes:
        row = [what]
        for model in MODELS:
            got = report.run(f'{model}: {what}', 'simulate', '-m', model, *args)
            ups = [got['schedules'][n]['afpipe_speed_up'] for n in ('1f1b', 'dualpipe')]
            row += [f'{got["attention_gpus"]}:{got["ffn_gpus"]}', f'{ups[0]:.2f}', f'{ups[1]:.2f}']
        rows.append(row)
    head = ['at 4K']
    for model in MODELS:
        head += [f'{model} A:F', 'over 1F1B', 'over DualPipe']
    report.table('What the assumptions do', head, rows)


def top_k(report):
    """Qwen3-235B with other numbers of experts for a token."""
    rows = []
    with tempfile.NamedTemporaryFile('w', suffix='.csv', encoding='utf-8') as file:
        file.write('model,num_layers,hidden_size,moe_intermediate_size,num_experts,top_k,'
                   'num_heads,num_kv_heads,head_dim,attention,vocab_size\n')
        for k in TOP_KS:
            file.write(f'top-{k},94,4096,1536,128,{k},64,4,128,GQA,151936\n')
        file.flush()
        for k in TOP_KS:
            got = report.run(f'top-{k}', 'simulate', '--models', file.name, '-m', f'top-{k}')
            ups = [got['schedules'][n]['afpipe_speed_up'] for n in ('1f1b', 'dualpipe')]
            rows.append([k, f'{got["attention_gpus"]}:{got["ffn_gpus"]}',
                         *(f'{up:.2f}' for up in ups)])
    report.table('Qwen3-235B at 4K with other top-k. The paper: 1.08 to 1.92x, most at top-16.',
                 ['top-k', 'A:F', 'over 1F1B', 'over DualPipe'], rows)


def part_simulate(build, out, data, _rounds):
    report, bars = Report(os.path.join(build, 'consumers', 'disagmoe_train', 'disagmoe_train')), []
    splits(report, bars)
    schedules(report, bars)
    top_k(report)
    assumptions(report, data)
    body, report.lines = report.lines, []
    report.table('Bars of the simulator', ['what', 'figure', 'limit', 'met', 'command'],
                 [[*row[:4], f'`disagmoe_train {row[4]}`'] for row in bars])
    report.lines += body
    for row in bars:
        print(' '.join(row[:4]))
    text = json.dumps(report.raw)
    if data in text:
        sys.exit('a path of this machine in the results')
    report.write(out, 'simulate')


# Runs that differ in ranks, schedule and cut; the model is one.
BASE = ('--layers', 4, '--sequences', 8)
RUNS = (('-s', 'sequential'), ('-s', 'afpipe'), ('-s', 'afpipe', '--join-weights'),
        ('-s', 'afpipe', '-m', 8), ('-s', 'afpipe', '-m', 2), ('-s', 'afpipe', '--layers', 8),
        ('-s', '1f1b'), ('-s', '1f1b', '-m', 2), ('-s', 'sequential', '-m', 8),
        ('-s', 'afpipe', '-M', 2, '-N', 1), ('-s', 'afpipe', '-M', 1, '-N', 2),
        ('-s', '1f1b', '-p', 2), ('-s', 'afpipe', '-p', 2), ('-s', 'afpipe', '-p', 4))
N_STEPS, N_COUNTED = 16, 8


def call(program, *args):
    words = [program, *map(str, args)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        sys.exit(f'{" ".join(words)}: exit {done.returncode}\n{done.stderr}')
    return done.stdout


def foretell_once(program, text, own, folder):
    """Foretold and measured step in ms, and each rank's memory over the plan's."""
    files = {name: os.path.join(folder, name) for name in ('here.json', 'r.json', 'm.csv', 't.csv')}
    call(program, 'run', *BASE, *own, '-q', '-n', N_STEPS, '--metrics', files['m.csv'], '--json',
         files['r.json'], '--evaluate-sequences', 1, '--dump-routing', files['t.csv'], text)
    with open(files['m.csv'], encoding='utf-8') as file:
        seconds = [float(row['seconds']) for row in csv.DictReader(file)][-N_COUNTED:]
    with open(files['r.json'], encoding='utf-8') as file:
        ranks = json.load(file)['ranks']
    told = json.loads(call(program, 'simulate', '--profile', files['here.json'], '--json',
                           '--trace', files['t.csv'], *BASE, *own, text))
    return {'foretold_ms': told['step_ms'], 'measured_ms': statistics.median(seconds) * 1e3,
            'memory': [rank['bytes'] / rank['planned_bytes'] for rank in ranks]}


def part_foretell(build, out, data, rounds):
    """Every configuration by the same profile; routing comes from a dump of the run."""
    report = Report(os.path.join(build, 'consumers', 'disagmoe_train', 'disagmoe_train'))
    text = os.path.join(data, 'text', 'tinyshakespeare.txt')
    if not os.path.exists(text):
        text = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'tests', 'data',
                            'text_small.txt')
    found = {own: [] for own in RUNS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            call(report.program, 'profile', '--output', os.path.join(folder, 'here.json'), *BASE,
                 text)
            for own in RUNS:
                found[own].append(foretell_once(report.program, text, own, folder))
    rows, n_met = [], 0
    for own, all_rounds in found.items():
        told, measured = (statistics.median(r[key] for r in all_rounds)
                          for key in ('foretold_ms', 'measured_ms'))
        memory = [statistics.median(r['memory'][i] for r in all_rounds)
                  for i in range(len(all_rounds[0]['memory']))]
        n_met += abs(told / measured - 1) <= .1
        name = ' '.join(map(str, own))
        report.raw[name] = all_rounds
        rows.append([f'`{name}`', len(memory), f'{told:.1f}', f'{measured:.1f}',
                     f'{told / measured - 1:+.0%}', met(abs(told / measured - 1) <= .1),
                     f'{min(memory):.2f} to {max(memory):.2f}'])
        print(*rows[-1], flush=True)
    report.lines = [f'{n_met} of {len(rows)} steps foretold within 10 % on {os.cpu_count()} cores; '
                    f'at least 6 are wanted. Medians of {rounds} rounds. '
                    f'`disagmoe_train run {" ".join(map(str, BASE))} ...`']
    report.table('', ['run', 'ranks', 'foretold ms', 'measured ms', 'off', 'within 10 %',
                      'memory over plan'], rows)
    report.write(out, 'foretell')


PARTS = {'foretell': part_foretell, 'run': part_run, 'simulate': part_simulate}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('build')
    parser.add_argument('out')
    parser.add_argument('--part', choices=sorted(PARTS), action='append')
    parser.add_argument('--data', default='../shared/data')
    parser.add_argument('--rounds', type=int, default=3)
    options = parser.parse_args()
    os.makedirs(options.out, exist_ok=True)
    for part in options.part or sorted(PARTS):
        PARTS[part](options.build, options.out, options.data, options.rounds)


if __name__ == '__main__':
    main()
