#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""m2n_info tells the truth, fails as its manual says, and its manual names all that it prints.

  test_info.py M2N_INFO VERSION SOURCE_ROOT [machine]

machine: only what depends on the machine.
"""
import ipaddress
import json
import os
import re
import resource
import subprocess
import sys

SECRET = 'correct horse'


def run(args, status=0, **variables):
    """(standard output, standard error) of m2n_info in an environment without other M2N_*."""
    env = {name: value for name, value in os.environ.items() if not name.startswith('M2N_')}
    done = subprocess.run([INFO] + args, env=dict(env, **variables), text=True, timeout=30,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    assert done.returncode == status, (args, done)
    return done.stdout, done.stderr


def options_of(args=(), **variables):
    """The options by name."""
    return {row['name']: row
            for row in json.loads(run([*args, '--json'], **variables)[0])['options']}


def names_in_source():
    """The names in the option table, as a reader of the file would find them."""
    path = os.path.join(ROOT, 'libm2n', 'util', 'option_list.h')
    with open(path, encoding='utf-8') as text:
        return set(re.findall(r'^\tX\((\w+),', text.read(), re.M))


def check_plain():
    """Nothing set: all is at its default, nothing on standard error."""
    out, err = run([])
    assert err == '' and out.startswith(f'libm2n {VERSION}, wire version '), (out, err)
    info = json.loads(run(['--json'])[0])
    assert info['schema'] == 'm2n_info 1' and info['version'] == VERSION
    assert info['error'] is None and info['launcher']['error'] is None
    assert len([row for row in info['kernels'] if row['chosen'] and row['usable']]) == 1
    assert {'self', 'shm'} <= {row['name'] for row in info['backends'] if row['usable']}
    assert info['processor']['usable'] == len(os.sched_getaffinity(0))
    options = options_of()
    assert set(options) == names_in_source()
    for row in options.values():
        assert row['origin'] == 'default' and row['value'] == row['default'], row


def check_values():
    """Each default given as text is the same value; origin and text form follow."""
    for name, row in options_of().items():
        again = options_of(**{'M2N_' + name: row['default']})[name]
        assert again['origin'] == 'environment' and again['value'] == row['default'], again
    assert options_of(M2N_TIMEOUT='90000ms')['TIMEOUT']['value'] == '90s'
    assert 'M2N_TIMEOUT=2m  (environment)\n' in run(['-c'], M2N_TIMEOUT='120s')[0]
    backend = options_of(['--backend', 'self'])['BACKEND']
    assert (backend['value'], backend['origin']) == ('self', 'params')
    kernels = json.loads(run(['--json'], M2N_KERNELS='scalar')[0])['kernels']
    assert [row['name'] for row in kernels if row['chosen']] == ['scalar']


def check_failures():
    """The status, the reason on standard error, and what can be known all the same."""
    out, err = run(['--config'], 1, M2N_TIMEOUT='30')
    assert '"30"' in err and '1ms..1h' in err and 'M2N_TIMEOUT\n' in out, (out, err)
    out, err = run(['--json'], 1, M2N_BACKEND='nonesuch')
    info = json.loads(out)
    assert 'nonesuch' in err and 'nonesuch' in info['error'] and info['backends'] == []
    assert {row['value'] for row in info['options']} == {None}
    run(['extra'], 2)
    run(['--nonesuch'], 2)
    _, err = run([], M2N_TIMOUT='1s')
    assert 'M2N_TIMOUT' in err and 'M2N_TIMEOUT' in err, err
    with open('/dev/full', 'w', encoding='utf-8') as full:
        assert subprocess.run([INFO], stdout=full, stderr=subprocess.DEVNULL, timeout=30,
                              check=False).returncode == 1


def check_secret():
    """In no form."""
    for args in ([], ['-c'], ['--json']):
        out, err = run(args, M2N_SECRET=SECRET)
        assert SECRET not in out + err
    assert options_of(M2N_SECRET=SECRET)['SECRET']['value'] == '***'


def check_launcher():
    """A launcher's variables are seen, and named when they cannot be read."""
    launcher = json.loads(run(['--json'], M2N_RANK='1', M2N_SIZE='3')[0])['launcher']
    assert (launcher['name'], launcher['rank'], launcher['n_ranks']) == ('m2n', 1, 3), launcher
    launcher = json.loads(run(['--json'], RANK='1', WORLD_SIZE='x')[0])['launcher']
    assert 'WORLD_SIZE' in launcher['error'], launcher


