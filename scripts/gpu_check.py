#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What scripts/gpu-check.sh does; see there.

Each step has a time limit of its own, cut to what is left of the whole; what did not get its turn
counts as failed. Tests are those that Meson runs on the stand-ins (suite "double"): here the same
programs find the machine's own driver. Nothing else runs while m2n_perf measures.
"""
import argparse
import concurrent.futures
import datetime
import fnmatch
import glob
import importlib.machinery
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time

from gpu_summary import write_summary

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOTAL_S = 470
# By when each part has to be over, so that one that hangs leaves the others their turn.
MEASURED_BY, TESTED_BY = 300, 390
PATHS = ('/usr/local/cuda/bin', '/usr/local/cuda/compute-sanitizer', '/opt/cuda/bin')
# Tests of the suite "double" that are about the stand-ins.
DOUBLE_ONLY = ('* delayed', 'waits *', 'gpu-check*')
# Programs with a long list of cases, run side by side in parts: by the word that cases begin with.
LISTS = {'test_conformance': 'tests/conformance', 'test_fault': 'tests/fault'}
# Programs of kernels, for compute-sanitizer.
KERNEL_TESTS = ('unit kernel_cuda*', 'unit plan_cuda*')


class Check:
    """The machine, the time, the results so far."""

    def __init__(self, args):
        self.args = args
        self.out = os.path.abspath(args.out)
        self.began = time.monotonic()
        self.end = self.began + TOTAL_S
        self.cases = []
        self.missing = []
        self.passed = self.failed = self.skipped = 0
        # The last two for ranks that are threads: see docs/perf.md.
        self.env = dict(os.environ, PYTHONDONTWRITEBYTECODE='1',
                        CUDA_DEVICE_MAX_CONNECTIONS='32', CUDA_MODULE_LOADING='EAGER')
        self.env['PATH'] = os.pathsep.join([self.env.get('PATH', '/usr/bin:/bin'), *PATHS,
                                            sysconfig.get_path('scripts')])
        for name in list(self.env):
            if name.startswith('M2N_') and name != 'M2N_DATA':
                del self.env[name]
        self.build = os.path.abspath(args.build) if args.build else os.path.join(
            ROOT, 'build', 'gpu-check')

    def left(self, limit):
        """Seconds that a step with this limit has."""
        return max(0, min(limit, self.end - time.monotonic()))

    def end_part(self, seconds):
        """What comes now has to be over so long after the start."""
        self.end = self.began + seconds

    def log(self, name, text):
        with open(os.path.join(self.out, name), 'a', encoding='utf-8', errors='replace') as file:
            file.write(text if text.endswith('\n') else text + '\n')

    def add(self, kind, name, status, seconds, **more):
        """One case: passed, failed or skipped, and what is known of it."""
        counts = more.pop('counts', None) or {
            'passed': (1, 0, 0), 'failed': (0, 1, 0), 'skipped': (0, 0, 1)}[status]
        self.passed += counts[0]
        self.failed += counts[1]
        self.skipped += counts[2]
        self.cases.append({'kind': kind, 'name': name, 'status': status,
                           'seconds': round(seconds, 1), 'counts': list(counts), **more})
        reason = more.get('reason', '')
        print(f'{status:8} {seconds:6.1f} s  {kind}: {name}{": " + reason if reason else ""}',
              flush=True)

    def which(self, name):
        return shutil.which(name, path=self.env['PATH'])

    def run(self, command, limit, env=None, cwd=ROOT):
        """(status, output, seconds): status None when it ran out of its time."""
        start = time.monotonic()
        limit = self.left(limit)
        if limit < 1:
            return None, 'no time was left for it\n', 0
        # pylint: disable=consider-using-with # a process that hangs in the driver is left behind
        child = subprocess.Popen(command, cwd=cwd, env=dict(self.env, **(env or {})),
                                 stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, text=True, errors='replace',
                                 start_new_session=True)
        try:
            output, _ = child.communicate(timeout=limit)
            status = child.returncode
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            try:
                output, _ = child.communicate(timeout=5)
            except subprocess.TimeoutExpired as late:
                output = (late.stdout or b'').decode(errors='replace') \
                    if isinstance(late.stdout, bytes) else late.stdout or ''
            status = None
            output += f'\nended after {limit:.0f} s\n'
        return status, output, time.monotonic() - start


def find_nccl(check):
    """The folder of libnccl.so.2 that no loader path has: that of a Python package."""
    for folder in {sysconfig.get_path('purelib'), sysconfig.get_path('platlib'), *sys.path}:
        found = glob.glob(os.path.join(folder, 'nvidia', 'nccl', 'lib', 'libnccl.so.2'))
        if found:
            return os.path.dirname(found[0])
    status, output, _ = check.run(['/sbin/ldconfig', '-p'], 20) \
        if os.path.exists('/sbin/ldconfig') else (1, '', 0)
    return '' if status == 0 and 'libnccl.so.2' in output else None


def has_package(check, header, package):
    """Is there a library to build with? By its header, as pkg-config may be missing itself."""
    if glob.glob(f'/usr/include/{header}') or glob.glob(f'/usr/local/include/{header}'):
        return bool(check.which('pkg-config') or check.which('pkgconf')) or package is None
    return False


def look(check):
    """What is missing, in one list, with what is left out for it. False: nothing can be built."""
    required = {'gcc': 'cc', 'nvcc': 'nvcc', 'ninja': 'ninja', 'meson': 'meson'}
    lacks = [name for name, program in required.items() if not check.which(program)]
    if check.args.doubles and 'nvcc' in lacks:
        lacks.remove('nvcc')
        check.missing.append('nvcc: kernels are run on the stand-ins, but not compiled for GPUs')
    optional = {
        'git': 'the commit has to be given by --commit',
        'compute-sanitizer': 'kernels are not checked by it',
        'nvidia-smi': 'clocks and power are not noted'}
    for name, loss in optional.items():
        if not check.which(name) and not (check.args.doubles and name != 'git'):
            check.missing.append(f'{name}: {loss}')
    check.sodium = has_package(check, 'sodium.h', 'libsodium')
    if not check.sodium:
        check.missing.append('libsodium (or pkg-config): built without shared secrets '
                             '(-Dauth=disabled), and tests of them are left out')
    check.cmocka = has_package(check, 'cmocka.h', 'cmocka')
    if not check.cmocka:
        check.missing.append('CMocka (or pkg-config): unit tests use the one in tests/cmocka')
    if not has_package(check, 'infiniband/verbs.h', None):
        check.missing.append('headers of libibverbs: no backend verbs')
    if not has_package(check, 'ucp/api/ucp.h', 'ucx'):
        check.missing.append('headers of UCX: no backend ucx')
    nccl = None if check.args.doubles else find_nccl(check)
    if nccl is None and not check.args.doubles:
        check.missing.append('libnccl.so.2: no backend nccl, and no comparison with NCCL')
    elif nccl:
        check.env['LD_LIBRARY_PATH'] = os.pathsep.join(
            filter(None, [nccl, check.env.get('LD_LIBRARY_PATH')]))
    print('Missing:' if check.missing or lacks else 'Missing: nothing')
    for line in [f'{name}: needed' for name in lacks] + check.missing:
        print(f'  {line}')
    sys.stdout.flush()
    check.missing = [f'{name}: needed' for name in lacks] + check.missing
    return not lacks


def commit_of(check):
    if check.args.commit:
        return check.args.commit
    if check.which('git'):
        status, output, _ = check.run(['git', 'describe', '--always', '--dirty', '--abbrev=12'], 20)
        if status == 0 and output.strip():
            return output.strip().splitlines()[-1]
    return 'unknown'


def build(check):
    """Configures and builds. False: it cannot be built."""
    if check.args.build:
        return True
    options = ['-Dmpi=disabled', '-Dconsumers=disabled', '-Dtests=true',
               '-Dcmocka=' + ('auto' if check.cmocka else 'disabled'),
               '-Dauth=' + ('enabled' if check.sodium else 'disabled'),
               '-Dcuda=' + ('enabled' if check.which('nvcc') else 'disabled')]
    shutil.rmtree(check.build, ignore_errors=True)
    for name, command, limit in (
            ('configure', ['meson', 'setup', check.build, ROOT, *options], 60),
            ('build', ['ninja', '-k', '0', '-C', check.build], 240)):
        status, output, seconds = check.run(command, limit)
        check.log('build.log', f'== {" ".join(command)}\n{output}')
        good = status == 0
        check.add('build', name, 'passed' if good else 'failed', seconds,
                  **({} if good else {'reason': last_words(output)}))
        if not good:
            print('\n'.join(output.splitlines()[-25:]), flush=True)
    # A test that does not build keeps nobody from measuring.
    return os.path.exists(os.path.join(check.build, 'perftest', 'm2n_perf'))


def last_words(output):
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    bad = [line for line in lines if 'error' in line.lower() or line.startswith('not ok')]
    why = [line for line in lines if ' skips: ' in line]
    return (bad or why or lines or ['no output'])[-1][:200]


def load_counter():
    """tests/run_count as a module: it knows how programs report their cases."""
    path = os.path.join(ROOT, 'tests', 'run_count')
    loader = importlib.machinery.SourceFileLoader('run_count', path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader('run_count', loader))
    loader.exec_module(module)
    return module


def matches(name, patterns):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def list_tests(check):
    """Meson's tests of suite "double", as (name, command, environment, limit)."""
    status, output, _ = check.run(['meson', 'introspect', '--tests', check.build], 60)
    if status != 0:
        check.add('test', 'list of tests', 'failed', 0, reason=last_words(output))
        return []
    tests = []
    for test in json.loads(output[output.index('['):]):
        if not any(suite.endswith('double') for suite in test['suite']):
            continue
        if matches(test['name'], DOUBLE_ONLY if not check.args.doubles else ('gpu-check*',)):
            continue
        env = dict(test['env'])
        if not check.args.doubles:
            env.pop('LD_LIBRARY_PATH', None)
        tests.append((test['name'], test['cmd'], env, min(test['timeout'] or 60, 150)))
    return tests


