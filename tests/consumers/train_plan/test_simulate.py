# SPDX-License-Identifier: Apache-2.0
"""`disagmoe_train simulate`: schedules whose steps can be counted by hand or have a published
formula, an order of operations run again here, skew, and input that is wrong."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

from oracle import Case

PROGRAM = ''
MODEL_COLUMNS = ('model,num_layers,hidden_size,moe_intermediate_size,num_experts,top_k,num_heads,'
                 'num_kv_heads,head_dim,attention,vocab_size')
GPU_COLUMNS = ('gpu,bf16_dense_tflops,mem_gb,hbm_gbps,nvlink_unidir_gbps,pcie_unidir_gbps,'
               'nic_unidir_gbps,gpus_per_node')


def run(*args):
    return subprocess.run([PROGRAM, 'simulate', *map(str, args)], capture_output=True, text=True,
                          check=False, timeout=400)


def simulate(*args):
    done = run('--json', *args)
    if done.returncode:
        raise AssertionError(done.stderr)
    return json.loads(done.stdout)


def interleaved(p, v, n_micro, forward, backward):
    """Megatron-LM's interleaved 1F1B as its own recurrence: no transfers, one clock a worker."""
    orders = []
    for worker in range(p):
        def unit(i, back, worker=worker):
            chunk = i % (p * v) // p
            return back, (v - 1 - chunk if back else chunk) * p + worker, i // (p * v) * p + i % p
        n, warm = n_micro * v, min(2 * (p - 1 - worker) + (v - 1) * p, n_micro * v)
        order = [unit(i, 0) for i in range(warm)]
        for i in range(n):
            order += [unit(warm + i, 0)] if warm + i < n else []
            order.append(unit(i, 1))
        orders.append(order)
    done, at, clock = {}, [0] * p, [0.] * p
    while any(at[w] < len(orders[w]) for w in range(p)):
        moved = False
        for worker in range(p):
            while at[worker] < len(orders[worker]):
                back, stage, micro = orders[worker][at[worker]]
                if back:
                    needs = (1, stage + 1, micro) if stage + 1 < p * v else (0, stage, micro)
                else:
                    needs = (0, stage - 1, micro) if stage else None
                if needs is not None and needs not in done:
                    break
                start = max(clock[worker], done.get(needs, 0.))
                clock[worker] = done[back, stage, micro] = start + (backward if back else forward)
                at[worker] += 1
                moved = True
        if not moved:
            raise AssertionError('the order blocks itself')
    return max(clock)


class Base(unittest.TestCase):
    """A small model whose head and scores cost next to nothing, on a GPU of round rates."""
    SHAPE = 1000, 100, 4, 2, 500, 500, 1  # hidden, expert size, experts, top-k, q, k, vocabulary

    def setUp(self):
        # pylint: disable-next=consider-using-with
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)
        self.layers = 4

    def file(self, name, *lines):
        path = os.path.join(self.dir.name, name)
        with open(path, 'w', encoding='utf-8') as out:
            out.write('\n'.join(lines) + '\n')
        return path

    def near(self, got, want, delta=1e-9):
        self.assertAlmostEqual(got / want, 1, delta=delta)

    def case(self, layers=4, p=2, **rest):
        h, f, experts, k, q, kv, vocab = self.SHAPE
        return Case(shape=(layers, h, f, experts, k, q, kv, vocab), seq=2, p=p, peak=1e12,
                    node=rest.pop('node', 8), nic=rest.pop('nic', 10e9), link=100e9, m2n=1, **rest)

    def args(self, case, a, f, ep, batch):
        h, size, experts, k, *_ = self.SHAPE
        models = self.file('m.csv', MODEL_COLUMNS,
                           f'T,{case.layers},{h},{size},{experts},{k},5,5,100,MHA,1')
        gpus = self.file('g.csv', GPU_COLUMNS, f'G,1,80,1000,100,10,1,{case.node}')
        return ('--models', models, '-m', 'T', '--gpus', gpus, '-g', 'G', '--seq', case.seq,
                '--groups', case.p, '--nic-gbps', case.nic / 1e9, '--m2n-util', 1, '--a2a-util', 1,
                '--attention-gpus', a, '--ffn-gpus', f, '--ep', ep, '--batch', batch)


