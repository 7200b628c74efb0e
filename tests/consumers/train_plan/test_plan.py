# SPDX-License-Identifier: Apache-2.0
"""`disagmoe_train plan`: equations against an oracle, the search against trying all, tables, skew
of traces, and input that is wrong."""
import json
import os
import random
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree as ET

from oracle import MODELS, Case

PROGRAM = ''
ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), '../../..'))
DATA = os.environ.get('M2N_DATA', os.path.join(ROOT, '../shared/data'))
MODEL_COLUMNS = ('model,num_layers,hidden_size,moe_intermediate_size,num_experts,top_k,num_heads,'
                 'num_kv_heads,head_dim,attention,vocab_size')
GPU_COLUMNS = ('gpu,bf16_dense_tflops,mem_gb,hbm_gbps,nvlink_unidir_gbps,pcie_unidir_gbps,'
               'nic_unidir_gbps,gpus_per_node')


def run(*args):
    return subprocess.run([PROGRAM, 'plan', *map(str, args)], capture_output=True, text=True,
                          check=False, timeout=400)


def plan(*args):
    done = run('--json', '--any-memory', *args)
    if done.returncode:
        raise AssertionError(done.stderr)
    return json.loads(done.stdout)


def fixed(a, f, *args):
    """The one plan with these GPUs."""
    return plan('--attention-gpus', a, '--ffn-gpus', f, *args)['plans'][0]


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
            if isinstance(value, float):
                self.assertAlmostEqual(got[key] / value, 1, delta=1e-9, msg=key)
            else:
                self.assertEqual(got[key], value, key)

    def refused(self, words, *args, status=1):
        done = run(*args)
        self.assertEqual(done.returncode, status, done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)


class Equations(Base):
    def test_by_hand(self):
        # hidden 100, experts of 10, 4 of them, top-2; q 100, k 50; 8 tokens. A token forward:
        # projections 2 * 100 * (200 + 100 + 4) = 60800, scores 2 * 100 * 8 = 1600, experts
        # 2 * 3 * 100 * 10 * 2 = 12000, head 2 * 100 * 300 = 60000, of 2 layers. 1 TFLOP/s at 0.5.
        models = self.file('m.csv', MODEL_COLUMNS, 'T,2,100,10,4,2,10,5,10,GQA,300')
        gpus = self.file('g.csv', GPU_COLUMNS, 'G,1,80,1000,100,10,10,8')
        got = fixed(1, 2, '--models', models, '-m', 'T', '--gpus', gpus, '-g', 'G', '--seq', 8,
                    '--groups', 1, '--m2n-util', 1, '--batch', 4, '--ep', 2)['roofline']
        own_a = 8 * (3 * 60800 + 3.5 * 1600 + 3 * 60000 / 2)
        self.same(got, {
            'compute_a_us': own_a / .5e6, 'compute_f_us': 8 * 36000 / 2 / .5e6,
            # One node, one row of 200 bytes for each token, forward and backward; 10 and 20 GB/s.
            'network_a_us': 2 * 8 * 200 / 10e3, 'network_f_us': 2 * 8 * 200 / 20e3,
            'bound_a': 'computation', 'bound_f': 'computation',
            'intensity_a': own_a / (2 * 8 * 200), 'turning_a': .5e12 / 10e9,
            'mfu': (own_a + 8 * 36000) / (own_a / .5 * 3)})

    def test_oracle(self):
        rng = random.Random(3)
        for model in MODELS:
            for _ in range(4):
                a, f = rng.randint(1, 20), rng.randint(1, 40)
                nics = rng.randint(1, 20), rng.randint(1, 40)
                seq, copies = rng.choice((512, 4096, 16384)), rng.choice(('node', 'rank', 'expert'))
                case = Case(model, seq, copies=copies, recompute=rng.random() < .5,
                            nic_residual=rng.random() < .5, attention=rng.choice((None, .3)))
                args = ['-m', model, '--seq', seq, '--copies', copies, '--attention-nics', nics[0],
                        '--ffn-nics', nics[1], '--batch', 3 * a, '--residual',
                        'nic' if case.nic_residual else 'link']
                args += ['--recompute'] if case.recompute else []
                args += ['--attention-efficiency', .3] if case.attention else []
                with self.subTest(model=model, a=a, f=f, args=args):
                    got = fixed(a, f, *args)
                    self.same(got['roofline'], case.roofline(a, f, *nics))
                    want = case.memory(a, f, got['step']['live_attention'],
                                       got['step']['live_ffn'])
                    self.same(got['step'], dict(zip(('bytes_attention', 'bytes_ffn'), want)))

    def test_memory_of_parameters(self):
        case = Case('DeepSeek-MoE')
        got = fixed(8, 4, '-m', 'DeepSeek-MoE', '--weight-bytes', 1, '--grad-bytes', 0,
                    '--optimizer-bytes', 8)['step']
        want = case.memory(8, 4, got['live_attention'], got['live_ffn'], (1, 0, 8))
        self.same(got, dict(zip(('bytes_attention', 'bytes_ffn'), want)))
        less = fixed(8, 4, '-m', 'DeepSeek-MoE', '--in-flight', 4)['step']
        self.assertLess(less['live_ffn'], got['live_ffn'])
        self.assertLessEqual(less['live_ffn'], 4 * 7)