def parts_of(test):
    """The test as itself, or a program of LISTS in its parts."""
    name, command, env, limit = test
    folder = LISTS.get(os.path.basename(command[0]))
    words = set()
    for path in glob.glob(os.path.join(ROOT, folder, 'case_*.c')) if folder else ():
        with open(path, encoding='utf-8') as text:
            words |= set(re.findall(r'^\s*\{"([a-z ]+:) ', text.read(), re.M))
    if not words:
        return [test]
    return [(f'{name}, {word[:-1]}', [*command, word], env, limit) for word in sorted(words)]


def run_test(check, counter, test):
    name, command, env, limit = test
    if not os.path.exists(command[0]):
        return name, 'failed', 0, {'reason': 'it was not built'}
    status, output, seconds = check.run(command, limit, env, check.build)
    check.log('tests.log', f'== {name}: {" ".join(command)}\n{output}== status {status}\n')
    counts = counter.count_cases(output)
    if status == 77:
        return name, 'skipped', seconds, {'reason': last_words(output)}
    if 'kernels run on: the emulation' in output:
        return name, 'failed', seconds, {'reason': 'the kernels did not run on the GPU'}
    if status == 0:
        return name, 'passed', seconds, {'counts': counts or (1, 0, 0)}
    counts = counts or (0, 1, 0)
    return name, 'failed', seconds, {'counts': (counts[0], max(counts[1], 1), counts[2]),
                                     'reason': last_words(output)}


