# SPDX-License-Identifier: Apache-2.0
"""`megascale_infer plan`: equations on cases counted by hand, the search against trying every
batch, tables, and input that is wrong."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

from oracle import Case, transfer

PROGRAM = ''
ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), '../../..'))
GPU_COLUMNS = ('gpu,bf16_dense_tflops,mem_gb,hbm_gbps,nvlink_unidir_gbps,pcie_unidir_gbps,'
               'nic_unidir_gbps,gpus_per_node')
MODEL_COLUMNS = ('model,num_layers,hidden_size,moe_intermediate_size,num_experts,top_k,num_heads,'
                 'num_kv_heads,head_dim,attention,vocab_size')


def run(*args):
    return subprocess.run([PROGRAM, 'plan', *map(str, args)], capture_output=True, text=True,
                          check=False, timeout=60)


def plan(*args):
    done = run('--json', *args)
    if done.returncode:
        raise AssertionError(done.stderr)
    return json.loads(done.stdout)


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

    def same(self, got, want):
        for key, value in want.items():
            if key in got and isinstance(value, float):
                self.assertAlmostEqual(got[key] / value, 1, delta=1e-9, msg=key)
            elif key in got:
                self.assertEqual(got[key], value, key)

    def refused(self, words, *args, status=1):
        done = run(*args)
        self.assertEqual(done.returncode, status, done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)


class ByHand(Base):
    """Round numbers; what they must give is counted in the comments."""

    def point(self, m, batch, util, *args):
        measured = self.file('k.json', '{"attention": [{"tp": 1, "k1_us": 2, "k2_us": 100}],'
                             '"experts": [{"tp": 1, "k3_us": 3, "k4_us": 50}]}')
        curve = self.file('u.csv', 'bytes,util', f'1000,{util}', f'2000,{util}')
        models = self.file('m.csv', MODEL_COLUMNS, 'T,10,1000,500,4,2,10,5,100,GQA,1000')
        gpus = self.file('g.csv', GPU_COLUMNS + ',price', 'G,100,80,1000,0,10,10,8,2')
        return plan('--models', models, '-m', 'T', '--gpus', gpus, '-g', 'G', '--measured',
                    measured, '--util', curve, '--n-a', 2, '--min-m', m, '--max-m', m, '--batch',
                    batch, *args)['plans'][0]

    def test_full_pipeline(self):
        # b_a 600 / (3 * 2) = 100, b_e = 600 * 2 / (3 * 4) = 100; T_a 300, T_e 350 us;
        # sent 100 * 1000 * 2 * 2 bytes at 10 GB/s * 0.5 = 80 us; the experts' half of it 40 us.
        # (4) 3 * 350 * 10 us; (5) 300 + 350 + 160 + 350 * 29 us; cost 2 * 2 + 4 * 2.
        self.same(self.point(3, 600, .5), {
            'b_a': 100., 'b_e': 100., 't_a_us': 300., 't_e_us': 350., 't_c_us': 80.,
            'tpot_ms': 10.5, 't_total_ms': 10.96, 'cost': 12., 'gpus': 6.,
            'tokens_per_s': 600 / 10.96e-3, 'tokens_per_s_cost': 50 / 10.96e-3,
            'balance_n_a': 2 * 4 / (3 * 2), 'broken': []})

    def test_one_micro_batch_waits_for_its_way(self):
        # b_a 100 again: each layer lasts 300 + 350 + 160 us.
        got = self.point(1, 200, .5, '--relaxed')
        self.same(got, {'tpot_ms': 8.1, 't_total_ms': 8.1})
        self.assertEqual(got['broken'], ['(3) m T_f >= 2 (T_f + T_c)'])

    def test_slow_network_breaks_2_and_3(self):
        # T_c 400 us; a layer lasts 300 + 350 + 800 us, the last of 3 is 2 * 400 us behind.
        got = self.point(3, 600, .1, '--relaxed')
        self.same(got, {'t_c_us': 400., 'tpot_ms': 14.5, 't_total_ms': 15.3})
        self.assertEqual(len(got['broken']), 2)

    def test_balance_is_reported(self):
        self.assertEqual(self.point(3, 600, .5, '--balance', .1)['broken'], ['(1) T_a ~ T_e'])

    def test_memory_and_slo_bound_the_batch(self):
        # P_a: 10 layers of 1000 * (1000 + 2 * 500) + 10^6 + 4000, and 2 * 10^6 for the
        # vocabulary: 32.04e6, 2 bytes each. 4 * 3 * s * 500 * 10 bytes for a b_a, of 80e9.
        args = ('--context', 1000, '--slo-ms', 1e6, '--tp-a', 1, '--tp-e', 1)
        models = self.file('m.csv', MODEL_COLUMNS, 'T,10,1000,500,4,2,10,5,100,GQA,1000')
        gpus = self.file('g.csv', GPU_COLUMNS + ',price', 'G,100,80,1000,0,10,10,8,2')
        args += ('--models', models, '-m', 'T', '--gpus', gpus, '-g', 'G', '--n-a', 1)
        got = plan(*args, '--relaxed', '--min-m', 3, '--max-m', 3)['plans'][0]
        self.assertEqual(got['b_a'], (80e9 - 64.08e6) // (4 * 3 * 1000 * 500 * 10))
        self.assertEqual(got['binding'], '(8) memory')
        slo = got['tpot_ms'] / 2
        less = plan(*args, '--relaxed', '--min-m', 3, '--max-m', 3, '--slo-ms', slo)['plans'][0]
        self.assertEqual(less['binding'], '(7) SLO')
        more = plan(*args, '--relaxed', '--min-m', 3, '--max-m', 3, '--batch',
                    int(less['batch']) + 3, '--slo-ms', 1e6)['plans'][0]
        self.assertTrue(less['tpot_ms'] <= slo < more['tpot_ms'])


class Search(Base):
    def test_equal_to_trying_every_batch(self):
        for model in ('Mixtral-8x22B', 'DBRX', 'Scaled-MoE'):
            for straight in (False, True):
                with self.subTest(model=model, straight=straight):
                    want = Case(model, straight=straight).best(['H20'], ['L40S'])
                    args = ['--straight'] if straight else []
                    got = plan('-m', model, '--gpu-a', 'H20', '--gpu-e', 'L40S', *args)
                    self.same(got['plans'][0], want)

    def test_one_type_and_a_tight_slo(self):
        want = Case('Mixtral-8x22B', slo=.05).best(['A800'], ['A800'])
        self.same(plan('-g', 'A800', '--slo-ms', 50)['plans'][0], want)

    def test_relaxed(self):
        want = Case('DBRX').best(['A800'], ['A800'], relaxed=True)
        self.same(plan('-m', 'DBRX', '-g', 'A800', '--relaxed')['plans'][0], want)

    def test_network_that_falls_behind_large_batches(self):
        # Measured times so short that (3) fails above some b_a only.
        lines = {'k1': 1, 'k2': 600, 'k3': 1, 'k4': 500}
        measured = self.file('k.json', json.dumps({
            'attention': [{'tp': 8, 'k1_us': 1, 'k2_us': 600}],
            'experts': [{'tp': 8, 'k3_us': 1, 'k4_us': 500}]}))
        case = Case('Mixtral-8x22B', lines=[v * 1e-6 for v in lines.values()],
                    curve=[(1000, .08), (2000, .08)])
        curve = self.file('u.csv', 'bytes,util', '1000,0.08', '2000,0.08')
        want = case.best(['A800'], ['A800'], tps=(8,))
        got = plan('-g', 'A800', '--measured', measured, '--util', curve)['plans'][0]
        self.same(got, want)
        self.assertEqual(got['binding'], '(3) m T_f >= 2 (T_f + T_c)')

    def test_order(self):
        plans = plan('--top', 10000)['plans']
        rates = [p['tokens_per_s_cost'] for p in plans]
        self.assertEqual(rates, sorted(rates, reverse=True))
        self.assertTrue(all(p['m'] in (3, 4) for p in plans))  # (3) leaves no others

    def test_default_curve(self):
        got = plan('-g', 'A800', '--top', 1)['plans'][0]
        sent = got['b_a'] * 6144 * 2 * 2 / got['tp_a']
        received = got['b_e'] * 6144 * 2 / got['tp_e']
        want = max(transfer(sent), transfer(received)) * 1e6
        self.assertAlmostEqual(got['t_c_us'] / want, 1, delta=1e-9)


class Paper(Base):
    """What the paper reports, from the published tables."""

    def test_pair_and_micro_batches(self):
        for model in ('Mixtral-8x22B', 'DBRX', 'Scaled-MoE'):
            with self.subTest(model=model):
                best = plan('-m', model)['plans'][0]
                self.assertEqual((best['gpu_a'], best['gpu_e']), ('H20', 'L40S'))
                self.assertIn(best['m'], (3, 4))
                self.assertLess(abs(best['n_a'] - best['balance_n_a']), 1)

    def test_homogeneous_option(self):
        pairs = plan('--homogeneous')['pairs']
        self.assertEqual(len(pairs), 5)
        self.assertTrue(all(p['gpu_a'] == p['gpu_e'] for p in pairs))

    def test_real_tables(self):
        data = os.environ.get('M2N_DATA', os.path.join(ROOT, '../shared/data'))
        tables = os.path.join(data, 'tables')
        if not os.path.isdir(tables):
            self.skipTest('no tables')
        got = plan('--models', os.path.join(tables, 'models.csv'), '--gpus',
                   os.path.join(tables, 'gpus.csv'), '-m', 'Mixtral-8x22B-v0.1', '-g',
                   'H20-SXM-96GB,L40S')
        best = got['plans'][0]
        self.assertEqual((best['gpu_a'], best['gpu_e']), ('H20-SXM-96GB', 'L40S'))


class Refused(Base):
    GPU = 'G,100,80,1000,0,10,10,8'
    MODEL = 'T,10,1000,500,4,2,10,5,100,GQA,1000'

    def test_names(self):
        self.refused(['nope', 'Mixtral-8x22B'], '-m', 'nope')
        self.refused(['nope', 'L40S'], '-g', 'nope')
        gpus = self.file('g.csv', GPU_COLUMNS, self.GPU)
        self.refused(["no gpu 'X'", 'there are G', gpus], '--gpus', gpus, '-g', 'X')
        self.refused(['--price G='], '--gpus', gpus, '-g', 'G')
        self.refused(['--gpu'], '--gpus', gpus)
        self.refused(['no price above 0'], '--gpus', gpus, '-g', 'G', '--price', 'G=0')

    def test_tables(self):
        cases = [
            ((GPU_COLUMNS, self.GPU, 'H,1,2'), ':3: 3 cells'),
            ((GPU_COLUMNS, 'G,x,80,1000,0,10,10,8'), ":2: bf16_dense_tflops: 'x'"),
            ((GPU_COLUMNS, '# comment', 'G,100,nan,1000,0,10,10,8'), ":3: mem_gb: 'nan'"),
            ((GPU_COLUMNS, 'G,100,80,,0,10,10,8'), ":2: hbm_gbps: ''"),
            ((GPU_COLUMNS, 'G,100,80,1000,0,0,10,8'), ':2: neither'),
            (('gpu,mem_gb', 'G,1'), ":1: no column 'bf16_dense_tflops'"),
            (('name', 'G'), ":1: no column 'gpu'"),
            ((GPU_COLUMNS, '"G'), ':2: a quote'),
            (('# nothing',), 'no line'),
        ]
        for lines, words in cases:
            with self.subTest(words=words):
                gpus = self.file('g.csv', *lines)
                self.refused([gpus, words], '--gpus', gpus, '-g', 'G', '--price', 'G=1')

    def test_models(self):
        cases = [
            ('T,10,1000,500,4,2,10,5,100,MLA,1000', "attention 'MLA'"),
            ('T,10,1000,500,4,5,10,5,100,GQA,1000', 'top_k: 5 of 4'),
            ('T,10,1000,500,4,2,10,,100,GQA,1000', "num_kv_heads: ''"),
            ('T,0,1000,500,4,2,10,5,100,GQA,1000', "num_layers: '0'"),
        ]
        for line, words in cases:
            with self.subTest(words=words):
                models = self.file('m.csv', MODEL_COLUMNS, line)
                self.refused([models + ':2', words], '--models', models, '-m', 'T')

    def test_curves(self):
        for lines, words in ((('bytes,util', '10,2'), ':2: util: 2 is above 1'),
                             (('bytes,util', '10,.5', '10,.6'), ':3: bytes must rise'),
                             (('bytes,util', '10,.1', '20,.9'), ':3: bytes must rise'),
                             (('bytes,util',), 'no point'), (('bytes', '1'), "'util'")):
            with self.subTest(words=words):
                self.refused([words], '--util', self.file('u.csv', *lines))

    def test_measurements(self):
        row = '{"attention": [{"tp": 1, "k1_us": %s, "k2_us": 1}], "experts": [%s]}'
        for text, words in (('{', 'k.json:'), ('[]', "'attention'"), (row % (1, ''), "'experts'"),
                            (row % (0, ''), 'k1_us above 0'),
                            (row % (1, '{"tp": 1, "k3_us": 1}'), 'experts[0]'),
                            (row % (1, '{"tp": 1, "k3_us": 1, "k4_us": 1, "gpus": 1}'), 'gpus')):
            with self.subTest(words=words):
                self.refused([words], '--measured', self.file('k.json', text))

    def test_options(self):
        for args in (('--tp-a', 3), ('--batch', '1.5'), ('--slo-ms', 'x'), ('--min-m', 0),
                     ('--nope',), ('word',), ('--memory-efficiency', 1.1)):
            with self.subTest(args=args):
                self.refused(['Try'], *args, status=2)
        self.refused(['--min-m 4 is above --max-m 2'], '--min-m', 4, '--max-m', 2)

    def test_no_plan(self):
        self.refused(['no plan'], '--slo-ms', 1)
        self.refused(['No such file'], '--gpus', os.path.join(self.dir.name, 'none'), '-g', 'G')


if __name__ == '__main__':
    PROGRAM = os.path.abspath(sys.argv.pop(1))
    unittest.main()
