# SPDX-License-Identifier: Apache-2.0
"""What `disagmoe_train run` promises apart from its speed: for bars_train.py --part run.

It learns a text, its checkpoint is served with its own words, ranks take the memory that was
planned, and what calls libm2n is small.
"""
import glob
import json
import os
import re
import subprocess
import sys
import tempfile
import time

PROMPTS = 'ROMEO:', 'To be, or ', 'First Citizen:'
TRAIN = '-M', 2, '-N', 2, '-n', 200
MEMORY = ((), ('-N', 2), ('-M', 2, '-N', 3, '-p', 2), ('-s', '1f1b', '-p', 2),
          ('-s', 'sequential', '-N', 2), ('--in-flight', 2),
          ('--experts', 16, '--top-k', 4, '-N', 4),
          ('--layers', 6, '-p', 3, '-m', 8, '--sequences', 16),
          ('--seq', 256, '--sequences', 8, '--hidden', 192, '--head-dim', 48))


def output_of(*args):
    words = list(map(str, args))
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=3600)
    if done.returncode:
        sys.exit(f'{" ".join(words)}: exit {done.returncode}\n{done.stderr}')
    return done.stdout


def read_json(path):
    with open(path, encoding='utf-8') as file:
        return json.load(file)


def learn(program, text, folder):
    """Seconds and held-back loss of 200 steps."""
    begin = time.monotonic()
    output_of(program, 'run', text, *TRAIN, '-q', '-c', os.path.join(folder, 'trained'),
              '--metrics', os.path.join(folder, 'm.csv'), '--json', os.path.join(folder, 'r.json'))
    return {'seconds': time.monotonic() - begin,
            'held_back': read_json(os.path.join(folder, 'r.json'))['held_back']}


def words_of_all(build, folder):
    """How many prompts the trainer, the one-process model and serving continue alike."""
    consumers, trained = os.path.join(build, 'consumers'), os.path.join(folder, 'trained')
    tokens = os.path.join(folder, 'tokens')
    n_equal = 0
    for prompt in PROMPTS:
        own = output_of(f'{consumers}/disagmoe_train/disagmoe_train', 'generate', trained, '-p',
                        prompt, '-n', 64, '--ids').strip()
        one = output_of(f'{consumers}/common/model/m2n_model', 'run', f'{trained}/model',
                        '--prompt-bytes', prompt, '--tokens', 64).strip()
        output_of(f'{consumers}/megascale_infer/megascale_infer', 'serve', f'{trained}/model', '-b',
                  '-p', prompt, '-n', 64, '-M', 2, '-N', 2, '-q', '--tokens-out', tokens)
        served = ','.join(map(str, read_json(tokens)['tokens']))
        n_equal += own == one == served
    return n_equal


def memory(program, text, folder):
    """[(options, ranks' counted bytes over the plan, ranks' resident growth over it)], after steps
    in which routing is as uneven as it gets."""
    found = []
    for options in MEMORY:
        path = os.path.join(folder, 'r.json')
        output_of(program, 'run', text, *options, '-n', 60, '-q', '--evaluate-sequences', 1,
                  '--json', path)
        ranks = read_json(path)['ranks']
        found.append([' '.join(map(str, options)) or 'none'] + [
            [rank[what] / rank['planned_bytes'] for rank in ranks]
            for what in ('bytes', 'resident_bytes')])
    return found


def code_lines(pattern):
    """Lines that are neither blank nor comment."""
    n = 0
    for path in glob.glob(pattern):
        with open(path, encoding='utf-8') as file:
            text = re.sub(r'/\*.*?\*/', '', file.read(), flags=re.DOTALL)
        n += sum(bool(line.strip()) for line in text.splitlines())
    return n


def spread(values):
    return f'{min(values):.2f} to {max(values):.2f}'


def part_run(build, out, data, _rounds):
    program = os.path.join(build, 'consumers/disagmoe_train/disagmoe_train')
    text = os.path.join(data, 'text', 'tinyshakespeare.txt')
    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..')
    with tempfile.TemporaryDirectory() as folder:
        found = learn(program, text, folder)
        found['equal_prompts'] = words_of_all(build, folder)
        found['memory'] = memory(program, text, folder)
        plot = os.path.join(root, 'consumers/disagmoe_train/disagmoe_train_plot')
        output_of(sys.executable, plot, '-o', os.path.join(out, 'loss'),
                  os.path.join(folder, 'm.csv'))
    found['comm_lines'] = code_lines(os.path.join(root, 'consumers/disagmoe_train/run/comm*.c'))
    counted = [ratio for _, ratios, _ in found['memory'] for ratio in ratios]
    command = 'run tinyshakespeare.txt ' + ' '.join(map(str, TRAIN))
    rows = [
        ('held-back loss after 200 steps, nats per byte',
         f'{found["held_back"]:.3f} in {found["seconds"]:.0f} s', 'below 2.6, in minutes',
         found['held_back'] < 2.6 and found['seconds'] < 600, command),
        ('prompts that the trainer, m2n_model and serve (2 x 2) continue alike, 64 tokens',
         f'{found["equal_prompts"]} of {len(PROMPTS)}', 'all',
         found['equal_prompts'] == len(PROMPTS), 'generate CHECKPOINT --ids'),
        (f'memory of a rank over the plan, {len(counted)} ranks', spread(counted), '0.9 to 1.1',
         all(.9 <= ratio <= 1.1 for ratio in counted), 'run --json FILE'),
        ('lines of code that call libm2n', found['comm_lines'], 'at most 700',
         found['comm_lines'] <= 700, 'run/comm*.c without blanks and comments')]
    with open(os.path.join(out, 'run.md'), 'w', encoding='utf-8') as file:
        file.write('| what | figure | bar | met | how |\n|---|---|---|---|---|\n')
        for what, figure, bar, good, how in rows:
            file.write(f'| {what} | {figure} | {bar} | {"yes" if good else "**no**"} | `{how}` |\n')
        file.write('\nMemory that ranks counted, and growth of the processes, over the plan:\n\n'
                   '| options | counted | resident |\n|---|---|---|\n')
        for options, ratios, resident in found['memory']:
            file.write(f'| `{options}` | {spread(ratios)} | {spread(resident)} |\n')
    with open(os.path.join(out, 'run.json'), 'w', encoding='utf-8') as file:
        json.dump(found, file, indent=1)
        file.write('\n')