class Search(Base):
    def test_phases(self):
        for model, seq in (('Qwen3-235B', 16384), ('DeepSeek-MoE', 4096), ('GPT-OSS-120B', 8192)):
            with self.subTest(model=model, seq=seq):
                args = ('-m', model, '--seq', seq, '--batch', 64)
                case = Case(model, seq)
                want = case.seed([(a, 32 - a, a, 32 - a) for a in range(1, 32)])
                self.seed_is(want, plan(*args))
                splits = [(16, f, 16, 16) for f in range(4, 17)]
                self.seed_is(case.seed(splits), plan(
                    *args, '--attention-gpus', 16, '--ffn-gpus', '4-16', '--attention-nics', 16,
                    '--ffn-nics', 16))
                splits = [(a, 8 - a, n, 8 - n) for a in range(1, 8) for n in range(1, 8)]
                self.seed_is(case.seed(splits, .1), plan(
                    *args, '--pair-gpus', 8, '--nics', 8, '--slack', .1))

    def seed_is(self, want, got):
        seed = got['seed']
        self.assertEqual(want, (seed['attention_gpus'], seed['ffn_gpus'], seed['attention_nics'],
                                seed['ffn_nics']))

    def test_local_search_ends_on_a_top(self):
        args = ('-m', 'Qwen3-235B', '--seq', 16384, '--batch', 128, '--groups', 2,
                '--attention-nics', 16, '--ffn-nics', 16)
        found = plan(*args, '--attention-gpus', 16, '--ffn-gpus', '4-16')
        rates = [p['step']['tokens_per_s_gpu'] for p in found['plans']]
        self.assertEqual(rates, sorted(rates, reverse=True))
        best = found['plans'][0]
        self.assertGreaterEqual(rates[0], found['seed']['step']['tokens_per_s_gpu'])
        for f in range(best['ffn_gpus'] - 3, best['ffn_gpus'] + 4):
            if 4 <= f <= 16:
                step = fixed(16, f, *args)['step']
                self.assertLessEqual(step['tokens_per_s_gpu'], rates[0] * (1 + 1e-12))

    def test_memory_comes_first(self):
        # The fastest keep more than fits; where only inputs are kept some do fit, and come first.
        args = ('-m', 'DeepSeek-MoE', '--batch', 64, '--attention-gpus', 8, '--seq', 16384,
                '--ffn-gpus', '4-8')
        free = plan(*args)['plans']
        self.assertFalse(free[0]['fits'])
        done = run('--json', '--recompute', *args)
        plans = json.loads(done.stdout)['plans']
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue(plans[0]['fits'])
        self.assertEqual([p['fits'] for p in plans], sorted((p['fits'] for p in plans),
                                                            reverse=True))
        self.refused(['no split fits'], '-m', 'Qwen3-235B', '--batch', 64)

    def test_bar_of_the_split(self):
        # 16 nodes of H800, 16 attention GPUs, 16:16 NICs.
        best = {}
        for seq in (4096, 16384):
            found = plan('--seq', seq, '--attention-gpus', 16, '--ffn-gpus', '4-16', '--batch',
                         256, '--attention-nics', 16, '--ffn-nics', 16)
            best[seq] = found['plans'][0]['ffn_gpus']
        self.assertEqual(best[4096], 16)
        self.assertIn(best[16384], (9, 10, 11))