def run_tests(check):
    counter = load_counter()
    tests = list_tests(check)
    if check.args.doubles:  # enough to see that this program still works
        tests = [test for test in tests if test[0].startswith('unit')][:2]
    else:
        tests = [part for test in tests for part in parts_of(test)]
    workers = 2 if check.args.doubles else 8
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for name, status, seconds, more in pool.map(
                lambda test: run_test(check, counter, test), tests):
            check.add('test', name, status, seconds, **more)


def sanitize_one(check, tool, kind, test):
    """One program under one tool of compute-sanitizer: (name, status, seconds, more)."""
    name, command, env, _ = test
    what = f'{kind} {name}'
    if not tool:
        return what, 'skipped', 0, {'reason': 'no compute-sanitizer'}
    full = [tool, '--tool', kind, '--error-exitcode', '1', *command]
    status, output, seconds = check.run(full, 75, env, check.build)
    check.log('sanitizer.log', f'== {" ".join(full)}\n{output}== status {status}\n')
    if 'kernels run on: the emulation' in output:
        return what, 'skipped', seconds, {'reason': 'the kernels did not run on the GPU'}
    if status == 0:
        return what, 'passed', seconds, {}
    if status is None and 'ERROR SUMMARY' not in output and '=========     ' not in output:
        return what, 'skipped', seconds, {'reason': f'nothing found in {seconds:.0f} s, then ended'}
    # A machine on which the tool itself cannot work says nothing about the kernels.
    cannot = status == 77 or any(words in output for words in (
        'not supported', 'Unable to', 'Target application terminated before first instrumented'))
    return what, 'skipped' if cannot else 'failed', seconds, {'reason': last_words(output)}


