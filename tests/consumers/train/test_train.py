# SPDX-License-Identifier: Apache-2.0
"""`disagmoe_train run` as a program: resumed runs have the bits of uninterrupted ones, or go on
with other ranks; checkpoints are served with the trainer's own words; dumps and timelines
are what others read.

    test_train.py DISAGMOE_TRAIN MEGASCALE_INFER M2N_MODEL M2N_PERF PLOT [MPIRUN]
"""
import csv
import json
import os
import subprocess
import sys
import unittest
import xml.etree.ElementTree

from job import Job, ROOT, TEXT

INFER = MODEL = PERF = PLOT = MPIRUN = ''
TINY = '--size', 'tiny'
# Layouts by (schedule, groups, attention ranks, FFN ranks).
LAYOUTS = (('afpipe', 1, 1, 1), ('afpipe', 2, 2, 2), ('afpipe', 1, 2, 3), ('1f1b', 2, 1, 1),
           ('sequential', 1, 1, 2))


def layout(schedule, groups, attention, ffn):
    return '-s', schedule, '-p', groups, '-M', attention, '-N', ffn


def output_of(*args):
    return subprocess.run(list(map(str, args)), check=True, capture_output=True, timeout=60).stdout


class Train(Job):
    def test_resume_has_the_same_bits(self):
        for shape in LAYOUTS:
            with self.subTest(layout=shape):
                args = *layout(*shape), '-c', self.path('whole'), '--metrics', self.path('a.csv')
                self.train(*TINY, *args, '-n', 12)
                args = *layout(*shape), '-c', self.path('parts'), '--metrics', self.path('b.csv')
                self.train(*TINY, *args, '-n', 5)
                self.train('-r', *args, '-n', 9)
                self.train('-r', *args, '-n', 12)
                self.assertEqual(len(self.losses('a.csv')), 12)
                self.assertEqual(self.losses('b.csv'), self.losses('a.csv'))
                self.assertEqual(self.files('parts'), self.files('whole'))

    def test_resume_on_other_ranks(self):
        self.train(*TINY, '-n', 25, '--metrics', self.path('a.csv'))
        expected = self.losses('a.csv')
        args = '-c', self.path('moved'), '--metrics', self.path('b.csv')
        self.train(*TINY, *layout(*LAYOUTS[0]), *args, '-n', 5)
        for i, shape in enumerate(LAYOUTS[1:]):
            self.train('-r', *layout(*shape), *args, '-n', 10 + 5 * i)
        found = self.losses('b.csv')
        self.assertEqual(found.keys(), expected.keys())
        for step, loss in expected.items():
            self.assertAlmostEqual(float(found[step]), float(loss), delta=1e-4 * float(loss))

    def test_lines_of_steps_done_again(self):
        """What a run wrote after its last checkpoint is replaced."""
        args = '-c', self.path('c'), '--metrics', self.path('a.csv'), '-n', 9
        self.fails('rank 1', *TINY, *args, '--checkpoint-every', 4, '--kill-rank', 1,
                   '--kill-step', 8)
        self.train('-r', *args)
        self.assertEqual(list(self.losses('a.csv')), list(range(1, 10)))

    def test_model_is_served(self):
        """Greedy text of the trainer, of the one-process model and of serving is one text."""
        self.train(*TINY, '--seq', 64, *layout(*LAYOUTS[2]), '-n', 150, '--learning-rate', .01,
                   '-c', self.path('c'))
        model = self.path('c', 'model')
        for prompt in 'The ', 'a':
            own = output_of(self.PROGRAM, 'generate', self.path('c'), '--ids', '-p', prompt, '-n',
                            40).decode().strip()
            ids = list(map(int, own.split(',')))
            self.assertGreater(len(set(ids)), 4)
            text = output_of(self.PROGRAM, 'generate', self.path('c'), '-p', prompt, '-n', 40)
            self.assertEqual(text, bytes(ids) + b'\n')
            one = output_of(MODEL, 'run', model, '--prompt-bytes', prompt, '--tokens', 40)
            self.assertEqual(one.decode().strip(), own)
            for ranks in ('-M', 1, '-N', 1), ('-M', 2, '-N', 3, '-m', 3):
                output_of(INFER, 'serve', model, '-b', '-p', prompt, '-n', 40, '-q', '--tokens-out',
                          self.path('tokens'), *ranks)
                with open(self.path('tokens'), encoding='utf-8') as file:
                    self.assertEqual(json.load(file)['tokens'], ids)

    def dump(self, *args):
        self.train(*TINY, *args, '--dump-routing', self.path('dump'))
        self.assertEqual([n for n in os.listdir(self.dir) if 'part' in n], [])
        with open(self.path('dump'), encoding='utf-8') as file:
            return file.read()

    def test_dump_is_one_for_all_layouts(self):
        """Parameters of the first step are the seed's: so is the routing."""
        expected = self.dump('-n', 1)
        rows = list(csv.DictReader(expected.splitlines()))
        self.assertEqual([(int(r['layer']), int(r['token'])) for r in rows],
                         [(layer, token) for layer in range(2) for token in range(8 * 32)])
        for row in rows:
            self.assertEqual(int(row['rank_hint']), int(row['token']) // 32)
            ids = {int(row['expert0']), int(row['expert1'])}
            self.assertTrue(len(ids) == 2 and ids <= set(range(4)), row)
            weights = float(row['weight0']), float(row['weight1'])
            self.assertTrue(weights[0] >= weights[1] > 0 and abs(sum(weights) - 1) < 1e-5, row)
        for shape in LAYOUTS[1:]:
            self.assertEqual(self.dump('-n', 1, *layout(*shape)), expected)

    def test_dump_is_a_trace(self):
        """m2n_perf moves the rows that the dump has for each half of the experts."""
        rows = list(csv.DictReader(self.dump('-n', 20, *layout(*LAYOUTS[1])).splitlines()))
        for layer in '01':
            args = '-M', 2, '-N', 2, '--row-bytes', 256, '--backend', 'shm', '--matrix', '--format'
            result = json.loads(output_of(PERF, 'moe', *args, 'json', '--routing',
                                          f'trace:{self.path("dump")},layer={layer}'))
            self.assertTrue(result['cases'][0]['verified'])
            for rank, owned in (2, '01'), (3, '23'):
                flows = [f for f in result['matrix'] if f['rank'] == rank and
                         f['flow'] == 'dispatch_received']
                expected = sum(row[f'expert{k}'] in owned for row in rows for k in range(2)
                               if row['layer'] == layer)
                self.assertEqual(sum(f['rows'] for f in flows), expected * flows[0]['rounds'])

    def test_timeline(self):
        for shape in LAYOUTS[1], LAYOUTS[3]:
            folder = self.path('new', shape[0])
            os.makedirs(self.path('new'), exist_ok=True)
            self.train(*TINY, '--layers', 4, *layout(*shape), '-n', 3, '--timeline', folder)
            self.assertEqual(sorted(os.listdir(folder)), ['timeline.json', 'timeline.svg'])
            with open(os.path.join(folder, 'timeline.json'), encoding='utf-8') as file:
                events = json.load(file)['traceEvents']
            self.check_step([e for e in events if e['ph'] == 'X'], shape)
            root = xml.etree.ElementTree.parse(os.path.join(folder, 'timeline.svg')).getroot()
            self.assertTrue(root.tag.endswith('svg'))
            text = ''.join(root.itertext())
            self.assertIn(f'{shape[0]}, step 2', text)

    def check_step(self, events, shape):
        """Every operation of every micro-batch, in the order of layers."""
        forward = {}
        for event in events:
            if event['name'] == 'forward':
                forward.setdefault(event['args']['micro_batch'], []).append(event)
        # A rank that has both parts has two operations.
        n_ranks = (shape[2] + shape[3]) * (2 if shape[0] == '1f1b' else 1)
        self.assertEqual(sorted(forward), list(range(4)))
        for of in forward.values():
            self.assertEqual(len(of), 4 * n_ranks)
            begin = {layer: min(e['ts'] for e in of if e['args']['layer'] == layer)
                     for layer in range(4)}
            self.assertEqual(sorted(begin, key=begin.get), list(range(4)))
        # The last backward ends after the first forward began on every rank: one step.
        names = {e['name'] for e in events}
        self.assertTrue({'forward', 'backward', 'head', 'weights', 'update'} <= names, names)

    def test_plot(self):
        self.train(*TINY, '-n', 12, '-e', 4, '--metrics', self.path('a.csv'))
        output_of(sys.executable, PLOT, '-o', self.path('curve'), self.path('a.csv'))
        xml.etree.ElementTree.parse(self.path('curve.svg'))
        with open(self.path('curve.png'), 'rb') as file:
            self.assertEqual(file.read(8), b'\x89PNG\r\n\x1a\n')
        for text, what in (('step,loss\n', 'no step'), ('a,b\n1,2\n', 'loss'),
                           ('step,loss\n1,x\n', ':2: ')):
            with open(self.path('bad.csv'), 'w', encoding='utf-8') as file:
                file.write(text)
            done = subprocess.run([sys.executable, PLOT, '-o', self.path('bad'),
                                   self.path('bad.csv')], capture_output=True, text=True,
                                  check=False, timeout=60)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(what, done.stderr)
            self.assertIn('bad.csv', done.stderr)

    def test_memory(self):
        """What a rank takes is what was foretold from sizes alone."""
        for shape, *args in ((LAYOUTS[0],), (LAYOUTS[1],), (LAYOUTS[3],), (LAYOUTS[4],),
                             (LAYOUTS[2], '--experts', 16, '--top-k', 4),
                             (('afpipe', 2, 1, 4), '--layers', 4, '--seq', 128),
                             (LAYOUTS[1], '--hidden', 128, '--intermediate', 256),
                             (LAYOUTS[0], '--layers', 6, '--in-flight', 2)):
            with self.subTest(layout=shape, args=args):
                self.train(*TINY, *layout(*shape), *args, '-n', 30, '--json', self.path('r.json'))
                with open(self.path('r.json'), encoding='utf-8') as file:
                    ranks = json.load(file)['ranks']
                for rank in ranks:
                    ratio = rank['bytes'] / rank['planned_bytes']
                    self.assertTrue(.9 <= ratio <= 1.1, rank)

    def test_demo(self):
        """The commands of the README, with another size."""
        build = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(self.PROGRAM))))
        out = self.path('out')

        def demo(*args):
            return subprocess.run(
                ['sh', os.path.join(ROOT, 'consumers/disagmoe_train/demo.sh'), build, out, *args],
                capture_output=True, text=True, check=False, timeout=100,
                env={**os.environ, 'TEXT': TEXT, 'PATH': os.path.dirname(sys.executable) + ':' +
                     os.environ['PATH']})
        done = demo(*TINY, '-n', '30', '--checkpoint-every', '10', '--kill-rank', '2',
                    '--kill-step', '25')
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn('whole, of step 20', done.stderr)
        done = demo('--resume', '-n', '30', '-M', '1', '-N', '1')
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = done.stdout.rstrip('\n').split('\n')
        self.assertIn("own words after 'The '", lines[-3])
        self.assertEqual(lines[-2], lines[-1])
        for name in 'loss.svg', 'loss.png', 'timeline.svg', 'timeline.json', 'report.json':
            self.assertTrue(os.path.getsize(os.path.join(out, name)), name)

    def test_launched(self):
        if not MPIRUN:
            self.skipTest('built without MPI')
        args = *layout(*LAYOUTS[2]), *TINY, '-n', 6
        self.train(*args, '--metrics', self.path('a.csv'))
        done = subprocess.run(
            [MPIRUN, '--allow-run-as-root', '--oversubscribe', '-n', '5', self.PROGRAM, 'run', TEXT,
             *map(str, args), '--launched', '--metrics', self.path('b.csv'), '-c', self.path('c')],
            capture_output=True, text=True, check=False, timeout=100)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.losses('b.csv'), self.losses('a.csv'))
        self.assertEqual(self.state('c')['step'], 6)
        done = subprocess.run(
            [MPIRUN, '--allow-run-as-root', '--oversubscribe', '-n', '2', self.PROGRAM, 'run', TEXT,
             *map(str, args), '--launched'], capture_output=True, text=True, check=False,
            timeout=100)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn('the launcher started 2 ranks, 5 are needed', done.stderr)


if __name__ == '__main__':
    Job.PROGRAM, INFER, MODEL, PERF, PLOT = sys.argv[1:6]
    MPIRUN = ''.join(sys.argv[6:])
    unittest.main(argv=sys.argv[:1], verbosity=1)