class Skew(Base):
    def trace(self, layers):
        """A file of layers [token] -> experts, and the same as rows."""
        width = len(layers[0][0])
        lines = ['layer,token,rank_hint,' + ','.join(f'expert{k}' for k in range(width))]
        for i, tokens in enumerate(layers):
            lines += [f'{i},{t},0,' + ','.join(map(str, e)) for t, e in enumerate(tokens)]
        return self.file('r.csv', *lines)

    def test_counted(self):
        # 4 experts on 2 ranks; loads 3 1 0 0 in one layer, 1 1 1 1 in the other: (2 + 1) / 2.
        path = self.trace([[(0,), (0,), (0,), (1,)], [(0,), (1,), (2,), (3,)]])
        args = ('--trace', path, '--window', 4, '-m', 'DeepSeek-MoE', '--batch', 8)
        skewed, even = fixed(2, 2, *args), fixed(2, 2, *args[4:])
        self.assertAlmostEqual(skewed['step']['busiest_rank'], 1.5)
        self.assertAlmostEqual(skewed['roofline']['compute_f_us'],
                               1.5 * even['roofline']['compute_f_us'])
        self.assertEqual(skewed['roofline']['compute_a_us'], even['roofline']['compute_a_us'])
        self.assertGreater(skewed['step']['step_s'], even['step']['step_s'])
        # On 3 ranks the first has expert 0 and a third of expert 1: (3 + 1/3) / (4/3), and 1.
        self.assertAlmostEqual(fixed(2, 3, *args)['step']['busiest_rank'], (2.5 + 1) / 2)

    def test_even_loads_change_nothing(self):
        path = self.trace([[(0,), (1,), (2,), (3,)]])
        args = ('-m', 'DeepSeek-MoE', '--batch', 8)
        got, want = fixed(2, 2, '--trace', path, '--window', 4, *args), fixed(2, 2, *args)
        self.same(got['step'], want['step'])

    def test_windows(self):
        # Each micro-batch has its own two tokens: all on rank 0, then all on rank 1, then both.
        path = self.trace([[(0,), (0,), (1,), (1,), (0,), (1,)]])
        args = ('-m', 'DeepSeek-MoE', '--trace', path, '--window', 2, '--batch', 6)
        self.assertAlmostEqual(fixed(2, 2, *args)['step']['busiest_rank'], (2 + 2 + 1) / 3)

    def test_real_trace(self):
        path = os.path.join(DATA, 'routing', 'gptoss20b_mmlu_e32_top4.csv')
        if not os.path.exists(path):
            self.skipTest('no routing trace in the data folder')
        rows = {}
        with open(path, encoding='utf-8') as file:
            names = file.readline().strip().split(',')
            at = [names.index(f'expert{k}') for k in range(4)]
            for line in file:
                cells = line.split(',')
                rows.setdefault(int(cells[0]), []).append([int(cells[i]) for i in at])
        # A few layers only: the oracle is slow.
        layers = [rows[key] for key in sorted(rows)][:2]
        case = Case('GPT-OSS-120B', rows=layers, window=256, trace_experts=32)
        path = self.trace([[tuple(e) for e in tokens] for tokens in layers])
        got = fixed(8, 8, '-m', 'GPT-OSS-120B', '--trace', path, '--window', 256, '--batch', 16)
        self.same(got['roofline'], case.roofline(8, 8, 8, 8))
        self.assertGreater(got['step']['busiest_rank'], 1.1)


