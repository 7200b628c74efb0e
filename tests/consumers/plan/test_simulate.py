# SPDX-License-Identifier: Apache-2.0
"""`megascale_infer simulate`: constant times against equations (4) and (5) and against a recurrence
over the stages, loads and percentiles counted by hand, and input that is wrong."""
import json
import os
import random
import subprocess
import sys
import tempfile
import unittest

PROGRAM = ''


def run(*args, command='simulate'):
    return subprocess.run([PROGRAM, command, *map(str, args)], capture_output=True, text=True,
                          check=False, timeout=60)


def simulate(*args):
    done = run('--json', *args)
    if done.returncode:
        raise AssertionError(done.stderr)
    return json.loads(done.stdout)


def times(t_a, t_e, t_c, m, layers, *more):
    return simulate('--t-a-us', t_a, '--t-e-us', t_e, '--t-c-us', t_c, '--micro-batches', m,
                    '--layers', layers, *more)


def recurrence(t_a, t_e, t_c, m, layers, iterations, sample=0):
    """When each micro-batch ends each iteration; stages serve them in turn, one at a time."""
    free = [0.] * 4
    at = [0.] * m
    ends = []
    for layer in range(layers * iterations):
        for i in range(m):
            first = t_a + (sample if layer and layer % layers == 0 else 0)
            for stage, seconds in enumerate((first, t_c, t_e, t_c)):
                free[stage] = at[i] = max(at[i], free[stage]) + seconds
        if layer % layers == layers - 1:
            ends.append(list(at))
    return ends


class Base(unittest.TestCase):
    def setUp(self):
        # pylint: disable-next=consider-using-with
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)

    def file(self, name, *lines):
        path = os.path.join(self.dir.name, name)
        with open(path, 'w', encoding='utf-8') as out:
            out.write('\n'.join(lines) + '\n')
        return path

    def near(self, got, want):
        self.assertAlmostEqual(got / want, 1, delta=1e-9)


class Constant(Base):
    def test_equations(self):
        for t_a, t_e, t_c, m in ((300, 350, 80, 3), (350, 300, 170, 3), (200, 200, 199, 4),
                                 (500, 20, 30, 3), (20, 500, 240, 4)):
            with self.subTest(t_a=t_a, t_e=t_e, t_c=t_c, m=m):
                got = times(t_a, t_e, t_c, m, 10)
                t_f, way = max(t_a, t_e), t_a + t_e + 2 * t_c
                self.assertTrue(got['equations_hold'])
                self.near(got['total_ms'], (way + t_f * (m * 10 - 1)) * 1e-3)
                self.near(got['first_ms'], (way + m * t_f * 9) * 1e-3)
                self.near(got['tpot_ms'], m * t_f * 10e-3)
                self.assertLessEqual(got['equation_4_low_ms'], got['first_ms'] + 1e-9)
                self.near(got['equation_5_ms'], got['total_ms'])

    def test_any_times(self):
        rng = random.Random(5)
        for _ in range(40):
            t = [rng.randint(1, 400) for _ in range(3)]
            m, layers, iterations = rng.randint(1, 8), rng.randint(1, 12), rng.randint(2, 6)
            with self.subTest(t=t, m=m, layers=layers):
                got = times(*t, m, layers, '--iterations', iterations)
                ends = recurrence(*t, m, layers, iterations)
                self.near(got['first_ms'] * 1e3, ends[0][0])
                self.near(got['total_ms'] * 1e3, ends[0][-1])
                mean = sum(b - a for a, b in zip(ends[0], ends[-1])) / m / (iterations - 1)
                self.near(got['tpot_ms'] * 1e3, mean)
                self.near(got['attention_busy'], t[0] * m * layers * iterations / ends[-1][-1])
                slowest, way = max(t), t[0] + t[1] + 2 * t[2]
                self.assertEqual(got['equations_hold'], t[2] < max(t[:2]) and
                                 m * max(t[:2]) >= 2 * (max(t[:2]) + t[2]))
                # The planner's form for any times.
                self.near(ends[0][-1], way + max(m * slowest, way) * (layers - 1) +
                          (m - 1) * slowest)

    def test_sampling(self):
        """Comes before the first layer of the next token; micro-batches overtake nobody here."""
        rng = random.Random(6)
        for _ in range(20):
            t_a, t_e, t_c, sample = (rng.randint(1, 400) for _ in range(4))
            m, layers, iterations = rng.randint(1, 4), rng.randint(1, 12), rng.randint(2, 6)
            with self.subTest(t=(t_a, t_e, t_c, sample), m=m, layers=layers):
                got = times(t_a, t_e, t_c, m, layers, '--iterations', iterations, '--sample-us',
                            sample)
                ends = recurrence(t_a, t_e, t_c, m, layers, iterations, sample)
                mean = sum(b - a for a, b in zip(ends[0], ends[-1])) / m / (iterations - 1)
                self.near(got['tpot_ms'] * 1e3, mean)
                self.assertFalse(got['equations_hold'])

    def test_plan(self):
        for args in ((), ('--relaxed', '--max-m', 2), ('-m', 'DBRX')):
            plan = run('--json', '--top', 1, *args, command='plan').stdout
            point = json.loads(plan)['plans'][0]
            got = simulate('--plan', self.file('p.json', plan))
            self.near(got['total_ms'], point['t_total_ms'])
            self.near(got['tpot_ms'], point['tpot_ms'])