def sanitize(check):
    """compute-sanitizer on the tests of kernels, all at once."""
    if check.args.doubles:
        return
    tool = check.which('compute-sanitizer')
    tests = [test for test in list_tests(check) if matches(test[0], KERNEL_TESTS)]
    jobs = [(kind, test) for kind in ('memcheck', 'racecheck') for test in tests]
    with concurrent.futures.ThreadPoolExecutor(max(1, len(jobs))) as pool:
        for name, status, seconds, more in pool.map(
                lambda job: sanitize_one(check, tool, *job), jobs):
            check.add('sanitizer', name, status, seconds, **more)


# Name, seconds, arguments of m2n_perf on a GPU.
SHAPE = ['--tokens', '128', '--row-bytes', '14336', '--top-k', '8', '--experts', '256']
THREADS = ['moe', '--memory', 'cuda', '--classic', '--threads', '-M', '8', '-N', '8', *SHAPE]
PERF = (
    ('kernel', 60, ['kernel', '--memory', 'cuda', '--iters', '50']),
    ('moe_threads', 60, [*THREADS, '--iters', '300', '--compare', 'memcpy,nccl']),
    ('moe_threads_graph', 60, [*THREADS, '--iters', '300', '--graph', '--compare', 'memcpy']),
    ('moe_threads_4x4', 45, ['moe', '--memory', 'cuda', '--threads', '-M', '4', '-N', '4', *SHAPE,
                             '--iters', '200', '--compare', 'memcpy']),
    ('moe_threads_fp8_graph', 45, [*THREADS, '--row-bytes', '7168', '--cast', 'fp8', '--iters',
                                   '200', '--graph']),
    ('moe_threads_dedup', 45, [*THREADS, '--dedup', '--iters', '200']),
    ('moe_one', 30, ['moe', '--memory', 'cuda', '--classic', '-M', '1', '-N', '1', *SHAPE,
                     '--iters', '300', '--compare', 'memcpy']),
    ('moe_processes', 60, ['moe', '--memory', 'cuda', '-M', '2', '-N', '2', *SHAPE, '--iters',
                           '40', '--compare', 'memcpy,nccl']),
    ('moe_processes_graph', 45, ['moe', '--memory', 'cuda', '--classic', '-M', '4', '-N', '4',
                                 *SHAPE, '--iters', '40', '--graph']),
    ('moe_nccl', 60, ['moe', '--memory', 'cuda', '--backend', 'nccl', '-M', '2', '-N', '2', *SHAPE,
                      '--iters', '20']),
)
SMALL = ['--tokens', '6', '--row-bytes', '96', '--top-k', '3', '--experts', '6', '--iters', '4',
         '--warmup', '1', '--reps', '2', '--depth', '2', '--no-pin']
PERF_DOUBLES = (
    ('kernel', 60, ['kernel', '--memory', 'cuda', *SMALL]),
    ('moe_threads', 60, ['moe', '--memory', 'cuda', '--classic', '--threads', '-M', '3', '-N', '3',
                         *SMALL, '--compare', 'memcpy,nccl']),
    ('moe_threads_graph', 60, ['moe', '--memory', 'cuda', '--classic', '--threads', '-M', '2',
                               '-N', '2', *SMALL, '--graph', '--compare', 'memcpy']),
    ('moe_processes', 60, ['moe', '--memory', 'cuda', '-M', '2', '-N', '1', *SMALL]),
)