def parts(case, gpus_a, gpus_f, tokens):
    """Seconds of attention and experts, forward, backward of input, of weights."""
    projections, scores, experts, head = case.flops()
    a = tokens / (case.peak * case.efficiency * gpus_a)
    f = tokens / (case.peak * case.efficiency * gpus_f) * case.busiest(gpus_f, 0, 0)
    return ((projections + scores) * a, (projections + 2.5 * scores + 3 * head / case.layers) * a,
            projections * a), (experts * f,) * 3


class Schedules(Base):
    def test_one_micro_batch_of_afpipe(self):
        # All layers one after the other, there and back, each with two transfers; the first
        # attention's weights come last.
        for p, layers, a, f, node in ((1, 1, 1, 1, 8), (2, 4, 2, 1, 8), (2, 5, 2, 4, 2)):
            case = self.case(layers, p, node=node)
            got = simulate(*self.args(case, a, f, 1, a), '--schedule', 'afpipe')
            tokens = case.seq * a
            attention, ffn = parts(case, a, f, tokens)
            c = tokens * 2 * case.h * case.rows_out(f) / (min(a, f) * case.nic)
            way = layers * (sum(attention[:2]) + sum(ffn[:2]) + 4 * c)
            with self.subTest(p=p, layers=layers):
                self.near(got['schedules']['afpipe']['step_s'], way + attention[2])

    def test_interleaved(self):
        # No all-to-all with one expert-parallel rank, stages' transfers of nothing.
        for p, layers, n_micro in ((2, 4, 4), (2, 8, 6), (4, 4, 8), (4, 8, 4), (3, 6, 6)):
            case = self.case(layers, p, nic=1e14)
            args = self.args(case, 1, 1, 1, 2 * n_micro)
            got = simulate(*args, '--schedule', '1f1b')['schedules']['1f1b']
            attention, ffn = parts(case, 2, 2, case.seq * 2)
            forward = attention[0] + ffn[0] / case.busiest(2, 0, 0)
            backward = sum(attention[1:]) + sum(ffn[1:]) / case.busiest(2, 0, 0)
            with self.subTest(p=p, layers=layers, n_micro=n_micro):
                v = layers // p
                self.near(got['step_s'], interleaved(p, v, n_micro, forward, backward), 1e-5)
                # The published bubble of full rounds: p - 1 forwards and backwards of a chunk.
                self.near(got['step_s'], (n_micro * v + p - 1) * (forward + backward), 1e-5)
                self.near(got['bubble'], (p - 1) / (n_micro * v + p - 1), 1e-3)
                # The first worker's warm-up, and the one that the first backward is of.
                self.assertEqual(got['live_attention'],
                                 min(n_micro * v, 2 * (p - 1) + (v - 1) * p + 1))

    def test_all_to_all_is_exposed(self):
        # Nodes of one GPU: one of two rows of each token leaves, dispatch and combine, both ways.
        case = self.case(4, 2, node=1, nic=1e9)
        args = self.args(case, 1, 1, 2, 8)
        got = simulate(*args)['schedules']
        attention, ffn = parts(case, 2, 2, case.seq * 2)
        tokens = case.seq
        c = tokens * 2 * case.h * 2 / 2 / case.nic
        forward, backward = attention[0] + ffn[0], sum(attention[1:]) + sum(ffn[1:])
        # The p - 1 stages on the way cost a transfer each, there and back.
        stage = tokens * 2 * case.h / case.nic
        least = (4 * 2 + 1) * (forward + backward + 4 * c)
        self.assertGreaterEqual(got['1f1b']['step_s'], least * (1 - 1e-9))
        self.assertLessEqual(got['1f1b']['step_s'], least + 4 * 2 * 2 * stage)
        share = 4 * 2 * 4 * c / got['1f1b']['step_s']
        self.assertGreaterEqual(got['1f1b']['exposed'], share * (1 - 1e-9))
        self.assertLess(got['chunks-2']['step_s'], got['1f1b']['step_s'])

    def test_chunks(self):
        # One layer, one group, one micro-batch: attention, then the pipeline of chunks.
        case = self.case(1, 1, node=1, nic=1e9)
        args = self.args(case, 1, 1, 2, 2)
        attention, ffn = parts(case, 2, 2, case.seq * 2)
        c = case.seq * 2 * case.h * 2 / 2 / case.nic
        for n in (2, 16):
            step = sum(attention)
            for after in (0, ffn[2] / .8):
                # Dispatches first; chunk i is computed when it is there, and leaves when the links
                # are free of what goes before it.
                computed, free = 0., c
                for i in range(n):
                    computed = max(computed, (i + 1) * c / n) + ffn[0] / .8 / n
                    free = max(free, computed) + c / n
                step += max(free, computed + after)
            got = simulate(*args, '--sm-share', .2, '--schedule', f'chunks-{n}')['schedules']
            self.near(got[f'chunks-{n}']['step_s'], step)

    def test_bubble_of_dualpipe(self):
        # (p / 2 - 1) (F&B + B - 3 W), with W a third of the whole backward's... here F = W = B / 2.
        for p, n_micro in ((2, 4), (4, 8), (4, 20), (8, 20)):
            case = self.case(8, p, nic=1e14)
            args = self.args(case, 1, 1, 1, 2 * n_micro)
            got = simulate(*args, '--schedule', 'dualpipe', '--sm-share', 0)['schedules']
            attention, ffn = parts(case, 2, 2, case.seq * 2)
            even = case.busiest(2, 0, 0)
            chunk = 8 / p
            forward = chunk * (attention[0] + ffn[0] / even)
            weights = chunk * (attention[2] + ffn[2] / even)
            backward = chunk * (attention[1] + ffn[1] / even) + weights
            want = n_micro * (forward + backward) + (p / 2 - 1) * (
                forward + 2 * backward - 3 * weights)
            with self.subTest(p=p, n_micro=n_micro):
                self.near(got['dualpipe']['step_s'], want, 2e-3)

    def test_dualpipe_hides(self):
        # Overlapped chunks take the longer of computing and communicating.
        case = self.case(8, 4, node=1, nic=1e9)
        slow = simulate(*self.args(case, 1, 1, 2, 64))['schedules']['dualpipe']
        case = self.case(8, 4, nic=1e14)
        fast = simulate(*self.args(case, 1, 1, 2, 64))['schedules']['dualpipe']
        self.assertGreater(slow['step_s'], fast['step_s'])
        self.assertGreater(slow['exposed'], fast['exposed'])
        without = simulate(*self.args(case, 1, 1, 2, 64), '--sm-share', 0)['schedules']['dualpipe']
        self.assertLess(without['step_s'], fast['step_s'])
        self.assertGreater(without['step_s'], fast['step_s'] * (1 - 20 / 132))

    def test_bounds_of_afpipe(self):
        for a, f, batch in ((1, 1, 16), (2, 1, 32), (1, 3, 24)):
            case = self.case(8, 2)
            got = simulate(*self.args(case, a, f, 1, batch), '--schedule',
                           'afpipe')['schedules']['afpipe']
            attention, ffn = parts(case, a, f, case.seq * a)
            busiest = max(sum(attention), sum(ffn)) * 4 * got['micro_batches']
            self.assertGreaterEqual(got['step_s'], busiest * (1 - 1e-9))
            self.assertLess(got['step_s'], busiest * 1.3)
            self.near(got['computing'] + got['exposed'] + got['bubble'], 1)
            self.near(got['tokens'], case.seq * a * got['micro_batches'])
            self.near(got['tokens_per_s_gpu'], got['tokens'] / got['step_s'] / (2 * (a + f)))

    def test_in_flight(self):
        case = self.case(8, 2)
        args = (*self.args(case, 1, 1, 1, 16), '--schedule', 'afpipe', '--in-flight')
        steps = [simulate(*args, n)['schedules']['afpipe'] for n in (1, 2, 4, 8)]
        seconds = [s['step_s'] for s in steps]
        self.assertEqual(seconds, sorted(seconds, reverse=True))
        self.assertEqual(steps[0]['live_ffn'], 4)  # a micro-batch in all layers of a group
        for n, step in zip((1, 2, 4, 8), steps):
            self.assertLessEqual(step['live_attention'], 4 * n)

    def test_head_and_residual(self):
        args = ('-m', 'DeepSeek-MoE', '--batch', 128, '--attention-gpus', 16, '--ffn-gpus', 16,
                '--schedule', 'afpipe')
        base = simulate(*args)['schedules']['afpipe']['step_s']
        # The head of this model costs more than the layers of a group.
        self.assertGreater(simulate(*args, '--head', 'last')['schedules']['afpipe']['step_s'],
                           base * 1.3)
        self.assertGreater(simulate(*args, '--residual', 'nic')['schedules']['afpipe']['step_s'],
                           base)
        self.assertGreater(simulate(*args, '--copies', 'expert')['schedules']['afpipe']['step_s'],
                           base * 1.2)


