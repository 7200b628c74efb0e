# SPDX-License-Identifier: Apache-2.0
"""`disagmoe_train profile`, and what plan and simulate make of a profile: steps counted by hand
from round times, cores that ranks share, and files that are wrong."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

PROGRAM = ''
ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), '../../..'))
TEXT = os.path.join(ROOT, 'tests', 'data', 'text_small.txt')
# Of a sequence; of an expert's row.
A, F, HEAD = (100., 200., 50.), (1., 2., 3.), 40.


def run(command, *args):
    return subprocess.run([PROGRAM, command, *map(str, args)], capture_output=True, text=True,
                          check=False, timeout=400)


def profile(**rest):
    """A tiny model's profile with round times; copies and values cost nothing."""
    parts = ('forward', 'backward', 'weights')
    made = {'model': {'layers': 2, 'hidden': 32, 'intermediate': 32, 'heads': 4, 'kv_heads': 2,
                      'head_dim': 8, 'experts': 4, 'top_k': 2, 'vocab': 256, 'seq': 32},
            'attention': [{'sequences': 1, **dict(zip(parts, A))}],
            'experts': [{'rows': 10, **{p: 10 * t for p, t in zip(parts, F)}}],
            'head': {'forward_backward': HEAD, 'weights': 0},
            'values': {'zero': 0, 'norm': 0, 'update': 0}, 'bytes': {'copy': 0, 'combine': 0},
            'transfer': {'us': 0}, 'rate': {'gflops': 1}}
    made.update(rest)
    return made


class Base(unittest.TestCase):
    def setUp(self):
        # pylint: disable-next=consider-using-with
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)

    def file(self, made):
        path = os.path.join(self.dir.name, 'p.json')
        with open(path, 'w', encoding='utf-8') as out:
            out.write(made if isinstance(made, str) else json.dumps(made))
        return path

    def simulate(self, *args, cores=64, made=None):
        done = run('simulate', '--profile', self.file(made or profile()), '--cores', cores,
                   '--json', '--size', 'tiny', *args, TEXT)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def refused(self, words, command, *args, status=1):
        done = run(command, *args)
        self.assertEqual(done.returncode, status, done.stderr)
        self.assertIn(words, done.stderr)


class Steps(Base):
    # A micro-batch of s sequences: s * A, and 32 s tokens twice on all experts, 64 s * F.
    def test_sequential(self):
        for seqs, n_micro, layers in ((2, 4, 2), (8, 1, 1), (1, 8, 4)):
            got = self.simulate('-s', 'sequential', '-m', n_micro, '--sequences', seqs * n_micro,
                                '--layers', layers)
            one = seqs * (layers * (sum(A) + 64 * sum(F)) + HEAD)
            self.assertAlmostEqual(got['step_ms'] * 1e3, n_micro * one)
            self.assertAlmostEqual(got['t_a_us'], seqs * sum(A))
            self.assertAlmostEqual(got['t_f_us'], seqs * 64 * sum(F))

    def test_one_micro_batch(self):
        # The last layer's weights are made while others work; attention's of layer 0 come last.
        got = self.simulate('-m', 1, '--sequences', 2, '--layers', 2)
        way = 2 * (2 * (A[0] + A[1] + 64 * (F[0] + F[1])) + HEAD)
        self.assertAlmostEqual(got['step_ms'] * 1e3, way + max(2 * A[2], 2 * 64 * F[2] -
                                                               2 * A[1]))

    def test_shared_cores(self):
        # On one core all work is done one after the other, whatever waits for what.
        for args in (('-M', 1, '-N', 1), ('-M', 2, '-N', 1), ('-M', 1, '-N', 2, '-p', 2),
                     ('-s', '1f1b', '-M', 1, '-N', 1), ('-p', 2, '--join-weights')):
            with self.subTest(args=args):
                base = ('-m', 4, '--sequences', 8, *args)
                one = self.simulate(*base, cores=1)
                work = 8 * (2 * (sum(A) + 64 * sum(F)) + HEAD)
                self.assertAlmostEqual(one['step_ms'] * 1e3 / work, 1)
                self.assertAlmostEqual(one['busy'], 1)
                self.assertAlmostEqual(sum(r['busy_us'] for r in one['ranks']), work)
                two, many = (self.simulate(*base, cores=n)['step_ms'] for n in (2, 64))
                self.assertGreaterEqual(two, one['step_ms'] / 2 * (1 - 1e-9))
                self.assertLessEqual(two, one['step_ms'] * (1 + 1e-9))
                self.assertLessEqual(many, two * (1 + 1e-9))

    def test_pipeline_hides_the_shorter_side(self):
        got = self.simulate('-m', 16, '--sequences', 16, '--layers', 4)
        busiest = 16 * 4 * 64 * sum(F)
        self.assertGreater(got['step_ms'] * 1e3, busiest)
        self.assertLess(got['step_ms'] * 1e3, busiest * 1.1)

    def test_values_and_bytes(self):
        # Zeroing, norm and update of everything a rank has, and rows that are copied.
        base = self.simulate('-s', 'sequential', '-m', 1, '--sequences', 1)
        made = profile(values={'zero': 1e6, 'norm': 2e6, 'update': 4e6})
        got = self.simulate('-s', 'sequential', '-m', 1, '--sequences', 1, made=made)
        most = max(r['values'] for r in got['ranks'])
        self.assertAlmostEqual((got['step_ms'] - base['step_ms']) * 1e3, 7 * most, delta=most)
        made = profile(bytes={'copy': 1e6, 'combine': 0})
        got = self.simulate('-s', 'sequential', '-m', 1, '--sequences', 1, made=made)
        # 2 layers of 32 rows of 128 bytes. Out: 2 rows to experts, 1 residual; back: 2 replies;
        # in: 1 residual. Gradients the other way: 1 out, 2 replies, 1 in.
        rows = 32 * 128
        self.assertAlmostEqual((got['step_ms'] - base['step_ms']) * 1e3, 2 * rows * (3 + 2 + 1) +
                               2 * rows * (1 + 2 + 1), delta=1e-3)

    def test_text(self):
        done = run('simulate', '--profile', self.file(profile()), '--size', 'tiny', TEXT)
        self.assertEqual(done.returncode, 0, done.stderr)
        for word in ('step', 'T_a', 'attention', 'ffn'):
            self.assertIn(word, done.stdout)


