# SPDX-License-Identifier: Apache-2.0
"""Runs of disagmoe_train in a folder of their own, for the tests beside this file."""
import csv
import json
import os
import subprocess
import tempfile
import unittest

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '../../..')
TEXT = os.path.join(ROOT, 'tests/data/text_small.txt')
MODEL_FILES = 'model/config.json', 'model/model.safetensors.index.json'


class Job(unittest.TestCase):
    """PROGRAM is set by main() of the file."""
    PROGRAM = ''

    def setUp(self):
        # pylint: disable-next=consider-using-with
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = folder.name

    def path(self, *names):
        return os.path.join(self.dir, *names)

    def start(self, *args, text=TEXT, **options):
        """The finished process of `run`."""
        return subprocess.run([self.PROGRAM, 'run', text, *map(str, args)], capture_output=True,
                              text=True, check=False, timeout=100, **options)

    def train(self, *args, **options):
        """A run that ends well; its lines."""
        done = self.start('-q', *args, **options)
        self.assertEqual((done.returncode, done.stderr), (0, ''))
        return done.stdout

    def fails(self, what, *args, status=1, **options):
        """A run that fails and says all of what; its error output."""
        done = self.start('-q', *args, **options)
        self.assertEqual(done.returncode, status, done.stderr)
        for text in what if isinstance(what, (list, tuple)) else [what]:
            self.assertIn(text, done.stderr)
        return done.stderr

    def losses(self, name):
        """{step: loss as it is written}"""
        with open(self.path(name), encoding='utf-8', newline='') as file:
            rows = list(csv.DictReader(file))
        steps = [int(row['step']) for row in rows]
        self.assertEqual(steps, list(range(1, len(steps) + 1)))
        return {int(row['step']): row['loss'] for row in rows}

    def state(self, name):
        """What state.json says."""
        with open(self.path(name, 'state.json'), encoding='utf-8') as file:
            return json.load(file)

    def files(self, name):
        """{name below the folder: bytes}"""
        found = {}
        for folder, _, names in os.walk(self.path(name)):
            for one in names:
                path = os.path.join(folder, one)
                with open(path, 'rb') as file:
                    found[os.path.relpath(path, self.path(name))] = file.read()
        return found
