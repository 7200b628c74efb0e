# SPDX-License-Identifier: Apache-2.0
"""What goes wrong in `disagmoe_train run` is named, and nothing is lost: ranks that die in
mid-step, full disks, losses that are no numbers, broken checkpoints, input that does not fit.

    test_trouble.py DISAGMOE_TRAIN
"""
import json
import os
import re
import resource
import shutil
import struct
import sys
import unittest

from job import Job, TEXT

TINY = '--size', 'tiny'
# Its shards are larger than all that libm2n asks for.
HEAVY = ('--size', 'tiny', '--hidden', 64, '--intermediate', 512, '--seq', 8, '--sequences', 4)
LIMIT = 2 << 20 # bytes of a file
NAMED = re.compile(r'^disagmoe_train: rank (\d+): step \d+: .*\brank (\d+)\b', re.MULTILINE)


def set_value(folder, name, place, value):
    """Overwrites a number of a tensor, wherever it is."""
    index = os.path.join(folder, 'model/model.safetensors.index.json')
    with open(index, encoding='utf-8') as file:
        path = os.path.join(folder, 'model', json.load(file)['weight_map'][name])
    with open(path, 'r+b') as file:
        n_header, = struct.unpack('<Q', file.read(8))
        begin = json.loads(file.read(n_header))[name]['data_offsets'][0]
        file.seek(8 + n_header + begin + 4 * place)
        file.write(struct.pack('<f', value))