class Plan(Base):
    def test_times(self):
        done = run('plan', '--profile', self.file(profile()), '--json', '--attention-gpus', 2,
                   '--ffn-gpus', 4)
        self.assertEqual(done.returncode, 0, done.stderr)
        got = json.loads(done.stdout)['plans'][0]['roofline']
        self.assertAlmostEqual(got['compute_a_us'], sum(A))
        self.assertAlmostEqual(got['compute_f_us'], 2 * 64 * sum(F) / 4)
        self.assertEqual(got['tokens'], 64)


class Measured(Base):
    def test_profile(self):
        path = os.path.join(self.dir.name, 'here.json')
        done = run('profile', '--output', path, '--size', 'tiny', '--sequences', 4, '-m', 2, TEXT)
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(path, encoding='utf-8') as file:
            got = json.load(file)
        self.assertEqual([p['sequences'] for p in got['attention']], [1, 2])
        self.assertEqual(got['model']['hidden'], 32)
        for point in got['attention'] + got['experts']:
            self.assertTrue(all(value > 0 for value in point.values()), point)
        self.assertGreater(got['rate']['gflops'], 0.1)
        for command in ('plan', 'simulate'):
            args = ['--any-memory'] if command == 'plan' else ['--size', 'tiny', TEXT]
            done = run(command, '--profile', path, *args)
            self.assertEqual(done.returncode, 0, done.stderr)

    def test_output(self):
        self.refused('No such file', 'profile', '--output', os.path.join(self.dir.name, 'a', 'b'),
                     '--size', 'tiny', '--sequences', 1, '-m', 1, TEXT)


class Refused(Base):
    def test_other_model(self):
        path = self.file(profile())
        self.refused('hidden is 64, the profile was measured with 32', 'simulate', '--profile',
                     path, '--size', 'tiny', '--hidden', 64, TEXT)
        self.refused('seq is 16', 'simulate', '--profile', path, '--size', 'tiny', '--seq', 16,
                     TEXT)

    def test_files(self):
        point = {'sequences': 1, 'forward': 1, 'backward': 1, 'weights': 1}
        for made, words in (
                ('{', 'p.json:1'), (profile(rate={}), "rate: no number 'gflops'"),
                (profile(attention=[]), "'attention' is no list"),
                (profile(attention=[point, point]), "'sequences' has to rise"),
                (profile(experts=[{'rows': 1}]), "experts: no number 'forward'"),
                (profile(head={'forward_backward': -1, 'weights': 0}), 'from 0')):
            for command in ('plan', 'simulate'):
                with self.subTest(words=words, command=command):
                    self.refused(words, command, '--profile', self.file(made),
                                 *((TEXT,) if command == 'simulate' else ()))

    def test_options(self):
        path = self.file(profile())
        self.refused("--cores: '0'", 'simulate', '--profile', path, '--cores', 0, '--size', 'tiny',
                     TEXT)
        self.refused('Try', 'simulate', '--profile', path, status=2)
        self.refused('groups for', 'simulate', '--profile', path, '--size', 'tiny', '-p', 3, TEXT)
        self.refused('No such file', 'simulate', '--profile', path + 'x', '--size', 'tiny', TEXT)


if __name__ == '__main__':
    PROGRAM = os.path.abspath(sys.argv.pop(1))
    unittest.main()