class Varying(Base):
    def test_loads(self):
        # 2 layers of 4 tokens, top-1 of 2 experts: loads 3:1, then 0:4. One micro-batch of 4
        # tokens: T_e 10 + 90 * 1.5, then 10 + 90 * 2; T_a 5 and twice T_c 7 each time.
        rows = ['layer,token,rank_hint,expert0']
        rows += [f'0,{t},0,{e}' for t, e in enumerate((0, 0, 1, 0))]
        rows += [f'1,{t},0,1' for t in range(4)]
        got = times(5, 100, 7, 1, 2, '--k4-us', 10, '--window', 4, '--routing',
                    self.file('r.csv', *rows), '--iterations', 2)
        self.near(got['total_ms'] * 1e3, 2 * 5 + 145 + 190 + 4 * 7)
        self.near(got['busiest_expert'], (10 + 90 * .5 + 190) / 373)
        # The window goes on: tokens 0 and 1, then 2 and 3.
        got = times(5, 100, 7, 1, 1, '--window', 2, '--routing', self.file('r.csv', *rows),
                    '--iterations', 2)
        self.near(got['first_ms'] * 1e3, 5 + 200 + 14)
        self.near(got['tpot_ms'] * 1e3, 5 + 100 + 14)

    def test_loads_of_a_plan(self):
        # b_e 10, 4 us of products and 1 us of the rest each, weights 50 us: T_e 60 us. An expert
        # with 1.5 x the mean takes 60 + 15, the other 50 + 5; one with all of them 80 + 20.
        rows = ['layer,token,rank_hint,expert0']
        rows += [f'0,{t},0,{e}' for t, e in enumerate((0, 0, 1, 0))]
        rows += [f'1,{t},0,1' for t in range(4)]
        plan = self.file('p.json', json.dumps({'plans': [{
            't_a_us': 5, 't_e_us': 60, 't_c_us': 7, 'm': 1, 'layers': 2, 'b_e': 10,
            'product_e_us': 4, 'k4_us': 50}]}))
        got = simulate('--plan', plan, '--window', 4, '--routing', self.file('r.csv', *rows))
        self.near(got['total_ms'] * 1e3, 2 * 5 + 75 + 100 + 4 * 7)

    def test_even_loads_change_nothing(self):
        rows = ['layer,token,rank_hint,expert0,expert1'] + [f'3,{t},0,0,1' for t in range(5)]
        got = times(30, 40, 9, 3, 6, '--routing', self.file('r.csv', *rows))
        self.near(got['total_ms'], times(30, 40, 9, 3, 6)['total_ms'])

    def test_percentiles(self):
        same = self.file('j.csv', 'percentile,us', '0,9', '100,9')
        self.near(times(30, 40, 1, 3, 6, '--jitter', same)['total_ms'],
                  times(30, 40, 9, 3, 6)['total_ms'])
        # Uniform from 0 to 100 us, 2 transfers in each of 20,000 layers: 50 us in the mean.
        wide = self.file('j.csv', 'percentile,us', '0,0', '100,100')
        got = times(1, 1, 1, 1, 1000, '--jitter', wide, '--iterations', 20)
        self.assertAlmostEqual(got['tpot_ms'], 102, delta=1)
        again = times(1, 1, 1, 1, 1000, '--jitter', wide, '--iterations', 20)
        other = times(1, 1, 1, 1, 1000, '--jitter', wide, '--iterations', 20, '--seed', 2)
        self.assertEqual(got, again)
        self.assertNotEqual(got, other)


class Refused(Base):
    TIMES = ('--t-a-us', 1, '--t-e-us', 1, '--t-c-us', 1, '--micro-batches', 2, '--layers', 2)

    def refused(self, words, *args, status=1):
        done = run(*args)
        self.assertEqual(done.returncode, status, done.stderr)
        self.assertIn(words, done.stderr)

    def test_options(self):
        self.refused('are wanted')
        self.refused('are wanted', '--t-a-us', 1)
        self.refused('k4 of 2 us', *self.TIMES, '--k4-us', 2)
        self.refused('all times are 0', *self.TIMES, '--t-a-us', 0, '--t-e-us', 0, '--t-c-us', 0)
        for args in (('--layers', 0), ('--micro-batches', 65), ('--t-a-us', '-1'), ('word',),
                     ('--t-c-us', '1x'), ('--iterations', '1.5'), ('--nope',)):
            self.refused('Try', *args, status=2)

    def test_files(self):
        routing = 'layer,token,rank_hint,expert0'
        for option, lines, words in (
                ('--routing', ('layer,token', '0,0'), 'no column expert0'),
                ('--routing', (routing, '0,0,0,-1'), ":2: expert0: '-1'"),
                ('--routing', (routing, '0,0,0,9999'), ':2: expert0: 9999'),
                ('--routing', (routing, '1,0,0,1', '0,0,0,1'), ':3: layer 0 after 1'),
                ('--routing', (routing, '0,0,0,1', '0,1,0,1', '1,0,0,1'), 'not as many tokens'),
                ('--routing', (routing, '0,0,0'), ':2: 3 cells'),
                ('--jitter', ('percentile,us', '50,2', '90,1'), ':3: percentiles'),
                ('--jitter', ('percentile,us', '101,2'), ':2: percentiles'),
                ('--jitter', ('percentile,us',), 'no percentile'),
                ('--plan', ('{"plans": []}',), 'no number t_a_us'),
                ('--plan', ('{',), ':2:')):
            with self.subTest(words=words):
                self.refused(words, *self.TIMES, option, self.file('f', *lines))


if __name__ == '__main__':
    PROGRAM = os.path.abspath(sys.argv.pop(1))
    unittest.main()