def measure(check):
    program = os.path.join(check.build, 'perftest', 'm2n_perf')
    env = {}
    if check.args.doubles:
        env['LD_LIBRARY_PATH'] = os.path.join(check.build, 'tests', 'doubles')
        env['M2N_DOUBLE_NCCL_VERSION'] = '23007'  # threads may share a GPU
    for name, limit, arguments in PERF_DOUBLES if check.args.doubles else PERF:
        if name == 'moe_nccl' and any('libnccl' in line for line in check.missing):
            check.add('perf', name, 'skipped', 0, reason='no libnccl.so.2')
            continue
        path = os.path.join(check.out, '.case.json')
        status, output, seconds = check.run(
            [program, *arguments, '--timeout', '20', '--format', 'json', '--output', path], limit,
            env)
        check.log('tests.log', f'== m2n_perf {" ".join(arguments)}\n{output}== status {status}\n')
        more = {'command': 'm2n_perf ' + ' '.join(arguments)}
        try:
            with open(path, encoding='utf-8') as file:
                more['result'] = json.load(file)
            os.remove(path)
        except (OSError, ValueError):
            pass
        good = status == 0 and 'result' in more and all(
            case.get('verified', True) and case.get('staged_bytes', 0) == 0
            for case in more['result']['cases'])
        if not good:
            more['reason'] = last_words(output)
        check.add('perf', name, 'passed' if good else 'failed', seconds, **more)


def describe(check):
    """What the figures belong to."""
    env = {}
    if check.args.doubles:
        env['LD_LIBRARY_PATH'] = os.path.join(check.build, 'tests', 'doubles')
    status, output, _ = check.run([os.path.join(check.build, 'perftest', 'm2n_info'), '--json'],
                                  30, env)
    check.log('tests.log', f'== m2n_info --json\n{output}')
    info = {}
    if '{' in output:
        try:
            info = json.loads(output[output.index('{'):output.rindex('}') + 1])
        except ValueError:
            status = 1
    gpu = info.get('gpu') or {}
    usable = [row for row in gpu.get('devices', []) if not row.get('error')
              and not row.get('kernels_error')]
    check.add('machine', 'm2n_info', 'passed' if status == 0 and usable else 'failed', 0,
              **({} if usable else {'reason': gpu.get('error') or 'no GPU that can be used: '
                                    + json.dumps(gpu.get('devices', []))}))
    smi = ''
    if not check.args.doubles and check.which('nvidia-smi'):
        smi = check.run(['nvidia-smi', '--query-gpu=name,driver_version,clocks.sm,clocks.mem,'
                         'power.limit,mig.mode.current', '--format=csv,noheader'], 20)[1].strip()
    return {'gpu': gpu, 'backends': info.get('backends', []), 'nvidia_smi': smi,
            'cores': os.cpu_count()}


def finish(check, machine):
    result = {'schema': 'gpu_check/1', 'commit': commit_of(check),
              'date': datetime.datetime.now(datetime.timezone.utc).strftime('%Y-%m-%dT%H:%M:%SZ'),
              'doubles': check.args.doubles, 'seconds': round(time.monotonic() - check.began),
              'missing': check.missing, 'machine': machine, 'cases': check.cases,
              'total': [check.passed, check.failed, check.skipped]}
    with open(os.path.join(check.out, 'results.json'), 'w', encoding='utf-8') as file:
        json.dump(result, file, indent=1)
        file.write('\n')
    with open(os.path.join(check.out, 'summary.md'), 'w', encoding='utf-8') as file:
        write_summary(result, file)
    with open(os.path.join(check.out, 'summary.md'), encoding='utf-8') as file:
        print(file.read())
    print(f'{check.passed} passed, {check.failed} failed, {check.skipped} skipped')
    return 1 if check.failed or not check.passed else 0


def main():
    parser = argparse.ArgumentParser(prog='gpu-check.sh', description='Tries libm2n on a GPU')
    parser.add_argument('--doubles', action='store_true')
    parser.add_argument('--build')
    parser.add_argument('--commit')
    parser.add_argument('out', metavar='OUT')
    check = Check(parser.parse_args())
    os.makedirs(check.out, exist_ok=True)
    for name in ('summary.md', 'results.json', 'build.log', 'tests.log', 'sanitizer.log'):
        if os.path.exists(os.path.join(check.out, name)):
            os.remove(os.path.join(check.out, name))
    machine = {}
    if look(check) and build(check):
        machine = describe(check)
        check.end_part(MEASURED_BY)
        measure(check)
        check.end_part(TESTED_BY)
        run_tests(check)
        check.end_part(TOTAL_S)
        sanitize(check)
    else:
        check.add('build', 'all', 'failed', 0, reason='nothing could be built')
    return finish(check, machine)


if __name__ == '__main__':
    sys.exit(main())