class Cluster(Base):
    def test_bars(self):
        """The three models at 4K on 16 nodes; deterministic, so bounds are those of the bars."""
        # The splits that plan finds, so that it need not be asked.
        for model, a, f in (('DeepSeek-MoE', 16, 16), ('GPT-OSS-120B', 13, 19),
                            ('Qwen3-235B', 13, 19)):
            got = simulate('-m', model, '--attention-gpus', a, '--ffn-gpus', f)['schedules']
            with self.subTest(model=model):
                for name, low, high in (('1f1b', 1.4, 2), ('dualpipe', 1, 1.2)):
                    self.assertGreaterEqual(got[name]['afpipe_speed_up'], low)
                    self.assertLessEqual(got[name]['afpipe_speed_up'], high)
                self.near(got['1f1b']['afpipe_speed_up'], got['afpipe']['tokens_per_s_gpu'] /
                          got['1f1b']['tokens_per_s_gpu'])
                exposed = [got[k]['exposed'] / got[k]['tokens_per_s_gpu'] for k in
                           ('afpipe', 'chunks-2')]
                self.near(1 + got['chunks-2']['afpipe_exposed_change'], exposed[0] / exposed[1])

    def test_skew(self):
        """Routing from a trace slows the experts of all schedules."""
        rows = ['layer,token,rank_hint,expert0']
        rows += [f'{layer},{t},0,{t % 16 if t < 48 else layer}' for layer in range(3)
                 for t in range(64)]
        trace = self.file('r.csv', *rows)
        args = ('-m', 'DeepSeek-MoE', '--batch', 256, '--attention-gpus', 16, '--ffn-gpus', 16)
        even = simulate(*args)['schedules']
        got = simulate(*args, '--trace', trace, '--window', 64)['schedules']
        # 3 of 64 for each expert and 16 more for one: 19 where 4 are the mean.
        self.near(got['afpipe']['busiest_rank'], 19 / 4)
        for name, step in got.items():
            self.assertGreater(step['step_s'], even[name]['step_s'] * 1.5, name)


