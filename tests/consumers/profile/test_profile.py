# SPDX-License-Identifier: Apache-2.0
"""`megascale_infer profile`: what it writes for a small model is what `plan` reads, the curve made
of m2n_perf's bandwidths against one counted by hand, and input that is wrong."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

PROGRAM = MODEL = ''


def run(*args):
    return subprocess.run([PROGRAM, *map(str, args)], capture_output=True, text=True, check=False,
                          timeout=60)


class Profile(unittest.TestCase):
    def setUp(self):
        # pylint: disable-next=consider-using-with
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)

    def path(self, name):
        return os.path.join(self.dir.name, name)

    def fails(self, status, text, *args):
        done = run('profile', *args)
        self.assertEqual(done.returncode, status, done.stderr)
        self.assertIn(text, done.stderr)
        self.assertEqual(done.stdout, '')

    def test_model(self):
        model = self.path('model')
        subprocess.run([MODEL, 'make', '--layers', '3', '--hidden', '64', '--experts', '4',
                        '--max-positions', '128', model], check=True, timeout=60)
        done = run('profile', model, '--context', 128, '-b', '1,4,16,64', '--repeats', 9, '-g',
                   'here', '-o', self.path('k.json'))
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(self.path('k.json'), encoding='utf-8') as file:
            got = json.load(file)
        points = got['points']
        self.assertEqual([(p['context'], p['rows']) for p in points['attention']],
                         [(c, b) for c in (32, 128) for b in (1, 4, 16, 64)])
        self.assertEqual([p['rows'] for p in points['experts']], [1, 4, 16, 64])
        for side, slope, constant in ('attention', 'k1_us', 'k2_us'), ('experts', 'k3_us', 'k4_us'):
            row = got[side][0]
            self.assertEqual((row['tp'], row['gpu']), (1, 'here'))
            # The longest batch is what the line has to hit.
            last = points[side][-1]
            self.assertLess(abs(row[slope] * 64 + row[constant] - last['us']), .5 * last['us'])
        self.assertGreater(got['batch']['row_us'] + got['batch']['key_us'], 0)
        del got['attention'][0]['gpu'], got['experts'][0]['gpu']
        with open(self.path('any.json'), 'w', encoding='utf-8') as file:
            json.dump(got, file)
        plan = run('plan', '--measured', self.path('any.json'), '-g', 'A800', '--slo-ms', 1e6)
        self.assertEqual(plan.returncode, 0, plan.stderr)
        self.assertIn('coefficients measured', plan.stdout)
        self.fails(1, '128 positions', model, '--context', 129)
        self.fails(1, 'two numbers of rows', model, '-b', '8', '--context', 32)

    def bandwidths(self, *cases):
        with open(self.path('bw.json'), 'w', encoding='utf-8') as file:
            json.dump({'schema': 'm2n_perf/1', 'cases': [
                {'test': 'bw', 'M': m, 'N': 2, 'bytes': size, 'gbps': rate, 'backend': 'shm'}
                for m, size, rate in cases]}, file)
        return self.path('bw.json')

    def test_util(self):
        # Two sources of 25 GB/s: bytes and rates are halved. The third is faster than the second.
        path = self.bandwidths((2, 65536, 10), (2, 131072, 1e-2), (2, 262144, 40),
                               (2, 8 << 20, 20))
        done = run('profile', '--util-from', path, '--gbit', 200)
        self.assertEqual((done.returncode, done.stderr), (0, ''))
        self.assertEqual(done.stdout.split('\n'), [
            '# for plan --nic-gbit 200', 'bytes,util', '32768,0.2', '65536,0.0002', ''])
        path = self.bandwidths((1, 8192, 2), (1, 1024, .5), (1, 65536, 4))
        done = run('profile', '--util-from', path, '-o', self.path('util.csv'))
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, '', ''))
        with open(self.path('util.csv'), encoding='utf-8') as file:
            self.assertEqual(file.read(), '# for plan --nic-gbit 32\nbytes,util\n1024,0.125\n'
                             '8192,0.5\n65536,1\n')
        plan = run('plan', '--util', self.path('util.csv'), '-g', 'A800')
        self.assertEqual(plan.returncode, 0, plan.stderr)

    def test_wrong(self):
        self.fails(1, '/nowhere', '/nowhere')
        self.fails(1, '/nowhere', '--util-from', '/nowhere')
        self.fails(2, 'is wanted')
        self.fails(2, 'is wanted', 'model', '--util-from', 'file')
        self.fails(2, '--batches', 'model', '-b', '1,x')
        self.fails(2, '--batches', 'model', '-b', ','.join('1' * 33))
        self.fails(2, '--context', 'model', '--context', 1)
        self.fails(1, "more than its link's", '--util-from', self.bandwidths((1, 8192, 2)),
                   '--gbit', 15)
        self.fails(1, 'above 0', '--util-from', self.bandwidths((1, 8192, 0)))
        self.fails(1, "no array 'cases'", '--util-from', self.bandwidths())
        with open(self.path('lat.json'), 'w', encoding='utf-8') as file:
            file.write('{"cases": [{"test": "lat", "bytes": 1, "gbps": 1, "M": 1}]}')
        self.fails(1, "test 'lat'", '--util-from', self.path('lat.json'))


if __name__ == '__main__':
    MODEL = sys.argv.pop()
    PROGRAM = sys.argv.pop()
    unittest.main()