def members(value):
    """All names of members in a JSON value."""
    if isinstance(value, dict):
        return set(value) | {name for inner in value.values() for name in members(inner)}
    if isinstance(value, list):
        return {name for inner in value for name in members(inner)}
    return set()


def read(*path):
    """A file of sysfs; '' when there is none."""
    try:
        with open(os.path.join('/sys/class', *path), encoding='ascii') as text:
            return text.read().strip()
    except OSError:
        return ''


def ports_of_machine():
    """The RDMA ports as a reader of sysfs finds them: name, port, state and GIDs."""
    root = '/sys/class/infiniband'
    found = []
    for name in sorted(os.listdir(root)) if os.path.isdir(root) else ():
        for port in sorted(os.listdir(os.path.join(root, name, 'ports')), key=int):
            at = ('infiniband', name, 'ports', port)
            indexes = sorted(map(int, os.listdir(os.path.join('/sys/class', *at, 'gids'))))
            gids = [(i, ipaddress.IPv6Address(read(*at, 'gids', str(i)))) for i in indexes]
            found.append((name, int(port), read(*at, 'state').split(': ')[1],
                          [(i, gid.ipv4_mapped or gid, read(*at, 'gid_attrs', 'types', str(i)))
                           for i, gid in gids if int(gid)]))
    return found


def check_ports():
    """Ports and their addresses are the machine's."""
    info = json.loads(run(['--json'])[0])
    shown = [(row['name'], row['port'], row['state'],
              [(gid['index'], ipaddress.ip_address(gid['address']), gid['type'])
               for gid in row['gids']]) for row in info['rdma_ports']]
    assert shown == ports_of_machine(), (shown, ports_of_machine())
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    assert info['memory']['locked_limit_bytes'] == \
        (None if limit == resource.RLIM_INFINITY else limit)
    print(len(shown), 'RDMA ports')


def check_choice():
    """Each backend is used, with what it chose, or there is a reason; the info line has both."""
    backends = json.loads(run(['--json'])[0])['backends']
    _, err = run([], M2N_LOG='info')
    line = [text for text in err.splitlines() if 'info: kernels' in text]
    assert len(line) == 1, err
    for row in backends:
        assert row['usable'] == (row['reason'] == ''), row
        said = row['name'] if row['usable'] else f"{row['name']}: not used, {row['reason']}"
        assert said in line[0], (said, line[0])
        for note in row['notes']:
            assert f"info: {row['name']}: {note}\n" in err, (note, err)
    verbs = [row for row in backends if row['name'] == 'verbs' and row['usable']]
    active = [name for name, _, state, _ in ports_of_machine() if state == 'ACTIVE']
    for row in verbs:
        assert any(f'rail 0 is {name}:' in row['notes'][0] for name in active), (row, active)
    if not active:
        assert not verbs
        _, err = run(['--backend', 'verbs'], 1)
        assert 'verbs' in err and len(err) > 60, err
    names = {row['name']: row for row in json.loads(run(['-jb', 'self,shm'])[0])['backends']}
    assert names['self']['usable'] and names['shm']['usable']
    assert names['verbs']['reason'] == "BACKEND is 'self,shm'", names['verbs']
    assert 'nonesuch' in run(['--backend', 'shm,nonesuch'], 1)[1]


def check_manual():
    """The page names every member of the JSON object and every option of the command line."""
    with open(os.path.join(ROOT, 'docs', 'man', 'm2n_info.1'), encoding='utf-8') as text:
        page = text.read()
    named = set(re.findall(r'\w+', ' '.join(re.findall(r'^\.(?:It )?Cm (.*)$', page, re.M))))
    assert members(json.loads(run(['--json'])[0])) <= named
    flags = set(re.findall(r'--(\w+)', run(['--help'])[0]))
    assert len(flags) == 6 and flags <= set(re.findall(r'Fl Fl (\w+)', page)), flags


if __name__ == '__main__':
    INFO, VERSION, ROOT = sys.argv[1:4]
    check_ports()
    check_choice()
    if sys.argv[4:] != ['machine']:
        check_plain()
        check_values()
        check_failures()
        check_secret()
        check_launcher()
        check_manual()
