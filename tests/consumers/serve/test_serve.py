# SPDX-License-Identifier: Apache-2.0
"""`megascale_infer serve` gives the tokens of the one-process run, however ranks, micro-batches,
chunks, replicas and placements cut the work, over shared memory and over UCX; through the loss of
an expert rank, and beside input that is wrong.

    test_serve.py MEGASCALE_INFER M2N_MODEL REFERENCE_TOKENS [ucx|no [TEST]...]
"""
import json
import os
import pty
import random
import shutil
import subprocess
import sys
import tempfile
import unittest

PROGRAM = MODEL = REFERENCE = ''
HAS_UCX = False
ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '../../..')
SHAPES = (1, 1), (2, 2), (3, 2), (1, 4)
TRACE = 'TIMESTAMP,ContextTokens,GeneratedTokens\n'


def read_tokens(text):
    return {one['request']: one['tokens'] for one in map(json.loads, text.splitlines())}


class Serve(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        # pylint: disable-next=consider-using-with
        cls.dir = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.dir.cleanup)
        cls.model = os.path.join(cls.dir.name, 'model')
        subprocess.run([MODEL, 'make', '--layers', '3', '--hidden', '64', '--experts', '8',
                        '--top-k', '2', '--seed', '1', cls.model], check=True, timeout=60)
        cls.prompts = cls.write('prompts', cls.make_prompts(24, (1, 2, 5, 17, 40, 90), 20))
        cls.expected = {rows: cls.reference('prompts', cls.prompts, rows)
                        for rows in ('f32', 'bf16')}

    @classmethod
    def write(cls, name, text):
        path = os.path.join(cls.dir.name, name)
        with open(path, 'w', encoding='utf-8') as file:
            file.write(text)
        return path

    @staticmethod
    def make_prompts(n, lengths, longest, seed=3):
        rng = random.Random(seed)
        return ''.join(f'{rng.randint(1, longest)}\t' + ','.join(
            str(rng.randrange(256)) for _ in range(rng.choice(lengths))) + '\n' for _ in range(n))

    @classmethod
    def reference(cls, kind, path, rows='f32', lines=0, divisor=1):
        done = subprocess.run([REFERENCE, cls.model, kind, path, rows, str(lines), str(divisor)],
                              check=True, capture_output=True, text=True, timeout=100)
        return read_tokens(done.stdout)

    def run_serve(self, *args, model=None, env=None):
        """The finished process, tokens by request, the report."""
        tokens, report = (os.path.join(self.dir.name, name) for name in ('tokens', 'report'))
        for path in tokens, report:
            if os.path.exists(path):
                os.remove(path)
        done = subprocess.run(
            [PROGRAM, 'serve', model or self.model, '--tokens-out', tokens, '--json', report,
             *map(str, args)], capture_output=True, text=True, check=False, timeout=100,
            env={**os.environ, **(env or {})})
        if done.returncode:
            return done, None, None
        with open(tokens, encoding='utf-8') as file:
            found = read_tokens(file.read())
        with open(report, encoding='utf-8') as file:
            return done, found, json.load(file)

    def serves(self, expected, *args, env=None):
        done, tokens, report = self.run_serve(*args, env=env)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(tokens, expected)
        return report

    def fails(self, text, *args, model=None):
        done, _, _ = self.run_serve(*args, model=model)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn(text, done.stderr)

    def all_shapes(self, env):
        for n, (attention, experts) in enumerate(SHAPES):
            for m in 1, 2, 3, 4:
                for chunk in 0, 7:
                    for replicas in {1, min(2, experts)}:
                        rows = ('f32', 'bf16')[(n + m + chunk + replicas) % 2]
                        with self.subTest(M=attention, N=experts, m=m, chunk=chunk,
                                          replicas=replicas, rows=rows):
                            report = self.serves(
                                self.expected[rows], '-P', self.prompts, '-M', attention, '-N',
                                experts, '-m', m, '--chunk', chunk, '-r', replicas, '--rows',
                                rows, '--batch', 32, env=env)
                            self.assertEqual(report['requests'], len(self.expected[rows]))
                            self.assertEqual(len(report['ranks']), attention + experts)

    def test_shapes(self):
        self.all_shapes({'M2N_BACKEND': 'shm'})

    def test_shapes_ucx(self):
        if not HAS_UCX:
            self.skipTest('built without UCX')
        self.all_shapes({'M2N_BACKEND': 'ucx', 'UCX_TLS': 'tcp,self'})

    def test_report(self):
        folder = os.path.join(self.dir.name, 'timeline')
        report = self.serves(self.expected['f32'], '-P', self.prompts, '--timeline', folder)
        self.assertEqual(report['tokens'], sum(map(len, self.expected['f32'].values())))
        self.assertEqual(report['ttft']['samples'], report['requests'])
        self.assertEqual(report['tbt']['samples'], report['tokens'] - report['requests'])
        self.assertLessEqual(report['tbt']['p50_ms'], report['tbt']['p99_ms'])
        self.assertGreater(report['tokens_per_s'], 0)
        self.assertGreater(report['iteration_us'], report['t_a_us'] + report['t_e_us'])
        self.assertTrue(0 <= report['exposed_communication'] <= 1)
        self.assertEqual([r['role'] for r in report['ranks']], ['attention', 'expert'])
        with open(os.path.join(folder, 'timeline.json'), encoding='utf-8') as file:
            events = [e for e in json.load(file)['traceEvents'] if e['ph'] == 'X']
        # Micro-batches are with the experts at the same time: the ping-pong.
        flights = sorted((e['ts'], e['ts'] + e['dur'], e['args']['micro_batch']) for e in events
                         if e['name'] == 'flight')
        self.assertEqual({f[2] for f in flights}, {0, 1})
        self.assertTrue(any(b[0] < a[1] and b[2] != a[2] for a, b in zip(flights, flights[1:])))
        rounds = report['ranks'][0]['transport']['rounds']
        self.assertEqual(len(flights), rounds)
        self.assertEqual(sum(e['name'] == 'attention' for e in events), rounds)
        with open(os.path.join(folder, 'timeline.svg'), encoding='utf-8') as file:
            self.assertIn('</svg>', file.read())

    def test_one_prompt(self):
        """More ranks than requests: those without one leave at once."""
        path = self.write('one', '5\t1,2,3\n')
        self.serves(self.reference('prompts', path), '-M', 3, '-N', 2, '-p', '5\t1 2 3')

    def test_arrivals(self):
        """Between requests a rank has nothing but the others' rounds to keep going."""
        rng = random.Random(5)
        path = self.write('slow.csv', TRACE + ''.join(
            f'2023-11-16 18:15:{i // 20:02}.{i % 20 * 5:02}00000,{rng.randint(1, 60)},'
            f'{rng.randint(1, 12)}\n' for i in range(30)))
        expected = self.reference('trace', path)
        report = self.serves(expected, '-t', path, '--speed', 4, '-M', 2, '-N', 2, '-m', 3)
        self.assertGreater(report['seconds'], .3)
        self.assertGreater(max(r.get('idle_rounds', 0) for r in report['ranks']), 0)

    def test_conversations(self):
        data = os.environ.get('M2N_DATA', os.path.join(ROOT, '../shared/data'))
        path = os.path.join(data, 'serving/azure_2023_conv_first3000.csv')
        if not os.path.exists(path):
            self.skipTest('no trace of conversations')
        args = '-t', path, '--requests', 200, '--length-divisor', 16
        expected = self.reference('trace', path, lines=200, divisor=16)
        self.assertEqual(len(expected), 200)
        for shape in SHAPES:
            self.serves(expected, *args, '-M', shape[0], '-N', shape[1], '-m', 3, '--chunk', 24)
        self.serves(expected, *args, '-M', 2, '-N', 2, '--speed', 200)

    def test_balance(self):
        """Placements change while requests are served; the loads are those of the windows."""
        for replicas in 1, 2:
            report = self.serves(self.expected['f32'], '-P', self.prompts, '-M', 1, '-N', 4, '-m',
                                 2, '-r', replicas, '--batch', 8, '--balance', 40)
            last = report['ranks'][-1]['transport']
            if last['placements']:
                self.assertLessEqual(last['load_after'], last['load_before'])
        self.fails('balance every 5 rounds', '-P', self.prompts, '--balance', 5)

    def long_run(self):
        path = self.write('long', self.make_prompts(12, (1, 9, 30), 400, seed=7))
        return path, self.reference('prompts', path)

    def test_loss(self):
        """kill -9 of an expert rank: what it had is computed by the replicas."""
        path, expected = self.long_run()
        for backend in ['shm', 'ucx'] if HAS_UCX else ['shm']:
            with self.subTest(backend=backend):
                report = self.serves(
                    expected, '-P', path, '-M', 2, '-N', 3, '-m', 3, '-r', 2, '--kill-rank', 3,
                    '--kill-after', .02, env={'M2N_BACKEND': backend, 'UCX_TLS': 'tcp,self'})
                # One of them may have been through already.
                self.assertIn(1, [r['transport']['lost'] for r in report['ranks'][:2]])
                self.assertEqual(len(report['ranks']), 4)

    def test_replacement(self):
        """Without a replica, serving stands until a process takes the place."""
        path, expected = self.long_run()
        for replicas in 1, 2:
            report = self.serves(expected, '-P', path, '-M', 1, '-N', 2, '-m', 2, '-r', replicas,
                                 '--kill-rank', 1, '--kill-after', .02, '--restart', 1)
            stats = report['ranks'][0]['transport']
            self.assertEqual(stats['lost'], 1)
            if replicas == 1:
                self.assertEqual(stats['joined'], 1)

    def test_temperature(self):
        """Chance is the request's own: the same tokens on any number of ranks."""
        args = '-P', self.prompts, '--temperature', 1, '--seed', 9
        _, one, _ = self.run_serve(*args)
        _, other, _ = self.run_serve(*args, '-M', 3, '-N', 2, '-m', 4, '--chunk', 5)
        self.assertEqual(one, other)
        self.assertNotEqual(one, self.expected['f32'])

    def test_text(self):
        report = self.run_serve('-b', '-p', 'once upon a time', '-n', 8)[2]
        self.assertEqual((report['prompt_tokens'], report['tokens']), (16, 8))

    def test_refused(self):
        """One request's fault is its own."""
        path = self.write('bad', '4\t1,2,3\n1,300\n3\tone\n6\t7,8\n2\t' + '9 ' * 200 + '\n')
        done, tokens, report = self.run_serve('-P', path, '--cache-tokens', 64)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual({n: len(t) for n, t in tokens.items()}, {0: 4, 3: 6})
        self.assertEqual(report['refused'], 3)
        for text in path + ':2: ', path + ':3: ', 'which has 4':
            self.assertIn(text, done.stderr)
        trace = self.write('bad.csv', TRACE + '2023-11-16 18:15:46.68,12,3\nno line\n'
                           '2023-11-16 18:15:47.00,5,2\n')
        done, tokens, _ = self.run_serve('-t', trace)
        self.assertEqual({n: len(t) for n, t in tokens.items()}, {0: 3, 2: 2})
        self.assertIn(trace + ':3: ', done.stderr)
        self.fails('no request', '-p', '300')
        done, tokens, _ = self.run_serve('-p', '1 ' * 200, '--cache-tokens', 64)
        self.assertEqual((done.returncode, tokens), (0, {}), done.stderr)
        self.assertNotIn('nan', done.stdout)

    def test_demo(self):
        """The README's command, with the trace that is always there."""
        out = os.path.join(self.dir.name, 'demo')
        build = os.path.join(os.path.dirname(PROGRAM), '../..')
        done = subprocess.run(
            ['sh', os.path.join(ROOT, 'consumers/megascale_infer/demo.sh'), build, out, '-q'],
            capture_output=True, text=True, check=False, timeout=100,
            env={**os.environ, 'M2N_DATA': self.dir.name})
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn('200 requests (0 refused)', done.stdout)
        self.assertLessEqual({'model', 'report.json', 'timeline.json', 'timeline.svg'},
                             set(os.listdir(out)))

    def test_progress(self):
        """A line that is written over, on a terminal only."""
        mine, theirs = pty.openpty()
        args = [PROGRAM, 'serve', self.model, '-p', '5\t1 2 3']
        for more, expected in ((), True), (('-q',), False):
            subprocess.run([*args, *more], stdout=subprocess.DEVNULL, stderr=theirs, check=True,
                           timeout=100)
            os.write(theirs, b'.')
            shown = os.read(mine, 4096)
            self.assertEqual(b'\rrank 0: 0 requests, 1 tokens' in shown, expected, shown)
        os.close(mine)
        os.close(theirs)
        done = self.run_serve('-p', '5\t1 2 3')[0]
        self.assertNotIn('rank 0:', done.stderr)

    def test_wrong(self):
        self.fails('config.json: No such file', '-p', '1', model=self.dir.name + '/none')
        self.fails('ask for fewer tokens', '-p', '1', '--cache-tokens', 10**11, '-M', 2)
        self.fails("transport 'smoke' is none of", '-p', '1', '--transport', 'smoke')
        self.fails('no-trace', '-t', self.dir.name + '/no-trace')
        self.fails('--replicas: 3', '-p', '1', '-r', 3)
        self.fails("--batch: '0'", '-p', '1', '--batch', 0)
        broken = os.path.join(self.dir.name, 'broken')
        for what, changes in (('embed_tokens.weight has shape', {'hidden_size': 32}),
                              ('Gpt9', {'architectures': ['Gpt9ForCausalLM']}),
                              ('model.layers.3.', {'num_hidden_layers': 4})):
            shutil.rmtree(broken, ignore_errors=True)
            shutil.copytree(self.model, broken)
            with open(os.path.join(broken, 'config.json'), 'r+', encoding='utf-8') as file:
                config = json.load(file)
                config.update(changes)
                file.seek(0)
                file.truncate()
                json.dump(config, file)
            with self.subTest(what=what):
                self.fails(what, '-p', '1', model=broken)
        shutil.copytree(self.model, broken, dirs_exist_ok=True)
        path = os.path.join(broken, 'model.safetensors')
        with open(path, 'rb') as file:
            data = file.read()
        for what, changed in (('the file is cut off', data[:-1000]),
                              ('experts.3.w2.weight is missing',
                               data.replace(b'0.block_sparse_moe.experts.3.w2.',
                                            b'0.block_sparse_moe.experts.3.w9.', 1))):
            with open(path, 'wb') as file:
                file.write(changed)
            with self.subTest(what=what):
                self.fails(what, '-p', '1', model=broken)


if __name__ == '__main__':
    PROGRAM, MODEL, REFERENCE = sys.argv[1:4]
    HAS_UCX = sys.argv[4:5] == ['ucx']
    unittest.main(argv=[sys.argv[0]] + sys.argv[5:], verbosity=1)
