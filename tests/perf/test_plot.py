#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""m2n_plot: draws results of m2n_perf, refuses what is none.

  test_plot.py M2N_PERF M2N_PLOT

Skipped (77) without matplotlib.
"""
import os
import subprocess
import sys
import tempfile
import xml.dom.minidom

import test_perf


def plot(script, *args, status=0):
    done = subprocess.run([sys.executable, script, *args], capture_output=True, text=True,
                          timeout=100, check=False)
    assert done.returncode == status, (args, done.returncode, done.stderr)
    return done.stdout, done.stderr


def check_figure(output, words):
    with open(output + '.png', 'rb') as file:
        assert file.read(8) == b'\x89PNG\r\n\x1a\n'
    with open(output + '.svg', encoding='utf-8') as file:
        text = file.read()
    assert xml.dom.minidom.parseString(text).documentElement.tagName == 'svg'
    # Matplotlib leaves the texts that it draws in comments.
    for word in words:
        assert word in text, (output, word)


def main():
    try:
        import matplotlib  # noqa: F401, only whether it is there
    except ImportError:
        print('skip: python3-matplotlib is not installed')
        return test_perf.SKIP
    test_perf.PERF, script = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        lat, moe = os.path.join(folder, 'lat.json'), os.path.join(folder, 'moe.json')
        test_perf.run('lat', '--sizes', '8:64', '--iters', '10', '--compare', 'memcpy',
                      '--format', 'json', '--output', lat)
        test_perf.run('moe', *test_perf.SMALL, '-N', '2', '--samples', '--format', 'json',
                      '--output', moe)
        out = plot(script, '--kind', 'size', lat)[0]
        assert out.split() == [os.path.join(folder, 'lat.png'), os.path.join(folder, 'lat.svg')]
        check_figure(os.path.join(folder, 'lat'), ['lat shm 1x1', 'lat shm 1x1: memcpy', 'GB/s'])
        plot(script, '--kind', 'mxn', lat, moe, '--output', os.path.join(folder, 'mxn.png'))
        check_figure(os.path.join(folder, 'mxn'), ['1x1', '1x2', 'moe dispatch shm 64 B'])
        plot(script, '--kind', 'cdf', moe, '--output', os.path.join(folder, 'cdf'))
        check_figure(os.path.join(folder, 'cdf'), ['moe combine shm 1x2 64 B'])

        assert '--samples' in plot(script, '--kind', 'cdf', lat, status=1)[1]
        other = os.path.join(folder, 'other.json')
        for text, word in (('{', 'not JSON'), ('{"schema": "x"}', "'x'"), ('[]', 'schema')):
            with open(other, 'w', encoding='utf-8') as file:
                file.write(text)
            assert word in plot(script, other, status=1)[1]
        assert 'No such file' in plot(script, os.path.join(folder, 'none'), status=1)[1]
        assert 'invalid choice' in plot(script, '--kind', 'pie', lat, status=2)[1]
    return 0


if __name__ == '__main__':
    sys.exit(main())