class Refused(Base):
    def refused(self, words, *args, status=1):
        done = run(*args)
        self.assertEqual(done.returncode, status, done.stderr)
        self.assertIn(words, done.stderr)

    def test_input(self):
        self.refused("'zbv' is none of", '--schedule', 'zbv')
        pair = ('-m', 'DeepSeek-MoE', '--attention-gpus', 16, '--ffn-gpus', 16)
        self.refused('8 are needed', '--batch', 64, *pair)
        self.refused('an even number', '--groups', 3, '--batch', 192, *pair)
        self.refused('95 groups', '--groups', 95)
        self.refused('Try', '--batch', '0', status=2)

    def test_odd_groups_without_dualpipe(self):
        got = simulate('--groups', 3, '--schedule', '1f1b', '--batch', 192, '-m', 'DeepSeek-MoE',
                       '--attention-gpus', 16, '--ffn-gpus', 16)
        self.assertEqual(set(got['schedules']), {'afpipe', '1f1b'})

    def test_text(self):
        done = run('--batch', 256, '-m', 'DeepSeek-MoE')
        self.assertEqual(done.returncode, 0, done.stderr)
        for word in ('afpipe', '1f1b', 'dualpipe', 'chunks-2', 'chunks-16', '1.59 to 1.81',
                     'exposed', 'bubble'):
            self.assertIn(word, done.stdout)


if __name__ == '__main__':
    PROGRAM = os.path.abspath(sys.argv.pop(1))
    unittest.main()