class Trouble(Job):
    def make_checkpoint(self, *args):
        self.train(*TINY, '-n', 4, '-c', self.path('c'), *args)
        return self.files('c')

    def test_killed_rank(self):
        """Everybody names the rank, of either kind, and the checkpoint before is whole."""
        for p, rank in ((1, 0), (1, 1), (1, 2), (1, 3), (2, 2), (2, 5)):
            with self.subTest(p=p, rank=rank):
                args = '-p', p, '-M', 2, '-N', 2, '-n', 40, '--metrics', self.path('a.csv'), '-c', \
                    self.path('c')
                text = self.fails('whole, of step 8; --resume goes on', *TINY, *args,
                                  '--checkpoint-every', 8, '--kill-rank', rank, '--kill-step', 12)
                shutil.rmtree(self.path('c.part'), ignore_errors=True)
                survivors = set(range(4 * p)) - {rank}
                named = dict(NAMED.findall(text))
                self.assertEqual({int(r) for r in named}, survivors, text)
                self.assertEqual(set(named.values()), {str(rank)}, text)
                self.assertIn(f'rank {rank} was ended by signal 9', text)
                self.train('-r', '-c', self.path('c'), '--metrics', self.path('a.csv'), '-n', 13,
                           '-M', 1, '-N', 3)
                self.assertEqual(len(self.losses('a.csv')), 13)
                self.assertEqual(self.state('c')['step'], 13)

    def test_full_disk(self):
        """The old checkpoint stays, training goes on, and the status says that something is
        missing."""
        limit = {'preexec_fn': lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))}
        args = '-c', self.path('c'), '--metrics', self.path('a.csv')
        self.train(*HEAVY, *args, '-n', 2)
        before = self.files('c')
        self.assertGreater(max(map(len, before.values())), LIMIT)
        text = self.fails(['step 4: no checkpoint', 'step 6: no checkpoint', 'File too large',
                           'the one before stays'], '-r', *args, '-n', 6, '--checkpoint-every', 2,
                          **limit)
        self.assertEqual(text.count('no checkpoint'), 2)
        self.assertEqual(self.files('c'), before)
        self.assertFalse(os.path.exists(self.path('c.part')))
        self.assertEqual(len(self.losses('a.csv')), 6)
        self.train('-r', *args, '-n', 6, '-N', 2)
        self.assertEqual(self.state('c')['step'], 6)

    def test_full_disk_of_metrics(self):
        limit = {'preexec_fn': lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))}
        with open(self.path('a.csv'), 'w', encoding='utf-8') as file:
            file.write('step,loss\n1,' + '5' * (LIMIT - 200) + '\n2,5\n3,5\n4,5\n')
        self.make_checkpoint()
        self.fails([self.path('a.csv'), 'no more steps are written'], '-r', '-c', self.path('c'),
                   '-n', 20, '--metrics', self.path('a.csv'), **limit)
        self.assertEqual(self.state('c')['step'], 20)

    def test_no_number(self):
        """The step and the layer, on any ranks; what is on the disk stays."""
        for name, place, where in (
                ('model.embed_tokens.weight', ord('e') * 32, 'the embedding'),
                ('model.layers.0.self_attn.v_proj.weight', 0, 'layer 0'),
                ('model.layers.1.block_sparse_moe.gate.weight', 0, 'layer 1'),
                ('lm_head.weight', 0, 'the head')):
            for ranks in ('-M', 1), ('-p', 2, '-M', 2, '-N', 2), ('-s', '1f1b', '-p', 2):
                with self.subTest(tensor=name, ranks=ranks):
                    shutil.rmtree(self.path('c'), ignore_errors=True)
                    self.make_checkpoint('-q')
                    set_value(self.path('c'), name, place, float('nan'))
                    before = self.files('c')
                    text = self.fails('step 5: the loss is no number; ' + where + ' is the first',
                                      '-r', '-c', self.path('c'), '-n', 8, *ranks)
                    self.assertIn('whole, of step 4', text)
                    self.assertEqual(self.files('c'), before)
        self.fails('is no number', *TINY, '--learning-rate', 1e5, '-n', 30)

    def test_broken_checkpoint(self):
        args = '-r', '-c', self.path('c'), '-n', 8
        self.fails([self.path('c'), 'there is no training checkpoint'], *args)
        files = self.make_checkpoint('-N', 2)
        for name in files:
            for how in 'removed', 'cut':
                with self.subTest(name=name, how=how):
                    path = self.path('c', name)
                    os.remove(path)
                    if how == 'cut':
                        with open(path, 'wb') as file:
                            file.write(files[name][:len(files[name]) // 2])
                    text = self.fails(self.path('c'), *args)
                    if how == 'cut':
                        self.assertIn(name, text)
                    with open(path, 'wb') as file:
                        file.write(files[name])
        self.assertEqual(self.files('c'), files)
        with open(self.path('other'), 'w', encoding='utf-8') as file:
            file.write('another text, of the same kind. ' * 100)
        self.fails('trained on another text', *args, text=self.path('other'))
        self.fails('has 4 steps', '-r', '-c', self.path('c'), '-n', 4)
        self.train(*args)

    def test_settings_of_a_resumed_run(self):
        self.make_checkpoint()
        for option in ('--hidden', 32), ('--size', 'tiny'), ('--sequences', 8), ('-m', 4), \
                ('--learning-rate', .1), ('--seed', 2):
            self.fails('a resumed run has it from its checkpoint; leave it out', '-r', '-c',
                       self.path('c'), *option, status=2)

    def test_sizes(self):
        for what, *args in (
                ('held back; a sequence of 2000 tokens needs 2001: take a longer text', '--seq',
                 2000),
                ('12288 bytes, of which', '--seq', 4000, '--held-back', .9),
                ('3 groups for 2 layers', '-p', 3), ('--groups 2 at most', '-p', 3),
                ('5 ranks of an FFN group for 4 experts', '-N', 5),
                ('a micro-batch of 2 sequences (8 of a step in 4) for 3 attention ranks', '-M', 3),
                ('take more --sequences or fewer --micro-batches', '-M', 3),
                ('7 sequences of a step cannot be divided into 4 equal micro-batches',
                 '--sequences', 7),
                ("'lifo' is none of afpipe, 1f1b, sequential", '-s', 'lifo'),
                ('tiny and small are', '--size', 'huge'),
                ('head_dim 3 is odd', '--head-dim', 3),
                ('warmup_steps 300 are more than decay_steps 200', '--warmup', 300),
                ('--kill-rank 2: there are ranks 0 to 1', '--kill-rank', 2),
                ('--timeline-step 9: the run has steps 1 to 3', '-n', 3, '--timeline-step', 9,
                 '--timeline', self.path('t')),
                ('5 layers cannot be divided among 2 groups: choose', '--layers', 5, '-p', 2)):
            with self.subTest(args=args):
                self.fails(what, *TINY, *args)
        for what, *args in (("--steps: '0'", '-n', 0), ("--layers: '1.5'", '--layers', 1.5),
                            ('want --checkpoint DIR', '-r'),
                            ('want --checkpoint DIR', '--checkpoint-every', 2),
                            ('one TEXT, not also', 'more')):
            self.fails(what, *TINY, *args, status=2)
        self.assertEqual(os.listdir(self.dir), [])

    def test_places(self):
        """What cannot be read or written is named before the first step."""
        self.fails('/none: No such file', text=self.path('none'))
        self.fails('is no file to train on', text=self.dir)
        empty = self.path('empty')
        with open(empty, 'w', encoding='utf-8'):
            pass
        self.fails([empty, '0 bytes'], text=empty)
        none = self.path('none', 'file')
        for option in '--metrics', '--json', '--dump-routing', '-c', '--timeline':
            self.fails(none + ': No such file or directory', *TINY, option, none)
        for option in '--metrics', '--json', '--dump-routing':
            self.fails(self.dir + ': is a directory', *TINY, option, self.dir)
        self.fails([empty, 'Not a directory'], *TINY, '-c', os.path.join(empty, 'c'))
        self.fails(['holds empty, which is no file of a training checkpoint',
                    'choose another directory'], *TINY, '-c', self.dir)
        self.assertEqual(os.listdir(self.dir), ['empty'])
        self.assertGreater(os.path.getsize(TEXT), 0)


if __name__ == '__main__':
    Job.PROGRAM = sys.argv[1]
    unittest.main(argv=sys.argv[:1], verbosity=1)