class Output(Base):
    def test_text_and_picture(self):
        path = os.path.join(self.dir.name, 'roof.svg')
        done = run('--any-memory', '--batch', 64, '--svg', path)
        self.assertEqual(done.returncode, 0, done.stderr)
        for word in ('T_a', 'T_f', 'bound by computation', 'MFU', 'memory:', 'does not fit',
                     'phases 1 and 2'):
            self.assertIn(word, done.stdout)
        root = ET.parse(path).getroot()
        space = '{http://www.w3.org/2000/svg}'
        self.assertEqual(len(root.findall(space + 'circle')), 2)
        self.assertEqual(len(root.findall(space + 'polyline')), 2)
        for circle in root.findall(space + 'circle'):
            self.assertTrue(0 < float(circle.get('cx')) < 720)
            self.assertTrue(0 < float(circle.get('cy')) < 440)

    def test_picture_that_cannot_be_written(self):
        self.refused(['No such file'], '--any-memory', '--batch', 64, '--svg',
                     os.path.join(self.dir.name, 'none', 'roof.svg'))

    def test_tables(self):
        tables = os.path.join(DATA, 'tables')
        if not os.path.exists(tables):
            self.skipTest('no tables in the data folder')
        got = plan('--models', os.path.join(tables, 'models.csv'), '-m', 'Qwen3-235B-A22B',
                   '--gpus', os.path.join(tables, 'gpus.csv'), '-g', 'H800-SXM-80GB', '--batch', 64)
        want = plan('--batch', 64)
        self.assertEqual(got['plans'][0]['step'], want['plans'][0]['step'])


class Refused(Base):
    def test_options(self):
        for args in (('--seq', 0), ('--seq', '1.5'), ('--batch', 'x'), ('--groups', 0),
                     ('--efficiency', 1.1), ('--attention-gpus', '4-2'), ('--ffn-gpus', '0'),
                     ('--attention-gpus', '1-2-3'), ('--copies', 'twice'), ('--head', 'first'),
                     ('--residual', 'air'), ('--nope',), ('word',), ('--sm-share', 1)):
            with self.subTest(args=args):
                self.refused(['Try'], *args, status=2)

    def test_sizes(self):
        self.refused(['95 groups for the 94 layers'], '--groups', 95)
        self.refused(['128 experts of Qwen3-235B on 7 ranks do not divide'], '--ep', 7)
        self.refused(['no split'], '--ffn-gpus', 200, '--attention-gpus', 1)
        self.refused(['no split'], '--attention-gpus', 33)
        self.refused(['--nics divides them'], '--nics', 8, '--ffn-nics', 2)
        self.refused(['are too many'], '--batch', 1000000, '--attention-gpus', 1, '--ffn-gpus', 1)

    def test_names(self):
        self.refused(["no model 'GPT-5'", 'DeepSeek-MoE, GPT-OSS-120B, Qwen3-235B'], '-m', 'GPT-5')
        self.refused(["no GPU 'H900'"], '-g', 'H900')
        self.refused(['No such file'], '--models', os.path.join(self.dir.name, 'none'))
        self.refused(['No such file'], '--trace', os.path.join(self.dir.name, 'none'))

    def test_files(self):
        row = 'layer,token,rank_hint,expert0'
        for lines, words in (((row, '0,0,0,-1'), ":2: expert0: '-1'"), ((row,), 'no line'),
                             ((row, '0,0,0,1', '0,1,0,1', '1,0,0,1'), 'not as many tokens')):
            with self.subTest(words=words):
                self.refused([words], '--trace', self.file('r.csv', *lines))
        models = self.file('m.csv', MODEL_COLUMNS, 'T,10,1000,500,4,5,10,5,100,GQA,1000')
        self.refused(['top_k: 5 of 4'], '--models', models, '-m', 'T')


if __name__ == '__main__':
    PROGRAM = os.path.abspath(sys.argv.pop(1))
    unittest.main()
